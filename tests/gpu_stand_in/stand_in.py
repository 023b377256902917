"""Install the stand-in for GPUs into PyTorch. See README.md beside it."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

GUARD = Path(__file__).with_name("guard.cpp")


class CannotBuildError(Exception):
    """What is missing to build the stand-in."""


def build(folder: Path) -> Path:
    """Compile what PyTorch has to load; a library that is in the folder already is taken.

    Raises:
        CannotBuildError: If there is no compiler, or PyTorch comes without its headers.
    """
    torch_spec = find_spec("torch")  # not imported: the library is loaded before it
    assert torch_spec is not None
    assert torch_spec.origin is not None
    home = Path(torch_spec.origin).parent
    content = hashlib.sha256(GUARD.read_bytes() + version("torch").encode()).hexdigest()[:16]
    library = folder / f"libguard_{content}.so"
    if library.exists():
        return library
    compiler = shutil.which("g++")
    if compiler is None:
        raise CannotBuildError("g++: expected a compiler to build the stand-in for a GPU, found none. Install g++.")
    headers = home / "include"
    if not (headers / "ATen").is_dir():
        raise CannotBuildError(f"{headers}: expected the headers of PyTorch, found none. Install PyTorch by pip.")
    folder.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(f".{id(library)}.part")
    command = [compiler, "-O1", "-shared", "-fPIC", "-std=c++20", str(GUARD), f"-I{headers}"]
    command += [f"-I{headers / 'torch/csrc/api/include'}", f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}"]
    built = subprocess.run([*command, "-lc10", "-ltorch_cpu", "-o", str(partial)], capture_output=True, text=True)
    if built.returncode:
        raise CannotBuildError(f"{GUARD}: expected g++ to compile it, got:\n{built.stderr}")
    partial.replace(library)
    return library


def install(library: Path) -> None:
    """Give PyTorch two GPUs, for the rest of the process. Call it before anything imports torch."""
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    import gpu_tensor
    import torch

    # Operations with tensors of the class reach it by themselves; these make tensors, or copy with the class set aside.
    to_gpu = torch.library.Library("_", "IMPL")
    to_gpu.fallback(lambda func, *args, **kwargs: gpu_tensor.run(func, args, kwargs), "CUDA")
    own = torch.library.Library("aten", "IMPL")
    for name in (
        "copy_",
        "arange",
        "arange.start",
        "arange.start_step",
        "randperm",
        "randperm.generator",
        "eye",
        "eye.m",
    ):
        packet, _, overload = name.partition(".")
        func = getattr(getattr(torch.ops.aten, packet), overload or "default")
        own.impl(name, lambda *args, func=func, **kwargs: gpu_tensor.run(func, args, kwargs), "CUDA")
    torch.cuda._stand_in = to_gpu, own  # type: ignore[attr-defined]  # kept: they unregister what they registered
    _replace_cuda(torch, gpu_tensor)

    # Gradients are computed in the thread that asks, so that a wait there has the line of the project.
    torch.autograd.set_multithreading_enabled(False)
    # Optimizers take the fast path of a GPU, all tensors in one call, for known classes of tensors only.
    torch.utils._foreach_utils._foreach_supported_types.append(gpu_tensor.OnGpu)
    plain_apply = torch.nn.Module._apply

    def apply(module: Any, *args: Any, **kwargs: Any) -> Any:
        """Moving a network keeps its parameters: they become tensors of another class, which is off by default."""
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return plain_apply(module, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    torch.nn.Module._apply = apply  # type: ignore[method-assign]


def _replace_cuda(torch: Any, gpu_tensor: Any) -> None:
    """Functions of ``torch.cuda`` that ask the driver."""
    cuda, memory = torch.cuda, gpu_tensor.memory

    def of(device: Any = None) -> Any:
        """Memory of a device: a number, a name, None for the current one."""
        place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
        return memory[torch.accelerator.current_device_index() if place.index is None else place.index]

    def reset_peak(device: Any = None) -> None:
        of(device).peak = of(device).allocated

    def properties(device: Any = None) -> Any:
        return SimpleNamespace(
            name="stand-in", total_memory=of(device).total, major=8, minor=0, multi_processor_count=100
        )

    class Stream:
        """Work in the order it is given; there is only one such order."""

        def __init__(self, device: Any = None, priority: int = 0) -> None:
            self.device, self.priority = device, priority

        def record_event(self, event: Any = None) -> Any:
            return event or Event()

        def wait_event(self, event: Any) -> None: ...

        def wait_stream(self, stream: Any) -> None: ...

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            gpu_tensor.waits("stream")

    class Event:
        """A point in a stream, which is always behind us."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def record(self, stream: Any = None) -> None: ...

        def wait(self, stream: Any = None) -> None: ...

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            gpu_tensor.waits("event")

    def exchange(index: int) -> int:
        before: int = torch.accelerator.current_device_index()
        if index >= 0:
            torch.accelerator.set_device_index(index)
        return before

    cuda._initialized = True
    torch._C._cuda_getDevice = torch.accelerator.current_device_index
    torch._C._cuda_setDevice = torch.accelerator.set_device_index
    cuda.default_generators = tuple(torch.Generator(f"cuda:{n}") for n in range(gpu_tensor.DEVICES))
    replaced: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: gpu_tensor.DEVICES,
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_properties": properties,
        "get_device_name": lambda device=None: "stand-in",
        "get_device_capability": lambda device=None: (8, 0),
        "mem_get_info": lambda device=None: (of(device).free, of(device).total),
        "memory_allocated": lambda device=None: of(device).allocated,
        "memory_reserved": lambda device=None: of(device).allocated,
        "max_memory_allocated": lambda device=None: of(device).peak,
        "max_memory_reserved": lambda device=None: of(device).peak,
        "reset_peak_memory_stats": reset_peak,
        "synchronize": lambda device=None: gpu_tensor.waits("synchronize"),
        "empty_cache": lambda: None,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device=None: Stream(device),
        "default_stream": lambda device=None: Stream(device),
    }
    for name, value in replaced.items():
        setattr(cuda, name, value)
    cuda.random.device_count = replaced["device_count"]  # imported there by name


@contextmanager
def gpu_memory(total: int, others: int = 0, device: int = 0) -> Iterator[None]:
    """Another size of a GPU's memory for a block, in bytes, and how much of it others have taken."""
    import gpu_tensor

    own = gpu_tensor.memory[device]
    kept = own.total, own.others
    own.total, own.others = total, others
    try:
        yield
    finally:
        own.total, own.others = kept


def allocated(device: int = 0) -> int:
    """Bytes of the tensors on a GPU."""
    import gpu_tensor

    return gpu_tensor.memory[device].allocated


def peak(device: int = 0) -> int:
    """The most bytes on a GPU since :func:`reset_peak`."""
    import gpu_tensor

    return gpu_tensor.memory[device].peak


def reset_peak(device: int = 0) -> None:
    """Let the peak begin anew at what is there."""
    import gpu_tensor

    gpu_tensor.memory[device].peak = gpu_tensor.memory[device].allocated
