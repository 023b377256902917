"""What a network costs: parameters, multiply-adds, and memory of a training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["count_parameters", "kept_bytes", "multiply_adds"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def multiply_adds(network: nn.Module, patch_size: Sequence[int], in_channels: int) -> int:
    """Multiply-adds of the convolutions and linear layers in predicting one patch; biases and the rest are not counted.

    Shapes alone are propagated (on PyTorch's meta device), so that this takes milliseconds and no memory, whatever the
    patch. The network is left as it was.

    Args:
        network: Any network of this package; evaluation mode is what counts, so heads for training only do not.
        patch_size: Legal spatial size.
        in_channels: Channels of the image.

    Raises:
        DataError: If the patch size is not legal for the network.
    """
    total = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _layer_cost(layer, inputs[0], output)

    layers = [layer for layer in network.modules() if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear))]
    training = {module: module.training for module in network.modules()}
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        network.eval()
        state = {name: value.to("meta") for name, value in network.state_dict().items()}
        with torch.no_grad():
            torch.func.functional_call(network, state, torch.empty(1, in_channels, *patch_size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return total


def kept_bytes(network: nn.Module, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """Bytes that a training step keeps from forward to backward, weights included: no step does with less memory.

    Shapes alone are propagated, as in :func:`multiply_adds`. What mixed precision keeps in float32 counts as if it were
    of the narrower type, gradients and optimizer are not counted, and neither is the loss.

    Args:
        network: Any network of this package; with recomputation only what that keeps is counted.
        shape: Of the batch, (B, C, *S), S a legal spatial size.
        dtype: Type of the network's arithmetic.

    Raises:
        DataError: If the shape is not legal for the network.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # views of one storage count once; the tensor keeps it alive
        return tensor

    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    state = {}
    for name, value in network.state_dict().items():
        own = dtype if value.is_floating_point() else value.dtype
        state[name] = torch.empty_like(value, dtype=own, device="meta").requires_grad_(name in trained)
    training = {module: module.training for module in network.modules()}
    try:
        network.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.func.functional_call(network, state, torch.empty(*shape, dtype=dtype, device="meta"))
    finally:
        for module, mode in training.items():
            module.training = mode
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _layer_cost(layer: Any, inputs: Tensor, output: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    per_pair = int(math.prod(layer.kernel_size))
    if isinstance(layer, _TRANSPOSED):  # every input value meets the whole kernel
        return inputs.numel() * (int(layer.out_channels) // int(layer.groups)) * per_pair
    return output.numel() * (int(layer.in_channels) // int(layer.groups)) * per_pair
