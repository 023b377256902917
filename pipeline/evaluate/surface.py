"""Distances between surfaces: Hausdorff, mean distances and surface Dice, exact for solids made of voxel boxes.

Voxels are boxes, and an organ's surface is the rectangular faces between its voxels and others. On a lattice of half
voxels the point of such a face that is nearest to any lattice point is a lattice point too, so distances between
lattice points are distances between surfaces: exact at the centres, edges and corners of faces. Between these points
distances are interpolated. Thick voxels are cut into thinner boxes first, which leaves the solid as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import Box

_PIECE_VOXELS = 1 << 23  # compared at a time, so that the temporary arrays stay small
_THICK = 2.0  # voxels are cut where they are thicker than this many times the smallest spacing
_RESOLUTION_MM = 1e-7  # to which percentiles are found
_SAME_MM = 1e-6  # distances closer than this are equal: they are roots of sums of squares


# The faces of all organs, in one pass over the label map; beyond the field of view there is background.


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


Faces = tuple[OrganFaces, OrganFaces, OrganFaces]
"""The surface of an organ: its faces perpendicular to each axis."""


@dataclass(frozen=True, eq=False)
class AxisFaces:
    """All faces perpendicular to one axis, grouped by the label value on either side.

    Args:
        position: (N,) place of the lowest corner of each face, counted in an array of one more than the volume's shape.
        neighbours: (2, N) label value below and above.
        order: (2, N) indices that sort the faces by the value on that side.
    """

    position: NDArray[np.int64]
    neighbours: NDArray[np.integer[Any]]
    order: NDArray[np.int64]

    def of(self, values: Sequence[int], side: int, without: Sequence[int] = ()) -> NDArray[np.int64]:
        """Indices of the faces that have one of the values on this side (0 below, 1 above), and none on the other.

        Nor do they have one of the values ``without`` on the other side.
        """
        # The faces were sorted by the value on either side, so that those of one value are a slice of that order. A
        # value that does not fit into the array is on no face.
        order, ranked = self.order[side], self.neighbours[side]
        found = []
        for value in values:
            if np.iinfo(ranked.dtype).min <= value <= np.iinfo(ranked.dtype).max:
                typed = ranked.dtype.type(value)
                first, last = (np.searchsorted(ranked, typed, side=end, sorter=order) for end in ("left", "right"))
                found.append(order[first:last])
        faces = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
        # Of a union of label values, faces between two of them lie inside. Those of a single value need no look: the
        # label values on the two sides of a face differ.
        barred = [*(values if len(values) > 1 else ()), *without]
        return faces[~np.isin(self.neighbours[1 - side][faces], barred)] if barred else faces


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

    def box(self, values: Sequence[int]) -> Box | None:
        """The smallest box that holds the union of some label values; None if there is none."""
        start, stop = [], []
        for number, axis in enumerate(self.axes):
            position = axis.position[np.concatenate([axis.of(values, 0), axis.of(values, 1)])]
            if not len(position):
                return None
            plane = np.unravel_index(position, [n + 1 for n in self.shape])[number]
            start.append(int(plane.min()))
            stop.append(int(plane.max()))
        return Box(tuple(start), tuple(stop))

    def _of_axis(self, axis: AxisFaces, values: Sequence[int]) -> OrganFaces:
        without = () if self.ignore is None else (self.ignore,)
        below, above = axis.of(values, 0, without), axis.of(values, 1, without)
        position = axis.position[np.concatenate([below, above])]
        corner = np.stack(np.unravel_index(position, [n + 1 for n in self.shape]), axis=-1)
        return OrganFaces(corner, np.arange(len(position)) >= len(below))


def label_faces(array: NDArray[np.integer[Any]], ignore: int | None = None) -> LabelFaces:
    """Find the faces between voxels of different label values (I, J, K); fastest if C-contiguous."""
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
    # An organ at the edge of the field of view ends there: outside of it there is background.
    ends = np.zeros_like(array.take([0], axis=axis))
    yield ends, array.take([0], axis=axis), (0, 0)
    yield array.take([-1], axis=axis), ends, (0, array.shape[axis])
    # Along the first axis neighbours lie in different planes, so that a piece needs one plane more.
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


@dataclass(frozen=True)
class SurfaceScores:
    """How far two surfaces are apart.

    Args:
        hd_mm: Hausdorff distance: the largest distance, of both directions.
        hd95_mm: Distance within which 95 % of a surface's area lies, the larger of the two directions.
        masd_mm: Mean of the two directed mean distances.
        assd_mm: Mean distance over the area of both surfaces together.
        nsd: Share of the area of both surfaces that lies within the tolerance (surface Dice).
    """

    hd_mm: float
    hd95_mm: float
    masd_mm: float
    assd_mm: float
    nsd: float


def surface_scores(
    reference: Faces, prediction: Faces, shape: Sequence[int], spacing_mm: Sequence[float], tolerance_mm: float
) -> SurfaceScores:
    """Compare two surfaces.

    Args:
        reference: Faces of the organ in the reference.
        prediction: Faces of the organ in the prediction.
        shape: Shape of both label maps.
        spacing_mm: Spacing along the same axes.
        tolerance_mm: Distance that surface Dice tolerates.

    Returns:
        Scores; NaN if both surfaces are empty. If one is, distances are infinite and surface Dice is 0.

    Reference: Nikolov et al., Clinically Applicable Segmentation of Head and Neck Anatomy for Radiotherapy, J Med
    Internet Res 2021 (surface Dice); Maier-Hein et al., Metrics reloaded, Nature Methods 2024 (definitions).
    """
    empty = no_surface(reference, prediction)
    if empty is not None:
        return empty
    one, other = distance_distributions(reference, prediction, shape, spacing_mm)
    area = one.total_mm2 + other.total_mm2
    return SurfaceScores(
        hd_mm=max(one.largest_mm, other.largest_mm),
        hd95_mm=max(one.percentile(95), other.percentile(95)),
        masd_mm=(one.integral / one.total_mm2 + other.integral / other.total_mm2) / 2,
        assd_mm=(one.integral + other.integral) / area,
        nsd=(one.within(tolerance_mm) + other.within(tolerance_mm)) / area,
    )


def no_surface(reference: Faces, prediction: Faces) -> SurfaceScores | None:
    """What holds where there is nothing to measure: NaN without any surface, the worst scores without one of the two.

    None if both surfaces are there.
    """
    there = [any(len(faces.above) for faces in surface) for surface in (reference, prediction)]
    if all(there):
        return None
    distance, share = (float("inf"), 0.0) if any(there) else (float("nan"), float("nan"))
    return SurfaceScores(distance, distance, distance, distance, share)


# From the faces of two organs to the distances between them.


@dataclass(frozen=True)
class _Lattice:
    """The points that surfaces are measured at: ``cuts`` times twice as dense as voxels along each axis."""

    cuts: tuple[int, ...]
    shape: tuple[int, ...]
    step_mm: tuple[float, ...]


def distance_distributions(
    one: Faces, other: Faces, shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[DistanceDistribution, DistanceDistribution]:
    """Distances from one surface to the other and back, none of them empty; arguments as :func:`surface_scores`."""
    # Distances are interpolated within a face, so that faces of thick voxels would be too coarse. Cutting the voxels
    # into boxes that are at most twice as thick as wide leaves the solid as it is.
    thin = min(spacing_mm)
    cuts = tuple(ceil(spacing / (_THICK * thin) - 1e-6) for spacing in spacing_mm)
    lattice = _Lattice(
        cuts,
        tuple(2 * cut * n + 1 for cut, n in zip(cuts, shape, strict=True)),
        tuple(spacing / (2 * cut) for cut, spacing in zip(cuts, spacing_mm, strict=True)),
    )
    # Points are numbers, not triples: sets of them are sorted, compared and looked up many times faster.
    codes = [[_face_points(faces, axis, lattice) for axis, faces in enumerate(surface)] for surface in (one, other)]
    points = [unique_codes(np.concatenate([part.ravel() for part in parts])) for parts in codes]
    there = lattice_distances(points[0], points[1], lattice.shape, lattice.step_mm)
    back = lattice_distances(points[1], points[0], lattice.shape, lattice.step_mm)
    return _distribution(codes[0], points[0], there, lattice), _distribution(codes[1], points[1], back, lattice)


def _face_points(faces: OrganFaces, axis: int, lattice: _Lattice) -> NDArray[np.int64]:
    """(F, P, Q) lattice points of each face, in the order of its two axes."""
    strides = np.array([lattice.shape[1] * lattice.shape[2], lattice.shape[2], 1], dtype=np.int64)
    corner = (faces.corner * (2 * np.array(lattice.cuts))) @ strides
    first, second = (np.arange(2 * lattice.cuts[n] + 1) * strides[n] for n in range(3) if n != axis)
    return np.asarray(corner[:, None, None] + first[None, :, None] + second[None, None, :])


def _distribution(
    codes: list[NDArray[np.int64]], points: NDArray[np.int64], distance: NDArray[np.float64], lattice: _Lattice
) -> DistanceDistribution:
    """Distances at the points of a surface, spread over the cells between them."""
    parts = []
    for axis, faces in enumerate(codes):
        at = distance[np.searchsorted(points, faces)]
        corners = [
            at[:, first : at.shape[1] - 1 + first, second : at.shape[2] - 1 + second]
            for first, second in product((0, 1), repeat=2)
        ]
        # The distance within a cell lies between those at its corners, and its mean is about theirs.
        low, high = np.minimum.reduce(corners).ravel(), np.maximum.reduce(corners).ravel()
        mean = (sum(corners[1:], corners[0]) / 4).ravel()
        area = float(np.prod([step for n, step in enumerate(lattice.step_mm) if n != axis]))
        parts.append((np.full(len(low), area), low, high, mean))
    area_mm2, low_mm, high_mm, mean_mm = (np.concatenate(column) for column in zip(*parts, strict=True))
    return DistanceDistribution(area_mm2, low_mm, high_mm, mean_mm)


def unique_codes(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The different codes, ascending (several times faster than ``np.unique``, which also looks for NaN)."""
    ordered = np.sort(codes, axis=None)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if ordered.size else ordered


