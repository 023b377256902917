"""What a network costs: parameters, multiply-adds, and memory of a training step."""

from __future__ import annotations

import copy
import gc
import mmap
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pipeline.core.errors import ConfigError, sentence
from pipeline.core.machine import release_freed_memory
from pipeline.model.device import in_mode, recompute_activations
from pipeline.model.registry import list_networks, new_network

MEMORY_MEANS = {
    "cuda": "what PyTorch allocated on the GPU",
    "cpu": "how far the process's own resident memory, sampled every 5 ms, rose above its size before the first level",
}
"""What the figure is on each kind of device; elsewhere nothing is measured."""

_STATM = Path("/proc/self/statm")
_PERIOD_S = 0.005  # a layer of a network worth measuring takes longer


@contextmanager
def watch_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Watch the memory of a device while the block runs.

    On the CPU it is the resident memory of the whole process without the pages of files: program code comes and goes as
    the system likes. What libraries keep for reuse, such as scratch space of convolutions, counts for all later work:
    to compare several pieces of work, do the smallest first, and ask after each.

    Yields:
        A function that tells the highest use since it was last asked, in bytes above that at the start; None where the
        system (other than Linux) or the device does not tell.
    """
    gc.collect()
    if device.type == "cuda":
        allocated = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: _cuda_peak(device) - allocated
    elif device.type == "cpu" and _STATM.exists():
        with _sampled() as peak:
            yield peak
    else:
        yield lambda: None


def _cuda_peak(device: torch.device) -> int:
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


@contextmanager
def _sampled() -> Iterator[Callable[[], int]]:
    release_freed_memory()
    before = _own_pages()
    highest, stop, lock = [before], Event(), Lock()  # the lock: no sample from before a question counts after it

    def sample() -> None:
        while not stop.wait(_PERIOD_S):
            with lock:
                highest[0] = max(highest[0], _own_pages())

    def peak() -> int:
        with lock:
            found = max(highest[0], _own_pages()) - before
            gc.collect()
            release_freed_memory()
            highest[0] = before
        return found * mmap.PAGESIZE

    # Peaks within a layer last milliseconds, so that only a thread that samples sees them.
    thread = Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _own_pages() -> int:
    """Resident pages that belong to no file."""
    words = _STATM.read_text(encoding="ascii").split()
    return int(words[1]) - int(words[2])


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def multiply_adds(network: nn.Module, patch_size: Sequence[int], in_channels: int) -> int:
    """Multiply-adds of the convolutions and linear layers in predicting one patch; biases and the rest are not counted.

    The network is left as it was. It counts in evaluation mode, so heads for training only do not count.

    Raises:
        DataError: If the patch size is not legal for the network.
    """
    # On the meta device shapes alone are propagated: that takes milliseconds and no memory, whatever the patch.
    state = {name: value.to("meta") for name, value in network.state_dict().items()}
    patch = torch.empty(1, in_channels, *patch_size, device="meta")
    with in_mode(network, training=False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(network, state, patch)
    return int(counter.get_total_flops()) // 2  # a multiply-add counts as two operations


def kept_bytes(network: nn.Module, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """Bytes that a training step keeps from forward to backward, weights included: no step does with less memory.

    Shapes alone are propagated, as in :func:`multiply_adds`. What mixed precision keeps in float32 counts as if it were
    of the narrower type, gradients and optimizer are not counted, and neither is the loss.

    Args:
        network: Any network of this package; with recomputation only what that keeps is counted.
        shape: Of the batch, (B, C, *S), S a legal spatial size.
        dtype: Type of the network's arithmetic.

    Raises:
        DataError: If the shape is not legal for the network.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # views of one storage count once; the tensor keeps it alive
        return tensor

    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    state = {}
    for name, value in network.state_dict().items():
        own = dtype if value.is_floating_point() else value.dtype
        # Only tensors that need gradients make PyTorch keep what their gradients need.
        state[name] = torch.empty_like(value, dtype=own, device="meta").requires_grad_(name in trained)
    with in_mode(network, training=True), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.func.functional_call(network, state, torch.empty(*shape, dtype=dtype, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


# What work takes on a GPU is found by doing it with tensors that have a shape and no data, and by counting them.

_BLOCK = 512  # bytes; PyTorch's allocator on GPUs rounds up to multiples

META = torch.device("meta")
"""Where tensors have a shape and no data."""

# As torch.autocast has them on a GPU (ATen/autocast_mode.h), of those that networks use.
_NARROW = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "prelu", "linear"),
    *("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention"),
}
_WIDE = {
    *("exp", "expm1", "log", "log1p", "log2", "log10", "pow", "__pow__", "reciprocal", "rsqrt", "softplus"),
    *("layer_norm", "group_norm", "rms_norm", "logsumexp", "interpolate"),
}


