"""What can be said of a label map without a reference: volumes, intensities, and organs that are cut off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap, require_same_grid

__all__ = ["OrganStatistics", "label_statistics"]


@dataclass(frozen=True)
class OrganStatistics:
    """One organ or region of one label map.

    Args:
        case: Case id.
        label: Its label values.
        name: Its name.
        voxels: Voxels that have one of them.
        volume_ml: Volume.
        intensity_mean: Mean intensity of the image's first channel; None without an image or voxels.
        intensity_sd: Standard deviation of it over the voxels (n).
        touches_edge: Whether a voxel lies at the edge of the field of view, along an axis of more than one voxel, so
            that the organ may be cut off.
    """

    case: str
    label: tuple[int, ...]
    name: str
    voxels: int
    volume_ml: float
    intensity_mean: float | None
    intensity_sd: float | None
    touches_edge: bool


def label_statistics(
    label_map: LabelMap, labels: LabelTable, case: str, image: Image | None = None
) -> list[OrganStatistics]:
    """Measure every organ, or every region if the table has regions.

    Args:
        label_map: Label values; those that are not in the table are left out.
        labels: The organs or regions.
        case: Case id.
        image: The image on the same grid, or None.

    Returns:
        One per target, in the order of the table; organs that are not there have a volume of 0.

    Raises:
        DataError: If the image lies on another grid.
    """
    if image is not None:
        require_same_grid(image.grid, label_map.grid, "label map grid", "the image grid", case=case)
    present, position = np.unique(label_map.array, return_inverse=True)
    position = position.reshape(label_map.array.shape)
    counts = np.bincount(position.ravel(), minlength=len(present)).astype(np.float64)
    sums = squares = np.full(len(present), np.nan)
    if image is not None:
        values = image.array[0].ravel().astype(np.float64)
        sums = np.bincount(position.ravel(), weights=values, minlength=len(present))
        squares = np.bincount(position.ravel(), weights=values * values, minlength=len(present))
    edge = _at_edge(label_map.array)
    found = []
    for name, label in labels.target_values.items():
        at = np.flatnonzero(np.isin(present, label))
        n = float(counts[at].sum())
        mean = sd = None
        if image is not None and n:
            mean = float(sums[at].sum() / n)
            sd = float(np.sqrt(max(0.0, squares[at].sum() / n - mean * mean)))
        volume_ml = n * label_map.grid.voxel_volume_ml
        touches = bool(edge & {int(value) for value in label})
        found.append(OrganStatistics(case, label, name, int(n), volume_ml, mean, sd, touches))
    return found


def _at_edge(array: NDArray[np.integer[Any]]) -> set[int]:
    """Label values in the outermost planes of a volume."""
    planes = [array.take(end, axis=axis) for axis in range(3) if array.shape[axis] > 1 for end in (0, -1)]
    return {int(value) for plane in planes for value in np.unique(plane)}
