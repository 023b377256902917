"""The parts networks are made of, for any number of spatial axes, on MONAI's layer factories."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from monai.networks.layers.factories import Act, Conv, Dropout, Norm, Pool
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.model.network_options import Activation, LevelOptions, Stage
from pipeline.model.network_options import Norm as NormName

# PyTorch's own instance norm knows one memory order: it copies an image with channels last there and back, forwards and
# backwards, which costs a third of a training step on processors. Its batch norm has no need to, and over the batch of
# one sample it is instance norm. So instance norm and activation are one step here, by those kernels.

_KERNELS = torch.ops.aten
_TYPES = {
    "cpu": (torch.float32, torch.bfloat16, torch.float64),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
# Bytes of a sample from which a GPU goes this way too: below, the launches for every sample take longer than the copies
# they save (8 times the sample read or written at about 1 TB/s, against some 8 launches of 4 microseconds).
_LARGE_ON_GPU = 4 << 20


def takes_instance_norm(norm: nn.Module | None, x: Tensor) -> bool:
    """Whether :func:`instance_norm` should replace a layer: an instance norm with scale and shift.

    On a GPU only where PyTorch would copy large images: those with channels last.
    """
    return (
        isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d)
        and norm.affine
        and not norm.track_running_stats
        and x.dtype in _TYPES.get(x.device.type, ())
        and math.prod(x.shape[2:]) > 1
        and (x.device.type == "cpu" or (not x.is_contiguous() and x.nbytes >= len(x) * _LARGE_ON_GPU))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    )


def instance_norm(x: Tensor, layer: nn.Module, slope: float = 1.0) -> Tensor:
    """Every channel of every sample with mean 0 and variance 1, scaled and shifted, then a leaky ReLU.

    Args:
        x: (B, C, *S), two or three spatial axes; any memory order, which the result has too.
        layer: One that :func:`takes_instance_norm` accepts.
        slope: Factor of the activation below zero: 0 for ReLU, 1 for none.

    Returns:
        (B, C, *S) of the type of ``x``.

    Reference: Ulyanov et al. 2016 (arXiv 1607.08022).
    """
    result: Tensor = _InstanceNorm.apply(x, layer.weight, layer.bias, layer.eps, slope)  # type: ignore[no-untyped-call]
    return result


class _InstanceNorm(torch.autograd.Function):
    """Sample by sample through the kernels of batch norm; what is kept is the input and the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        y, means, deviations = torch.empty_like(x), [], []
        for n in range(len(x)):
            one, mean, inverse = _KERNELS.native_batch_norm(x[n : n + 1], weight, bias, None, None, True, 0.0, eps)
            _KERNELS.leaky_relu.out(one, slope, out=y[n : n + 1])
            means.append(mean)
            deviations.append(inverse)
        ctx.save_for_backward(x, weight, y, *means, *deviations)
        ctx.eps, ctx.slope = eps, slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, y, *statistics = ctx.saved_tensors
        means, inverses = statistics[: len(x)], statistics[len(x) :]
        to_x, to_weight, to_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        # The kernels read gradient and image in step: with another memory order they would copy both.
        gradient = torch.empty_like(x).copy_(gradient) if gradient.stride() != x.stride() else gradient
        for n in range(len(x)):
            one = slice(n, n + 1)
            # The activation's gradient follows from its output, so that what went into it need not be kept.
            behind = _KERNELS.leaky_relu_backward(gradient[one], y[one], ctx.slope, True)
            part, scale, shift = _KERNELS.native_batch_norm_backward(
                behind, x[one], weight, None, None, means[n], inverses[n], True, ctx.eps, [True, True, True]
            )
            to_x[one] = part
            to_weight += scale
            to_bias += shift
        return to_x, to_weight, to_bias, None, None


# Some convolutions come out wrong on processors, by kernels of oneDNN that PyTorch takes: gradients of 1e32, or writes
# into memory of others (docs/wrong_convolutions.md; `benchmarks/convolution_gradients.py` looks for them). Those, and
# no others, are computed here as another convolution that is the same by definition.

_VECTOR_CHANNELS = 16  # of float32, in the widest registers


def convolution(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    bias: bool = True,
) -> nn.Conv2d | nn.Conv3d:
    """A convolution of two or three spatial axes that is right on every device; parameters as PyTorch's own."""
    layer = (Conv2d, Conv3d)[dims - 2]
    return layer(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=bias)  # type: ignore[arg-type]


class Conv2d(nn.Conv2d):
    """PyTorch's, but a stride with kernel 1 and few channels is taken before it."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, I, J) → (B, out, I', J')."""
        if input.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(input)
        # Gradient of the weights: oneDNN's copy to stride 1 leaves its buffer where channels are last in memory.
        if max(self.kernel_size) == 1 < max(self.stride) and 1 < self.in_channels < _VECTOR_CHANNELS:
            return F.conv2d(input[..., :: self.stride[0], :: self.stride[1]], self.weight, self.bias)
        return _in_fp32(self, input) if _adds_up_in_bf16(input) else super().forward(input)


