"""Plots of a comparison: differences case by case, and how stable the order of the models is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pipeline.evaluate.metrics import METRICS
from pipeline.evaluate.significance import PairedTest, Ranking
from pipeline.report.plots import LIGHT, WIDTH_INCHES, figure_png, panel_grid, plain_text, style_axes

_DPI = 150
_MOST_PIXELS = 60_000  # in height; PNG writers give up at 65,536


def difference_plot(tests: Sequence[PairedTest], metric: str, caution: str = "") -> bytes:
    """Mean differences of one metric with their intervals, a row per organ, a panel per pair of models.

    PNG on white. Significant differences (p_holm below 0.05) are filled, others hollow. ``caution`` stands above.
    """
    shown = [test for test in tests if test.metric == metric and test.difference is not None]
    pairs = list(dict.fromkeys((test.one, test.other) for test in shown))
    organs = list(dict.fromkeys(test.organ for test in shown))
    height = 1.1 + 0.3 * max(1, len(organs))
    figure = Figure(figsize=(WIDTH_INCHES, height * max(1, len(pairs))), layout="constrained")
    _set_caution(figure, caution)
    panels = figure.subplots(max(1, len(pairs)), 1, squeeze=False)[:, 0]
    side = "right" if METRICS[metric].higher else "left"
    for axes, (one, other) in zip(panels, pairs, strict=False):
        for test in shown:
            if (test.one, test.other) == (one, other):
                low, high = test.interval_95 or (test.difference, test.difference)
                row = organs.index(test.organ)
                sure = test.p_holm is not None and test.p_holm < 0.05
                axes.hlines(row, low, high, color=LIGHT.mark, linewidth=1.6)
                face = LIGHT.mark if sure else "white"
                axes.plot(test.difference, row, "o", color=LIGHT.mark, markerfacecolor=face, markersize=6, zorder=3)
        axes.axvline(0, color=LIGHT.text, linewidth=0.8)
        axes.set_yticks(range(len(organs)), [plain_text(name) for name in organs])
        axes.set_ylim(len(organs) - 0.4, -0.6)
        axes.set_xlabel(plain_text(f"{METRICS[metric].title}: {one} minus {other}; {one} is better on the {side}", 110))
        style_axes(axes, LIGHT, grid="x")
    return figure_png(figure, min(_DPI, int(_MOST_PIXELS / figure.get_figheight())), transparent=False)


def rank_plot(ranks: Sequence[Ranking], caution: str = "") -> bytes:
    """How often each model takes each place when the cases are drawn again, a panel per metric; PNG on white.

    ``caution`` stands above.
    """
    count = max(1, len(ranks))
    columns = min(3, count)
    lines = -(-count // columns)
    largest = max((len(ranking.models) for ranking in ranks), default=1)
    figure = Figure(figsize=(WIDTH_INCHES, lines * (1.2 + 0.4 * largest)), layout="constrained")
    _set_caution(figure, caution)
    panels = panel_grid(figure, len(ranks), columns)
    for axes, ranking in zip(panels, ranks, strict=False):
        shares = np.array(ranking.shares)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, place), share in np.ndenumerate(shares):
            if share >= 0.005:
                color = "white" if share > 0.6 else LIGHT.text
                axes.text(place, row, f"{share:.0%}", ha="center", va="center", color=color, fontsize=8)
        axes.set_yticks(range(len(ranking.models)), [plain_text(name, 18) for name in ranking.models])
        axes.set_xticks(range(len(ranking.models)), [str(place + 1) for place in range(len(ranking.models))])
        axes.set_title(plain_text(METRICS[ranking.metric].title), fontsize=10, color=LIGHT.text)
        style_axes(axes, LIGHT, grid="x")
        axes.grid(visible=False)
    return figure_png(figure, _DPI, transparent=False)


def _set_caution(figure: Figure, caution: str) -> None:
    if caution:
        figure.suptitle(plain_text(caution, 110), fontsize=8, color=LIGHT.text)
