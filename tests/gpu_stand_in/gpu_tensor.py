"""A tensor that says it is on a GPU, and what CUDA would make of every operation with it.

An operation reaches :func:`run` in every thread, in one of two ways: through the tensor class, or, where a tensor is
made on a GPU (``torch.zeros(3, device="cuda")``), as the fallback of the dispatch key ``CUDA``. It is refused where
CUDA refuses it, computed on the CPU, and noted: which waits of the host, copies and launches of kernels it would be.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

DEVICES = 2
_FOUND = find_spec("pipeline")  # of whichever checkout is looked at
_PROJECT = f"{Path(_FOUND.origin).parent}/" if _FOUND and _FOUND.origin else ""
_BLOCK = 512  # bytes; CUDA's allocator of PyTorch rounds up to it
_STAGED = 64 * 2**10  # bytes; the driver takes so much pageable memory without waiting


class Place(NamedTuple):
    """A line of the project.

    Args:
        file: Below ``pipeline/``; empty if no line of the project is on the stack.
        function: Its name.
        line: Number in the file.
        thread: ``MainThread``, ``batches``, …
    """

    file: str
    function: str
    line: int
    thread: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function} [{self.thread}]"


class Event(NamedTuple):
    """Something that a GPU would do, and the innermost line of the project that asks for it."""

    what: str
    place: Place


@dataclass
class Seen:
    """What happened inside a block.

    Args:
        waits: Waits of the host for the GPU.
        copies: Copies between host and GPU, between GPUs, and of one memory format into another; those that cuDNN
            makes for itself included.
        copied_bytes: How much they moved.
        launches: Thread → operators that compute, each at least one kernel.
    """

    waits: Counter[Event] = field(default_factory=Counter)
    copies: Counter[Event] = field(default_factory=Counter)
    copied_bytes: Counter[Event] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)

    def waits_of(self, thread: str = "MainThread") -> dict[str, int]:
        """Waits of one thread: ``file:function: what`` → how many."""
        found: Counter[str] = Counter()
        for event, count in self.waits.items():
            if event.place.thread == thread:
                found[f"{event.place.file}:{event.place.function}: {event.what}"] += count
        return dict(found)


_watching: list[Seen] = []
_lock = threading.RLock()  # again by the same thread: tensors may be released in the middle of an operation


@contextmanager
def watch() -> Iterator[Seen]:
    """Note what GPUs would do while the block runs, in all threads."""
    seen = Seen()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


def waits(what: str) -> None:
    """Note a wait of the host."""
    if _watching:
        event = Event(what, _place())
        with _lock:
            for seen in _watching:
                seen.waits[event] += 1


def _copies(what: str, tensor: Tensor) -> None:
    if _watching:
        event = Event(what, _place())
        with _lock:
            for seen in _watching:
                seen.copies[event] += 1
                seen.copied_bytes[event] += tensor.numel() * tensor.element_size()


def _launches() -> None:
    thread = _thread()
    with _lock:
        for seen in _watching:
            seen.launches[thread] += 1


def _thread() -> str:
    return threading.current_thread().name.split("_")[0]


def _place() -> Place:
    thread = _thread()
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_PROJECT):
            return Place(code.co_filename[len(_PROJECT) :], code.co_name, frame.f_lineno, thread)
        frame = frame.f_back  # type: ignore[assignment]
    return Place("", "", 0, thread)


@dataclass
class Memory:
    """What is allocated on one GPU, in bytes.

    Args:
        total: Size of its memory.
        others: Taken by other processes and by CUDA itself.
        allocated: Taken by the tensors that are there.
        peak: The most of ``allocated`` since it was last reset.
    """

    total: int = 24 * 2**30
    others: int = 2 * 2**30
    allocated: int = 0
    peak: int = 0

    @property
    def free(self) -> int:
        """What may still be taken."""
        return self.total - self.others - self.allocated


memory = [Memory() for _ in range(DEVICES)]


class _Lease:
    """The memory of one storage on a GPU: taken while any tensor has it, as the tensors hold the lease."""

    def __init__(self, storage: torch.UntypedStorage, index: int) -> None:
        self.bytes, self.index = -(-storage.nbytes() // _BLOCK) * _BLOCK, index
        own = memory[index]
        with _lock:
            if self.bytes > own.free:
                wanted, free, total = self.bytes / 2**20, own.free / 2**20, own.total / 2**30
                self.bytes = 0
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {wanted:.2f} MiB. GPU {index} has a total capacity of "
                    f"{total:.2f} GiB of which {free:.2f} MiB is free."
                )
            own.allocated += self.bytes
            own.peak = max(own.peak, own.allocated)

    def __del__(self) -> None:
        with _lock:
            memory[self.index].allocated -= self.bytes


_leases: WeakValueDictionary[int, _Lease] = WeakValueDictionary()  # by address of the storage


class OnGpu(Tensor):
    """A tensor that says it is on ``cuda:index`` and computes on the tensor of the CPU that it holds."""

    @staticmethod
    def __new__(cls, inner: Tensor, index: int) -> OnGpu:
        """Wrap a tensor; what views it shares its memory."""
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device("cuda", index),
            requires_grad=False,
        )
        storage = inner.untyped_storage()
        with _lock:
            lease = _leases.get(storage._cdata)
            if lease is None:
                lease = _leases[storage._cdata] = _Lease(storage, index)
        made.inner, made.lease = inner, lease
        return made  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({tuple(self.shape)}, {self.dtype}, {self.device})"

    def tolist(self) -> Any:  # subclasses of tensors have none
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def record_stream(self, stream: Any) -> None:
        """Nothing: there are no streams."""


@dataclass(frozen=True)
class _Operator:
    """What is known of an operator by its schema."""

    name: str
    composite: bool  # made of others, which are looked at in its place
    view: bool
    moves_shape: bool  # gives the tensor itself another shape
    pointwise: bool
    random: bool
    takes_generator: bool


@cache
def _operator(func: Any) -> _Operator:
    schema = func._schema
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return _Operator(
        schema.name.split("::")[1],
        composite,
        bool(func.is_view),
        torch.Tag.inplace_view in func.tags,
        torch.Tag.pointwise in func.tags,
        torch.Tag.nondeterministic_seeded in func.tags,
        any(argument.name == "generator" for argument in schema.arguments),
    )


_WAITS = {
    "_local_scalar_dense": "value read",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "bincount": "bincount",
    "equal": "equal",
    "repeat_interleave": "repeat_interleave",
    "_linalg_check_errors": "linalg",
}
"""Operators whose result the host has to see: a value, or how large the result is."""

_INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_unsafe_index_put", "_index_put_impl_"}
_COPIES = {"copy_", "_to_copy"}
_NO_KERNEL = {"empty", "empty_strided", "empty_like", "new_empty", "_local_scalar_dense", "detach"}
_CONVOLUTIONS = {"convolution", "convolution_backward"}
_HALF = {torch.bfloat16, torch.float16}
_TAKES_A_VALUE = {"fill_", "fill", "masked_fill", "masked_fill_", "index_fill", "index_fill_"}
"""Operators beside the pointwise ones that take a tensor of the CPU without dimensions for a number."""


def run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Compute an operation in which a GPU takes part.

    Raises:
        RuntimeError: If CUDA would refuse it.
    """
    known = _operator(func)
    if known.composite:
        return func.decompose(*args, **kwargs)
    tensors = list(_tensors((*args, *kwargs.values())))
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, OnGpu)]
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    _require_same_device(known, args, on_gpu, on_cpu)
    index = _result_index(on_gpu, wanted)
    if _watching:
        _note(known, args, kwargs, on_gpu, on_cpu)

    plain_args, plain_kwargs = tree_map_only(OnGpu, _inner, (tuple(args), kwargs))
    # Few CPUs convolve in half precision, most are slow at it, and some wrong; GPUs sum up in float32, too.
    half = on_gpu[0].dtype if known.name in _CONVOLUTIONS and on_gpu[0].dtype in _HALF else None
    if half is not None:
        plain_args = tree_map_only(Tensor, Tensor.float, plain_args)
    if wanted is not None:
        plain_kwargs["device"] = torch.device("cpu")

    def call() -> Any:
        return func(*plain_args, **plain_kwargs)

    result = _drawn(known, plain_kwargs, index, call) if known.random and index is not None else call()

    if half is not None:
        result = tree_map_only(Tensor, lambda tensor: tensor.to(half), result)

    # What an operation changes and returns are the tensors that it was given, not new ones around the same memory.
    given = {id(tensor.inner): tensor for tensor in on_gpu}
    _require_shapes(known, on_gpu)
    to_cpu = index is None or (known.name == "copy_" and not isinstance(args[0], OnGpu))

    def wrapped(tensor: Tensor) -> Tensor:
        if id(tensor) in given:
            return given[id(tensor)]
        return tensor if to_cpu or isinstance(tensor, OnGpu) else OnGpu(tensor, index)

    return tree_map_only(Tensor, wrapped, result)