class Conv3d(nn.Conv3d):
    """PyTorch's, but in bf16 it pads explicitly along the axes where oneDNN's own padding goes wrong."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, I, J, K) → (B, out, I', J', K')."""
        if input.device.type != "cpu" or not _is_bf16(input):
            return super().forward(input)
        if _adds_up_in_bf16(input):
            return _in_fp32(self, input)
        (first, *others), size = tuple(int(n) for n in self.padding), input.shape[2:]
        kernel, stride = self.kernel_size, self.stride
        # Gradient of the weights: where the kernel is longer than the image, planes behind it are read.
        front = first if size[0] < kernel[0] and torch.is_grad_enabled() else 0
        # Output: a single last column at a stride comes out wrong with AMX; two come out right.
        columns = size[2] + 2 * others[1]
        behind = stride[2] if stride[2] > 1 and 0 <= columns - kernel[2] < stride[2] else 0
        if not front and not behind:
            return super().forward(input)
        padded = F.pad(input, (0, behind, 0, 0, front, front))
        output = F.conv3d(padded, self.weight, self.bias, stride, (0 if front else first, *others))
        return output[..., :1] if behind else output


def _is_bf16(x: Tensor) -> bool:
    """Whether a convolution of an image computes in bf16, on a processor."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


def _adds_up_in_bf16(x: Tensor) -> bool:
    """Whether PyTorch would add up the image's gradient in bf16, kernel voxel by kernel voxel: oneDNN has no bf16."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not _is_bf16(x):
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _in_fp32(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    with torch.autocast("cpu", enabled=False):
        output: Tensor = layer._conv_forward(x.float(), layer.weight.float(), bias)
    return output.bfloat16()


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
        # Eight groups do not divide every width: the greatest common divisor does.
        return Norm[Norm.GROUP, dims](num_groups=math.gcd(_MAX_GROUPS, channels), num_channels=channels)  # type: ignore[no-any-return]
    return Norm[name, dims](channels, affine=True)  # type: ignore[no-any-return]


def activation_layer(name: Activation, *, inplace: bool = True) -> nn.Module:
    """An activation, in place where it can be; ``inplace=False`` for one whose input is needed again."""
    layer, arguments = _ACTIVATIONS[name]
    if not inplace:
        arguments = {key: value for key, value in arguments.items() if key != "inplace"}
    return Act[layer](**arguments)  # type: ignore[no-any-return]


class ConvUnit(nn.Sequential):
    """Layers one after the other; an instance norm and the activation behind it may be computed as one step.

    Args:
        layers: By name: ``conv``, and optionally ``norm``, ``activation`` and ``dropout``, in this order. The names
            of layers are part of every state dict.
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
    layers["conv"] = convolution(
        style.dims,
        in_channels,
        out_channels,
        kernel,
        stride=stride or 1,
        # Odd kernels: half on either side keeps the size.
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
    return convolution(dims, in_channels, out_channels, 1)


def into_blocks(x: Tensor, block: Sequence[int]) -> Tensor:
    """The n voxels of every block as channels of one voxel: (B, C, *S) → (B, C * n, *S / block), channels last."""
    split = [n for size, step in zip(x.shape[2:], block, strict=True) for n in (size // step, step)]
    axes = range(2, 2 + 2 * len(block), 2)
    parted = x.reshape(*x.shape[:2], *split).permute(0, *axes, 1, *(axis + 1 for axis in axes))
    return parted.flatten(1 + len(block)).movedim(-1, 1)


class BlockHead(nn.Module):
    """Logits of all voxels of a block from one voxel: a transposed convolution whose kernel and stride are the block.

    It is computed as a product of matrices, which is faster on processors and gives logits with channels last.

    Args:
        dims: Number of spatial axes.
        in_channels: Channels in.
        out_channels: Channels out.
        block: Voxels of a block, per axis.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, block: tuple[int, ...]) -> None:
        super().__init__()
        self.block = block
        self.layer = Conv[Conv.CONVTRANS, dims](in_channels, out_channels, block, stride=block)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, *spatial) → (B, out, *spatial * block)."""
        weight, bias, block = self.layer.weight, self.layer.bias, self.block
        rows = weight.movedim((0, 1), (-1, -2)).reshape(-1, weight.shape[0])
        y = F.linear(x.movedim(1, -1), rows, bias.repeat(math.prod(block)))
        # (B, *spatial, *block, out): every axis of a block goes behind its axis of the image.
        y = y.reshape(*y.shape[:-1], *block, len(bias))
        y = y.permute(0, *(place for n in range(1, 1 + len(block)) for place in (n, n + len(block))), -1)
        size = [n * step for n, step in zip(x.shape[2:], block, strict=True)]
        return y.reshape(len(x), *size, -1).movedim(-1, 1)


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
    """The identity, or a 1×1 convolution where channels or size change."""
    if in_channels == out_channels and max(stride or (1,)) == 1:
        return nn.Identity()
    return convolution(style.dims, in_channels, out_channels, 1, stride=stride or 1, bias=style.bias)


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
    layers["conv"] = convolution(
        style.dims,
        in_channels,
        out_channels,
        kernel,
        stride=stride or 1,
        padding=tuple(n // 2 for n in kernel),
        bias=style.bias,
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
