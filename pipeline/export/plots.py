"""Plots of an evaluation: the distribution of a metric per organ, and Dice against the organ's volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.evaluate import Row
from pipeline.evaluate.metrics import METRICS, Metric
from pipeline.export.drawing import box, even_spread, log_ticks, plain_text, style_axes
from pipeline.export.palette import Theme, figure_png

__all__ = ["dice_against_volume", "metric_boxplots"]

_DPI = 150
_WIDTH_INCHES = 9.6


def metric_boxplots(rows: Sequence[Row], theme: Theme, metric: Metric = METRICS["dice"]) -> bytes:
    """Box plot of a metric per organ, one point per case, organs in the order of their labels from the top.

    Boxes span the quartiles and whiskers 1.5 times their distance (Tukey 1977); every single case is a point, so that
    there are no outlier marks. Misses are crosses: at 0, or for distances at the diagonal of the image.

    Args:
        rows: Rows of an evaluation; those without a Dice are left out.
        theme: Colours.
        metric: What to draw.

    Returns:
        PNG with a transparent background; an empty frame if there is nothing to draw.
    """
    scored = [row for row in rows if row.counts and np.isfinite(row.penalised(metric.column))]
    names = [name for _, name in sorted({(row.label, row.name) for row in scored})]
    figure = Figure(
        figsize=(_WIDTH_INCHES, 1.0 + (0.42 if len(names) <= 20 else 0.27) * max(1, len(names))), layout="constrained"
    )
    axes = figure.add_subplot()
    for position, name in enumerate(names, start=1):
        group = [row for row in scored if row.name == name]
        values = [row.penalised(metric.column) for row in group]
        box(axes, values, position, theme)
        _points(axes, values, position + even_spread(len(group)), group, theme)
    axes.set_yticks(range(1, len(names) + 1), [plain_text(name) for name in names])
    axes.set_ylim(len(names) + 0.6, 0.4)
    if metric.is_distance:
        axes.set_xlim(left=0)
    else:
        axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"{metric.title} (mm)" if metric.is_distance else metric.title)
    style_axes(axes, theme, grid="x")
    return figure_png(figure, _DPI)


def dice_against_volume(rows: Sequence[Row], theme: Theme) -> bytes:
    """Dice of every organ and case against the organ's volume in the reference, on a logarithmic axis.

    Args:
        rows: Rows of an evaluation; those without a Dice or without the organ in the reference are left out.
        theme: Colours.

    Returns:
        PNG with a transparent background; an empty frame if there is nothing to draw.
    """
    scored = [row for row in rows if row.counts and row.volume_reference_ml > 0]
    figure = Figure(figsize=(_WIDTH_INCHES, 3.8), layout="constrained")
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
