"""Plots of an evaluation: the distribution of a metric per organ, Dice against volume, agreement of volumes.

Their colours stay apart for colour-blind readers, on light and on dark paper.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.evaluate.metrics import METRICS, Metric, Row

FALSE_POSITIVE = "#b6ff00"
FALSE_NEGATIVE = "#ff2d7e"
OTHER_ORGAN = "#7b4dff"
"""Kinds of errors, in no organ's colour. For all kinds of colour blindness they are at least 55 apart (CIELAB)."""

ERROR_COLORS: Mapping[str, str] = {
    "false negative": FALSE_NEGATIVE,
    "false positive": FALSE_POSITIVE,
    "taken for another organ": OTHER_ORGAN,
}
"""Kind of error → its colour."""


@dataclass(frozen=True)
class Theme:
    """Colours of a plot: text and axes, grid lines, boxes and points, and what deserves attention."""

    text: str
    grid: str
    mark: str
    accent: str


LIGHT = Theme(text="#3d4653", grid="#dfe4ea", mark="#0072b2", accent="#d55e00")
DARK = Theme(text="#c3ccd8", grid="#323b48", mark="#56b4e9", accent="#e69f00")


def figure_png(figure: Figure, dpi: int, *, transparent: bool = True) -> bytes:
    """Draw a figure without any window system or global state."""
    stream = io.BytesIO()
    # A canvas of its own instead of pyplot, whose global state would keep every figure in memory.
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", dpi=dpi, transparent=transparent, metadata={"Software": None})
    return stream.getvalue()


def png_uri(png: bytes) -> str:
    """A PNG as a ``data:`` URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


MOST_PANELS = 12
"""Organs drawn; of more those whose volumes agree least."""

_DPI = 150
WIDTH_INCHES = 9.6
"""Width of every plot."""

_COLUMNS = 3
_PANEL_INCHES = 2.5
_LIMITS = 1.96  # standard deviations, as in the table

# What plots share: boxes in rows, the look of axes, names that Matplotlib shows as they are.


def box(
    axes: Axes, values: Sequence[float] | NDArray[np.float64], position: float, theme: Theme, *, log: bool = False
) -> tuple[float, float]:
    """One horizontal box, drawn from bars and lines because the keyword for its direction differs between versions.

    It spans the quartiles, the whiskers reach 1.5 times their distance (Tukey 1977).

    Args:
        axes: Where to draw.
        values: At least one.
        position: Height of the middle.
        theme: Colours.
        log: Measure the distances in logarithms; values must be above 0.

    Returns:
        Ends of the whiskers.
    """
    scaled = np.sort(np.log(values) if log else np.asarray(values, np.float64))
    quartiles = np.percentile(scaled, [25, 50, 75])
    reach = 1.5 * (quartiles[2] - quartiles[0])
    inside = scaled[(scaled >= quartiles[0] - reach) & (scaled <= quartiles[2] + reach)]
    marks = np.array([min(inside[0], quartiles[0]), *quartiles, max(inside[-1], quartiles[2])])
    start, low, median, high, stop = (float(mark) for mark in (np.exp(marks) if log else marks))
    axes.hlines([position] * 2, [start, high], [low, stop], color=theme.mark, linewidth=1.1)
    axes.vlines([start, stop], position - 0.12, position + 0.12, color=theme.mark, linewidth=1.1)
    axes.barh(position, high - low, height=0.56, left=low, facecolor="none", edgecolor=theme.mark, linewidth=1.1)
    axes.vlines(median, position - 0.28, position + 0.28, color=theme.accent, linewidth=2.2, zorder=5)
    return start, stop


def rows_figure(rows: int) -> Figure:
    """A figure as high as its rows need."""
    height = 1.0 + (0.42 if rows <= 20 else 0.27) * max(1, rows)
    return Figure(figsize=(WIDTH_INCHES, height), layout="constrained")


def name_rows(axes: Axes, names: Sequence[str], theme: Theme) -> None:
    """Names of rows, the first at the top."""
    axes.set_yticks(range(1, len(names) + 1), [plain_text(name) for name in names])
    axes.set_ylim(len(names) + 0.6, 0.4)
    style_axes(axes, theme, grid="x")


def panel_grid(figure: Figure, count: int, columns: int) -> list[Axes]:
    """So many panels, row by row."""
    grid = figure.subplots(-(-max(1, count) // columns), columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    return list(grid[:count])


def even_spread(count: int) -> NDArray[np.float64]:
    """Offsets that keep points of one row apart: evenly spread, the same in every run."""
    fractions: NDArray[np.float64] = np.modf(0.5 + np.arange(count) * 0.61803)[0]
    return 0.36 * (fractions - 0.5)


def log_ticks(axes: Axes, low: float, high: float) -> None:
    """A logarithmic x axis with plain numbers: 1, 2, 5, 10, … or, over many decades, powers of ten."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = np.log10(high / low)
    if decades < 1:  # too few of 1, 2, 5 would be in sight
        axes.xaxis.set_major_locator(FixedLocator(_round_steps(low, high)))
    else:
        subs = (1.0, 2.0, 5.0) if decades < 3.5 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))


def plain_text(name: str, longest: int = 36) -> str:
    """A name on one line, without Matplotlib's formulas and cut where it is long."""
    words = " ".join(name.split())
    return (words if len(words) <= longest else words[: longest - 1] + "…").replace("$", r"\$")


