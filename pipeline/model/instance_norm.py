"""Instance normalization and the activation behind it in one step on a processor, for images with channels last.

PyTorch's own instance norm knows one memory order on processors: it copies an image with channels last there and back,
forwards and backwards, which costs a third of a training step. Its batch norm has no need to, and over the batch of one
sample it is instance norm.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["instance_norm", "takes_instance_norm"]

_KERNELS = torch.ops.aten
_TYPES = (torch.float32, torch.bfloat16, torch.float64)


def takes_instance_norm(norm: nn.Module | None, x: Tensor) -> bool:
    """Whether :func:`instance_norm` can stand for a layer: an instance norm with scale and shift, on a processor.

    Args:
        norm: The layer.
        x: Its input (B, C, *S); more than one voxel, of a type that a processor computes in.
    """
    return (
        isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d)
        and norm.affine
        and not norm.track_running_stats
        and x.device.type == "cpu"
        and x.dtype in _TYPES
        and math.prod(x.shape[2:]) > 1
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    )


def instance_norm(x: Tensor, layer: nn.Module, slope: float = 1.0) -> Tensor:
    """Every channel of every sample with mean 0 and variance 1, scaled and shifted, then a leaky ReLU.

    Args:
        x: (B, C, *S), two or three spatial axes, on a processor; any memory order, which the result has too.
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
        ctx.save_for_backward(x, weight, y, torch.stack(means), torch.stack(deviations))
        ctx.eps, ctx.slope = eps, slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, y, means, inverses = ctx.saved_tensors
        to_x, to_weight, to_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        gradient = torch.empty_like(x).copy_(gradient) if gradient.stride() != x.stride() else gradient
        for n in range(len(x)):
            one = slice(n, n + 1)
            behind = _KERNELS.leaky_relu_backward(gradient[one], y[one], ctx.slope, True)
            part, scale, shift = _KERNELS.native_batch_norm_backward(
                behind, x[one], weight, None, None, means[n], inverses[n], True, ctx.eps, [True, True, True]
            )
            to_x[one] = part
            to_weight += scale
            to_bias += shift
        return to_x, to_weight, to_bias, None, None
