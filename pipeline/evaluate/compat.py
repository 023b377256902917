"""Surface distances in the conventions of other tools, so that numbers they gave can be compared and explained.

MONAI and medpy measure between the centres of voxels that touch the outside by a face; every voxel counts the same,
however its surface lies. surface-distance measures between corners of voxels, weighted by the area of the
marching-cubes surface there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics import Compat, compat_columns
from pipeline.evaluate.surface import Faces, SurfaceScores, lattice_distances, no_surface, unique_codes

_NORMALS = {
    letter: tuple(int(digit) for digit in digits)
    for letter, digits in zip("ABCDEFGHI", ["004", "022", "040", "111", "202", "220", "222", "333", "400"], strict=True)
}
"""Absolute components of a surface element's normal vector, whose length is its area, in eighths of a voxel face."""

_ELEMENTS = (
    "D D FF D EE DD DGI D DD EE DGI FF DGI DGI II D BB DD CDG DD ADG DDD DDGG DD BBD DEE BDEH DFF BDFH DDGI DGI D DD "
    "BB CDG DD DEE BBD BDEH DD DDD ADG DDGG DFF DDGI BDFH DGI FF CDG CDG CC DFF DEFH CDDG CDG DFF CDDG DEFH CDG FFFF "
    "DFF DFF FF D DD DD DFF BB ADG BBD BDFH DD DDD DEE DDGI CDG DDGG BDEH DGI EE ADG DEE DEFH ADG AA ADDG ADG DEE "
    "ADDG EEEE DEE DEFH ADG DEE EE DD DDD BBD CDDG BBD ADDG BBBB BBD DDD DDDD ADDG DDD CDDG DDD BBD DD DGI DDGG BDEH "
    "CDG BDFH ADG BBD BB DDGI DDD DEE DD DFF DD DD D"
)
"""Elements of codes 1 to 127 of a corner's eight voxels; what is filled and what is empty may change places."""


@dataclass(frozen=True, eq=False)
class Organ:
    """One organ in one label map.

    Args:
        faces: Its surface.
        mask: The organ in a part of the volume that holds all of it.
        offset: First voxel of this part.
    """

    faces: Faces
    mask: NDArray[np.bool_]
    offset: tuple[int, ...]


def voxel_scores(
    reference: Faces, prediction: Faces, shape: Sequence[int], spacing_mm: Sequence[float], tolerance_mm: float
) -> SurfaceScores:
    """Compare two surfaces by the centres of their voxels, as MONAI does; arguments as ``surface_scores``.

    Returns:
        Scores: Hausdorff distances are the larger of the two directions, percentiles are interpolated, voxels count the
        same; empty surfaces as in :func:`~pipeline.evaluate.surface.surface_scores`.
    """
    empty = no_surface(reference, prediction)
    if empty is not None:
        return empty
    one, other = _border_distances(reference, prediction, shape, spacing_mm)
    return _voxel_scores(one, other, tolerance_mm)


