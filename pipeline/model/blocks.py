"""The parts networks are made of, for any number of spatial axes, on MONAI's layer factories."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from monai.networks.layers.factories import Act, Conv, Dropout, Norm, Pool
from torch import nn

from pipeline.model.options import Activation, Stage, StageOptions
from pipeline.model.options import Norm as NormName

__all__ = ["Style", "conv_stage", "conv_unit", "head", "norm_layer", "style_of", "upsampling"]

_ACTIVATIONS: Mapping[Activation, tuple[str, dict[str, Any]]] = {
    "relu": ("RELU", {"inplace": True}),
    "leaky_relu": ("LEAKYRELU", {"inplace": True, "negative_slope": 0.01}),
    "prelu": ("PRELU", {}),
    "elu": ("ELU", {"inplace": True}),
    "gelu": ("GELU", {}),
    "silu": ("SWISH", {}),
}
_MAX_GROUPS = 8


@dataclass(frozen=True)
class Style:
    """What all convolution units of a network share.

    Args:
        dims: Number of spatial axes.
        norm: Normalization.
        activation: Activation.
        bias: Whether convolutions have a bias.
        dropout: Probability of zeroing a value behind the activation.
    """

    dims: int
    norm: NormName = "batch"
    activation: Activation = "relu"
    bias: bool = False
    dropout: float = 0.0


def style_of(options: StageOptions, dims: int) -> Style:
    """The style that the options of a network ask for."""
    return Style(dims, options.norm, options.activation, options.bias, options.dropout)


def norm_layer(name: NormName, dims: int, channels: int) -> nn.Module:
    """A normalization with learned scale and shift; the identity for ``none``."""
    if name == "none":
        return nn.Identity()
    if name == "group":
        return Norm[Norm.GROUP, dims](num_groups=math.gcd(_MAX_GROUPS, channels), num_channels=channels)  # type: ignore[no-any-return]
    return Norm[name, dims](channels, affine=True)  # type: ignore[no-any-return]


def conv_unit(
    in_channels: int, out_channels: int, kernel: tuple[int, ...], style: Style, stride: tuple[int, ...] | None = None
) -> nn.Sequential:
    """Padded convolution → normalization → activation → dropout; what the style leaves out has no layer.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: Odd kernel size per axis.
        style: Normalization, activation, bias, dropout.
        stride: Stride per axis; None for 1.

    Returns:
        (B, in, *spatial) → (B, out, *spatial / stride).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = Conv[Conv.CONV, style.dims](
        in_channels,
        out_channels,
        kernel,
        stride=stride or 1,
        padding=tuple(n // 2 for n in kernel),
        bias=style.bias,
    )
    if style.norm != "none":
        layers["norm"] = norm_layer(style.norm, style.dims, out_channels)
    activation, arguments = _ACTIVATIONS[style.activation]
    layers["activation"] = Act[activation](**arguments)
    if style.dropout > 0:
        layers["dropout"] = Dropout[Dropout.DROPOUT, 1](style.dropout)  # single values, not whole channels
    return nn.Sequential(layers)


def conv_stage(
    in_channels: int,
    stage: Stage,
    style: Style,
    *,
    convs: int = 2,
    down: Literal["pool", "stride"] | None = None,
) -> nn.Sequential:
    """The convolution units of one resolution level, with the step down to it in front.

    Args:
        in_channels: Channels in.
        stage: Channels out, kernel, and the stride of the step down.
        style: Of the units.
        convs: Number of units.
        down: How to step down; None to stay at the resolution of the input.

    Returns:
        (B, in, *spatial) → (B, stage.features, *spatial / stage.stride).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if down == "pool" and max(stage.stride) > 1:
        layers["pool"] = Pool[Pool.MAX, style.dims](kernel_size=stage.stride, stride=stage.stride)
    for index in range(convs):
        stride = stage.stride if down == "stride" and index == 0 else None
        channels = in_channels if index == 0 else stage.features
        layers[f"unit{index + 1}"] = conv_unit(channels, stage.features, stage.kernel, style, stride)
    return nn.Sequential(layers)


def upsampling(lower: Stage, upper: Stage, style: Style, mode: Literal["transposed", "nearest", "linear"]) -> nn.Module:
    """The step up from one resolution level to the next.

    Args:
        lower: Level it comes from; its stride is the factor.
        upper: Level it goes to, which gives channels and kernel.
        style: Of the convolution unit after interpolation.
        mode: ``transposed``: a transposed convolution with bias whose kernel is its stride, so that no output voxel
            gets more contributions than its neighbour. Others: interpolation, then a convolution unit.

    Returns:
        (B, lower.features, *spatial) → (B, upper.features, *spatial * lower.stride).
    """
    if mode == "transposed":
        transposed = Conv[Conv.CONVTRANS, style.dims]
        return transposed(lower.features, upper.features, lower.stride, stride=lower.stride)  # type: ignore[no-any-return]
    interpolation = mode if mode == "nearest" else ("bilinear" if style.dims == 2 else "trilinear")
    factor = tuple(float(n) for n in lower.stride)
    unit = conv_unit(lower.features, upper.features, upper.kernel, style)
    return nn.Sequential(OrderedDict(interpolation=nn.Upsample(scale_factor=factor, mode=interpolation), unit=unit))


def head(dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """1×1 convolution with bias that gives logits."""
    return Conv[Conv.CONV, dims](in_channels, out_channels, 1)  # type: ignore[no-any-return]