def _inner(tensor: OnGpu) -> Tensor:
    return tensor.inner  # type: ignore[attr-defined, no-any-return]


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _result_index(on_gpu: Sequence[Tensor], wanted: torch.device | None) -> int | None:
    """Number of the GPU of the result, None for the CPU."""
    if wanted is not None:
        if wanted.type != "cuda":
            return None
        return torch.accelerator.current_device_index() if wanted.index is None else wanted.index
    return on_gpu[0].device.index if on_gpu else None


def _require_same_device(
    known: _Operator, args: Sequence[Any], on_gpu: Sequence[Tensor], on_cpu: Sequence[Tensor]
) -> None:
    """Refuse what mixes devices; CUDA takes numbers that are tensors of the CPU, and indices."""
    if known.name in _COPIES or not on_gpu:
        return
    places = sorted({str(tensor.device) for tensor in on_gpu})
    if known.name in _INDEXING and isinstance(args[0], OnGpu):
        values = [args[2]] if len(args) > 2 and isinstance(args[2], Tensor) else []
        refused = [tensor for tensor in values if not isinstance(tensor, OnGpu) and tensor.ndim]
    else:
        takes_numbers = (known.pointwise or known.name in _TAKES_A_VALUE) and not known.name.startswith("_foreach")
        refused = [tensor for tensor in on_cpu if tensor.ndim or not takes_numbers]
    if refused or len(places) > 1:
        shapes = [(str(tensor.device), tuple(tensor.shape)) for tensor in (*on_gpu, *on_cpu)]
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(places + ['cpu'] * bool(refused))}! ({known.name}: {shapes}, at {_place()})"
        )