def lattice_distances(
    start: NDArray[np.int64], goal: NDArray[np.int64], shape: Sequence[int], step_mm: Sequence[float]
) -> NDArray[np.float64]:
    """Distance in mm from each point of one set to the nearest of another.

    Args:
        start: (N,) different points, ascending, each the position in an array of ``shape``.
        goal: (M,) the same of the other set, at least one.
        shape: Points of the lattice along each axis.
        step_mm: Distance of neighbouring points along each axis.

    Returns:
        (N,) distances in mm.
    """
    # Surfaces often coincide over much of their area, and the tree is slow beside a look-up.
    place = np.minimum(np.searchsorted(goal, start), len(goal) - 1)
    apart = goal[place] != start
    distance = np.zeros(len(start), dtype=np.float64)
    if apart.any():
        from scipy.spatial import KDTree  # here: it takes a third of the time that a small evaluation does

        # Splitting in the middle of space instead of at the median is many times faster for points on surfaces, above
        # all for surfaces that are far apart.
        tree = KDTree(_positions(goal, shape, step_mm), balanced_tree=False, compact_nodes=False)
        distance[apart] = tree.query(_positions(start[apart], shape, step_mm))[0]
    return distance


def _positions(codes: NDArray[np.int64], shape: Sequence[int], step_mm: Sequence[float]) -> NDArray[np.float64]:
    index = np.unravel_index(codes, tuple(shape))
    return np.stack([part * step for part, step in zip(index, step_mm, strict=True)], axis=-1)


