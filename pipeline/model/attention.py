"""Attention U-Nets: U-Nets whose skip connections go through gates."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from operator import mul
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.model.base import Heads
from pipeline.model.blocks import (
    Style,
    activation_layer,
    conv_stage,
    conv_unit,
    convolution,
    head,
    interpolation,
    norm_layer,
    style_of,
    upsampling,
)
from pipeline.model.network_options import Count, LevelOptions, Size, Stage, StageOptions
from pipeline.model.unet import UShape, level_heads


class AttentionGate(nn.Module):
    """A skip connection x is weighted, voxel by voxel, by what the decoder already sees, the gating signal g.

    Additive attention: α = sigmoid(ψ(σ(θ(x) + φ(g)))), and the gate gives output(α · x).

    Args:
        theta: Takes the skip connection x to the resolution of g and to the channels in between.
        phi: Takes the gating signal g to the same channels.
        activation: σ; may work in place.
        psi: From the channels in between to one.
        resize: Takes α back to the resolution of x.
        output: What follows the product.

    Reference: Oktay et al. 2018 (arXiv 1804.03999), section 2.1.
    """

    def __init__(
        self,
        theta: nn.Module,
        phi: nn.Module,
        activation: nn.Module,
        psi: nn.Module,
        *,
        resize: nn.Module,
        output: nn.Module,
    ) -> None:
        super().__init__()
        self.theta = theta
        self.phi = phi
        self.activation = activation
        self.psi = psi
        self.resize = resize
        self.output = output

    def attention(self, skip: Tensor, gating: Tensor) -> Tensor:
        """The weight α, (B, 1, *spatial) in [0, 1], of every voxel of the skip connection (B, C, *spatial)."""
        score = self.psi(self.activation(self.theta(skip) + self.phi(gating)))
        alpha: Tensor = self.resize(torch.sigmoid(score))
        return alpha

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """The skip connection, weighted: (B, C, *spatial). See :meth:`attention` for the arguments."""
        gated: Tensor = self.output(skip * self.attention(skip, gating))
        return gated


def grid_gate(features: int, gating: int, stride: Sequence[int], style: Style) -> AttentionGate:
    """The published gate, whose signal comes from one level below and whose α is interpolated linearly.

    q = ψᵀσ(θᵀx + φᵀg + b_g) + b_ψ, where θ is a convolution without bias whose kernel is its stride. The product goes
    through a 1×1 convolution with normalization, then through another one with normalization and activation: the
    first belongs to the gate of the authors' code, the second is where it combines several gates.

    Args:
        features: Channels of the skip connection, C.
        gating: Channels of the gating signal, G.
        stride: Step from the resolution of the skip connection down to that of the gating signal, per axis.
        style: Gives σ, normalization and dropout; the 1×1 convolutions always have a bias.

    Returns:
        Takes (B, C, *spatial) and (B, G, *spatial / stride), gives (B, C, *spatial).
    """
    combine = conv_unit(features, features, (1,) * style.dims, replace(style, bias=True))
    return AttentionGate(
        convolution(style.dims, features, features, tuple(stride), stride=tuple(stride), bias=False),
        head(style.dims, gating, features),
        activation_layer(style.activation),
        head(style.dims, features, 1),
        resize=interpolation(stride, "linear"),
        output=nn.Sequential(OrderedDict(project=_projection(features, features, style), combine=combine)),
    )


def aligned_gate(features: int, gating: int, style: Style) -> AttentionGate:
    """The widely used variant, whose signal is upsampled first and which normalizes inside the gate.

    θ, φ and ψ are 1×1 convolutions with bias, each with a normalization; the channels in between are half of the skip
    connection's; nothing follows the product.

    Args:
        features: Channels of the skip connection, C.
        gating: Channels of the gating signal, G.
        style: Gives σ and normalization.

    Returns:
        Takes (B, C, *spatial) and (B, G, *spatial), gives (B, C, *spatial).
    """
    # Half of the channels, as the implementations of this variant have it.
    inner = max(1, features // 2)
    return AttentionGate(
        _projection(features, inner, style),
        _projection(gating, inner, style),
        activation_layer(style.activation),
        _projection(inner, 1, style),
        resize=nn.Identity(),
        output=nn.Identity(),
    )


def _projection(in_channels: int, out_channels: int, style: Style) -> nn.Sequential:
    """1×1 convolution with bias → normalization, no activation."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=head(style.dims, in_channels, out_channels))
    if style.norm != "none":
        layers["norm"] = norm_layer(style.norm, style.dims, out_channels)
    return nn.Sequential(layers)


class AttentionUNetOptions(StageOptions):
    """Options of ``attention_unet``; the defaults are those of the widely used variant."""

    bias: bool = True
    """Whether the convolutions of units have a bias; gates, up-convolutions and heads always have one."""
    up: Literal["transposed", "nearest", "linear"] = "nearest"
    """Transposed convolution, or interpolation followed by a convolution unit."""
    gates: bool = True
    """Whether skip connections are gated; without gates it is a U-Net."""


