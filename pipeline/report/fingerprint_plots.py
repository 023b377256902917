"""Plots of a fingerprint; none draws more than a bounded number of marks, however many cases there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.report.plots import (
    WIDTH_INCHES,
    Theme,
    box,
    even_spread,
    figure_png,
    log_ticks,
    name_rows,
    panel_grid,
    plain_text,
    rows_figure,
    style_axes,
)

MOST_CHANNELS = 12
"""Channels in one plot."""

MOST_ROWS = 120
"""Organs in one plot: of more, the largest and the smallest are drawn."""

_DPI = 130
_ALL_POINTS = 40  # cases up to which every one is a point
_FAR_POINTS = 10  # else points beyond either whisker
_FAR_RATIO = 20.0  # ratios of sides beyond this are drawn there: the axis is for all pairs
_RATIO_TICKS = (1.25, 1.5, 2.0, 3.0, 5.0)
_LOG_RATIO = 20.0  # values further apart than this need a logarithmic axis
_CROWDED_PERCENT = 40.0  # a bin with more than this, e.g. where cases differ in scale, needs one as well


def axis_histograms(
    values: NDArray[np.float64], inner: NDArray[np.float64] | None, axes_names: Sequence[str], unit: str, theme: Theme
) -> bytes:
    """How a measure (cases, 3) in ``mm`` or whole ``voxels`` is spread over the cases, one panel per axis, as a PNG.

    ``inner``, e.g. shapes after cropping, is filled; ``values`` are then outlines around it.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 2.5), layout="constrained")
    for index, axes in enumerate(figure.subplots(1, 3)):
        columns = [values[:, index]] if inner is None else [inner[:, index], values[:, index]]
        edges = _edges(np.concatenate(columns), whole=unit == "voxels")
        axes.hist(columns[0], edges, color=theme.mark, alpha=0.75)
        if len(columns) > 1:
            axes.hist(columns[1], edges, histtype="step", color=theme.accent, linewidth=1.6)
        axes.set_title(axes_names[index], fontsize=9.5, color=theme.text, loc="left")
        axes.set_xlabel(unit)
        axes.set_ylabel("cases" if index == 0 else "")
        few = np.unique(np.concatenate(columns))
        if len(few) <= 2:
            axes.set_xticks(few, [f"{value:.4g}" for value in few])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=unit == "voxels"))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        style_axes(axes, theme, grid="y")
    return figure_png(figure, _DPI)


