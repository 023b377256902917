"""What plots share: boxes in rows, the look of axes, names that Matplotlib shows as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from pipeline.export.palette import Theme

__all__ = ["box", "even_spread", "log_ticks", "plain_text", "style_axes"]


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


def style_axes(axes: Axes, theme: Theme, grid: str) -> None:
    """Grid lines along ``x``, ``y`` or ``both``, quiet ticks, no frame."""
    axes.set_axisbelow(True)
    axes.grid(axis="both" if grid == "both" else "y" if grid == "y" else "x", color=theme.grid, linewidth=0.8)
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
