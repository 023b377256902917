"""Several networks as one, window by window, each in its precision and on its device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.infer.stream import Network
from pipeline.model.device import autocast

__all__ = ["averaged", "device_of", "spread"]


def averaged(networks: Sequence[Network], devices: Sequence[torch.device], dtype: torch.dtype) -> Network:
    """Networks as one that takes windows on any device and returns their mean logits, on the device of the first.

    Networks on several devices, each of which runs ahead of the processor, compute at the same time; as many logits as
    there are devices are held.

    Args:
        networks: At least one.
        devices: Of each network.
        dtype: Type of their arithmetic; the mean is float32.
    """
    together = len(set(devices))
    pairs = list(zip(networks, devices, strict=True))

    def logits_of(network: Network, device: torch.device, windows: Tensor) -> Tensor:
        with autocast(device, dtype):
            logits: Tensor = network(windows.to(device))
        return logits

    def mean(windows: Tensor) -> Tensor:
        total: Tensor | None = None
        for first in range(0, len(pairs), together):
            started = [logits_of(network, device, windows) for network, device in pairs[first : first + together]]
            if len(pairs) == 1:
                return started[0]
            for logits in started:
                if total is None:
                    total = logits.to(torch.float32, copy=True)
                else:
                    total += logits.to(total.device)
            del started, logits  # before the next ones are made
        assert total is not None  # there is a network
        return total.div_(len(pairs))

    return mean


def spread(count: int, devices: Sequence[torch.device]) -> list[torch.device]:
    """The device of each of some networks: one after the other, and again from the first."""
    return [devices[number % len(devices)] for number in range(count)]


def device_of(network: nn.Module) -> torch.device:
    """Where the parameters of a network are; the CPU for one without."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