def compat_scores(
    tools: Sequence[Compat],
    reference: Organ,
    prediction: Organ,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> dict[str, float]:
    """Scores of an organ in the conventions of other tools; arguments as :func:`voxel_scores`.

    Returns:
        Column → number. Where tools give up on an empty mask, the same as for our own columns.
    """
    empty = no_surface(reference.faces, prediction.faces)
    if empty is not None:
        names = [name for tool in tools for name in compat_columns(tool)]
        return {name: empty.nsd if name.endswith("_nsd") else empty.hd_mm for name in names}
    found: dict[Compat, tuple[float, ...]] = {}
    # Both tools measure between border voxels. MONAI takes the percentile of each direction and the larger of the two,
    # medpy that of both directions together.
    if {"monai", "medpy"} & set(tools):
        one, other = _border_distances(reference.faces, prediction.faces, shape, spacing_mm)
        voxel = _voxel_scores(one, other, tolerance_mm)
        pooled = float(np.percentile(np.concatenate([one, other]), 95))
        found["monai"] = (voxel.hd_mm, voxel.hd95_mm, voxel.assd_mm, voxel.nsd)
        found["medpy"] = (voxel.hd_mm, pooled, voxel.assd_mm)
    if "surface-distance" in tools:
        found["surface-distance"] = _element_scores(reference, prediction, shape, spacing_mm, tolerance_mm)
    return {name: value for tool in tools for name, value in zip(compat_columns(tool), found[tool], strict=True)}


def _border_distances(
    reference: Faces, prediction: Faces, shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances from the reference's border voxels to the prediction's, and back."""
    one, other = (
        unique_codes(
            np.concatenate(
                [np.ravel_multi_index(tuple(part.voxels(axis).T), tuple(shape)) for axis, part in enumerate(faces)]
            )
        )
        for faces in (reference, prediction)
    )
    return lattice_distances(one, other, shape, spacing_mm), lattice_distances(other, one, shape, spacing_mm)


def _voxel_scores(one: NDArray[np.float64], other: NDArray[np.float64], tolerance_mm: float) -> SurfaceScores:
    count = len(one) + len(other)
    return SurfaceScores(
        hd_mm=float(max(one.max(), other.max())),
        hd95_mm=float(max(np.percentile(one, 95), np.percentile(other, 95))),
        masd_mm=float(one.mean() + other.mean()) / 2,
        assd_mm=float(one.sum() + other.sum()) / count,
        nsd=float((one <= tolerance_mm).sum() + (other <= tolerance_mm).sum()) / count,
    )


def _element_scores(
    reference: Organ, prediction: Organ, shape: Sequence[int], spacing_mm: Sequence[float], tolerance_mm: float
) -> tuple[float, ...]:
    """Hausdorff distances, directed means and surface Dice of surface-distance."""
    (one, one_mm2), (other, other_mm2) = (
        surface_elements(organ.faces, organ.mask, organ.offset, shape, spacing_mm) for organ in (reference, prediction)
    )
    corners = [n + 1 for n in shape]
    there = lattice_distances(one, other, corners, spacing_mm)
    back = lattice_distances(other, one, corners, spacing_mm)
    near = one_mm2[there <= tolerance_mm].sum() + other_mm2[back <= tolerance_mm].sum()
    return (
        max(weighted_percentile(there, one_mm2, 100), weighted_percentile(back, other_mm2, 100)),
        max(weighted_percentile(there, one_mm2, 95), weighted_percentile(back, other_mm2, 95)),
        float(there @ one_mm2 / one_mm2.sum()),
        float(back @ other_mm2 / other_mm2.sum()),
        float(near / (one_mm2.sum() + other_mm2.sum())),
    )


def surface_elements(
    faces: Faces, mask: NDArray[np.bool_], offset: Sequence[int], shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Surface elements of an organ.

    Args:
        faces: Its surface.
        mask: The organ in a part of the volume that holds all of it.
        offset: First voxel of this part.
        shape: Shape of the volume.
        spacing_mm: Spacing along each axis.

    Returns:
        Position of each voxel corner on the surface, in an array of one more than ``shape``, and the area in mm² there.

    Reference: github.com/google-deepmind/surface-distance (Apache-2.0), lookup_tables.py, whose table this is.
    """
    corners = tuple(n + 1 for n in shape)
    parts = []
    for axis, found in enumerate(faces):
        for step in product(*((0,) if n == axis else (0, 1) for n in range(3))):
            parts.append(np.ravel_multi_index(tuple((found.corner + step).T), corners))
    points = unique_codes(np.concatenate(parts))
    # Corners at the edge of the part have voxels outside of it, which are background.
    padded = np.pad(mask, 1)
    index = np.stack(np.unravel_index(points, corners), axis=-1) - np.array(offset)
    code = np.zeros(len(points), dtype=np.int64)
    for bit, step in enumerate(product((1, 0), repeat=3)):  # the voxel above the corner along all axes is bit 0
        code += padded[tuple((index + step).T)].astype(np.int64) << bit
    return points, _areas_mm2(spacing_mm)[code]


def weighted_percentile(distance: NDArray[np.float64], area: NDArray[np.float64], percent: float) -> float:
    """The first distance, in ascending order, up to which this much of the area lies."""
    order = np.argsort(distance)
    share = np.cumsum(area[order]) / area.sum()
    return float(distance[order][min(int(np.searchsorted(share, percent / 100)), len(order) - 1)])


def _areas_mm2(spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Area of each of the 256 codes."""
    i, j, k = spacing_mm
    face_mm2 = np.array([j * k, i * k, i * j])
    element = {letter: float(np.linalg.norm(np.array(n) / 8 * face_mm2)) for letter, n in _NORMALS.items()}
    # What is filled and what is empty may change places without another surface: code n and code 255 - n are alike.
    half = [0.0, *(sum(element[letter] for letter in code) for code in _ELEMENTS.split())]
    return np.array([*half, *half[::-1]], dtype=np.float64)
