"""U-Net: an encoder, a decoder, and a skip connection at every resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from operator import mul
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import model_validator
from torch import Tensor, nn

from pipeline.core import ConfigError, sentence
from pipeline.model.base import Heads
from pipeline.model.blocks import conv_stage, style_of, upsampling
from pipeline.model.options import Stage, StageOptions
from pipeline.model.sizes import SizeRule
from pipeline.model.ushape import UShape, level_heads
from pipeline.model.valid_sizes import head_margins, valid_size_rule

__all__ = ["DropoutAt", "HeadSize", "Padding", "UNet", "UNetOptions", "UpFeatures"]

Padding = Literal["same", "valid"]
DropoutAt = Literal["all", "deep"]
UpFeatures = Literal["stage", "kept", "last_kept"]
HeadSize = Literal["native", "full"]


class UNetOptions(StageOptions):
    """Options of ``unet``; the other classical U-Nets are the same with other defaults."""

    padding: Padding = "same"
    """Zeros around what a convolution sees, or none: valid logits are smaller than the input and skips are cropped."""
    narrow_start: bool = False
    """Whether the units of an encoder stage have half its channels but for the last one, as in the 3D U-Net of 2016."""
    dropout_at: DropoutAt = "all"
    """Dropout behind every unit, or behind the last unit of the two deepest encoder stages alone."""
    up_features: UpFeatures = "stage"
    """Channels of a step up: those of the stage it leads to, those it is given, or that in the last step alone."""
    up_bias: bool = True
    """Whether transposed convolutions have a bias."""
    up_activation: bool = False
    """Whether the activation follows transposed convolutions."""
    head_size: HeadSize = "native"
    """Heads of deep supervision at their own resolution, or linearly interpolated to that of the output."""

    @model_validator(mode="after")
    def _valid_sees_no_border(self) -> UNetOptions:
        if self.padding == "valid" and self.up == "linear":
            advice = "Choose another up: interpolation repeats the voxels at a border, which are not the image's"
            raise ValueError(sentence("up", "transposed or nearest where padding is valid", "linear", advice))
        return self


class UNet(UShape):
    """U-Net of padded or valid convolutions, in 2D or 3D, for isotropic and anisotropic voxels.

    Level i of ``encoder``, ``decoder``, ``upsamplings`` and ``heads`` has the same resolution, 0 being the input's.
    With deep supervision, all decoder levels but the lowest have a head, finest first, as nnU-Net weights them. With
    valid convolutions each head is cropped to the region of the final logits.

    Args:
        dims: 2 or 3.
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        options: Stages, normalization and so on.

    Raises:
        ConfigError: If a per-axis option has another number of axes than ``dims``; with valid convolutions, if skips or
            heads cannot be cropped at their centre.

    Reference: Ronneberger et al. 2015 (arXiv 1505.04597); Çiçek et al. 2016 (arXiv 1606.06650) for 3D and ``kept``;
    Isensee et al. 2021 (10.1038/s41592-020-01008-z) for kernels and strides per axis and the heads.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: UNetOptions) -> None:
        super().__init__(dims, in_channels, out_channels, options)
        stages = options.stages(dims)
        strides = (stage.stride for stage in stages)
        self.scales = list(accumulate(strides, lambda above, stride: tuple(map(mul, above, stride))))
        self.full_heads, self.valid = options.head_size == "full", options.padding == "valid"
        if self.valid:
            self.batch_norm = False  # sizes that would leave a single value to normalize are not legal
            self.sizes = _valid_sizes(options, stages, self.scales)
        deep = replace(style_of(options, dims), valid=self.valid)
        style = deep if options.dropout_at == "all" else replace(deep, dropout=0.0)
        convs, widths = options.convs_per_stage, (in_channels, *options.features)
        self.encoder, self.upsamplings, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (width, stage) in enumerate(zip(widths, stages, strict=False)):
            start = max(1, stage.features // 2) if options.narrow_start else None
            last = deep if level >= len(stages) - 2 else None
            self.encoder.append(conv_stage(width, stage, style, convs=convs, down=options.down, start=start, last=last))
        for level, (upper, lower) in enumerate(pairwise(stages)):
            kept = options.up_features == "kept" or (options.up_features == "last_kept" and level == 0)
            wide = replace(upper, features=lower.features) if kept else upper
            bias, activation = options.up_bias, options.up_activation
            self.upsamplings.append(upsampling(lower, wide, style, options.up, bias=bias, activation=activation))
            self.decoder.append(conv_stage(upper.features + wide.features, upper, style, convs=convs))
        self.heads = level_heads(dims, options.features[:-1], out_channels, options.deep_supervision)

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
        size = tuple(levels[0].shape[2:])
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
