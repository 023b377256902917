"""Patch size, batch size and network topology from spacing, shape and a memory budget: nnU-Net's rules as functions.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021), supplementary note on experiment planning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Topology", "batch_size", "plan_patch", "target_spacing", "topology"]

_ANISOTROPIC = 3.0  # an axis this many times coarser than the others counts as anisotropic
_MIN_FEATURE_MAP = 4  # an axis is halved while it keeps at least this many voxels
_MAX_STAGES = 6
_DATASET_SHARE = 0.05  # a batch holds at most this share of all voxels of the dataset


@dataclass(frozen=True)
class Topology:
    """Strides and kernels per stage of a U-shaped network.

    Args:
        strides: Per stage, one number per axis; the first stage's are all 1.
        kernel_sizes: Per stage, one number per axis; 1 across a coarse axis, else 3.
    """

    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        """Legal patch sizes are multiples of these."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


def target_spacing(
    spacings_mm: Sequence[tuple[float, float, float]], shapes: Sequence[tuple[int, int, int]]
) -> tuple[float, float, float]:
    """Median spacing per axis; an axis that is much coarser takes its 10th percentile instead.

    The exception holds if one axis is more than 3 times coarser than both others and has fewer than a third of their
    voxels; it never becomes finer than the coarsest other axis.

    Args:
        spacings_mm: Spacing of every case.
        shapes: Shape of every case, along the same axes.

    Returns:
        Spacing in mm along the same axes.
    """
    spacings = np.array(spacings_mm, dtype=np.float64)
    target = np.median(spacings, axis=0)
    voxels = np.median(np.array(shapes, dtype=np.float64), axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > _ANISOTROPIC * target[others].max() and voxels[worst] * 3 < voxels[others].min():
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
    i, j, k = (float(round(value, 6)) for value in target)
    return i, j, k


def topology(patch: Sequence[int], spacing_mm: Sequence[float], max_stages: int = _MAX_STAGES) -> Topology:
    """Pool an axis while it has 8 voxels or more and its spacing is below twice the smallest.

    Args:
        patch: Voxels per axis.
        spacing_mm: Spacing per axis.
        max_stages: Stop at so many stages, the first (full resolution) included.

    Returns:
        The topology; one stage if nothing can be pooled.
    """
    size, spacing = [float(n) for n in patch], list(spacing_mm)
    strides: list[tuple[int, ...]] = [(1,) * len(size)]
    kernels: list[tuple[int, ...]] = [_kernels(spacing)]
    while len(strides) < max_stages:
        large = [axis for axis, n in enumerate(size) if n >= 2 * _MIN_FEATURE_MAP]
        if not large:
            break
        finest = min(spacing[axis] for axis in large)
        pooled = [axis for axis in large if spacing[axis] < 2 * finest]
        strides.append(tuple(2 if axis in pooled else 1 for axis in range(len(size))))
        for axis in pooled:
            size[axis], spacing[axis] = math.ceil(size[axis] / 2), spacing[axis] * 2
        kernels.append(_kernels(spacing))
    return Topology(tuple(strides), tuple(kernels))


def plan_patch(
    median_shape: Sequence[int], spacing_mm: Sequence[float], max_voxels: int, max_stages: int = _MAX_STAGES
) -> tuple[int, ...]:
    """Largest patch within the budget, its aspect that of the physical field of view.

    Starts with a cube in mm, clips it to the median shape (rounded up to what the topology can halve) and shrinks the
    axis that covers the largest share of the median shape until the voxels fit.

    Args:
        median_shape: Voxels per axis of the median case at the target spacing.
        spacing_mm: Target spacing.
        max_voxels: Budget.
        max_stages: As for :func:`topology`.

    Returns:
        A patch that is a multiple of the divisor of its own topology.
    """
    inverse = 1.0 / np.array(spacing_mm, dtype=np.float64)
    start = inverse / np.prod(inverse) ** (1 / len(inverse)) * max_voxels ** (1 / len(inverse)) * 2
    patch = [max(1, min(round(a), n)) for a, n in zip(start.tolist(), median_shape, strict=True)]
    patch = _legal(patch, spacing_mm, max_stages)
    while math.prod(patch) > max_voxels:
        divisor = topology(patch, spacing_mm, max_stages).divisor
        share = [n / m if n > d else 0.0 for n, m, d in zip(patch, median_shape, divisor, strict=True)]
        axis = int(np.argmax(share))
        if share[axis] == 0.0:
            break
        patch[axis] -= divisor[axis]
        patch = _legal(patch, spacing_mm, max_stages, down=True)
    return tuple(patch)


def batch_size(patch: Sequence[int], budget_voxels: int, dataset_voxels: float) -> int:
    """Patches that fit twice the patch budget, at most 5 % of the dataset's voxels, at least 2.

    Args:
        patch: Voxels per axis.
        budget_voxels: Voxels of the largest patch allowed; nnU-Net trains two of that size.
        dataset_voxels: Voxels of all cases together.
    """
    voxels = math.prod(patch)
    return max(2, min(2 * budget_voxels // voxels, int(_DATASET_SHARE * dataset_voxels / voxels)))


def _kernels(spacing_mm: Sequence[float]) -> tuple[int, ...]:
    finest = min(spacing_mm)
    return tuple(3 if spacing < 2 * finest else 1 for spacing in spacing_mm)


def _legal(patch: Sequence[int], spacing_mm: Sequence[float], max_stages: int, down: bool = False) -> list[int]:
    divisor = topology(patch, spacing_mm, max_stages).divisor
    if down:
        return [max(d, n // d * d) for n, d in zip(patch, divisor, strict=True)]
    return [math.ceil(n / d) * d for n, d in zip(patch, divisor, strict=True)]
