"""The way through a U-shaped network: down the encoder, up the decoder, a skip connection at every resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.model.base import Heads, SegmentationNetwork
from pipeline.model.blocks import head
from pipeline.model.options import LevelOptions
from pipeline.model.sizes import size_rule

__all__ = ["UShape", "level_heads"]


class UShape(SegmentationNetwork):
    """Forward pass that U-shaped networks share; a subclass builds the parts and overrides the step it does otherwise.

    Level i of ``encoder``, ``upsamplings``, ``decoder`` and ``heads`` has the same resolution, 0 being the input's;
    the encoder has one level more than the decoder. ``upsamplings[i]`` leads to level i, ``decoder[i]`` takes the skip
    connection followed by what comes from below.

    Args:
        dims: Number of spatial axes.
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        options: Stages, normalization and deep supervision.

    Raises:
        ConfigError: If a per-axis option has another number of axes than ``dims``.
    """

    encoder: nn.ModuleList
    upsamplings: nn.ModuleList
    decoder: nn.ModuleList
    heads: nn.ModuleList

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: LevelOptions) -> None:
        strides = [stage.stride for stage in options.stages(dims)]
        sizes = size_rule(strides, lone_cell=options.norm != "instance")
        batch_norm = options.norm == "batch"
        super().__init__(dims, in_channels, out_channels, options=options, sizes=sizes, batch_norm=batch_norm)
        self.deep_supervision = options.deep_supervision

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
        """One step up.

        Args:
            level: Level it leads to.
            skip: What the encoder gives at that level.
            below: What the decoder (at the bottom: the encoder) gives one level below.

        Returns:
            What the decoder gives at that level.
        """
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
    """A head for the finest decoder level, with deep supervision for all but the lowest, as nnU-Net weights them.

    Args:
        dims: Number of spatial axes.
        widths: Channels of the decoder's levels, finest first.
        out_channels: Channels of the logits.
        deep_supervision: Whether there is more than one.
    """
    supervised = widths[: max(1, len(widths) - 1)] if deep_supervision else widths[:1]
    return nn.ModuleList(head(dims, width, out_channels) for width in supervised)
