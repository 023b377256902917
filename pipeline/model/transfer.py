"""Beginning with the weights of another model: everything that fits, except the layers that give logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.model.base import SegmentationNetwork, is_output

__all__ = ["Transfer", "transfer_weights"]


@dataclass(frozen=True)
class Transfer:
    """What became of a network's tensors.

    Args:
        loaded: Parameters (numbers, not tensors) that were taken over, and of how many.
        parameters: All parameters of the network.
        kernels: Number of kernels that were taken over, whole tensors.
        outputs: Tensors of the layers that give logits; they keep their first weights.
        missing: Tensors that the other model has not.
        reshaped: Name → shape here and shape there, of tensors that differ.
    """

    loaded: int
    parameters: int
    kernels: int
    outputs: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def lines(self) -> list[str]:
        """Sentences for the user."""
        told = [f"{self.loaded:,} of {self.parameters:,} parameters begin as in the other model; the outputs anew"]
        if self.missing:
            told.append(
                f"{len(self.missing)} tensors are not in the other model and begin anew, e.g. {self.missing[0]}"
            )
        for name, (here, there) in list(self.reshaped.items())[:3]:
            told.append(f"{name} begins anew: its shape is {here}, in the other model {there}")
        if len(self.reshaped) > 3:
            told.append(f"{len(self.reshaped) - 3} further tensors have another shape")
        return told


def transfer_weights(network: SegmentationNetwork, weights: Mapping[str, Tensor]) -> Transfer:
    """Take over every tensor of the same name and shape, except those of output layers.

    Args:
        network: Changed in place.
        weights: State of another network.

    Returns:
        What was taken over.
    """
    loaded, kernels, outputs, missing = 0, 0, [], []
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    own = network.state_dict()
    parameters = {name for name, _ in network.named_parameters()}
    with torch.no_grad():
        for name, tensor in own.items():
            if is_output(name):
                outputs.append(name)
            elif name not in weights:
                missing.append(name)
            elif weights[name].shape != tensor.shape:
                reshaped[name] = tuple(tensor.shape), tuple(weights[name].shape)
            else:
                tensor.copy_(weights[name])
                loaded += tensor.numel() if name in parameters else 0
                kernels += tensor.ndim > 1
    total = sum(own[name].numel() for name in parameters)
    return Transfer(loaded, total, kernels, tuple(outputs), tuple(missing), reshaped)
