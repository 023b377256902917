"""Which device computes, and in which precision."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.machine import available_bytes, total_bytes

__all__ = [
    "autocast",
    "choose_device",
    "choose_devices",
    "choose_dtype",
    "device_name",
    "free_bytes",
    "out_of_memory",
    "planning_memory_gb",
    "to_device",
]

_MOST_PLANNED_GB = (
    24  # nnU-Net's presets for 9, 24 and 40 GB score within 1 Dice point of one another (arXiv 2404.09556)
)
_CPU_GB = 8  # larger patches would fit into RAM, but a processor would need minutes for one step


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or the best there is: CUDA, else the CPU. Apple's MPS lacks 3D operations: only by name.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None or ``auto`` to choose.

    Raises:
        VolsegError: If the named device is not there.
    """
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError):
        found = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        found += ["mps"] if torch.backends.mps.is_available() else []
        raise VolsegError(
            f"device: expected one of {', '.join(found)}, got {name!r}. Leave --device out to choose the best."
        ) from None
    return device


def choose_devices(names: str | None = None) -> tuple[torch.device, ...]:
    """Several devices to spread networks over.

    Args:
        names: Names as for :func:`choose_device` with commas between them, or ``cuda:all`` for every GPU.

    Raises:
        VolsegError: If one is not there, or they are of several kinds.
    """
    if names == "cuda:all":
        names = ",".join(f"cuda:{n}" for n in range(torch.cuda.device_count())) or "cuda"
    devices = tuple(choose_device(name.strip()) for name in names.split(",")) if names else (choose_device(),)
    kinds = sorted({device.type for device in devices})
    if len(kinds) > 1:
        got, advice = " and ".join(kinds), "Name GPUs only, or the CPU"
        raise VolsegError(sentence("device", "devices of one kind", got, advice))
    return devices


def planning_memory_gb() -> float:
    """Memory to plan patch and batch for on this machine: its GPU's, at most 24; without one half the RAM, up to 8."""
    if torch.cuda.is_available():
        return float(min(_MOST_PLANNED_GB, torch.cuda.get_device_properties(0).total_memory >> 30))
    ram = total_bytes()  # not what is free just now: the same machine gives the same plan
    return float(_CPU_GB if ram is None else max(1, min(_CPU_GB, ram >> 31)))


def device_name(device: torch.device) -> str:
    """Name of the GPU or the processor."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()


def free_bytes(device: torch.device) -> int | None:
    """Memory of a device that this process may still take; None where the device or the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return available_bytes() if device.type == "cpu" else None


def choose_dtype(device: torch.device, precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto") -> torch.dtype:
    """Type of the network's arithmetic.

    Args:
        device: Where it runs.
        precision: ``auto`` takes bf16 where the device computes it natively, else fp16 on GPUs and fp32 on CPUs.

    Returns:
        ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``.
    """
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bf16() else torch.float32


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Mixed precision for the block; no effect for float32."""
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory; on the CPU PyTorch raises a plain ``RuntimeError`` for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def to_device(network: nn.Module, device: torch.device, channels_last: bool = True) -> nn.Module:
    """Move a network to a device, its convolutions channels-last where that is possible (CPUs and CUDA)."""
    if device.type == "mps" or not channels_last:
        return network.to(device)
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.to(device)


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX-512 BF16 or AMX)."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
