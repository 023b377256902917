"""Planes through a volume in RAS order: axes true to scale, letters for the patient's sides, outlines of masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

__all__ = ["PLANES", "Plane", "draw_outline", "frame_panel", "plane_slice", "shown_planes", "write_on"]

_Horizontal = Literal["left", "center", "right"]
_Vertical = Literal["top", "center", "bottom"]


class Plane(NamedTuple):
    """How a volume in RAS order is cut and drawn.

    Args:
        name: Of the plane.
        right: Axis drawn to the right.
        up: Axis drawn upwards.
        cut: Axis cut.
        letters: Sides of the patient at the left, right, lower and upper edge.
    """

    name: str
    right: int
    up: int
    cut: int
    letters: str


PLANES = (Plane("Axial", 0, 1, 2, "LRPA"), Plane("Coronal", 0, 2, 1, "LRIS"), Plane("Sagittal", 1, 2, 0, "PAIS"))
"""The patient's left is on the left."""


def shown_planes(shape: Sequence[int]) -> tuple[Plane, ...]:
    """The planes of a volume that are more than a line; the axial one where all are."""
    return tuple(plane for plane in PLANES if min(shape[plane.right], shape[plane.up]) > 1) or PLANES[:1]


def plane_slice(volume: NDArray[Any], cut: int, index: int) -> NDArray[Any]:
    """One plane of a volume (I, J, K), rows upwards and columns to the right."""
    plane: NDArray[Any] = np.take(volume, index, axis=cut).T
    return plane


def draw_outline(
    axes: Axes, mask: NDArray[np.bool_], width_mm: float, height_mm: float, color: str, linewidth: float = 1.3
) -> None:
    """Draw the outline of a mask.

    Args:
        axes: Panel in mm, its origin in the lower left corner.
        mask: (rows, columns), rows upwards; nothing is drawn if it is empty.
        width_mm: Of a pixel.
        height_mm: Of a pixel.
        color: Of the line.
        linewidth: In points.
    """
    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(np.float64)
    x = (np.arange(padded.shape[1]) - 0.5) * width_mm
    y = (np.arange(padded.shape[0]) - 0.5) * height_mm
    axes.contour(x, y, padded, levels=[0.5], colors=[color], linewidths=linewidth)


def frame_panel(axes: Axes, size_mm: tuple[float, float], letters: str, fontsize: float = 9) -> None:
    """No ticks, true to scale; a letter in the middle of each edge says where the patient's sides are."""
    axes.set(xlim=(0, size_mm[0]), ylim=(0, size_mm[1]), xticks=[], yticks=[], aspect="equal", anchor="C")
    axes.set_facecolor("black")
    places: tuple[tuple[float, float, _Horizontal, _Vertical], ...] = (
        (0.015, 0.5, "left", "center"),
        (0.985, 0.5, "right", "center"),
        (0.5, 0.02, "center", "bottom"),
        (0.5, 0.98, "center", "top"),
    )
    for letter, place in zip(letters, places, strict=bool(letters)):
        write_on(axes, place[0], place[1], letter, place[2], place[3], fontsize)


def write_on(
    axes: Axes, x: float, y: float, text: str, horizontal: _Horizontal, vertical: _Vertical, fontsize: float = 9
) -> None:
    """White text with a black rim, readable on air and on bone; x and y are fractions of the panel."""
    rim = [withStroke(linewidth=2.5, foreground="black")]
    axes.text(
        x,
        y,
        text,
        color="white",
        fontsize=fontsize,
        ha=horizontal,
        va=vertical,
        transform=axes.transAxes,
        path_effects=rim,
    )
