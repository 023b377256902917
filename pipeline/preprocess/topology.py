"""Where a U-shaped network pools, how wide its stages are, what its feature maps weigh: nnU-Net's rules as functions.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021), supplementary note on experiment planning; the exact numbers
are those of nnunetv2 2.8.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Topology", "feature_map_values", "feature_widths", "topology"]

_MIN_FEATURE_MAP = 4  # an axis is halved while it keeps at least this many voxels
_SIMILAR = 2.0  # spacings within this factor count as the same resolution
_FIRST_FEATURES = 32
_MOST_FEATURES = {2: 512, 3: 320}
_CONVS_PER_STAGE = 2


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
