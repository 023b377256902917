"""The spacing that all cases are resampled to, and which axis of anisotropic data is the coarse one.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021), supplementary note on experiment planning; the exact numbers
are those of nnunetv2 2.8.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

ANISOTROPIC = 3.0
"""An axis this many times coarser than the others counts as anisotropic."""

_PERCENTILE = 10  # of the spacings of such an axis: finer than most cases, so that few lose slices

Spacing = tuple[float, float, float]


def target_spacing(spacings_mm: Sequence[Spacing], shapes: Sequence[tuple[int, ...]]) -> tuple[Spacing, str]:
    """Median spacing per axis; an axis that is much coarser takes its 10th percentile instead.

    The exception holds if one axis is more than 3 times coarser than both others and has fewer than a third of their
    voxels; it never becomes finer than the coarsest other axis.

    Args:
        spacings_mm: Spacing of every case.
        shapes: Shape of every case, along the same axes.

    Returns:
        Spacing in mm along the same axes, and how it was found, for the plan.
    """
    spacings = np.array(spacings_mm, dtype=np.float64)
    median = np.median(spacings, axis=0)
    target, why = median.copy(), f"Median of {len(spacings)} cases along each axis."
    voxels = np.median(np.array(shapes, dtype=np.float64), axis=0)
    # Both conditions ask for thick slices: a coarse spacing, and few of them.
    worst = coarsest_axis(target.tolist())
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > ANISOTROPIC * target[others].max() and voxels[worst] * ANISOTROPIC < voxels[others].min():
        target[worst] = max(np.percentile(spacings[:, worst], _PERCENTILE), target[others].max())
        # Where all cases have the same spacing, the percentile is the median and there is nothing to explain.
        if not math.isclose(target[worst], median[worst], rel_tol=1e-4):
            why += (
                f" Axis {'ijk'[worst]} takes its {_PERCENTILE}th percentile instead: the median, {median[worst]:.3g} "
                f"mm, is more than {ANISOTROPIC:g} times that of the others, with less than a third of their voxels."
            )
    i, j, k = (float(round(value, 6)) for value in target)
    return (i, j, k), why


def coarsest_axis(spacing_mm: Sequence[float]) -> int:
    """Axis of the largest spacing; of equal ones the last, which is across axial slices in RAS."""
    return max(range(len(spacing_mm)), key=lambda axis: (spacing_mm[axis], axis))


def coarse_axis(spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    """The axis more than 3 times coarser than the finest, before resampling or else after it.

    Args:
        spacing_mm: Spacing before.
        target_mm: Spacing after.

    Returns:
        None if there is none, or if two axes are equally coarse.

    Reference: nnU-Net's ``determine_do_sep_z_and_axis``.
    """
    # Before or after: thin slices resampled to thick ones are as anisotropic.
    for spacing in (spacing_mm, target_mm):
        most = max(spacing)
        if most / min(spacing) > ANISOTROPIC:
            axes = [axis for axis, mm in enumerate(spacing) if mm == most]
            return axes[0] if len(axes) == 1 else None
    return None
