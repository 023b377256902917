"""Where the sums over windows have room: asked before the first window, so that no prediction dies on its way."""

from __future__ import annotations

import torch

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.machine import available_bytes

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
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if needed <= _SHARE * (free + unused):
            return device
    there = [n for n in (available_bytes(), most) if n is not None]
    if there and needed > min(there):
        advice = (
            "Set infer.accumulate=float16, a smaller infer.window_size or infer.batch_size, or take a larger machine"
        )
        raise VolsegError(sentence("memory", f"at least {_size(needed)} for {what}", _size(min(there)), advice))
    return device if device.type == "mps" else torch.device("cpu")


def _size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
