"""Three planes through a case: reference as outlines and prediction as fill over the image; below them the errors.

First how a plane is cut and drawn, then what is seen of a case (:class:`Scene`, which the viewer shows too), and last
the picture (:func:`case_overlay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from pipeline.core.grid import Box, Grid
from pipeline.core.labels import LabelTable
from pipeline.core.planes import ORDER, Plane, shown_planes
from pipeline.core.volume import Image, LabelMap, require_same_grid
from pipeline.data.legend import organ_color
from pipeline.report.plots import ERROR_COLORS, figure_png

CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue: level 40, width 400
SEEN = "LAS"
"""Axis codes of a picture whose right is on the right: files of pictures are LPS, and j is drawn upwards."""

_MIRRORED = np.diag([-1.0, 1.0, 1.0, 1.0])  # viewers put the patient's left, which is made up here, on the left
_CT_AIR_HU = -200.0  # no MR intensity or normalized value is lower than this
_MARGIN_MM = 15.0
_DPI = 120
_PANEL_INCHES = 3.2

# Panels: axes true to scale, letters for the patient's sides, outlines of masks.

_Horizontal = Literal["left", "center", "right"]
_Vertical = Literal["top", "center", "bottom"]


def draw_outline(
    axes: Axes, mask: NDArray[np.bool_], width_mm: float, height_mm: float, color: str, linewidth: float = 1.3
) -> None:
    """Draw the outline of a mask (rows upwards, columns), if it is not empty, on a panel in mm."""
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
    where: dict[str, Any] = {"ha": horizontal, "va": vertical, "transform": axes.transAxes}
    axes.text(x, y, text, color="white", fontsize=fontsize, path_effects=rim, **where)


# What is seen of a case: volumes turned to RAS and cropped to the labels, the slices to cut and the grey levels.


@dataclass(frozen=True, eq=False)
class Scene:
    """Volumes (I, J, K) in RAS order, those of a picture as it is seen, cropped to the labels and a margin.

    Args:
        image: Intensities of one channel, or None if there is none to show.
        reference: Label values, 0 where ignored.
        prediction: Label values.
        ignored: Where the reference has the ignore label.
        grid: Grid of what is left of the volumes.
        window: Intensities to show as black and white.
        cropped: Whether anything was cut off.
        picture: Whether it is of a picture: i grows to its right, j to its top, and no one knows the patient's sides.
    """

    image: NDArray[np.floating[Any]] | None
    reference: NDArray[np.integer[Any]]
    prediction: NDArray[np.integer[Any]]
    ignored: NDArray[np.bool_]
    grid: Grid
    window: tuple[float, float]
    cropped: bool = False
    picture: bool = False

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Spacing along the RAS axes."""
        return self.grid.spacing_mm

    def largest_error(self, organ: Sequence[int]) -> tuple[int, int, int]:
        """Where an organ of some label values has most wrong voxels, see :func:`error_position`; none are ignored."""
        predicted = np.isin(self.prediction, organ) & ~self.ignored
        return error_position(np.isin(self.reference, organ), predicted)


def build_scene(
    reference: LabelMap,
    prediction: LabelMap,
    labels: LabelTable,
    image: Image | None = None,
    *,
    picture: bool = False,
) -> Scene:
    """Turn and crop the volumes of a case.

    Args:
        reference: Reference label map.
        prediction: Predicted label map on the same grid.
        labels: For the ignore label.
        image: Image on the same grid, of which the first channel is taken, or None.
        picture: Whether it is a picture, which must look as it is.

    Returns:
        The box around every label with a margin of 15 mm; the whole volume if there is no label.
    """
    order = SEEN if picture else ORDER
    turned = reference.reoriented(order)
    predicted = prediction.reoriented(order).array
    ignored = (
        turned.array == labels.ignore_label if labels.ignore_label is not None else np.zeros(turned.array.shape, bool)
    )
    wanted = np.where(ignored, 0, turned.array)
    found = Box.around((wanted != 0) | (predicted != 0)) or Box.whole(turned.grid.shape)
    box = found.grown([round(_MARGIN_MM / spacing) for spacing in turned.grid.spacing_mm], turned.grid.shape)
    part = box.slices
    shown = None if image is None else Image(image.array[:1], image.grid).reoriented(order).array[0]
    window = (0.0, 1.0) if shown is None else display_range(shown)
    cropped = None if shown is None else shown[part]
    whole = Grid(turned.grid.shape, _MIRRORED @ turned.grid.affine) if picture else turned.grid
    grid = whole.cropped(box.start, box.stop)
    smaller = grid.shape != turned.grid.shape
    return Scene(cropped, wanted[part], predicted[part], ignored[part], grid, window, smaller, picture)


def error_masks(
    reference: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], ignored: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """Where errors are, by their kind; there are none where label values are ignored."""
    wrong = (reference != prediction) & ~ignored
    return {
        "false negative": wrong & (prediction == 0),
        "false positive": wrong & (reference == 0),
        "taken for another organ": wrong & (reference != 0) & (prediction != 0),
    }


