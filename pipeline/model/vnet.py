"""V-Net: residual stages of large convolutions, with strides instead of pooling."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.core.errors import sentence
from pipeline.model.blocks import (
    ResidualBlock,
    Style,
    activation_layer,
    conv_stage,
    conv_unit,
    head,
    norm_layer,
    shortcut,
    style_of,
    upsampling,
)
from pipeline.model.network_options import Activation, LevelOptions, PerAxis, PerStage, Size, Stage, spread
from pipeline.model.unet import UShape, level_heads


class VNetOptions(LevelOptions):
    """Options of ``vnet``; the defaults are those of its widely used implementation in MONAI."""

    per_stage: ClassVar[tuple[str, ...]] = ("kernel_sizes", "strides", "convs_per_stage")
    """Options that may be a tuple, of one entry per stage then."""

    features: tuple[Size, ...] = Field(default=(16, 32, 64, 128, 256), min_length=2)
    """Channels of each encoder stage, full resolution first; the decoder has twice as many."""
    convs_per_stage: PerStage = (1, 1, 2, 3, 2)
    """Convolution units of each encoder stage, full resolution first; the paper has 1, 2, 3, 3, 3."""
    decoder_convs: PerStage = (1, 1, 2, 2)
    """Convolution units of each decoder stage, full resolution first; the paper has 1, 2, 3, 3."""
    kernel_sizes: int | tuple[PerAxis, ...] = 5
    """Odd kernel sizes: one number, or one entry per stage, each a number or one number per axis."""
    activation: Activation = "elu"
    """Activation of every unit and behind every sum; the paper's is prelu."""

    @model_validator(mode="after")
    def _decoder_fits(self) -> Self:
        stages = len(self.features) - 1
        if isinstance(self.decoder_convs, tuple) and len(self.decoder_convs) != stages:
            expected = f"one entry for each of the {stages} stages in features but the last"
            raise ValueError(sentence("decoder_convs", expected, len(self.decoder_convs), "Give as many"))
        return self


class VNet(UShape):
    """V-Net: every stage is a chain of large convolutions beside an identity, steps are convolutions of their stride.

    The chain of a decoder stage keeps all channels of the skip connection and of the step up together. The shortcut of
    the first stage repeats the image's channels. With deep supervision, all decoder levels but the lowest have a head;
    that of full resolution has a convolution unit before its 1×1 convolution, the others have none.

    Reference: Milletari et al. 2016 (arXiv 1606.04797), figure 2; normalization, units per stage and activation as in
    MONAI's VNet, whose dropout of whole channels is left out.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: VNetOptions) -> None:
        super().__init__(dims, in_channels, out_channels, options)
        stages, style = options.stages(dims), style_of(options, dims)
        convs = spread(options.convs_per_stage, len(stages))
        self.encoder = nn.ModuleList([_first_stage(in_channels, stages[0], style, convs[0])])
        self.upsamplings, self.decoder = nn.ModuleList(), nn.ModuleList()
        down = replace(style, valid=True)  # a kernel that is its stride needs no padding
        for (upper, lower), units in zip(pairwise(stages), convs[1:], strict=True):
            step = conv_unit(upper.features, lower.features, lower.stride, down, lower.stride)
            self.encoder.append(nn.Sequential(OrderedDict(down=step, block=_block(lower, style, units))))
        widths = [2 * stage.features for stage in stages[:-1]]
        decoder_convs = spread(options.decoder_convs, len(widths))
        for level, below in enumerate((*widths[1:], stages[-1].features)):
            upper, lower = stages[level], replace(stages[level + 1], features=below)
            self.upsamplings.append(_up_unit(lower, upper, style))
            self.decoder.append(_block(replace(upper, features=widths[level]), style, decoder_convs[level]))
        self.heads = level_heads(dims, widths, out_channels, options.deep_supervision)
        last = conv_unit(widths[0], out_channels, stages[0].kernel, replace(style, dropout=0.0))
        self.heads[0] = nn.Sequential(OrderedDict(unit=last, head=head(dims, out_channels, out_channels)))


class Repeated(nn.Module):
    """The channels in turn until there are as many as wanted: (B, C, *spatial) → (B, features, *spatial).

    Args:
        channels: C, at most ``features``.
        features: Channels wanted.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.features = features
        self.times = math.ceil(features / channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([x] * self.times, dim=1)[:, : self.features]


def _first_stage(in_channels: int, stage: Stage, style: Style, convs: int) -> ResidualBlock:
    """The stage that sees the image; unlike the others it has no activation before the sum."""
    units = conv_stage(in_channels, stage, style, convs=convs)
    # The image is repeated to the stage's channels, and the sum comes before the activation.
    units[-1].activation = nn.Identity()
    many = in_channels > stage.features
    beside = shortcut(in_channels, stage.features, style) if many else Repeated(in_channels, stage.features)
    return ResidualBlock(units, beside, activation_layer(style.activation))


def _block(stage: Stage, style: Style, convs: int) -> ResidualBlock:
    units = conv_stage(stage.features, stage, style, convs=convs)
    return ResidualBlock(units, nn.Identity(), activation_layer(style.activation))


def _up_unit(lower: Stage, upper: Stage, style: Style) -> nn.Sequential:
    """Transposed convolution with bias → normalization → activation."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=upsampling(lower, upper, style, "transposed"))
    if style.norm != "none":
        layers["norm"] = norm_layer(style.norm, style.dims, upper.features)
    layers["activation"] = activation_layer(style.activation)
    return nn.Sequential(layers)
