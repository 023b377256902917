"""Distances between two sets of lattice points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

__all__ = ["lattice_distances", "unique_codes"]


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
    place = np.minimum(np.searchsorted(goal, start), len(goal) - 1)
    apart = goal[place] != start  # surfaces often coincide, and the tree is slow beside a look-up
    distance = np.zeros(len(start), dtype=np.float64)
    if apart.any():
        # split in the middle of space, not at the median: many times faster for points on surfaces, above all far apart
        tree = KDTree(_positions(goal, shape, step_mm), balanced_tree=False, compact_nodes=False)
        distance[apart] = tree.query(_positions(start[apart], shape, step_mm))[0]
    return distance


def _positions(codes: NDArray[np.int64], shape: Sequence[int], step_mm: Sequence[float]) -> NDArray[np.float64]:
    index = np.unravel_index(codes, tuple(shape))
    return np.stack([part * step for part, step in zip(index, step_mm, strict=True)], axis=-1)
