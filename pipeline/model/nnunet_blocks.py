"""Parts of nnU-Net's networks: encoder, decoder and residual block, their layers under nnU-Net's names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from pipeline.model.blocks import Style, activation_layer, conv_unit, head, upsampling
from pipeline.model.options import Stage

__all__ = ["BasicBlock", "Decoder", "Encoder", "residual_stage", "stacked_units"]


class Encoder(nn.Module):
    """Stages one after the other.

    Args:
        stages: Full resolution first.
        stem: What comes before them; None for nothing.
    """

    def __init__(self, stages: Sequence[nn.Module], stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Identity() if stem is None else stem
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *spatial) → what each stage gives, full resolution first."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """Up-convolutions, stages and heads, each list the deepest first.

    Args:
        stages: Resolution levels, full resolution first.
        convs: Units of each stage of the decoder, the deepest first.
        style: Of the units; up-convolutions have a bias where units have one.
        out_channels: Channels of the logits.
        every_head: Whether every stage has a head; else the last alone, under the number it would have then.
    """

    def __init__(
        self, stages: Sequence[Stage], convs: Sequence[int], style: Style, out_channels: int, *, every_head: bool
    ) -> None:
        super().__init__()
        self.transpconvs, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        for level, (lower, upper) in enumerate(pairwise(reversed(stages))):
            self.transpconvs.append(upsampling(lower, upper, style, "transposed", bias=style.bias))
            self.stages.append(stacked_units(2 * upper.features, upper, style, convs[level]))
            if every_head or level == len(convs) - 1:
                self.seg_layers[str(level)] = head(style.dims, upper.features, out_channels)

    def forward(self, skips: Sequence[Tensor], every_head: bool) -> list[Tensor]:
        """Logits of every head, or of the last alone, full resolution first.

        Args:
            skips: What the encoder's stages give, full resolution first.
            every_head: Whether to compute the heads of lower resolution.
        """
        x, logits = skips[-1], []
        for level, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat([up(x), skips[-2 - level]], dim=1))
            if every_head or level == len(self.stages) - 1:
                logits.append(self.seg_layers[str(level)](x))
        return logits[::-1]


class BasicBlock(nn.Module):
    """Two convolution units, the second added to the shortcut before its activation.

    The shortcut averages where the block has a stride, and has a 1×1 convolution without bias and a normalization where
    the channels change; else it is the input.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: Odd kernel size per axis.
        stride: Stride per axis.
        style: Of the units; dropout follows the first alone.

    Reference: He et al. 2019 (arXiv 1812.01187), ResNet-D.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, ...], stride: tuple[int, ...], style: Style
    ) -> None:
        super().__init__()
        self.conv1 = conv_unit(in_channels, out_channels, kernel, style, stride)
        self.conv2 = conv_unit(out_channels, out_channels, kernel, style, activate=False)
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            shortcut.append(Pool[Pool.AVG, style.dims](kernel_size=stride, stride=stride))
        if in_channels != out_channels:
            projection = replace(style, bias=False)
            shortcut.append(conv_unit(in_channels, out_channels, (1,) * style.dims, projection, activate=False))
        self.skip = nn.Sequential(*shortcut)
        self.activation = activation_layer(style.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, *spatial) → (B, out, *spatial / stride)."""
        result: Tensor = self.activation(self.conv2(self.conv1(x)) + self.skip(x))
        return result


def stacked_units(
    in_channels: int, stage: Stage, style: Style, count: int, stride: tuple[int, ...] | None = None
) -> nn.Sequential:
    """``count`` convolution units, the first with the stride: (B, in, *spatial) → (B, features, *spatial / stride)."""
    widths = [in_channels, *[stage.features] * count]
    units = [
        conv_unit(given, wanted, stage.kernel, style, stride if index == 0 else None)
        for index, (given, wanted) in enumerate(pairwise(widths))
    ]
    return nn.Sequential(OrderedDict(convs=nn.Sequential(*units)))


def residual_stage(in_channels: int, stage: Stage, style: Style, count: int) -> nn.Sequential:
    """``count`` residual blocks, the first with the stage's stride, as :func:`stacked_units`."""
    first = BasicBlock(in_channels, stage.features, stage.kernel, stage.stride, style)
    level = (1,) * style.dims
    others = [BasicBlock(stage.features, stage.features, stage.kernel, level, style) for _ in range(count - 1)]
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(first, *others)))
