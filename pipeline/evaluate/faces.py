"""The surface of every organ of a label map at once: the faces between voxels of different label values.

Voxels are boxes, so the surface of an organ is exactly the faces between its voxels and others. One pass over the
label map finds the faces of all organs; beyond the field of view there is background.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AxisFaces", "LabelFaces", "OrganFaces", "label_faces"]

_PIECE_VOXELS = 1 << 23  # compared at a time, so that the temporary arrays stay small


@dataclass(frozen=True, eq=False)
class OrganFaces:
    """Faces of one organ that are perpendicular to one axis.

    Args:
        corner: (F, 3) lowest corner of each face, in voxels: 0 is the volume's lower edge along an axis, n its upper.
        above: (F,) whether the organ lies on the upper side of the face.
    """

    corner: NDArray[np.int64]
    above: NDArray[np.bool_]

    def voxels(self, axis: int) -> NDArray[np.int64]:
        """(F, 3) index of the organ's voxel behind each face, for faces perpendicular to the axis."""
        found = self.corner.copy()
        found[:, axis] -= ~self.above
        return found


@dataclass(frozen=True, eq=False)
class AxisFaces:
    """All faces perpendicular to one axis, grouped by the label value on either side.

    Args:
        position: (N,) place of the lowest corner of each face, counted in an array of one more than the volume's shape.
        sides: (2, N) label value below and above.
        order: (2, N) indices that sort the faces by the value on that side.
    """

    position: NDArray[np.int64]
    sides: NDArray[np.integer[Any]]
    order: NDArray[np.int64]

    def of(self, values: Sequence[int], side: int, without: Sequence[int] = ()) -> NDArray[np.int64]:
        """Indices of the faces that have one of the values on this side (0 below, 1 above), and none on the other.

        Nor do they have one of the values ``without`` on the other side.
        """
        order, ranked = self.order[side], self.sides[side]
        found = []
        for value in values:
            if np.iinfo(ranked.dtype).min <= value <= np.iinfo(ranked.dtype).max:
                typed = ranked.dtype.type(value)
                first, last = (np.searchsorted(ranked, typed, side=end, sorter=order) for end in ("left", "right"))
                found.append(order[first:last])
        faces = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
        barred = [*(values if len(values) > 1 else ()), *without]  # the two sides of a face differ
        return faces[~np.isin(self.sides[1 - side][faces], barred)] if barred else faces


@dataclass(frozen=True, eq=False)
class LabelFaces:
    """The faces of all organs of a label map.

    Args:
        shape: Shape of the label map.
        axes: The faces perpendicular to each of its axes.
        ignore: A value whose voxels were not annotated: a face that touches them is part of no surface.
    """

    shape: tuple[int, int, int]
    axes: tuple[AxisFaces, AxisFaces, AxisFaces]
    ignore: int | None = None

    def of(self, values: Sequence[int]) -> tuple[OrganFaces, OrganFaces, OrganFaces]:
        """Surface of the union of some label values, by axis; without faces if there is none.

        Args:
            values: Label values, not 0.
        """
        first, second, third = (self._of_axis(axis, values) for axis in self.axes)
        return first, second, third

    def box(self, values: Sequence[int]) -> tuple[slice, slice, slice] | None:
        """The smallest part of the volume that holds the union of some label values; None if there is none."""
        bounds = []
        for number, axis in enumerate(self.axes):
            position = axis.position[np.concatenate([axis.of(values, 0), axis.of(values, 1)])]
            if not len(position):
                return None
            plane = np.unravel_index(position, [n + 1 for n in self.shape])[number]
            bounds.append(slice(int(plane.min()), int(plane.max())))
        return bounds[0], bounds[1], bounds[2]

    def _of_axis(self, axis: AxisFaces, values: Sequence[int]) -> OrganFaces:
        without = () if self.ignore is None else (self.ignore,)
        below, above = axis.of(values, 0, without), axis.of(values, 1, without)
        position = axis.position[np.concatenate([below, above])]
        corner = np.stack(np.unravel_index(position, [n + 1 for n in self.shape]), axis=-1)
        return OrganFaces(corner, np.arange(len(position)) >= len(below))


def label_faces(array: NDArray[np.integer[Any]], ignore: int | None = None) -> LabelFaces:
    """Find the faces between voxels of different label values.

    Args:
        array: Label values (I, J, K); fastest if C-contiguous.
        ignore: A value whose voxels were not annotated: a face that touches them is part of no surface.
    """
    first, second, third = (_axis_faces(array, axis) for axis in range(3))
    i, j, k = array.shape
    return LabelFaces((i, j, k), (first, second, third), ignore)


def _axis_faces(array: NDArray[np.integer[Any]], axis: int) -> AxisFaces:
    shape = [n + 1 for n in array.shape]
    found = [part for piece in _pieces(array, axis) if len((part := _differing(*piece, axis, shape))[0])]
    position = np.concatenate([part[0] for part in found]) if found else np.zeros(0, dtype=np.int64)
    low, high = (
        np.concatenate([part[side] for part in found]) if found else np.zeros(0, dtype=array.dtype) for side in (1, 2)
    )
    order = np.stack([np.argsort(low, kind="stable"), np.argsort(high, kind="stable")])
    return AxisFaces(position, np.stack([low, high]), order)


def _pieces(
    array: NDArray[np.integer[Any]], axis: int
) -> Iterator[tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]], tuple[int, int]]]:
    """Neighbours below and above, and where they are: planes from ``start`` on along axis 0, ``shift`` along ``axis``.

    Background is added at both ends of the axis, as thin pieces of their own.
    """
    ends = np.zeros_like(array.take([0], axis=axis))
    yield ends, array.take([0], axis=axis), (0, 0)
    yield array.take([-1], axis=axis), ends, (0, array.shape[axis])
    planes = max(1, _PIECE_VOXELS * len(array) // max(1, array.size))
    for start in range(0, len(array), planes):
        piece = array[start : start + planes + (axis == 0)]
        low, high = (
            piece[tuple(part if n == axis else slice(None) for n in range(3))]
            for part in (slice(None, -1), slice(1, None))
        )
        yield low, high, (start, 1)


def _differing(
    low: NDArray[np.integer[Any]],
    high: NDArray[np.integer[Any]],
    place: tuple[int, int],
    axis: int,
    shape: Sequence[int],
) -> tuple[NDArray[np.int64], NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
    """Position, value below and value above of the faces of a piece."""
    differs = low != high
    flat = np.flatnonzero(differs)
    index = list(np.unravel_index(flat, differs.shape))
    values = low[tuple(index)], high[tuple(index)]
    start, shift = place
    index[0] = index[0] + start
    index[axis] = index[axis] + shift
    return np.ravel_multi_index(tuple(index), shape), *values
