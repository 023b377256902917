"""What an overlay shows: volumes turned to RAS and cropped to the labels, the slices to cut and the grey levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import Grid, Image, LabelMap, LabelTable

__all__ = ["CT_WINDOW_HU", "SEEN", "Scene", "build_scene", "display_range", "error_masks", "error_position"]

CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue: level 40, width 400
SEEN = "LAS"
"""Axis codes of a picture whose right is on the right: files of pictures are LPS, and j is drawn upwards."""

_MIRRORED = np.diag([-1.0, 1.0, 1.0, 1.0])  # viewers put the patient's left, which is made up here, on the left
_CT_AIR_HU = -200.0  # no MR intensity or normalized value is lower than this
_MARGIN_MM = 15.0


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
        picture: Whether it is a picture, which must look as it is, instead of the patient's left being on the left.

    Returns:
        The box around every label with a margin of 15 mm; the whole volume if there is no label.
    """
    order = SEEN if picture else "RAS"
    turned = reference.reoriented(order)
    predicted = prediction.reoriented(order).array
    ignored = (
        turned.array == labels.ignore_label if labels.ignore_label is not None else np.zeros(turned.array.shape, bool)
    )
    wanted = np.where(ignored, 0, turned.array)
    box = _box(wanted, predicted, turned.grid.spacing_mm)
    shown = None if image is None else Image(image.array[:1], image.grid).reoriented(order).array[0]
    window = (0.0, 1.0) if shown is None else display_range(shown)
    cropped = None if shown is None else shown[box]
    whole = Grid(turned.grid.shape, _MIRRORED @ turned.grid.affine) if picture else turned.grid
    grid = whole.cropped([part.start for part in box], [part.stop for part in box])
    smaller = grid.shape != turned.grid.shape
    return Scene(cropped, wanted[box], predicted[box], ignored[box], grid, window, smaller, picture)


def error_masks(
    reference: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], ignored: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """Where errors are, by their kind.

    Args:
        reference: Label values of any shape.
        prediction: Likewise.
        ignored: Where there are no errors.
    """
    wrong = (reference != prediction) & ~ignored
    return {
        "false negative": wrong & (prediction == 0),
        "false positive": wrong & (reference == 0),
        "taken for another organ": wrong & (reference != 0) & (prediction != 0),
    }


def error_position(reference: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> tuple[int, int, int]:
    """The slice along each axis with the most wrong voxels of an organ.

    Args:
        reference: (I, J, K) mask.
        prediction: (I, J, K) mask.

    Returns:
        Index along i, j, k. Without errors the slices with most of the organ, without the organ the middle.
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
    every = tuple(slice(None, None, max(1, n // 100)) for n in array.shape)
    values = array[every][np.isfinite(array[every])]
    if not values.size:
        return 0.0, 1.0
    if float(values.min()) < _CT_AIR_HU:
        return CT_WINDOW_HU
    low, high = np.percentile(values, [1.0, 99.0])
    return float(low), float(max(high, low + 1e-6))


def _box(
    reference: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], spacing_mm: Sequence[float]
) -> tuple[slice, slice, slice]:
    """Box around every label, with a margin; the whole volume if there is none."""
    found = (reference != 0) | (prediction != 0)
    slices = []
    for axis in range(3):
        where = np.flatnonzero(found.any(axis=tuple({0, 1, 2} - {axis})))
        margin = round(_MARGIN_MM / spacing_mm[axis])
        low, high = (where[0], where[-1] + 1) if len(where) else (0, found.shape[axis])
        slices.append(slice(max(0, int(low) - margin), min(found.shape[axis], int(high) + margin)))
    return slices[0], slices[1], slices[2]