class WithoutData(TorchFunctionMode):
    """What a GPU would do beside the shapes: mixed precision, which PyTorch leaves out for tensors without data.

    Args:
        dtype: Type of the network's arithmetic; float32 for one precision.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function with its tensors in the type that a GPU takes."""
        name, options = getattr(func, "__name__", ""), dict(kwargs or {})
        # A GPU keeps a mask of one byte per value, other devices the factors themselves.
        if name == "dropout" and isinstance(args[0], Tensor) and options.get("training", True):
            p = options.get("p", args[1] if len(args) > 1 else 0.5)
            return torch.native_dropout(args[0], float(p), True)[0]
        if self.dtype == torch.float32:
            return func(*args, **options)
        if name in _NARROW:
            return func(*_as_type(args, self.dtype), **_as_type(options, self.dtype))
        if name in _WIDE:
            return func(*_as_type(args, torch.float32), **_as_type(options, torch.float32))
        return func(*args, **options)


def _as_type(values: Any, dtype: torch.dtype) -> Any:
    """Nested values, floating tensors of at most 32 bits in another type."""
    if isinstance(values, dict):
        return {name: _as_type(value, dtype) for name, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(_as_type(value, dtype) for value in values)
    narrow = isinstance(values, Tensor) and values.is_floating_point() and values.dtype != torch.float64
    return values.to(dtype) if narrow else values


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own are untyped
    """Counts the memory that tensors without data would take while they live; those of before do not count.

    Attributes:
        alive: Bytes of the tensors that there are now.
        peak: Most bytes at one time, with the scratch space of convolutions.
        peak_alive: Most bytes of tensors alone.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = self.peak_alive = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it makes."""
        made = func(*args, **(kwargs or {}))
        outputs = [self._counted(leaf) for leaf in tree_leaves(made)]
        scratch = 0
        # cuDNN wants its tensors in one memory order and scratch space beside: as much as goes in and comes out.
        if func._schema.name in ("aten::convolution", "aten::convolution_backward"):
            inputs = [leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            scratch = sum(inputs) + sum(outputs)
        self.peak_alive = max(self.peak_alive, self.alive)
        self.peak = max(self.peak, self.alive + scratch)
        return made

    def begin(self) -> None:
        """Take the tensors that there are now for the most so far."""
        self.peak = self.peak_alive = self.alive

    def _counted(self, made: Any) -> int:
        if not isinstance(made, Tensor) or made.device != META:
            return 0
        storage = made.untyped_storage()
        place, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        if place not in self._known:  # views share a storage
            self._known[place] = weakref.finalize(storage, self._gone, place, size)
            self.alive += size
        return int(made.nbytes)

    def _gone(self, place: int, size: int) -> None:
        del self._known[place]
        self.alive -= size


def without_data(network: nn.Module) -> Any:
    """A copy of a network whose tensors have no data."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)

    known: dict[int, Any] = {id(buffer): empty(buffer) for buffer in network.buffers()}
    for parameter in network.parameters():
        known[id(parameter)] = nn.Parameter(empty(parameter), requires_grad=parameter.requires_grad)
    bare = copy.deepcopy(network, known)
    for module in bare.modules():
        # What recomputes activations calls the stages of the network that it was made for.
        module.__dict__.pop("forward", None)
    return bare


def compute_again(network: nn.Module, dtype: torch.dtype) -> None:
    """Recompute the activations of a network without data, in the types that a GPU takes."""

    def typed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            with WithoutData(dtype):  # in the backward pass no mode is on
                return forward(*inputs)

        return call

    for module in network.modules():
        if not any(True for _ in module.children()):
            module.forward = typed(module.forward)
    recompute_activations(network)


def window_bytes(network: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes that predicting windows of a shape (B, C, *S) takes on a GPU beside the weights: activations and logits.

    Raises:
        DataError: If the shape is not legal for the network.
    """
    bare = without_data(network).eval()
    windows = torch.empty(*shape, device=META)
    live = LiveBytes()
    with torch.no_grad(), live, WithoutData(dtype):
        bare(windows)
    return live.peak


_LARGEST = 16384  # products of larger edges overflow PyTorch's sizes


@dataclass(frozen=True)
class NetworkCost:
    """One network with its default options in one number of dimensions.

    Args:
        name: Name in the registry.
        dims: Number of spatial axes.
        parameters: Trainable parameters.
        patch_size: Smallest legal size that covers the patch asked for.
        output_size: Size of the logits of that patch.
        multiply_adds: Of the convolutions, in predicting that patch.
        source: Paper it comes from.
    """

    name: str
    dims: int
    parameters: int
    patch_size: tuple[int, ...]
    output_size: tuple[int, ...]
    multiply_adds: int
    source: str


def survey_networks(edge: int, in_channels: int = 1, out_channels: int = 2) -> tuple[NetworkCost, ...]:
    """Costs of all networks, in the order of the registry, 2D before 3D; takes no memory for weights.

    Raises:
        ConfigError: If the edge or a number of channels is below 1, or the edge above 16384.
    """
    if edge < 1:
        raise ConfigError([sentence("patch", "an edge of at least 1 voxel", edge, "Enlarge it")])
    if edge > _LARGEST:
        raise ConfigError([sentence("patch", f"an edge of at most {_LARGEST} voxels", edge, "Reduce it")])
    rows = []
    for info in list_networks():
        for dims in info.dims:
            with torch.device("meta"):
                network = new_network(info.name, dims, in_channels, out_channels)
            patch = network.legal_size((edge,) * dims)
            sizes = count_parameters(network), patch, network.output_size(patch)
            rows.append(NetworkCost(info.name, dims, *sizes, multiply_adds(network, patch, in_channels), info.source))
    return tuple(rows)
