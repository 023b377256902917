"""Surface elements of the tool surface-distance: pieces of a marching-cubes surface around the corners of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.nearest import unique_codes
from pipeline.evaluate.surface import Faces

__all__ = ["surfels", "weighted_percentile"]

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


def surfels(
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
    half = [0.0, *(sum(element[letter] for letter in code) for code in _ELEMENTS.split())]
    return np.array([*half, *half[::-1]], dtype=np.float64)