def _note(
    known: _Operator, args: Sequence[Any], kwargs: dict[str, Any], on_gpu: Sequence[Tensor], on_cpu: Sequence[Tensor]
) -> None:
    """Note the waits, copies and launches of an operation."""
    name = known.name
    if not known.view and name not in _NO_KERNEL:
        _launches()
    if name in _WAITS and on_gpu and not (name == "repeat_interleave" and kwargs.get("output_size") is not None):
        waits(_WAITS[name])
    if name in _INDEXING:
        indices = [tensor for tensor in args[1] if tensor is not None]
        masks = [tensor for tensor in indices if tensor.dtype in (torch.bool, torch.uint8)]
        values = args[2] if len(args) > 2 else None
        # A mask and one number are masked_fill, which needs no sizes.
        filled = isinstance(values, Tensor) and values.numel() == 1 and values.device.type == "cpu"
        if masks and not (filled and len(indices) == 1):
            waits("indexed by a mask")
        for tensor in indices:
            if not isinstance(tensor, OnGpu):
                waits("indexed by a tensor of the CPU")
                _copies("to the GPU", tensor)
    elif name == "copy_":
        _note_copy(args[0], args[1], bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking")))
    elif name == "_to_copy":
        wanted, source = kwargs.get("device"), args[0]
        if wanted is not None and torch.device(wanted).type == "cpu":
            _copies("to the CPU", source)
            if not kwargs.get("non_blocking"):  # else the result is pinned
                waits("copied to the CPU")
        elif wanted is not None and torch.device(wanted) != source.device:
            _copies("to another GPU", source)
        elif kwargs.get("memory_format") not in (None, torch.preserve_format):
            _note_format(source, kwargs["memory_format"])
    elif name == "clone":
        _note_format(args[0], kwargs.get("memory_format"))
    elif name in _CONVOLUTIONS:
        given = args[0:2] if name == "convolution" else args[0:3]  # image and weights; first the gradient
        last = any(memory_order(tensor) == "channels last" for tensor in given[-2:])
        wanted = "channels last" if last else "channels first"
        for tensor in given:
            if memory_order(tensor) not in (wanted, "any"):
                _copies(f"{memory_order(tensor)} to {wanted}", tensor)


def _note_copy(to: Tensor, source: Tensor, non_blocking: bool) -> None:
    if isinstance(to, OnGpu) and isinstance(source, OnGpu):
        if to.device != source.device:
            _copies("to another GPU", source)
        elif memory_order(to) != memory_order(source) and "any" not in (memory_order(to), memory_order(source)):
            _copies(f"{memory_order(source)} to {memory_order(to)}", source)
    elif isinstance(to, OnGpu):
        _copies("to the GPU", source)
        staged = source.numel() * source.element_size() <= _STAGED or source.is_pinned()
        if not (non_blocking and staged):
            waits("copied to the GPU")
    else:
        _copies("to the CPU", source)
        if not (non_blocking and to.is_pinned()):
            waits("copied to the CPU")


def _note_format(source: Tensor, wanted: torch.memory_format | None) -> None:
    if wanted in (None, torch.preserve_format) or source.is_contiguous(memory_format=wanted):
        return
    order = "channels first" if wanted == torch.contiguous_format else "channels last"
    _copies(f"{memory_order(source)} to {order}", source)


def memory_order(tensor: Tensor) -> str:
    """``channels first``, ``channels last``, ``any`` where both hold, or ``other``."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    first = tensor.is_contiguous()
    if last is None or (first and tensor.is_contiguous(memory_format=last)):
        return "any" if first else "other"
    return "channels first" if first else "channels last" if tensor.is_contiguous(memory_format=last) else "other"


def _drawn(known: _Operator, kwargs: dict[str, Any], index: int, call: Callable[[], Any]) -> Any:
    """The result of an operation that draws random numbers, by the generator of its GPU."""
    given = kwargs.get("generator")
    if given is not None and given.device.type != "cuda":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({known.name}, at {_place()})")
    own = torch.cuda.default_generators[index] if given is None else given
    # Operators of the CPU take only its generators: one of them has the state for the length of the call.
    with _lock:
        if known.takes_generator:
            kwargs["generator"] = lent = torch.Generator()
            lent.set_state(own.get_state())
            result = call()
            own.set_state(lent.get_state())
            return result
        kept = torch.default_generator.get_state()
        torch.default_generator.set_state(own.get_state())
        try:
            result = call()
            own.set_state(torch.default_generator.get_state())
        finally:
            torch.default_generator.set_state(kept)
        return result


def _require_shapes(known: _Operator, on_gpu: Sequence[Tensor]) -> None:
    """Stop where a tensor got another shape by an operation in place, which cannot be passed on to the wrapper."""
    if any(tensor.shape != tensor.inner.shape for tensor in on_gpu):  # type: ignore[attr-defined]
        raise NotImplementedError(f"The stand-in cannot change the shape of a tensor in place ({known.name}).")