@dataclass(frozen=True, eq=False)
class DistanceDistribution:
    """Distances over the area of a surface that was cut into N cells, in each of which they are spread evenly.

    That is exact where the distance changes linearly along an axis of the cell, and of second order otherwise.

    Args:
        area_mm2: (N,) area of each cell.
        low_mm: (N,) smallest distance in it.
        high_mm: (N,) largest distance in it.
        mean_mm: (N,) mean distance in it.
    """

    area_mm2: NDArray[np.float64]
    low_mm: NDArray[np.float64]
    high_mm: NDArray[np.float64]
    mean_mm: NDArray[np.float64]

    @property
    def total_mm2(self) -> float:
        """Area of the whole surface."""
        return float(self.area_mm2.sum())

    @property
    def integral(self) -> float:
        """Sum of distance times area; divided by the area it is the mean distance."""
        return float(self.area_mm2 @ self.mean_mm)

    @property
    def largest_mm(self) -> float:
        """Largest distance."""
        return float(self.high_mm.max())

    def within(self, distance_mm: float) -> float:
        """Area in mm² that is no further away than a distance."""
        limit = distance_mm + _SAME_MM
        reached = self.low_mm <= limit
        low, high, area = self.low_mm[reached], self.high_mm[reached], self.area_mm2[reached]
        return float(area @ _share(low, high, limit))

    def percentile(self, percent: float) -> float:
        """Smallest distance in mm within which at least this much of the area lies.

        Args:
            percent: Above 0, at most 100.
        """
        # The area within a distance grows with it: bisection, in which the cells that lie on one side of both bounds
        # are counted once and then left out.
        wanted = percent / 100 * self.total_mm2 * (1 - 1e-12)  # sums are rounded
        area, low, high = self.area_mm2, self.low_mm, self.high_mm
        below, above = -_SAME_MM, self.largest_mm
        settled = 0.0  # area of the cells that lie within `below`, which are not looked at again
        while above - below > _RESOLUTION_MM:
            middle = (below + above) / 2
            reached = low <= middle
            found = settled + float(area[reached] @ _share(low[reached], high[reached], middle))
            if found >= wanted:
                above, kept = middle, reached
            else:
                below, kept = middle, high > middle
                settled += float(area[~kept].sum())
            area, low, high = area[kept], low[kept], high[kept]
        return max(0.0, above)


def _share(low: NDArray[np.float64], high: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Share of each cell that is no further away than a limit, for cells of which some part is not."""
    width = np.maximum(high - low, _RESOLUTION_MM)
    return np.minimum((limit - low) / width, 1.0, where=high > low, out=np.ones_like(low))
