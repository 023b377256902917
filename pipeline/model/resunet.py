"""ResUNet: a U-Net of pre-activated residual blocks."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import nn

from pipeline.model.blocks import interpolation, preactivated_block, style_of
from pipeline.model.network_options import LevelOptions, Size
from pipeline.model.unet import UShape, level_heads


class ResUNetOptions(LevelOptions):
    """Options of ``resunet``; the defaults are the paper's."""

    features: tuple[Size, ...] = Field(default=(64, 128, 256, 512), min_length=2)
    """Channels of each stage, full resolution first; their number is the number of stages."""
    convs_per_stage: Size = 2
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
