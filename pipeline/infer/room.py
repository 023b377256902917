"""Where the sums over windows have room: asked before the first window, so that no prediction dies on its way."""

from __future__ import annotations

import torch

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.machine import available_bytes, bytes_in_words
from pipeline.model.device import free_bytes

__all__ = ["device_with_room"]

_SHARE = 0.8  # of a GPU's free memory; the network's activations need some too


def device_with_room(needed: int, what: str, device: torch.device, most: int | None = None) -> torch.device:
    """The device for the sums: that of the network, or the CPU where a GPU has too little memory.

    Args:
        needed: Bytes of the sums and of the logits of a batch of windows.
        what: Of what they are, for the error.
        device: Of the network.
        most: Bytes that a prediction may take on the CPU; None for all that are free.

    Raises:
        VolsegError: If there is too little memory, with the numbers.
    """
    if device.type == "cuda":
        free = free_bytes(device)
        if free is not None and needed <= _SHARE * free:
            return device
    there = [n for n in (available_bytes(), most) if n is not None]
    if there and needed > min(there):
        advice = (
            "Set infer.accumulate=float16, a smaller infer.window_size or infer.batch_size, or take a larger machine"
        )
        rule = f"at least {bytes_in_words(needed)} for {what}"
        raise VolsegError(sentence("memory", rule, bytes_in_words(min(there)), advice))
    return device if device.type == "mps" else torch.device("cpu")