class AttentionUNet(UShape):
    """U-Net whose skip connections are all gated, each by the upsampled features that it is about to join.

    ``gates[i]`` belongs to level i, see :func:`aligned_gate`. With deep supervision, all decoder levels but the lowest
    have a head.

    Reference: Oktay et al. 2018 (arXiv 1804.03999), in the variant that gates at the resolution of the skip connection
    and normalizes inside the gate.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: AttentionUNetOptions) -> None:
        super().__init__(dims, in_channels, out_channels, options)
        stages, style, convs = options.stages(dims), style_of(options, dims), options.convs_per_stage
        pairs, widths = list(pairwise(stages)), options.features[:-1]
        self.encoder = _encoder(in_channels, stages, style, convs, options.down)
        self.upsamplings = nn.ModuleList(upsampling(lower, upper, style, options.up) for upper, lower in pairs)
        self.decoder = nn.ModuleList(conv_stage(2 * upper.features, upper, style, convs=convs) for upper, _ in pairs)
        self.gates = nn.ModuleList(aligned_gate(width, width, style) for width in (widths if options.gates else ()))
        self.heads = level_heads(dims, widths, out_channels, options.deep_supervision)

    def climb(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        """One step up, the skip connection gated by the upsampled features."""
        up = self.upsamplings[level](below)
        if self.gates:
            skip = self.gates[level](skip, up)
        features: Tensor = self.decoder[level](torch.cat([skip, up], dim=1))
        return features


class OktayAttentionUNetOptions(LevelOptions):
    """Options of ``attention_unet_oktay``; the defaults are those of the published network."""

    features: tuple[Size, ...] = Field(default=(16, 32, 64, 128, 256), min_length=3)
    """Channels of each stage, full resolution first; their number is the number of stages."""
    convs_per_stage: Count = 2
    """Convolution units of each stage, in the encoder as in the decoder."""
    bias: bool = True
    """Whether the convolutions of units have a bias; gates have their own rule, heads always have one."""
    down: Literal["pool", "stride"] = "pool"
    """Max-pooling before a stage, or strides in its first convolution."""
    up: Literal["nearest", "linear"] = "linear"
    """Interpolation on the way up, which has no parameters."""
    gates: bool = True
    """Whether the skip connections below full resolution are gated."""


class OktayAttentionUNet(UShape):
    """The published Attention U-Net: gates driven from one level below, logits combined from all decoder levels.

    The skip connection of full resolution is not gated. ``gates["level{i}"]`` belongs to level i, see
    :func:`grid_gate`; its signal is what the decoder gives at level i + 1, at the bottom what ``gating`` makes of the
    encoder's last stage. The heads of all decoder levels are interpolated to full resolution and combined by a last
    1×1 convolution, ``final``. With deep supervision, training returns its logits and then those of the levels, all of
    full size.

    Reference: Oktay et al. 2018 (arXiv 1804.03999); widths and final combination as in the authors' code.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: OktayAttentionUNetOptions) -> None:
        super().__init__(dims, in_channels, out_channels, options)
        stages, style, convs = options.stages(dims), style_of(options, dims), options.convs_per_stage
        self.encoder = _encoder(in_channels, stages, style, convs, options.down)
        pairs = list(pairwise(stages))
        self.upsamplings = nn.ModuleList(interpolation(lower.stride, options.up) for _, lower in pairs)
        self.decoder = nn.ModuleList(
            conv_stage(upper.features + lower.features, upper, style, convs=convs) for upper, lower in pairs
        )
        self.gates = nn.ModuleDict()
        if options.gates:
            bottom = stages[-1].features
            self.gating = conv_unit(bottom, bottom, (1,) * dims, replace(style, bias=True))
            for level, (upper, lower) in enumerate(pairs[1:], start=1):
                self.gates[f"level{level}"] = grid_gate(upper.features, lower.features, lower.stride, style)
        self.heads = nn.ModuleList(head(dims, upper.features, out_channels) for upper, _ in pairs)
        # Steps from full resolution down to each level, multiplied.
        factors = accumulate((upper.stride for upper, _ in pairs), lambda a, b: tuple(map(mul, a, b)))
        self.enlargements = nn.ModuleList(interpolation(factor, "linear") for factor in factors)
        self.final = head(dims, len(pairs) * out_channels, out_channels)

    def climb(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        """One step up, the skip connection gated by what comes from below, before it is upsampled."""
        name = f"level{level}"
        if name in self.gates:
            # At the bottom there is no decoder yet: a unit of its own makes the signal.
            signal = self.gating(below) if level == len(self.decoder) - 1 else below
            skip = self.gates[name](skip, signal)
        return super().climb(level, skip, below)

    def outputs(self, levels: Sequence[Tensor]) -> Tensor | Heads:
        """The combined logits; in training mode with deep supervision those, then those of the levels."""
        parts = zip(levels, self.heads, self.enlargements, strict=True)
        heads = {f"level{n}": enlarge(output(level)) for n, (level, output, enlarge) in enumerate(parts)}
        final: Tensor = self.final(torch.cat(list(heads.values()), dim=1))
        return {"final": final, **heads} if self.training and self.deep_supervision else final


def _encoder(
    in_channels: int, stages: Sequence[Stage], style: Style, convs: int, down: Literal["pool", "stride"]
) -> nn.ModuleList:
    widths = (in_channels, *(stage.features for stage in stages))
    return nn.ModuleList(
        conv_stage(width, stage, style, convs=convs, down=down) for width, stage in zip(widths, stages, strict=False)
    )
