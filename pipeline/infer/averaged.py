"""Several networks as one, window by window, each in its precision and on its device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.infer.stream import Network
from pipeline.model.device import autocast

__all__ = ["averaged", "device_of"]


def averaged(networks: Sequence[Network], devices: Sequence[torch.device], dtype: torch.dtype) -> Network:
    """Networks as one that takes windows on any device and returns their mean logits, on the device of the first.

    Args:
        networks: At least one.
        devices: Of each network.
        dtype: Type of their arithmetic; the mean is float32.
    """

    def mean(windows: Tensor) -> Tensor:
        total: Tensor | None = None
        for network, device in zip(networks, devices, strict=True):
            with autocast(device, dtype):
                logits: Tensor = network(windows.to(device))
            if len(networks) == 1:
                return logits
            if total is None:
                total = logits.to(torch.float32, copy=True)
            else:
                total += logits.to(total.device)
        assert total is not None  # there is a network
        return total.div_(len(networks))

    return mean


def device_of(network: nn.Module) -> torch.device:
    """Where the parameters of a network are; the CPU for one without."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
