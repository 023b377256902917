"""Attention gates: a skip connection is weighted, voxel by voxel, by what the decoder already sees.

Reference: Oktay et al. 2018 (arXiv 1804.03999), section 2.1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from pipeline.model.blocks import Style, activation_layer, conv_unit, head, interpolation, norm_layer

__all__ = ["AttentionGate", "aligned_gate", "grid_gate"]


class AttentionGate(nn.Module):
    """Additive attention: α = sigmoid(ψ(σ(θ(x) + φ(g)))), and the gate gives output(α · x).

    Args:
        theta: Takes the skip connection x to the resolution of g and to the channels in between.
        phi: Takes the gating signal g to the same channels.
        activation: σ; may work in place.
        psi: From the channels in between to one.
        resize: Takes α back to the resolution of x.
        output: What follows the product.
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
        """The weight α of every voxel of the skip connection, in [0, 1].

        Args:
            skip: (B, C, *spatial).
            gating: (B, G, *spatial_g), at the resolution that ``theta`` gives.

        Returns:
            (B, 1, *spatial).
        """
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
        Conv[Conv.CONV, style.dims](features, features, tuple(stride), stride=tuple(stride), bias=False),
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