def intensity_histograms(channels: Mapping[str, Any], theme: Theme) -> bytes:
    """Histogram of foreground intensities of every channel, with mean (solid) and limits (dashed), as a PNG.

    Channels without a histogram, and all beyond the twelfth, are left out.
    """
    shown = [(name, entry) for name, entry in channels.items() if entry["histogram"]][:MOST_CHANNELS]
    across = min(2, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(WIDTH_INCHES, 2.7 * down), layout="constrained")
    for axes, (name, entry) in zip(panel_grid(figure, len(shown), across), shown, strict=True):
        found = entry["histogram"]
        edges = found["start"] + found["width"] * np.arange(len(found["counts"]) + 1)
        total = sum(found["counts"]) + found["below"] + found["above"]
        percent = 100 * np.array(found["counts"]) / total
        axes.stairs(percent, edges, fill=True, color=theme.mark, alpha=0.75)
        axes.axvline(entry["mean"], color=theme.accent, linewidth=1.6)
        for limit in (entry["percentile_00_5"], entry["percentile_99_5"]):
            axes.axvline(limit, color=theme.text, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_title(plain_text(name), fontsize=9.5, color=theme.text, loc="left")
        axes.set_xlabel("intensity")
        axes.set_ylabel("% of samples")
        axes.xaxis.set_major_locator(MaxNLocator(6 if across == 1 else 4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        if percent.max() > _CROWDED_PERCENT:  # else all other bins would be invisible
            axes.set_yscale("log")
            axes.set_ylim(bottom=max(percent[percent > 0].min() / 2, 1e-4))
            axes.yaxis.set_major_locator(LogLocator(numticks=5))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        style_axes(axes, theme, grid="y")
    return figure_png(figure, _DPI)


def volume_boxes(
    names: Sequence[str], volumes: Sequence[NDArray[np.float64]], shares: Sequence[float], theme: Theme
) -> bytes:
    """Box plot of organ volumes in ml, the largest on top, beside each organ's share of the foreground, as a PNG."""
    order = sorted(range(len(names)), key=lambda n: -float(np.median(volumes[n])))
    if len(order) > MOST_ROWS:
        order = [*order[: MOST_ROWS // 2], *order[-MOST_ROWS // 2 :]]
    figure = rows_figure(len(order))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1.3))
    _boxes(left, [volumes[n] for n in order], theme)
    left.set_xlabel("volume (ml)")
    name_rows(left, [names[n] for n in order], theme)
    percent = [100 * shares[n] for n in order]
    right.barh(range(1, len(order) + 1), percent, height=0.56, color=theme.mark, alpha=0.75)
    for row, value in enumerate(percent, start=1):
        text, look = f"{value:.2g} %" if value < 99.5 else "100 %", {"fontsize": 7.5, "color": theme.text}
        right.annotate(text, (value, row), (4, 0), textcoords="offset points", va="center", **look)
    right.set_xlim(0, 1.4 * max(percent))
    right.set_xticks([value for value in MaxNLocator(4).tick_values(0, max(percent)) if value <= 100])
    right.set_xlabel("% of all foreground")
    style_axes(right, theme, grid="x")
    right.tick_params(labelleft=False)
    return figure_png(figure, _DPI)


def side_ratios(names: Sequence[str], ratios: Sequence[NDArray[np.float64]], theme: Theme) -> bytes:
    """Box plot of left over right volumes on a logarithmic axis around 1, one row per pair, as a PNG."""
    names, ratios = names[:MOST_ROWS], [values.clip(1 / _FAR_RATIO, _FAR_RATIO) for values in ratios[:MOST_ROWS]]
    figure = rows_figure(len(names))
    axes = figure.add_subplot()
    axes.axvline(1.0, color=theme.text, linewidth=1.0)
    reach = 1.0
    for row, values in enumerate(ratios, start=1):
        _row(axes, values, row, theme, log=True)
        reach = max(reach, float(values.max()), 1.0 / float(values.min()))
    reach = max(1.25, reach**1.08)
    log_ticks(axes, 1.0 / reach, reach)
    if reach < _RATIO_TICKS[-1]:
        ticks = [tick for tick in _RATIO_TICKS if tick < reach]
        axes.set_xticks([*(1 / tick for tick in ticks), 1.0, *ticks])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}" if value < 1 else f"{value:g}"))
    axes.set_xlabel("left volume / right volume")
    name_rows(axes, names, theme)
    return figure_png(figure, _DPI)


def _edges(values: NDArray[np.float64], whole: bool) -> NDArray[np.float64]:
    """At most 31 bins; whole numbers lie in the middle of theirs."""
    low, high = float(values.min()), float(values.max())
    if whole:
        width = max(1.0, np.ceil((high - low + 1) / 30))
        few = max(0.0, 5 * width - (high - low)) // 2  # a single value is a bar, not a wall
        return np.asarray(np.arange(low - few - 0.5, high + few + width + 0.5, width))
    if high - low < 1e-3 * high:
        middle = (low + high) / 2
        return np.linspace(0.5 * middle, 1.5 * middle, 8)
    return np.linspace(low, high, 31)


def _boxes(axes: Axes, groups: Sequence[NDArray[np.float64]], theme: Theme) -> None:
    """Rows of boxes on an axis that fits all values."""
    low, high = min(float(group.min()) for group in groups), max(float(group.max()) for group in groups)
    log = high / low > _LOG_RATIO
    for row, values in enumerate(groups, start=1):
        _row(axes, values, row, theme, log=log)
    if log:
        log_ticks(axes, low / 1.3, high * 1.3)
    else:
        axes.set_xlim(0.0, 1.06 * high)


def _row(axes: Axes, values: NDArray[np.float64], row: int, theme: Theme, *, log: bool) -> None:
    """A box with all points of few cases, or of many cases those farthest beyond the whiskers."""
    start, stop = box(axes, values, row, theme, log=log)
    points = values
    if len(values) > _ALL_POINTS:
        ordered = np.sort(values)
        below, above = ordered < start * (1 - 1e-9), ordered > stop * (1 + 1e-9)  # ends are rounded by logarithms
        points = np.concatenate([ordered[below][:_FAR_POINTS], ordered[above][-_FAR_POINTS:]])
    axes.scatter(points, row + even_spread(len(points)), s=13, color=theme.mark, alpha=0.6, linewidths=0, zorder=3)
