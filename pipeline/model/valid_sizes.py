"""Which spatial sizes an encoder-decoder of valid convolutions takes, and what it loses at its borders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from pipeline.core import ConfigError, sentence
from pipeline.model.options import Stage
from pipeline.model.sizes import SizeRule

__all__ = ["head_margins", "valid_size_rule"]


def valid_size_rule(stages: Sequence[Stage], *, convs: int = 2, strided: bool = False, up_convs: int = 0) -> SizeRule:
    """Size rule of an encoder-decoder of valid convolutions whose skip connections are cropped at their centre.

    Legal is what every step down divides without remainder and what leaves at least one voxel of every level. A size
    that would leave one value per channel somewhere is never legal, so that there is always something to normalize.

    Args:
        stages: Levels with odd kernels, full resolution first.
        convs: Convolutions of each level, in the encoder as in the decoder.
        strided: Whether a level's first convolution steps down, instead of pooling before it.
        up_convs: Convolutions of a step up, with the kernel of the level it leads to.

    Returns:
        The rule with its border, e.g. (16,) + (188,) and 92 per axis for the five levels of the U-Net of 2015.

    Raises:
        ConfigError: If a skip connection would not be larger by the same number of voxels on either side than what it
            is joined with.

    Reference: Ronneberger et al. 2015 (arXiv 1505.04597), section 2.
    """
    problems: list[str] = []
    smallest, border, least = [], [], []
    for axis in range(len(stages[0].kernel)):
        levels = [(stage.kernel[axis], stage.stride[axis]) for stage in stages]
        bottom = 1
        while (walk := _valid_axis(bottom, levels, convs, strided, up_convs)).least < 1:
            bottom += 1
        for level, surplus in walk.uneven:
            expected = f"skips larger by an even number of voxels along axis {axis} than what they are joined with"
            advice = "Take down: pool, or odd strides that are not larger than the kernels"
            problems.append(sentence(f"padding valid at level {level}", expected, surplus, advice))
        smallest.append(walk.first)
        border.append((walk.first - walk.last) // 2)
        least.append(walk.least)
    if problems:
        raise ConfigError(problems, "network options")
    step = tuple(math.prod(per_axis) for per_axis in zip(*(stage.stride for stage in stages), strict=True))
    return SizeRule(step, tuple(smallest), lone_cell=max(least) > 1, border=tuple(border))


def head_margins(stages: Sequence[Stage], *, convs: int = 2, up_convs: int = 0) -> list[tuple[int, ...]]:
    """How far the decoder levels of valid convolutions reach beyond the final output on either side.

    Args:
        stages: See :func:`valid_size_rule`.
        convs: See :func:`valid_size_rule`.
        up_convs: See :func:`valid_size_rule`.

    Returns:
        Per level, full resolution first, and per axis, in voxels of full resolution; 0 at level 0. A level can be
        cropped to the final output exactly where this is a multiple of its distance of voxels.
    """
    reach = [(0,) * len(stages[0].kernel)]
    scale = stages[0].stride
    for upper, lower in pairwise(stages[:-1]):
        lost = [(convs + up_convs) * (n - 1) // 2 for n in upper.kernel]
        reach.append(tuple(old + n * step for old, n, step in zip(reach[-1], lost, scale, strict=True)))
        scale = tuple(a * b for a, b in zip(scale, lower.stride, strict=True))
    return reach


class _Walk(NamedTuple):
    first: int  # size of the input
    last: int  # size of the output
    least: int  # smallest size after any convolution
    uneven: list[tuple[int, int]]  # level and surplus of skips that cannot be cropped at their centre


def _valid_axis(bottom: int, levels: Sequence[tuple[int, int]], convs: int, strided: bool, up_convs: int) -> _Walk:
    """Sizes along one axis if ``bottom`` voxels are left at the lowest level."""
    size, skips = bottom, []
    for kernel, stride in reversed(levels):
        skips.append(size)
        if strided:
            size = (size + (convs - 1) * (kernel - 1) - 1) * stride + kernel
        else:
            size = (size + convs * (kernel - 1)) * stride
    first, size, least, uneven = size, bottom, bottom, []
    for level in reversed(range(len(levels) - 1)):
        lost = levels[level][0] - 1
        size = size * levels[level + 1][1] - up_convs * lost
        surplus = skips[len(levels) - 1 - level] - size
        if surplus < 0 or surplus % 2:
            uneven.append((level, surplus))
        size -= convs * lost
        least = min(least, size)
    return _Walk(first, size, least, uneven)
