"""Where and how a network computes: device, precision, memory format, compilation, recomputed activations."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.machine import available_bytes, total_bytes
from pipeline.model.base import SegmentationNetwork

# nnU-Net's presets for 9, 24 and 40 GB score within 1 Dice point of one another (arXiv 2404.09556).
_MOST_PLANNED_GB = 24
# Larger patches would fit into RAM, but a processor would need minutes for one step.
_CPU_GB = 8


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or the best there is: CUDA, else the CPU. Apple's MPS lacks 3D operations: only by name.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None or ``auto`` to choose.

    Nothing is allocated there and no GPU is opened: the process that computes may be another one, and some clusters
    let only one process open a GPU.

    Raises:
        VolsegError: If the named device is not there.
    """
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
        there = _is_there(device)
    except (RuntimeError, AssertionError, ValueError):
        there = False
    if not there:
        found = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        found += ["mps"] if torch.backends.mps.is_available() else []
        raise VolsegError(
            f"device: expected one of {', '.join(found)}, got {name!r}. Leave --device out to choose the best."
        ) from None
    return device


def _is_there(device: torch.device) -> bool:
    """Whether a device of a valid name can be computed on; it is asked for, not used."""
    if device.type == "mps":
        return torch.backends.mps.is_available() and not device.index
    if device.type in ("cpu", "meta"):
        return True
    backend = getattr(torch, device.type, None)  # torch.cuda, torch.xpu, …
    if backend is None or not backend.is_available():
        return False
    return device.index is None or device.index < int(backend.device_count())


def choose_devices(names: str | None = None) -> tuple[torch.device, ...]:
    """Several devices to spread networks over: names with commas between them, or ``cuda:all`` for every GPU.

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
        with free_gpu(device):
            free, _ = torch.cuda.mem_get_info(device)
        # PyTorch keeps freed blocks for itself: reserved, but free for this process.
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
    if device.type == "meta":  # PyTorch has none for tensors without data: see WithoutData in model/cost.py
        yield
        return
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


# What libraries say, in small letters, when they run out of memory; only PyTorch's allocator on GPUs has an error of
# its own. cuDNN finds no engine where each of them needs more scratch space than there is.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "unable to find an engine",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory, on the CPU or on a GPU, in whatever words a library puts it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


# CUDA 12 says "CUDA-capable device(s) is/are busy or unavailable", older ones "all CUDA-capable devices are …".
_TAKEN = "busy or unavailable"


@contextmanager
def free_gpu(device: torch.device | str) -> Iterator[None]:
    """Say what to do if the block opens a GPU that another process has for itself, as some clusters arrange it.

    Raises:
        VolsegError: If it does.
    """
    try:
        yield
    except RuntimeError as error:
        if _TAKEN not in str(error).lower():
            raise
        rule, got = "a GPU that is free", "one that another process has for itself (EXCLUSIVE_PROCESS)"
        advice = "`nvidia-smi` shows it: wait until it ends, or name another device by --device, such as cuda:1 or cpu"
        raise VolsegError(sentence(f"device {device}", rule, got, advice)) from None


@contextmanager
def enough_memory(device: torch.device | str, what: str, advice: str) -> Iterator[None]:
    """Say what to change if the block runs out of memory, or finds a GPU that is not free.

    Args:
        device: Whose memory it is.
        what: What needs it.
        advice: What to change, settings by name.

    Raises:
        VolsegError: If it does.
    """
    try:
        with free_gpu(device):
            yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise VolsegError(sentence(f"memory of {device}", f"enough for {what}", "too little", advice)) from None


def to_device(network: nn.Module, device: torch.device, channels_last: bool = True) -> nn.Module:
    """Move a network to a device, its convolutions channels-last where that is possible (CPUs and CUDA)."""
    if device.type != "mps" and channels_last:
        for module in network.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with free_gpu(device):
        return network.to(device)


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX-512 BF16 or AMX)."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


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
    """Move a network to a device and let it train in a certain way; its parameters keep their names.

    Compilation begins with the first batch, and is left out in evaluation mode, where sizes vary.
    """
    to_device(network, device, channels_last=how.channels_last)
    if how.compiled == "no":
        return
    # The checks of forward stay outside: they compare sizes, which compiled code would be specialised for.
    plain = network.segment
    compiled = torch.compile(plain, mode="reduce-overhead" if how.compiled == "graphs" else None)

    def segment(x: Tensor) -> Any:
        return compiled(x) if network.training else plain(x)

    network.segment = segment  # type: ignore[method-assign]


def recompute_activations(network: nn.Module) -> None:
    """Keep only what goes into each stage of a network; the rest is computed again in the backward pass.

    Training takes a fraction of the memory and about a third more time. Batch norms see every batch twice, so their
    running statistics follow faster.
    """
    for child in network.children():
        # Lists of stages are gone into; a stage without such lists is recomputed as a whole.
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


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; nobody waits for its way to a GPU."""
    # Only towards a GPU: on the way back the processor would read what has not come yet. Memory that is not pinned is
    # copied aside before the call returns, so that it may be changed or freed at once.
    return tensor.to(device, non_blocking=device.type == "cuda")


_trials, _TRIALS_LOCK = [0], Lock()
"""How many blocks of :func:`tried_kernels` are open."""


@contextmanager
def tried_kernels(device: torch.device | None, worth: bool = True) -> Iterator[None]:
    """Let cuDNN try its kernels once for every size that comes up in the block, and keep the fastest.

    Args:
        device: Of the network; only GPUs have a choice.
        worth: Whether sizes stay the same for so long that trying pays; if not, nothing is changed.
    """
    if device is None or device.type != "cuda" or not worth:
        yield
        return
    _count_trials(1)
    try:
        yield
    finally:
        _count_trials(-1)


def _count_trials(change: int) -> None:
    # The switch is one for all threads: the first block turns it on, the last one off, unless the user had it on.
    with _TRIALS_LOCK:
        if _trials[0] == 0 and torch.backends.cudnn.benchmark:
            return
        _trials[0] = max(0, _trials[0] + change)
        torch.backends.cudnn.benchmark = _trials[0] > 0


@contextmanager
def in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """All modules in training or evaluation mode for the block; then each in its own again."""
    modes = {module: module.training for module in network.modules()}
    try:
        network.train(training)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
