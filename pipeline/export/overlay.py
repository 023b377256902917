"""Three planes through a case: reference as outlines and prediction as fill over the image; below them the errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.core import Image, LabelMap, LabelTable, require_same_grid
from pipeline.export.palette import ERROR_COLORS, figure_png, organ_color
from pipeline.export.planes import Plane, draw_outline, frame_panel, plane_slice, shown_planes, write_on
from pipeline.export.scene import CT_WINDOW_HU, Scene, build_scene, error_masks

__all__ = ["Overlay", "case_overlay"]

_DPI = 120
_PANEL_INCHES = 3.2


@dataclass(frozen=True, eq=False)
class Overlay:
    """A drawn case.

    Args:
        png: The picture.
        planes: Names of the planes shown, left to right.
        organs: (name, colour) of the organs seen on them.
        window: Intensities shown as black and white, in words such as ``-160 to 240 HU``; empty without an image.
        picture: Whether the case is a picture, shown as it is.
    """

    png: bytes
    planes: tuple[str, ...]
    organs: tuple[tuple[str, str], ...]
    window: str
    picture: bool = False


def case_overlay(
    reference: LabelMap,
    prediction: LabelMap,
    labels: LabelTable,
    organ: Sequence[int],
    image: Image | None = None,
    *,
    picture: bool = False,
) -> Overlay:
    """Draw axial, coronal and sagittal planes where one organ has its largest error.

    The upper row shows the reference's outlines and the prediction's fill in the organs' colours, the lower row wrong
    voxels of any organ: false negative, false positive, or taken for another organ. Everything is turned to RAS, so
    that the patient's left is on the left, but pictures look as they are; panels are true to scale.

    Args:
        reference: Reference label map.
        prediction: Predicted label map on the same grid.
        labels: The organs; voxels with its ignore label in the reference show no error.
        organ: Label values of the organ or region that chooses the planes.
        image: Image on the same grid, of which the first channel is shown; None for a black background.
        picture: Whether the case is a picture: no one knows the patient's sides.

    Returns:
        The picture and what is on it. Planes of a single voxel's width (as in a 2D image) are left out.

    Raises:
        DataError: If the grids differ.
    """
    require_same_grid(reference.grid, prediction.grid, "prediction grid", "the reference grid")
    if image is not None:
        require_same_grid(reference.grid, image.grid, "image grid", "the reference grid")
    scene = build_scene(reference, prediction, labels, image, picture=picture)
    position = scene.largest_error(organ)
    shape = scene.reference.shape
    planes = shown_planes(shape)
    figure, panels = _panels(scene, planes)
    seen: set[int] = set()
    for (above, below), plane in zip(panels, planes, strict=True):
        seen |= _draw_plane(above, below, scene, plane, position, labels)
    organs = [(name, organ_color(n)) for n, (value, name) in enumerate(labels.names.items()) if value in seen]
    png = figure_png(figure, _DPI, transparent=False)
    window = _words(scene.window) if image else ""
    return Overlay(png, tuple(plane.name for plane in planes), tuple(organs), window, picture)


def _panels(scene: Scene, planes: Sequence[Plane]) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Black figure with an upper and a lower panel per plane, all at the same scale."""
    shape, spacing_mm = scene.reference.shape, scene.spacing_mm
    widths = [shape[plane.right] * spacing_mm[plane.right] for plane in planes]
    heights = [shape[plane.up] * spacing_mm[plane.up] for plane in planes]
    inches = _PANEL_INCHES * len(planes) / sum(widths)
    figure = Figure(figsize=(inches * sum(widths), 2 * inches * max(heights)), facecolor="black")
    grid = figure.subplots(2, len(planes), squeeze=False, gridspec_kw={"width_ratios": widths})
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.01, hspace=0.01)
    return figure, [(grid[0, n], grid[1, n]) for n in range(len(planes))]


def _words(window: tuple[float, float]) -> str:
    return f"{window[0]:.4g} to {window[1]:.4g}{' HU' if window == CT_WINDOW_HU else ''}"


def _draw_plane(
    above: Axes,
    below: Axes,
    scene: Scene,
    plane: Plane,
    position: tuple[int, int, int],
    labels: LabelTable,
) -> set[int]:
    """Draw one plane twice; returns the label values on it."""
    name, right, up, cut, letters = plane
    reference, prediction, ignored = (
        plane_slice(volume, cut, position[cut]) for volume in (scene.reference, scene.prediction, scene.ignored)
    )
    size_mm = (reference.shape[1] * scene.spacing_mm[right], reference.shape[0] * scene.spacing_mm[up])
    background = np.zeros(reference.shape) if scene.image is None else plane_slice(scene.image, cut, position[cut])
    extent = (0.0, size_mm[0], 0.0, size_mm[1])
    for axes in (above, below):
        low, high = scene.window
        axes.imshow(
            background, cmap="gray", vmin=low, vmax=high, extent=extent, origin="lower", interpolation="bilinear"
        )
        frame_panel(axes, size_mm, "" if scene.picture else letters)
    write_on(above, 0.02, 0.98, "Picture" if scene.picture else name, "left", "top")
    write_on(below, 0.02, 0.98, "Errors", "left", "top")
    colors = {value: organ_color(n) for n, value in enumerate(labels.values)}
    seen = {value for value in colors if (reference == value).any() or (prediction == value).any()}
    above.imshow(
        _painted({colors[value]: prediction == value for value in seen}, 0.42),
        extent=extent,
        origin="lower",
        interpolation="nearest",
    )
    for value in sorted(seen):
        draw_outline(above, reference == value, scene.spacing_mm[right], scene.spacing_mm[up], colors[value])
    errors = {ERROR_COLORS[kind]: mask for kind, mask in error_masks(reference, prediction, ignored).items()}
    below.imshow(_painted(errors, 0.85), extent=extent, origin="lower", interpolation="nearest")
    return seen


def _painted(masks: dict[str, NDArray[np.bool_]], opacity: float) -> NDArray[np.float64]:
    """(rows, columns, 4) picture; where masks overlap the later one wins."""
    shape = next(iter(masks.values())).shape if masks else (1, 1)
    picture = np.zeros((*shape, 4))
    for color, mask in masks.items():
        picture[mask] = (*to_rgb(color), opacity)
    return picture
