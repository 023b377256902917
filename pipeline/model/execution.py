"""How a network computes in training: memory format, compilation, and whether activations are kept or recomputed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.model.base import SegmentationNetwork
from pipeline.model.device import to_device

__all__ = ["PLAIN", "Execution", "execute", "recompute_activations"]


@dataclass(frozen=True)
class Execution:
    """A way to execute a network; all give the same results but for rounding.

    Args:
        channels_last: Channels last in memory.
        compiled: ``no``: operation by operation; ``fused``: by torch.compile; ``graphs``: that and CUDA graphs.
    """

    channels_last: bool = True
    compiled: Literal["no", "fused", "graphs"] = "no"

    def __str__(self) -> str:
        """E.g. ``channels last, fused``."""
        order = "channels last" if self.channels_last else "channels first"
        return order if self.compiled == "no" else f"{order}, {self.compiled}"

    def images(self, images: Tensor) -> Tensor:
        """A batch (B, C, *S) in the memory format of the network."""
        if not self.channels_last or images.device.type == "mps":
            return images
        return images.contiguous(memory_format=(torch.channels_last, torch.channels_last_3d)[images.ndim - 4])


PLAIN = Execution()


def execute(network: SegmentationNetwork, device: torch.device, how: Execution) -> None:
    """Move a network to a device and let it compute in a certain way while it is trained.

    Args:
        network: Changed in place; its parameters keep their names.
        device: Where it computes.
        how: The way. Compilation begins with the first batch, and is left out in evaluation mode, where sizes vary.
    """
    to_device(network, device, channels_last=how.channels_last)
    if how.compiled == "no":
        return
    plain = network.segment
    compiled = torch.compile(plain, mode="reduce-overhead" if how.compiled == "graphs" else None)

    def segment(x: Tensor) -> Any:
        return compiled(x) if network.training else plain(x)

    network.segment = segment  # type: ignore[method-assign]


def recompute_activations(network: nn.Module) -> None:
    """Keep only what goes into each stage; the rest is computed again in the backward pass.

    Training takes a fraction of the memory and about a third more time. Batch norms see every batch twice, so their
    running statistics follow faster.

    Args:
        network: Changed in place.
    """
    for child in network.children():
        if any(isinstance(part, nn.ModuleList | nn.ModuleDict) for part in child.modules()):
            recompute_activations(child)
        elif any(True for _ in child.parameters()):
            child.forward = _recomputed(child, child.forward)


def _recomputed(stage: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*inputs: Any) -> Any:
        if stage.training and torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False)
        return forward(*inputs)

    return call
