"""Agreement of predicted and reference volumes, drawn as Bland and Altman did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.evaluate import Row
from pipeline.export.drawing import plain_text, style_axes
from pipeline.export.palette import Theme, figure_png

__all__ = ["MOST_PANELS", "agreement_panels", "volume_agreement"]

MOST_PANELS = 12
"""Organs drawn; of more those whose volumes agree least."""

_DPI = 150
_WIDTH_INCHES = 9.6
_COLUMNS = 3
_PANEL_INCHES = 2.5
_LIMITS = 1.96  # standard deviations, as in the table


def agreement_panels(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Organs to draw and their rows, in the order of their labels.

    Args:
        rows: Rows of an evaluation. Of more organs than fit, those with the widest differences for their volume stay.
    """
    organs = {name: label for label, name in sorted({(row.label, row.name) for row in rows if row.counts})}
    groups = {name: [row for row in rows if row.counts and row.name == name] for name in organs}

    def width(name: str) -> float:
        volume = float(np.mean([row.volume_reference_ml for row in groups[name]]))
        return float(np.sqrt(np.mean([row.volume_bias_ml**2 for row in groups[name]]))) / max(volume, 1e-9)

    kept = sorted(groups, key=width, reverse=True)[:MOST_PANELS]
    return [(name, group) for name, group in groups.items() if name in kept]


def volume_agreement(rows: Sequence[Row], theme: Theme) -> bytes:
    """Predicted minus reference volume against their mean, a panel per organ.

    The solid line is the bias, the dashed ones lie 1.96 standard deviations on either side of it: 95 % of the
    differences are expected between them. A case without a usable prediction counts as 0 mL.

    Args:
        rows: Rows of an evaluation; those without a Dice are left out.
        theme: Colours.

    Returns:
        PNG with a transparent background; an empty frame if there is nothing to draw.

    Reference: Bland and Altman, Statistical methods for assessing agreement, Lancet 1986.
    """
    panels = agreement_panels(rows)
    columns = min(_COLUMNS, max(1, len(panels)))
    lines = -(-max(1, len(panels)) // columns)
    figure = Figure(figsize=(_WIDTH_INCHES, 0.4 + lines * _PANEL_INCHES), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, group) in zip(grid, panels, strict=False):
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
