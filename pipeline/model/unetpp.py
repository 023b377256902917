"""UNet++: U-Nets of all depths nested in one another, their skip connections dense."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.core import sentence
from pipeline.model.base import SegmentationNetwork
from pipeline.model.blocks import conv_stage, head, style_of, upsampling
from pipeline.model.options import Norm, Size, StageOptions
from pipeline.model.sizes import size_rule

__all__ = ["UNetPlusPlus", "UNetPlusPlusOptions", "average_heads"]


class UNetPlusPlusOptions(StageOptions):
    """Options of ``unetpp``; the defaults are the paper's: no normalization, dropout 0.5."""

    features: tuple[Size, ...] = Field(default=(32, 64, 128, 256, 512), min_length=2)
    """Channels of each stage, full resolution first; their number is the number of stages."""
    norm: Norm = "none"
    """Normalization; group makes 8 groups, or as many as divide both 8 and the channels."""
    bias: bool = True
    """Whether the convolutions of units have a bias; up-convolutions and heads always have one."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Probability of zeroing a value behind each convolution unit."""
    mode: Literal["fast", "accurate"] = "fast"
    """Prediction with deep supervision. fast: the deepest head. accurate: the mean of all heads' probabilities."""
    probabilities: Literal["softmax", "sigmoid"] = "softmax"
    """What accurate averages: softmax over classes, or a sigmoid per channel (always so with one output channel)."""

    @model_validator(mode="after")
    def _accurate_has_heads(self) -> UNetPlusPlusOptions:
        if self.mode == "accurate" and not self.deep_supervision:
            advice = "Set deep_supervision: true, or mode: fast"
            raise ValueError(sentence("mode", "fast where deep_supervision is off", "accurate", advice))
        return self


class UNetPlusPlus(SegmentationNetwork):
    """UNet++ with deep supervision at full resolution, in 2D or 3D, for isotropic and anisotropic voxels.

    Node ``x{i}_{j}`` is at resolution i and column j: x{i}_0 is the encoder, and for j > 0 it sees all earlier nodes of
    its row and the upsampled x{i+1}_{j-1}. ``nodes``, ``upsamplings`` (named after the node they lead to) and ``heads``
    (on x0_1, x0_2, …; without deep supervision on the last only) carry these names, so that the network cut off at
    depth L is the part with i + j <= L.

    Args:
        dims: 2 or 3.
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        options: Stages, normalization and so on. ``mode`` may be changed later through the attribute of that name.

    Raises:
        ConfigError: If a per-axis option has another number of axes than ``dims``.

    Reference: Zhou et al. 2018 (arXiv 1807.10165) and 2020 (arXiv 1912.05074).
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: UNetPlusPlusOptions) -> None:
        stages, style, convs = options.stages(dims), style_of(options, dims), options.convs_per_stage
        sizes = size_rule([stage.stride for stage in stages], lone_cell=options.norm != "instance")
        super().__init__(
            dims, in_channels, out_channels, options=options, sizes=sizes, batch_norm=options.norm == "batch"
        )
        self.deep_supervision = options.deep_supervision
        self.mode = options.mode
        self.probabilities: Literal["softmax", "sigmoid"] = "sigmoid" if out_channels == 1 else options.probabilities
        self.depth = len(stages) - 1
        self.nodes, self.upsamplings, self.heads = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        widths = (in_channels, *options.features)
        for level, stage in enumerate(stages):
            self.nodes[_node(level, 0)] = conv_stage(widths[level], stage, style, convs=convs, down=options.down)
        for column in range(1, len(stages)):
            for level in range(len(stages) - column):
                name, stage = _node(level, column), stages[level]
                self.upsamplings[name] = upsampling(stages[level + 1], stage, style, options.up)
                self.nodes[name] = conv_stage((column + 1) * stage.features, stage, style, convs=convs)
        for column in range(1 if self.deep_supervision else self.depth, self.depth + 1):
            self.heads[_node(0, column)] = head(dims, options.features[0], out_channels)

    def segment(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits at full resolution; in training mode with deep supervision those of all heads, deepest first."""
        rows: list[list[Tensor]] = []
        for level in range(self.depth + 1):
            x = self.nodes[_node(level, 0)](x)
            rows.append([x])
        for column in range(1, self.depth + 1):
            for level in range(self.depth + 1 - column):
                name = _node(level, column)
                up = self.upsamplings[name](rows[level + 1][column - 1])
                rows[level].append(self.nodes[name](torch.cat([*rows[level], up], dim=1)))
        if not self.deep_supervision or not (self.training or self.mode == "accurate"):
            logits: Tensor = self.heads[_node(0, self.depth)](rows[0][-1])
            return logits
        heads = tuple(self.heads[_node(0, column)](rows[0][column]) for column in range(self.depth, 0, -1))
        return heads if self.training else average_heads(heads, self.probabilities)


def average_heads(heads: tuple[Tensor, ...], probabilities: Literal["softmax", "sigmoid"] = "softmax") -> Tensor:
    """Logits of the mean of several heads' probabilities, computed in log space so that none underflows.

    Args:
        heads: One or more logits (B, L, *spatial) of the same shape.
        probabilities: Softmax over L, or a sigmoid for each of the L channels.

    Returns:
        (B, L, *spatial), whose softmax or sigmoid is the mean of those of the heads.
    """
    stacked = torch.stack(heads)
    if probabilities == "softmax":
        return torch.logsumexp(F.log_softmax(stacked, dim=2), dim=0) - math.log(len(heads))
    return torch.logsumexp(F.logsigmoid(stacked), dim=0) - torch.logsumexp(F.logsigmoid(-stacked), dim=0)


def _node(level: int, column: int) -> str:
    return f"x{level}_{column}"