def error_position(reference: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> tuple[int, int, int]:
    """The slice along each axis (i, j, k) with the most wrong voxels of an organ.

    Without errors the slices with most of the organ, without the organ the middle.
    """
    for mask in (reference != prediction, reference):
        if mask.any():
            i, j, k = (int(mask.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3))
            return i, j, k
    i, j, k = (n // 2 for n in reference.shape)
    return i, j, k


def display_range(array: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Intensities to show as black and white.

    Args:
        array: Intensities, any shape; every n-th voxel is looked at, at most 200 along an axis.

    Returns:
        -160 to 240 HU if the values reach down to air in HU, else the 1st and 99th percentile; 0 to 1 if no value is
        finite.
    """
    # Some 100 to 200 voxels along each axis are enough for percentiles, and take milliseconds.
    every = tuple(slice(None, None, max(1, n // 100)) for n in array.shape)
    values = array[every][np.isfinite(array[every])]
    if not values.size:
        return 0.0, 1.0
    if float(values.min()) < _CT_AIR_HU:
        return CT_WINDOW_HU
    low, high = np.percentile(values, [1.0, 99.0])
    return float(low), float(max(high, low + 1e-6))


# The picture.


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
    neurological: bool = False,
) -> Overlay:
    """Draw axial, coronal and sagittal planes where one organ has its largest error.

    The upper row shows the reference's outlines and the prediction's fill in the organs' colours, the lower row wrong
    voxels of any organ: false negative, false positive, or taken for another organ. The patient's left is on the right,
    but pictures look as they are; panels are true to scale.

    Args:
        reference: Reference label map.
        prediction: Predicted label map on the same grid.
        labels: The organs; voxels with its ignore label in the reference show no error.
        organ: Label values of the organ or region that chooses the planes.
        image: Image on the same grid, of which the first channel is shown; None for a black background.
        picture: Whether the case is a picture: no one knows the patient's sides.
        neurological: Whether the patient's left is on the left.

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
    planes = shown_planes(shape, neurological=picture or neurological)
    figure, panels = _panels(scene, planes)
    seen: set[int] = set()
    for (above, below), plane in zip(panels, planes, strict=True):
        seen |= _draw_plane(above, below, scene, plane, position, labels)
    organs = [(name, organ_color(n)) for n, (value, name) in enumerate(labels.names.items()) if value in seen]
    png = figure_png(figure, _DPI, transparent=False)
    low, high = scene.window
    unit = " HU" if scene.window == CT_WINDOW_HU else ""
    window = f"{low:.4g} to {high:.4g}{unit}" if image else ""
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


def _draw_plane(
    above: Axes, below: Axes, scene: Scene, plane: Plane, position: tuple[int, int, int], labels: LabelTable
) -> set[int]:
    """Draw one plane twice; returns the label values on it."""
    index, (width_mm, height_mm) = position[plane.cut], (scene.spacing_mm[axis] for axis in (plane.right, plane.up))
    reference, prediction, ignored = (
        plane.slice(volume, index) for volume in (scene.reference, scene.prediction, scene.ignored)
    )
    size_mm = (reference.shape[1] * width_mm, reference.shape[0] * height_mm)
    background = np.zeros(reference.shape) if scene.image is None else plane.slice(scene.image, index)
    place: dict[str, Any] = {"extent": (0.0, size_mm[0], 0.0, size_mm[1]), "origin": "lower"}
    low, high = scene.window
    for axes in (above, below):
        axes.imshow(background, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", **place)
        frame_panel(axes, size_mm, "" if scene.picture else plane.letters)
    write_on(above, 0.02, 0.98, "Picture" if scene.picture else plane.name, "left", "top")
    write_on(below, 0.02, 0.98, "Errors", "left", "top")
    colors = {value: organ_color(n) for n, value in enumerate(labels.values)}
    seen = {value for value in colors if (reference == value).any() or (prediction == value).any()}
    fill = _painted({colors[value]: prediction == value for value in seen}, 0.42)
    above.imshow(fill, interpolation="nearest", **place)
    for value in sorted(seen):
        draw_outline(above, reference == value, width_mm, height_mm, colors[value])
    errors = {ERROR_COLORS[kind]: mask for kind, mask in error_masks(reference, prediction, ignored).items()}
    below.imshow(_painted(errors, 0.85), interpolation="nearest", **place)
    return seen


def _painted(masks: dict[str, NDArray[np.bool_]], opacity: float) -> NDArray[np.float64]:
    """(rows, columns, 4) picture; where masks overlap the later one wins."""
    shape = next(iter(masks.values())).shape if masks else (1, 1)
    picture = np.zeros((*shape, 4))
    for color, mask in masks.items():
        picture[mask] = (*to_rgb(color), opacity)
    return picture
