"""What a network costs: parameters and multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["count_parameters", "multiply_adds"]

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


def _layer_cost(layer: Any, inputs: Tensor, output: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    per_pair = int(math.prod(layer.kernel_size))
    if isinstance(layer, _TRANSPOSED):  # every input value meets the whole kernel
        return inputs.numel() * (int(layer.out_channels) // int(layer.groups)) * per_pair
    return output.numel() * (int(layer.in_channels) // int(layer.groups)) * per_pair