def style_axes(axes: Axes, theme: Theme, grid: Literal["x", "y", "both"]) -> None:
    """Grid lines along ``x``, ``y`` or ``both``, quiet ticks, no frame."""
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=theme.grid, linewidth=0.8)
    axes.tick_params(colors=theme.text, length=0, labelsize=9)
    axes.xaxis.label.set_color(theme.text)
    axes.yaxis.label.set_color(theme.text)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _round_steps(low: float, high: float) -> list[float]:
    """About five round numbers, evenly spaced."""
    rough = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= rough)
    return [float(value) for value in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


# Scores per organ.


def metric_boxplots(rows: Sequence[Row], theme: Theme, metric: Metric = METRICS["dice"]) -> bytes:
    """Box plot of a metric per organ, one point per case, organs in the order of their labels from the top.

    Boxes span the quartiles and whiskers 1.5 times their distance (Tukey 1977); every single case is a point, so that
    there are no outlier marks. Misses are crosses: at 0, or for distances at the diagonal of the image. The PNG has a
    transparent background, and an empty frame if there is nothing to draw.
    """
    scored = [row for row in rows if row.counts and np.isfinite(row.entry(metric.column))]
    names = [name for _, name in sorted({(row.label, row.name) for row in scored})]
    figure = rows_figure(len(names))
    axes = figure.add_subplot()
    for position, name in enumerate(names, start=1):
        group = [row for row in scored if row.name == name]
        values = [row.entry(metric.column) for row in group]
        box(axes, values, position, theme)
        _points(axes, values, position + even_spread(len(group)), group, theme)
    if metric.is_distance:
        axes.set_xlim(left=0)
    else:
        axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"{metric.title} (mm)" if metric.is_distance else metric.title)
    name_rows(axes, names, theme)
    return figure_png(figure, _DPI)


def dice_against_volume(rows: Sequence[Row], theme: Theme) -> bytes:
    """Dice of every organ and case against the organ's volume in the reference, on a logarithmic axis, as a PNG."""
    scored = [row for row in rows if row.counts and row.volume_reference_ml > 0]
    figure = Figure(figsize=(WIDTH_INCHES, 3.8), layout="constrained")
    axes = figure.add_subplot()
    if scored:
        volumes = [row.volume_reference_ml for row in scored]
        _points(axes, volumes, np.array([row.dice for row in scored]), scored, theme)
        log_ticks(axes, min(volumes) / 1.6, max(volumes) * 1.6)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("Volume in the reference (mL)")
    axes.set_ylabel("Dice")
    style_axes(axes, theme, grid="both")
    return figure_png(figure, _DPI)


def _points(axes: Axes, x: Sequence[float], y: NDArray[np.float64], rows: Sequence[Row], theme: Theme) -> None:
    """Dots for organs that were found, crosses for those that were not."""
    found = np.array([row.status == "scored" for row in rows])
    across = np.asarray(x, dtype=np.float64)
    axes.scatter(across[found], y[found], s=15, color=theme.mark, alpha=0.6, linewidths=0, zorder=3)
    axes.scatter(
        across[~found], y[~found], s=26, color=theme.accent, marker="x", linewidths=1.4, zorder=4, clip_on=False
    )


# Agreement of predicted and reference volumes, drawn as Bland and Altman did.


def agreement_panels(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Organs to draw and their rows, in the order of their labels; of many organs those whose volumes agree least."""
    organs = {name: label for label, name in sorted({(row.label, row.name) for row in rows if row.counts})}
    groups = {name: [row for row in rows if row.counts and row.name == name] for name in organs}

    def width(name: str) -> float:
        volume = float(np.mean([row.volume_reference_ml for row in groups[name]]))
        return float(np.sqrt(np.mean([row.volume_bias_ml**2 for row in groups[name]]))) / max(volume, 1e-9)

    kept = sorted(groups, key=width, reverse=True)[:MOST_PANELS]
    return [(name, group) for name, group in groups.items() if name in kept]


def volume_agreement(rows: Sequence[Row], theme: Theme) -> bytes:
    """Predicted minus reference volume against their mean, a panel per organ, as a PNG.

    The solid line is the bias, the dashed ones lie 1.96 standard deviations on either side of it: 95 % of the
    differences are expected between them. A case without a usable prediction counts as 0 mL.

    Reference: Bland and Altman, Statistical methods for assessing agreement, Lancet 1986.
    """
    panels = agreement_panels(rows)
    columns = min(_COLUMNS, max(1, len(panels)))
    lines = -(-max(1, len(panels)) // columns)
    figure = Figure(figsize=(WIDTH_INCHES, 0.4 + lines * _PANEL_INCHES), layout="constrained")
    for axes, (name, group) in zip(panel_grid(figure, len(panels), columns), panels, strict=False):
        _draw(axes, name, group, theme)
    figure.supxlabel("Mean of reference and prediction (mL)", fontsize=10, color=theme.text)
    figure.supylabel("Prediction minus reference (mL)", fontsize=10, color=theme.text)
    return figure_png(figure, _DPI)


def _draw(axes: Axes, name: str, rows: Sequence[Row], theme: Theme) -> None:
    bias = np.array([row.volume_bias_ml for row in rows])
    means = np.array([row.volume_reference_ml for row in rows]) + bias / 2
    found = np.array([row.status == "scored" for row in rows])
    axes.axhline(0, color=theme.text, linewidth=0.6, alpha=0.6)
    axes.axhline(float(bias.mean()), color=theme.accent, linewidth=1.6)
    if len(bias) > 1:
        for side in (-_LIMITS, _LIMITS):
            axes.axhline(float(bias.mean() + side * bias.std(ddof=1)), color=theme.accent, linewidth=1, linestyle="--")
    axes.scatter(means[found], bias[found], s=15, color=theme.mark, alpha=0.7, linewidths=0, zorder=3)
    axes.scatter(means[~found], bias[~found], s=26, color=theme.accent, marker="x", linewidths=1.4, zorder=4)
    axes.set_title(plain_text(name, 28), fontsize=9.5, color=theme.text)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(0.12, 0.18)
    style_axes(axes, theme, grid="both")
