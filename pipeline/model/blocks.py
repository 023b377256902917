"""The parts networks are made of, for any number of spatial axes, on MONAI's layer factories."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from monai.networks.layers.factories import Act, Conv, Dropout, Norm, Pool
from torch import Tensor, nn

from pipeline.model.instance_norm import instance_norm, takes_instance_norm
from pipeline.model.options import Activation, LevelOptions, Stage
from pipeline.model.options import Norm as NormName

__all__ = [
    "ConvUnit",
    "Style",
    "activation_layer",
    "conv_stage",
    "conv_unit",
    "head",
    "interpolation",
    "norm_layer",
    "style_of",
    "upsampling",
]

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
        valid: Convolutions without padding, which shrink what they are given.
    """

    dims: int
    norm: NormName = "batch"
    activation: Activation = "relu"
    bias: bool = False
    dropout: float = 0.0
    valid: bool = False


def style_of(options: LevelOptions, dims: int) -> Style:
    """The style that the options of a network ask for."""
    return Style(dims, options.norm, options.activation, options.bias, options.dropout)


def norm_layer(name: NormName, dims: int, channels: int) -> nn.Module:
    """A normalization with learned scale and shift; the identity for ``none``."""
    if name == "none":
        return nn.Identity()
    if name == "group":
        return Norm[Norm.GROUP, dims](num_groups=math.gcd(_MAX_GROUPS, channels), num_channels=channels)  # type: ignore[no-any-return]
    return Norm[name, dims](channels, affine=True)  # type: ignore[no-any-return]


def activation_layer(name: Activation, *, inplace: bool = True) -> nn.Module:
    """An activation, in place where it can be; ``inplace=False`` for one whose input is needed again."""
    layer, arguments = _ACTIVATIONS[name]
    if not inplace:
        arguments = {key: value for key, value in arguments.items() if key != "inplace"}
    return Act[layer](**arguments)  # type: ignore[no-any-return]


class ConvUnit(nn.Sequential):
    """Layers one after the other, of which an instance norm and the activation behind it may be one step.

    Args:
        layers: By name: ``conv``, and optionally ``norm``, ``activation`` and ``dropout``, in this order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, *spatial) → (B, out, *spatial / stride)."""
        layers = list(self)
        x = layers[0](x)
        if len(layers) > 1 and takes_instance_norm(layers[1], x):
            slope = _slope(layers[2]) if len(layers) > 2 else None
            x = instance_norm(x, layers[1], 1.0 if slope is None else slope)
            layers = layers[1:] if slope is None else layers[2:]
        for layer in layers[1:]:
            x = layer(x)
        return x


def _slope(activation: nn.Module) -> float | None:
    """Factor of an activation below zero; None for one that is curved or learned."""
    if isinstance(activation, nn.LeakyReLU):
        return activation.negative_slope
    return 0.0 if isinstance(activation, nn.ReLU) else None


def conv_unit(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    style: Style,
    stride: tuple[int, ...] | None = None,
    *,
    activate: bool = True,
) -> ConvUnit:
    """Convolution → normalization → activation → dropout; what the style leaves out has no layer.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: Odd kernel size per axis.
        style: Normalization, activation, bias, dropout.
        stride: Stride per axis; None for 1.
        activate: False to end at the normalization, as what is added to a shortcut does.

    Returns:
        (B, in, *spatial) → (B, out, *spatial / stride); with a valid style, *spatial - kernel + 1 at stride 1.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = Conv[Conv.CONV, style.dims](
        in_channels,
        out_channels,
        kernel,
        stride=stride or 1,
        padding=0 if style.valid else tuple(n // 2 for n in kernel),
        bias=style.bias,
    )
    if style.norm != "none":
        layers["norm"] = norm_layer(style.norm, style.dims, out_channels)
    if not activate:
        return ConvUnit(layers)
    layers["activation"] = activation_layer(style.activation)
    if style.dropout > 0:
        layers["dropout"] = Dropout[Dropout.DROPOUT, 1](style.dropout)  # single values, not whole channels
    return ConvUnit(layers)


def conv_stage(
    in_channels: int,
    stage: Stage,
    style: Style,
    *,
    convs: int = 2,
    down: Literal["pool", "stride"] | None = None,
    start: int | None = None,
    last: Style | None = None,
) -> nn.Sequential:
    """The convolution units of one resolution level, with the step down to it in front.

    Args:
        in_channels: Channels in.
        stage: Channels out, kernel, and the stride of the step down.
        style: Of the units.
        convs: Number of units.
        down: How to step down; None to stay at the resolution of the input.
        start: Channels that the units before the last one give; None for those of the stage.
        last: Style of the last unit; None for that of the others.

    Returns:
        (B, in, *spatial) → (B, stage.features, *spatial / stage.stride), less what valid convolutions lose.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if down == "pool" and max(stage.stride) > 1:
        layers["pool"] = Pool[Pool.MAX, style.dims](kernel_size=stage.stride, stride=stage.stride)
    widths = [in_channels, *[start or stage.features] * (convs - 1), stage.features]
    for index, (given, wanted) in enumerate(pairwise(widths)):
        stride = stage.stride if down == "stride" and index == 0 else None
        unit_style = last if last and index == convs - 1 else style
        layers[f"unit{index + 1}"] = conv_unit(given, wanted, stage.kernel, unit_style, stride)
    return nn.Sequential(layers)


def upsampling(
    lower: Stage,
    upper: Stage,
    style: Style,
    mode: Literal["transposed", "nearest", "linear"],
    *,
    bias: bool = True,
    activation: bool = False,
) -> nn.Module:
    """The step up from one resolution level to the next.

    Args:
        lower: Level it comes from; its stride is the factor.
        upper: Level it goes to, which gives channels and kernel.
        style: Of the convolution unit after interpolation.
        mode: ``transposed``: a transposed convolution whose kernel is its stride, so that no output voxel gets more
            contributions than its neighbour. Others: interpolation, then a convolution unit.
        bias: Whether a transposed convolution has a bias.
        activation: Whether the style's activation follows a transposed convolution.

    Returns:
        (B, lower.features, *spatial) → (B, upper.features, *spatial * lower.stride).
    """
    if mode == "transposed":
        transposed = Conv[Conv.CONVTRANS, style.dims]
        layer = transposed(lower.features, upper.features, lower.stride, stride=lower.stride, bias=bias)
        if not activation:
            return layer  # type: ignore[no-any-return]
        return nn.Sequential(OrderedDict(conv=layer, activation=activation_layer(style.activation)))
    unit = conv_unit(lower.features, upper.features, upper.kernel, style)
    return nn.Sequential(OrderedDict(interpolation=interpolation(lower.stride, mode), unit=unit))


def interpolation(factor: Sequence[int], mode: Literal["nearest", "linear"]) -> nn.Module:
    """Upsampling without parameters: (B, C, *spatial) → (B, C, *spatial * factor), two or three factors."""
    linear = "bilinear" if len(factor) == 2 else "trilinear"
    return nn.Upsample(scale_factor=tuple(float(n) for n in factor), mode=linear if mode == "linear" else mode)


def head(dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """1×1 convolution with bias that gives logits."""
    return Conv[Conv.CONV, dims](in_channels, out_channels, 1)  # type: ignore[no-any-return]
