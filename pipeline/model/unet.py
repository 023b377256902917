"""U-Net: an encoder, a decoder, and a skip connection at every resolution; also of pre-activated residual blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from operator import mul
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, sentence
from pipeline.model.base import Heads, LevelNetwork
from pipeline.model.blocks import (
    BlockHead,
    conv_stage,
    head,
    interpolation,
    into_blocks,
    preactivated_block,
    style_of,
    upsampling,
)
from pipeline.model.network_options import Block, Count, LevelOptions, Size, Stage, StageOptions, per_axis
from pipeline.model.sizes import SizeRule, size_rule


class UShape(LevelNetwork):
    """Forward pass that U-shaped networks share; a subclass builds the parts and overrides the step it does otherwise.

    Level i of ``encoder``, ``upsamplings``, ``decoder`` and ``heads`` has the same resolution, 0 being the input's;
    the encoder has one level more than the decoder. ``upsamplings[i]`` leads to level i, ``decoder[i]`` takes the skip
    connection followed by what comes from below.
    """

    encoder: nn.ModuleList
    upsamplings: nn.ModuleList
    decoder: nn.ModuleList
    heads: nn.ModuleList

    def segment(self, x: Tensor) -> Tensor | Heads:
        """Logits at full resolution; in training mode with deep supervision those of all heads, finest first."""
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        levels: list[Tensor] = []
        while skips:
            level = len(skips) - 1
            x = self.climb(level, skips.pop(), x)
            levels.append(x)
        return self.outputs(levels[::-1])

    def climb(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        """What the decoder gives at a level, of the skip connection there and of what comes from one level below."""
        up = self.upsamplings[level](below)
        features: Tensor = self.decoder[level](torch.cat([skip, up], dim=1))
        return features

    def outputs(self, levels: Sequence[Tensor]) -> Tensor | Heads:
        """Logits, as :meth:`segment` returns them, of what the decoder gives at its levels, finest first."""
        if self.training and self.deep_supervision:
            return {f"level{n}": output(levels[n]) for n, output in enumerate(self.heads)}
        logits: Tensor = self.heads[0](levels[0])
        return logits


def level_heads(dims: int, widths: Sequence[int], out_channels: int, deep_supervision: bool) -> nn.ModuleList:
    """A head for the finest decoder level, with deep supervision for all but the lowest, as nnU-Net weights them."""
    supervised = widths[: max(1, len(widths) - 1)] if deep_supervision else widths[:1]
    return nn.ModuleList(head(dims, width, out_channels) for width in supervised)


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

    Args are those of :func:`valid_size_rule`.

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
    # Up the encoder backwards: what each stage must be given to leave this.
    size, skips = bottom, []
    for kernel, stride in reversed(levels):
        skips.append(size)
        if strided:
            size = (size + (convs - 1) * (kernel - 1) - 1) * stride + kernel
        else:
            size = (size + convs * (kernel - 1)) * stride
    # Then through the decoder, as an image of that size goes.
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


class UNetOptions(StageOptions):
    """Options of ``unet``; the other classical U-Nets have the same, with the defaults that the registry names."""

    padding: Literal["same", "valid"] = "same"
    """Zeros around what a convolution sees, or none: valid logits are smaller than the input and skips are cropped."""
    narrow_start: bool = False
    """Whether the units of an encoder stage have half its channels but for the last one, as in the 3D U-Net of 2016."""
    dropout_at: Literal["all", "deep"] = "all"
    """Dropout behind every unit, or behind the last unit of the two deepest encoder stages alone."""
    up_features: Literal["stage", "kept", "last_kept"] = "stage"
    """Channels of a step up: those of the stage it leads to, those it is given, or that in the last step alone."""
    up_bias: bool = True
    """Whether transposed convolutions have a bias."""
    up_activation: bool = False
    """Whether the activation follows transposed convolutions."""
    head_size: Literal["native", "full"] = "native"
    """Heads of deep supervision at their own resolution, or linearly interpolated to that of the output."""
    block: Block = 1
    """Voxels along each axis that are taken as channels of one: the network is that much coarser and faster inside, and
    its head gives the logits of every voxel."""

    @model_validator(mode="after")
    def _valid_sees_no_border(self) -> UNetOptions:
        if self.padding == "valid" and self.block != 1:
            raise ValueError(sentence("block", "1 where padding is valid", self.block, "Choose padding: same"))
        if self.padding == "valid" and self.up == "linear":
            advice = "Choose another up: interpolation repeats the voxels at a border, which are not the image's"
            raise ValueError(sentence("up", "transposed or nearest where padding is valid", "linear", advice))
        return self


class UNet(UShape):
    """U-Net of padded or valid convolutions, in 2D or 3D, for isotropic and anisotropic voxels.

    Level i of ``encoder``, ``decoder``, ``upsamplings`` and ``heads`` has the same resolution, 0 being the input's.
    With deep supervision, all decoder levels but the lowest have a head, finest first, as nnU-Net weights them. With
    valid convolutions each head is cropped to the region of the final logits. With blocks, level 0 is that of the
    blocks, and its head gives logits at the input's resolution.

    Raises:
        ConfigError: If a per-axis option has another number of axes than ``dims``; with valid convolutions, if skips or
            heads cannot be cropped at their centre.

    Reference: Ronneberger et al. 2015 (arXiv 1505.04597); Çiçek et al. 2016 (arXiv 1606.06650) for 3D and ``kept``;
    Isensee et al. 2021 (10.1038/s41592-020-01008-z) for kernels and strides per axis and the heads.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: UNetOptions) -> None:
        super().__init__(dims, in_channels, out_channels, options)
        stages, self.block = options.stages(dims), per_axis("block", options.block, dims)
        strides = [self.block, *(stage.stride for stage in stages[1:])]
        self.scales = list(accumulate(strides, lambda above, stride: tuple(map(mul, above, stride))))
        self.sizes = size_rule(strides, lone_cell=self.sizes.lone_cell)
        self.full_heads, self.valid = options.head_size == "full", options.padding == "valid"
        if self.valid:
            self.batch_norm = False  # sizes that would leave a single value to normalize are not legal
            self.sizes = _valid_sizes(options, stages, self.scales)
        deep = replace(style_of(options, dims), valid=self.valid)
        style = deep if options.dropout_at == "all" else replace(deep, dropout=0.0)
        convs, widths = options.convs_per_stage, (in_channels * math.prod(self.block), *options.features)
        self.encoder, self.upsamplings, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (width, stage) in enumerate(zip(widths, stages, strict=False)):
            start = max(1, stage.features // 2) if options.narrow_start else None
            # Dropout at the two deepest stages, behind their last unit, as in the release of 2015.
            last = deep if level >= len(stages) - 2 else None
            self.encoder.append(conv_stage(width, stage, style, convs=convs, down=options.down, start=start, last=last))
        for level, (upper, lower) in enumerate(pairwise(stages)):
            # Step 0 leads to full resolution and is the last one on the way up.
            kept = options.up_features == "kept" or (options.up_features == "last_kept" and level == 0)
            wide = replace(upper, features=lower.features) if kept else upper
            bias, activation = options.up_bias, options.up_activation
            self.upsamplings.append(upsampling(lower, wide, style, options.up, bias=bias, activation=activation))
            self.decoder.append(conv_stage(upper.features + wide.features, upper, style, convs=convs))
        self.heads = level_heads(dims, options.features[:-1], out_channels, options.deep_supervision)
        if max(self.block) > 1:
            self.scales[0] = (1,) * dims  # of the head
            self.heads[0] = BlockHead(dims, options.features[0], out_channels, self.block)

    def segment(self, x: Tensor) -> Tensor | Heads:
        """Logits, of an image taken in blocks where these are larger than a voxel."""
        return super().segment(into_blocks(x, self.block) if max(self.block) > 1 else x)

    def climb(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        """One step up; of valid convolutions, the skip connection is cropped at its centre."""
        up = self.upsamplings[level](below)
        features: Tensor = self.decoder[level](torch.cat([_centre(skip, up.shape[2:]) if self.valid else skip, up], 1))
        return features

    def outputs(self, levels: Sequence[Tensor]) -> Tensor | Heads:
        """Logits; in training mode with deep supervision those of all heads, each where the finest ones are."""
        heads = super().outputs(levels)
        if isinstance(heads, Tensor):
            return heads
        size = tuple(heads["level0"].shape[2:])
        return {name: self._placed(logits, self.scales[n], size) for n, (name, logits) in enumerate(heads.items())}

    def _placed(self, logits: Tensor, scale: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        """Logits of a level of that scale for a final output of that size, at their own or at full resolution."""
        if not self.full_heads or max(scale) == 1:
            return _centre(logits, [n // step for n, step in zip(size, scale, strict=True)])
        wide = [n * step for n, step in zip(logits.shape[2:], scale, strict=True)]
        mode = "bilinear" if self.dims == 2 else "trilinear"
        return _centre(F.interpolate(logits, size=wide, mode=mode, align_corners=False), size)


def _valid_sizes(options: UNetOptions, stages: Sequence[Stage], scales: Sequence[tuple[int, ...]]) -> SizeRule:
    convs, up_convs = options.convs_per_stage, int(options.up != "transposed")
    if options.deep_supervision and options.head_size == "native":
        reaches = head_margins(stages, convs=convs, up_convs=up_convs)
        for level in range(1, len(stages) - 2):
            if any(n % step for n, step in zip(reaches[level], scales[level], strict=True)):
                expected = "heads that can be cropped to the final output, voxel by voxel"
                got = f"level {level}, which reaches {reaches[level]} voxels beyond it in steps of {scales[level]}"
                advice = "Set head_size: full, or take fewer stages"
                raise ConfigError([sentence("deep_supervision", expected, got, advice)], "network options")
    return valid_size_rule(stages, convs=convs, strided=options.down == "stride", up_convs=up_convs)


def _centre(x: Tensor, size: Sequence[int]) -> Tensor:
    """The part of that spatial size at the centre of (B, C, *spatial)."""
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, (x.shape[axis] - n) // 2, n)
    return x


class ResUNetOptions(LevelOptions):
    """Options of ``resunet``; the defaults are the paper's."""

    features: tuple[Size, ...] = Field(default=(64, 128, 256, 512), min_length=2)
    """Channels of each stage, full resolution first; their number is the number of stages."""
    convs_per_stage: Count = 2
    """Convolution units of each residual block; every stage is one block, in the encoder as in the decoder."""
    bias: bool = True
    """Whether the convolutions of blocks and shortcuts have a bias; heads always have one."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of zeroing a value between the activation and the convolution of a unit."""
    up: Literal["nearest", "linear"] = "nearest"
    """Interpolation on the way up, which has no parameters."""


class ResUNet(UShape):
    """U-Net of residual blocks that step down by strides and up by interpolation, in 2D or 3D.

    Every block is (normalization, activation, convolution) twice, beside a 1×1 shortcut; the first block begins with
    its convolution. With deep supervision, all decoder levels but the lowest have a head.

    Reference: Zhang et al. 2018 (arXiv 1711.10684), figure 2 and table I.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: ResUNetOptions) -> None:
        super().__init__(dims, in_channels, out_channels, options)
        stages, style, convs = options.stages(dims), style_of(options, dims), options.convs_per_stage
        self.encoder = nn.ModuleList(
            preactivated_block(width, stage, style, convs=convs, down=True, bare=level == 0)
            for level, (width, stage) in enumerate(zip((in_channels, *options.features), stages, strict=False))
        )
        pairs = list(pairwise(stages))
        self.upsamplings = nn.ModuleList(interpolation(lower.stride, options.up) for _, lower in pairs)
        self.decoder = nn.ModuleList(
            preactivated_block(upper.features + lower.features, upper, style, convs=convs) for upper, lower in pairs
        )
        self.heads = level_heads(dims, options.features[:-1], out_channels, options.deep_supervision)
