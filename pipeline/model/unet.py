"""U-Net: an encoder, a decoder, and a skip connection at every resolution."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.model.base import SegmentationNetwork
from pipeline.model.blocks import conv_stage, head, style_of, upsampling
from pipeline.model.options import StageOptions
from pipeline.model.sizes import size_rule

__all__ = ["UNet", "UNetOptions"]


class UNetOptions(StageOptions):
    """Options of ``unet``."""


class UNet(SegmentationNetwork):
    """U-Net with padded convolutions, in 2D or 3D, for isotropic and anisotropic voxels.

    Level i of ``encoder``, ``decoder``, ``upsamplings`` and ``heads`` has the same resolution, 0 being the input's.
    With deep supervision, all decoder levels but the lowest have a head, finest first, as nnU-Net weights them.

    Args:
        dims: 2 or 3.
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        options: Stages, normalization and so on.

    Raises:
        ConfigError: If a per-axis option has another number of axes than ``dims``.

    Reference: Ronneberger et al. 2015 (arXiv 1505.04597), padded and normalized; Çiçek et al. 2016 (arXiv 1606.06650)
    for 3D; Isensee et al. 2021 (10.1038/s41592-020-01008-z) for kernels and strides per axis and the heads.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: UNetOptions) -> None:
        stages, style, convs = options.stages(dims), style_of(options, dims), options.convs_per_stage
        sizes = size_rule([stage.stride for stage in stages], lone_cell=options.norm != "instance")
        super().__init__(
            dims, in_channels, out_channels, options=options, sizes=sizes, batch_norm=options.norm == "batch"
        )
        self.deep_supervision = options.deep_supervision
        widths = (in_channels, *options.features)
        self.encoder = nn.ModuleList(
            conv_stage(width, stage, style, convs=convs, down=options.down)
            for width, stage in zip(widths, stages, strict=False)
        )
        pairs = list(pairwise(stages))
        self.upsamplings = nn.ModuleList(upsampling(lower, upper, style, options.up) for upper, lower in pairs)
        self.decoder = nn.ModuleList(conv_stage(2 * upper.features, upper, style, convs=convs) for upper, _ in pairs)
        supervised = stages[: max(1, len(stages) - 2)] if self.deep_supervision else stages[:1]
        self.heads = nn.ModuleList(head(dims, stage.features, out_channels) for stage in supervised)

    def segment(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits at full resolution; in training mode with deep supervision those of all heads, finest first."""
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        levels: list[Tensor] = []
        for up, stage in zip(reversed(self.upsamplings), reversed(self.decoder), strict=True):
            x = stage(torch.cat([skips.pop(), up(x)], dim=1))
            levels.append(x)
        if self.training and self.deep_supervision:
            finest_first = levels[::-1][: len(self.heads)]
            return tuple(output(level) for output, level in zip(self.heads, finest_first, strict=True))
        logits: Tensor = self.heads[0](x)
        return logits
