"""Topology, patch, batch and low resolution from a dataset's shapes and the memory at hand: nnU-Net's rules.

The target spacing, which comes first, is in :mod:`pipeline.preprocess.spacing`.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021), supplementary note on experiment planning; the exact numbers
are those of nnunetv2 2.8.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.preprocess.spacing import coarsest_axis

_MIN_FEATURE_MAP = 4  # an axis is halved while it keeps at least this many voxels
_SIMILAR = 2.0  # spacings within this factor count as the same resolution
_FIRST_FEATURES = 32
_MOST_FEATURES = {2: 512, 3: 320}
_CONVS_PER_STAGE = 2
_DATASET_SHARE = 0.05  # a batch holds at most this share of all voxels of the dataset
_MIN_BATCH = 2
_LEAST_COVER = 0.25  # of the median case; patches that see less are joined by a low resolution, which sees that much
_COARSER = 1.03  # step in which its spacing grows
_FINER = 2.0  # axes this many times finer than the coarsest grow first
_LEAST_GAIN = 2.0  # voxels of the median case, full over low resolution, from which the low resolution pays
_FIRST_EDGE = {2: 2048, 3: 256}  # of the square or cube in which the search begins
_REFERENCE_GB = 8.0
_REFERENCE_VALUES = {2: 85e6, 3: 560e6}  # feature map values of one patch that go with the reference memory ...
_REFERENCE_BATCH = {2: 12, 3: 2}  # ... at this batch


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


def topology(patch: Sequence[float], spacing_mm: Sequence[float], max_stages: int | None = None) -> Topology:
    """Pool an axis while it has 8 voxels or more and its spacing is below twice the smallest of such axes.

    Where only one axis is left to pool, it needs 12 voxels. A kernel spans an axis from the stage on at which the
    axis' spacing is below twice the smallest of all; the deepest stage's kernels span all axes.

    Args:
        patch: Voxels per axis.
        spacing_mm: Spacing per axis.
        max_stages: Stop at so many stages, the first (full resolution) included; None to stop where nothing is left.

    Returns:
        The topology; one stage if nothing can be pooled.
    """
    size, spacing = list(patch), list(spacing_mm)
    strides: list[tuple[int, ...]] = [(1,) * len(size)]
    kernels: list[tuple[int, ...]] = []
    spanned = [False] * len(size)
    while max_stages is None or len(strides) < max_stages:
        pooled = _pooled(size, spacing)
        if not pooled:
            break
        finest = min(spacing)
        # Once a kernel spans an axis it does so at all deeper stages.
        spanned = [before or mm / finest < _SIMILAR for before, mm in zip(spanned, spacing, strict=True)]
        kernels.append(tuple(3 if span else 1 for span in spanned))
        strides.append(tuple(2 if axis in pooled else 1 for axis in range(len(size))))
        for axis in pooled:
            size[axis], spacing[axis] = math.ceil(size[axis] / 2), spacing[axis] * 2
    return Topology(tuple(strides), (*kernels, (3,) * len(size)))


def feature_widths(stages: int, dims: int) -> tuple[int, ...]:
    """Channels per stage: 32, doubled at every stage up to 320 in 3D and 512 in 2D."""
    return tuple(min(_FIRST_FEATURES * 2**stage, _MOST_FEATURES[dims]) for stage in range(stages))


def feature_map_values(patch: Sequence[int], strides: Sequence[Sequence[int]], outputs: int) -> int:
    """Values in all feature maps of the plain U-Net for one patch: what memory in training is proportional to.

    Two convolutions per stage on either side, the transposed convolutions and the logits.

    Args:
        patch: Voxels per axis, a multiple of the product of the strides.
        strides: Per stage, one number per axis.
        outputs: Channels of the logits.
    """
    widths = feature_widths(len(strides), len(patch))
    totals = [[math.prod(axis) for axis in zip(*strides[: n + 1], strict=True)] for n in range(len(strides))]
    voxels: list[int] = [math.prod(n // d for n, d in zip(patch, total, strict=True)) for total in totals]
    # Nearly all memory of training are the outputs of convolutions, kept for the backward pass.
    encoder = sum(_CONVS_PER_STAGE * n * width for n, width in zip(voxels, widths, strict=True))
    decoder = sum((_CONVS_PER_STAGE + 1) * n * width for n, width in zip(voxels[:-1], widths[:-1], strict=True))
    return encoder + decoder + voxels[0] * outputs


def _pooled(size: Sequence[float], spacing_mm: Sequence[float]) -> list[int]:
    """Axes that the next stage halves; none if the network ends here."""
    large = [axis for axis, n in enumerate(size) if n >= 2 * _MIN_FEATURE_MAP]
    if not large:
        return []
    finest = min(spacing_mm[axis] for axis in large)
    pooled = [axis for axis in large if spacing_mm[axis] / finest < _SIMILAR]
    return [] if len(pooled) == 1 and size[pooled[0]] < 3 * _MIN_FEATURE_MAP else pooled


def plan_patch(
    median_shape: Sequence[float], spacing_mm: Sequence[float], outputs: int, memory_gb: float
) -> tuple[int, ...]:
    """Largest patch whose feature maps fit into memory twice (in 2D: 12 times at most, twice at least).

    Starts with a cube of 256 voxels (a square of 2048) in the proportions of 1 / spacing, clips it to the median shape,
    fills it up to what the topology can halve, and takes from the axis that covers the largest share of the median
    shape until the feature maps fit.

    Args:
        median_shape: Voxels per axis of the median case at the target spacing.
        spacing_mm: Target spacing.
        outputs: Channels of the logits, background included.
        memory_gb: Memory of the GPU to plan for; 8 is nnU-Net's default.

    Returns:
        A patch that is a multiple of the divisor of its own topology.
    """
    dims = len(spacing_mm)
    inverse = 1.0 / np.array(spacing_mm, dtype=np.float64)
    # A cube in millimetres has more voxels along finer axes.
    start = inverse * (_FIRST_EDGE[dims] ** dims / np.prod(inverse)) ** (1 / dims)
    patch = [max(1.0, min(round(a), n)) for a, n in zip(start.tolist(), median_shape, strict=True)]
    size, shape = _filled(patch, spacing_mm)
    most = _REFERENCE_VALUES[dims] * memory_gb / _REFERENCE_GB * _REFERENCE_BATCH[dims] / _MIN_BATCH
    while feature_map_values(size, shape.strides, outputs) > most:
        smaller = _shrunk(size, shape, median_shape, spacing_mm)
        if smaller is None:
            break
        size, shape = _filled(smaller, spacing_mm)
    return size


def batch_size(
    patch: Sequence[int], spacing_mm: Sequence[float], outputs: int, memory_gb: float, dataset_voxels: float
) -> int:
    """Patches whose feature maps fit into memory, together at most 5 % of the dataset's voxels, at least 2.

    Arguments as for :func:`plan_patch`; ``dataset_voxels`` are those of all cases together at the target spacing.
    """
    dims = len(patch)
    values = feature_map_values(patch, topology(patch, spacing_mm).strides, outputs)
    # Memory grows with the batch in proportion, so one measured network stands for all.
    fitting = round(_REFERENCE_VALUES[dims] * memory_gb / _REFERENCE_GB / values * _REFERENCE_BATCH[dims])
    return max(_MIN_BATCH, min(fitting, round(_DATASET_SHARE * dataset_voxels / math.prod(patch))))


def low_resolution_spacing(
    median_shape: Sequence[float],
    spacing_mm: Sequence[float],
    outputs: int,
    memory_gb: float,
) -> tuple[float, float, float] | None:
    """Coarser spacing at which a patch covers a quarter of the median case; None if the full resolution nearly does.

    The spacing grows by 3 % at a time, first along axes more than twice finer than the coarsest, then along all.

    Args:
        median_shape: Voxels per axis of the median case at the full resolution.
        spacing_mm: Spacing of the full resolution.
        outputs: Channels of the logits, background included.
        memory_gb: Memory of the GPU to plan for.

    Returns:
        Spacing in mm; None if the patch of the full resolution covers a quarter, or if the median case would not have
        half its voxels or fewer.
    """
    shape, full = np.array(median_shape, dtype=np.float64), np.array(spacing_mm, dtype=np.float64)
    low, reduced = full.copy(), shape
    patch = plan_patch(shape.tolist(), spacing_mm, outputs, memory_gb)
    while math.prod(patch) / reduced.prod() < _LEAST_COVER:
        finer = low.max() / low > _FINER
        # First the finer axes, so that the grid becomes isotropic before all of it gets coarser.
        low[finer if finer.any() else slice(None)] *= _COARSER
        reduced = full / low * shape
        patch = plan_patch(reduced.round().tolist(), low.tolist(), outputs, memory_gb)
    if shape.prod() / reduced.prod() < _LEAST_GAIN:
        return None
    i, j, k = low.tolist()
    return i, j, k


def _filled(patch: Sequence[float], spacing_mm: Sequence[float]) -> tuple[tuple[int, ...], Topology]:
    """The patch enlarged to multiples of what its topology divides by, and that topology."""
    shape = topology(patch, spacing_mm)
    return tuple(int(math.ceil(n / d) * d) for n, d in zip(patch, shape.divisor, strict=True)), shape


def _shrunk(
    patch: Sequence[int], shape: Topology, median_shape: Sequence[float], spacing_mm: Sequence[float]
) -> list[int] | None:
    """The patch with one axis shortened by the smallest step that the smaller topology allows; None if none can be.

    A step of the present divisor might pass over legal sizes: from 256 with divisor 64 it leads to 192, although 224
    is divided by its own 32. So the divisor is taken from what that step would lead to.
    """
    coarse = coarsest_axis(spacing_mm) if len(patch) == 3 else None
    # Of equal shares the last in nnU-Net's order of axes: the coarsest, then from the last to the first.
    order = sorted(range(len(patch)), key=lambda axis: (axis == coarse, axis))
    shares = {axis: patch[axis] / median_shape[axis] for axis in order if patch[axis] > shape.divisor[axis]}
    if not shares:
        return None
    axis = max(order, key=lambda n: shares.get(n, 0.0))
    smaller = list(patch)
    smaller[axis] -= shape.divisor[axis]
    smaller[axis] = patch[axis] - topology(smaller, spacing_mm).divisor[axis]
    return smaller
