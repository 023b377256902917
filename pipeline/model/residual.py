"""Residual blocks: a chain of units beside a shortcut."""

from __future__ import annotations

from collections import OrderedDict

from monai.networks.layers.factories import Conv, Dropout
from torch import Tensor, nn

from pipeline.model.blocks import Style, activation_layer, norm_layer
from pipeline.model.options import Stage

__all__ = ["ResidualBlock", "preactivated_block", "preactivated_unit", "shortcut"]


class ResidualBlock(nn.Module):
    """activation(units(x) + shortcut(x)).

    Args:
        units: Any chain of layers that leaves its input as it is (no activation in place comes first).
        shortcut: Gives what the units give, in channels and size; the identity where these stay.
        activation: What follows the sum; None for nothing.
    """

    def __init__(self, units: nn.Module, shortcut: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.units = units
        self.shortcut = shortcut
        self.activation = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) → what units and shortcut give."""
        y: Tensor = self.activation(self.units(x) + self.shortcut(x))
        return y


def shortcut(in_channels: int, out_channels: int, style: Style, stride: tuple[int, ...] | None = None) -> nn.Module:
    """The identity, or a 1×1 convolution where channels or size change.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        style: Gives the number of axes and whether the convolution has a bias.
        stride: Stride per axis; None for 1.
    """
    if in_channels == out_channels and max(stride or (1,)) == 1:
        return nn.Identity()
    return Conv[Conv.CONV, style.dims](in_channels, out_channels, 1, stride=stride or 1, bias=style.bias)  # type: ignore[no-any-return]


def preactivated_unit(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    style: Style,
    stride: tuple[int, ...] | None = None,
    *,
    bare: bool = False,
) -> nn.Sequential:
    """Normalization → activation → dropout → padded convolution; what the style leaves out has no layer.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: Odd kernel size per axis.
        style: Normalization, activation, bias, dropout.
        stride: Stride per axis; None for 1.
        bare: The convolution alone, for the unit that sees the image.

    Returns:
        (B, in, *spatial) → (B, out, *spatial / stride).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if not bare:
        if style.norm != "none":
            layers["norm"] = norm_layer(style.norm, style.dims, in_channels)
        # Without a normalization in front, an activation in place would change what the shortcut is given.
        layers["activation"] = activation_layer(style.activation, inplace=style.norm != "none")
        if style.dropout > 0:
            layers["dropout"] = Dropout[Dropout.DROPOUT, 1](style.dropout)
    layers["conv"] = Conv[Conv.CONV, style.dims](
        in_channels, out_channels, kernel, stride=stride or 1, padding=tuple(n // 2 for n in kernel), bias=style.bias
    )
    return nn.Sequential(layers)


def preactivated_block(
    in_channels: int, stage: Stage, style: Style, *, convs: int = 2, down: bool = False, bare: bool = False
) -> ResidualBlock:
    """Residual block of pre-activated units, whose last layer is a convolution.

    Args:
        in_channels: Channels in.
        stage: Channels out, kernel, and the stride of the step down.
        style: Of the units; the shortcut has a bias where they have one, and no normalization.
        convs: Number of units.
        down: Whether the first unit and the shortcut step down.
        bare: Whether the first unit is its convolution alone.

    Returns:
        (B, in, *spatial) → (B, stage.features, *spatial), or *spatial / stage.stride.

    Reference: He et al. 2016 (arXiv 1603.05027), figure 4e.
    """
    stride = stage.stride if down else None
    units: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(convs):
        first = index == 0
        units[f"unit{index + 1}"] = preactivated_unit(
            in_channels if first else stage.features,
            stage.features,
            stage.kernel,
            style,
            stride if first else None,
            bare=bare and first,
        )
    return ResidualBlock(nn.Sequential(units), shortcut(in_channels, stage.features, style, stride))
