"""Values: an image, a label map and the case that joins them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, sentence
from pipeline.core.grid import GRID_TOLERANCE_MM, Grid, reorient_array


@dataclass(frozen=True, eq=False)
class Image:
    """Intensities on a grid.

    Args:
        array: (C, I, J, K), floating point; HU for CT, arbitrary units for MR.
        grid: Grid of every channel.

    Raises:
        ValueError: If the array is not (C, *grid.shape) of a floating type.
    """

    array: NDArray[np.floating[Any]]
    grid: Grid

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit the grid."""
        if self.array.ndim != 4 or self.array.shape[1:] != self.grid.shape or self.array.shape[0] < 1:
            expected = f"shape (C, {', '.join(map(str, self.grid.shape))})"
            raise ValueError(f"image array: expected {expected}, got {self.array.shape}. Put channels first.")
        if not np.issubdtype(self.array.dtype, np.floating):
            raise ValueError(f"image array: expected a floating type, got {self.array.dtype}. Convert to float32.")

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.array.shape[0])

    def reoriented(self, orientation: str) -> Image:
        """The same image listed along other axes (a view)."""
        return Image(reorient_array(self.array, self.grid.orientation, orientation), self.grid.reoriented(orientation))


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Integer labels on a grid.

    Args:
        array: (I, J, K), integer type, 0 is background.
        grid: Grid of the array.

    Raises:
        ValueError: If the array does not fit the grid or is not of an integer type.
    """

    array: NDArray[np.integer[Any]]
    grid: Grid

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit the grid."""
        if self.array.shape != self.grid.shape:
            raise ValueError(f"label map: expected shape {self.grid.shape}, got {self.array.shape}. Check the grid.")
        if not np.issubdtype(self.array.dtype, np.integer):
            raise ValueError(f"label map: expected an integer type, got {self.array.dtype}. Cast the labels.")

    def reoriented(self, orientation: str) -> LabelMap:
        """The same label map listed along other axes (a view)."""
        return LabelMap(
            reorient_array(self.array, self.grid.orientation, orientation), self.grid.reoriented(orientation)
        )

    def values(self) -> tuple[int, ...]:
        """Label values present, ascending, background included."""
        return tuple(int(value) for value in np.unique(self.array))

    def volumes_ml(self) -> dict[int, float]:
        """Volume of every label value present, background left out, in mL."""
        values, counts = np.unique(self.array, return_counts=True)
        return {int(v): float(n) * self.grid.voxel_volume_ml for v, n in zip(values, counts, strict=True) if v != 0}


@dataclass(frozen=True, eq=False)
class Case:
    """One examination: an image and, if known, its reference label map on the same grid.

    Args:
        id: Name of the case, unique in its dataset.
        image: Intensities.
        reference: Reference label map, or None.
        metadata: Anything else worth keeping, e.g. ``{"group": "patient_7"}``.

    Raises:
        DataError: If image and reference are not on the same grid.
    """

    id: str
    image: Image
    reference: LabelMap | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a reference on another grid."""
        if self.reference is not None:
            require_same_grid(self.image.grid, self.reference.grid, "label map grid", "the image grid", case=self.id)


def require_same_grid(
    expected: Grid,
    got: Grid,
    what: str,
    rule: str,
    *,
    case: str | None = None,
    file: str | None = None,
    tolerance_mm: float = GRID_TOLERANCE_MM,
    advice: str = "Export it again on the image's grid, or drop the case",
) -> None:
    """Raise if two grids differ, naming the shapes or the distance in mm.

    Args:
        expected: The grid to agree with.
        got: The grid to test.
        what: What ``got`` belongs to, e.g. ``label map grid``.
        rule: What ``expected`` belongs to, e.g. ``the image grid``.
        case: Case id for the message.
        file: File for the message.
        tolerance_mm: Largest distance between corresponding voxel centres.
        advice: What to do, for the message.

    Raises:
        DataError: If shapes differ or a corner voxel is further away than the tolerance.
    """
    difference = expected.difference_mm(got)
    if difference <= tolerance_mm:
        return
    if expected.shape != got.shape:
        value = f"shapes {expected.shape} and {got.shape}"
    else:
        value = (
            f"a difference of {difference:.4g} mm (spacing {_rounded(expected.spacing_mm)} and "
            f"{_rounded(got.spacing_mm)} mm, orientation {expected.orientation} and {got.orientation})"
        )
    raise DataError(sentence(what, f"{rule} within {tolerance_mm:g} mm", value, advice, case=case, file=file))


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
