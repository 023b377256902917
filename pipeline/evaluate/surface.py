"""Distances between surfaces: Hausdorff, mean distances and surface Dice, exact for solids made of voxel boxes.

Voxels are boxes, and an organ's surface is the rectangular faces between its voxels and others. On a lattice of half
voxels the point of such a face that is nearest to any lattice point is a lattice point too, so distances between
lattice points are distances between surfaces: exact at the centres, edges and corners of faces. Between these points
distances are interpolated. Thick voxels are cut into thinner boxes first, which leaves the solid as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.faces import OrganFaces
from pipeline.evaluate.nearest import lattice_distances, unique_codes
from pipeline.evaluate.spread import Spread

__all__ = ["Faces", "SurfaceScores", "no_surface", "surface_scores", "surface_spreads"]

Faces = tuple[OrganFaces, OrganFaces, OrganFaces]
"""The surface of an organ: its faces perpendicular to each axis."""

_THICK = 2.0  # voxels are cut where they are thicker than this many times the smallest spacing


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


@dataclass(frozen=True)
class _Lattice:
    """The points that surfaces are measured at: ``cuts`` times twice as dense as voxels along each axis."""

    cuts: tuple[int, ...]
    shape: tuple[int, ...]
    step_mm: tuple[float, ...]


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
    one, other = surface_spreads(reference, prediction, shape, spacing_mm)
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


def surface_spreads(
    one: Faces, other: Faces, shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[Spread, Spread]:
    """Distances from one surface to the other and back, none of them empty; arguments as :func:`surface_scores`."""
    thin = min(spacing_mm)
    cuts = tuple(ceil(spacing / (_THICK * thin) - 1e-6) for spacing in spacing_mm)
    lattice = _Lattice(
        cuts,
        tuple(2 * cut * n + 1 for cut, n in zip(cuts, shape, strict=True)),
        tuple(spacing / (2 * cut) for cut, spacing in zip(cuts, spacing_mm, strict=True)),
    )
    codes = [[_face_points(faces, axis, lattice) for axis, faces in enumerate(surface)] for surface in (one, other)]
    points = [unique_codes(np.concatenate([part.ravel() for part in parts])) for parts in codes]
    there = lattice_distances(points[0], points[1], lattice.shape, lattice.step_mm)
    back = lattice_distances(points[1], points[0], lattice.shape, lattice.step_mm)
    return _spread(codes[0], points[0], there, lattice), _spread(codes[1], points[1], back, lattice)


def _face_points(faces: OrganFaces, axis: int, lattice: _Lattice) -> NDArray[np.int64]:
    """(F, P, Q) lattice points of each face, in the order of its two axes."""
    strides = np.array([lattice.shape[1] * lattice.shape[2], lattice.shape[2], 1], dtype=np.int64)
    corner = (faces.corner * (2 * np.array(lattice.cuts))) @ strides
    first, second = (np.arange(2 * lattice.cuts[n] + 1) * strides[n] for n in range(3) if n != axis)
    return np.asarray(corner[:, None, None] + first[None, :, None] + second[None, None, :])


def _spread(
    codes: list[NDArray[np.int64]], points: NDArray[np.int64], distance: NDArray[np.float64], lattice: _Lattice
) -> Spread:
    """Distances at the points of a surface, spread over the cells between them."""
    parts = []
    for axis, faces in enumerate(codes):
        at = distance[np.searchsorted(points, faces)]
        corners = [
            at[:, first : at.shape[1] - 1 + first, second : at.shape[2] - 1 + second]
            for first, second in product((0, 1), repeat=2)
        ]
        low, high = np.minimum.reduce(corners).ravel(), np.maximum.reduce(corners).ravel()
        mean = (sum(corners[1:], corners[0]) / 4).ravel()
        area = float(np.prod([step for n, step in enumerate(lattice.step_mm) if n != axis]))
        parts.append((np.full(len(low), area), low, high, mean))
    area_mm2, low_mm, high_mm, mean_mm = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Spread(area_mm2, low_mm, high_mm, mean_mm)
