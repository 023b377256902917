"""Parts of densely connected networks: dense blocks, and the pre-activated layers that DenseNets fill them with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from pipeline.model.blocks import activation_layer, norm_layer

__all__ = ["DenseBlock", "Scale", "densenet_block", "densenet_stem", "densenet_transition", "norm_activation"]


class DenseBlock(nn.Module):
    """Layers that each see the block's input and the outputs of all layers before.

    Args:
        layers: The n-th takes the channels of the input and of the n layers before it, in this order.

    Reference: Huang et al. 2017 (arXiv 1608.06993), section 3.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) → (B, C + channels of all layers, *spatial): the input, then what each layer gives."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Scale(nn.Module):
    """A learned factor and offset per channel, at first 1 and 0.

    Beside a normalization's own they add nothing a network could express; networks converted from Caffe, whose batch
    normalization has none, carry them, and published parameter counts include them.

    Args:
        channels: Channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) → the same shape."""
        shape = (-1, *[1] * (x.dim() - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


def norm_activation(channels: int, dims: int, *, scale: bool = False) -> nn.Sequential:
    """Batch normalization → ReLU, with a :class:`Scale` between them on demand."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(norm=norm_layer("batch", dims, channels))
    if scale:
        layers["scale"] = Scale(channels)
    layers["activation"] = activation_layer("relu")
    return nn.Sequential(layers)


def densenet_stem(in_channels: int, out_channels: int, dims: int, *, scale: bool = False) -> nn.Sequential:
    """7×7 convolution of stride 2, batch normalization, ReLU: (B, in, *spatial) → (B, out, *spatial / 2)."""
    conv = Conv[Conv.CONV, dims](in_channels, out_channels, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, norm_activation(out_channels, dims, scale=scale))


def densenet_block(
    in_channels: int, layers: int, growth: int, dims: int, *, bottleneck: int = 4, scale: bool = False
) -> DenseBlock:
    """Dense block of DenseNet-B layers: pre-activated 1×1, then pre-activated 3×3 convolution.

    Args:
        in_channels: Channels in.
        layers: Number of layers.
        growth: Channels that each adds.
        dims: Number of spatial axes.
        bottleneck: Channels of the 1×1 convolutions, in units of the growth.
        scale: Whether normalizations are followed by a :class:`Scale`.

    Returns:
        (B, in, *spatial) → (B, in + layers * growth, *spatial).
    """
    inner = bottleneck * growth
    return DenseBlock(
        [
            nn.Sequential(
                _preactivated(in_channels + n * growth, inner, 1, dims, scale),
                _preactivated(inner, growth, 3, dims, scale),
            )
            for n in range(layers)
        ]
    )


def densenet_transition(in_channels: int, out_channels: int, dims: int, *, scale: bool = False) -> nn.Sequential:
    """Pre-activated 1×1 convolution and average pooling: (B, in, *spatial) → (B, out, *spatial / 2)."""
    return nn.Sequential(
        OrderedDict(
            unit=_preactivated(in_channels, out_channels, 1, dims, scale),
            pool=Pool[Pool.AVG, dims](kernel_size=2, stride=2),
        )
    )


def _preactivated(in_channels: int, out_channels: int, kernel: int, dims: int, scale: bool) -> nn.Sequential:
    conv = Conv[Conv.CONV, dims](in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(norm_activation(in_channels, dims, scale=scale), conv)
