"""Which convolutions come out wrong on this processor: PyTorch's own beside the project's.

    python benchmarks/convolution_gradients.py --isa DEFAULT AVX2 SSE41

Sizes, kernels, strides, channels, memory orders and types, in 2D and 3D, forwards and both ways back, each against
float64. They run in other processes, in memory that was freed full of large numbers: what a kernel reads without
having written it shows, and one that ends its process is found and named. ``--isa`` limits oneDNN to an
instruction set; a processor without it computes as if nothing were said.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.core.machine import keep_freed_memory, release_freed_memory
from pipeline.model.blocks import convolution
from pipeline.model.device import Execution, autocast, to_device

TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LIMITS = {"bf16": 0.02, "fp32": 1e-4}
"""Largest error that rounding explains, relative to the largest value of the result."""
RESULTS = ("output", "to input", "to weights")
BATCH = 2
POISON = 3e30
TIMEOUT_S = 60
CHUNK = 50  # convolutions of one process, as long as all goes well


@dataclass(frozen=True)
class Shape:
    """One convolution: all but its numbers."""

    size: tuple[int, ...]
    channels: tuple[int, int]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    transposed: bool
    channels_last: bool
    dtype: str

    def __str__(self) -> str:
        """E.g. ``bf16 3D last 16→32 size 2x4x5 kernel 3x3x3 stride 1x1x1 padding 1x1x1``."""
        kind = "transposed " if self.transposed else ""
        order = "last" if self.channels_last else "first"
        sizes = {"size": self.size, "kernel": self.kernel, "stride": self.stride, "padding": self.padding}
        axes = " ".join(f"{name} {'x'.join(map(str, value))}" for name, value in sizes.items())
        return f"{self.dtype} {kind}{len(self.size)}D {order} {self.channels[0]}→{self.channels[1]} {axes}"


def shapes() -> Iterator[Shape]:
    """All convolutions of the sweep that have an output."""
    channels = ((4, 8), (12, 16), (16, 32))
    for dims in (2, 3):
        sizes = [(n, *rest) for n in range(1, 7) for rest in ((4, 5)[: dims - 1], (2, 1)[: dims - 1])]
        sizes.append((32,) * 2 if dims == 2 else (12,) * 3)
        kernels = [(n,) * dims for n in (1, 3, 5, 7)] + [(1, *(3,) * (dims - 1)), (3, *(1,) * (dims - 1))]
        strides = [(1,) * dims, (2,) * dims, (1, *(2,) * (dims - 1))]
        orders_and_types = list(itertools.product((True, False), TYPES))
        for size, kernel, stride, width in itertools.product(sizes, kernels, strides, channels):
            same, none = tuple(n // 2 for n in kernel), (0,) * dims
            for padding in dict.fromkeys([same, none]):
                if all(n + 2 * p >= k for n, p, k in zip(size, padding, kernel, strict=True)):
                    for last, dtype in orders_and_types:
                        yield Shape(size, width, kernel, stride, padding, False, last, dtype)
        for size, stride, width in itertools.product(sizes, strides[1:], channels):
            for last, dtype in orders_and_types:
                yield Shape(size, width, stride, stride, (0,) * dims, True, last, dtype)


def errors(shape: Shape, ours: bool) -> tuple[float, ...]:
    """Largest errors of output and both gradients, relative to the largest value of each."""
    dims, generator = len(shape.size), torch.Generator().manual_seed(0)
    layer = _layer(shape, ours)
    exact = _layer(shape, ours=False).double()
    with torch.no_grad():
        for one, other in zip(layer.parameters(), exact.parameters(), strict=True):
            one.copy_(torch.randn(one.shape, generator=generator).to(TYPES[shape.dtype]))
            other.copy_(one)
    to_device(layer, torch.device("cpu"), channels_last=shape.channels_last)
    image = torch.randn((BATCH, shape.channels[0], *shape.size), generator=generator).to(TYPES[shape.dtype]).float()
    wanted = _passes(exact, image.double(), None, generator)
    order = (torch.channels_last, torch.channels_last_3d)[dims - 2] if shape.channels_last else torch.contiguous_format
    seen = Execution(shape.channels_last).images(image)
    _poison()
    with autocast(torch.device("cpu"), TYPES[shape.dtype]):
        found = _passes(layer, seen, wanted[-1].float().contiguous(memory_format=order), generator)
    return tuple(_relative(one, other) for one, other in zip(found[:3], wanted[:3], strict=True))


def _layer(shape: Shape, ours: bool) -> nn.Module:
    dims, (given, wanted) = len(shape.size), shape.channels
    if shape.transposed:  # the project's are PyTorch's
        return (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2](given, wanted, shape.kernel, shape.stride)
    if ours:
        return convolution(dims, given, wanted, shape.kernel, stride=shape.stride, padding=shape.padding)
    return (nn.Conv2d, nn.Conv3d)[dims - 2](given, wanted, shape.kernel, shape.stride, shape.padding)


def _passes(
    layer: nn.Module, image: Tensor, gradient: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, gradients of image and weights, and the gradient that came in; none is made of whole sixteenths."""
    image = image.clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(image)
    if gradient is None:
        gradient = torch.randn(output.shape, generator=generator).mul(16).round().div(16).to(image.dtype)
    _poison()
    output.backward(gradient.to(output.dtype))
    return output, image.grad, layer.weight.grad, gradient  # type: ignore[return-value]


def _poison() -> None:
    """Fill memory of every size with a large number, and free it."""
    kept = [torch.full((n,), POISON) for n in [16, 64, 256, 1024, 4096, 16384, 65536] * 6]
    del kept


def _relative(found: Tensor, wanted: Tensor) -> float:
    error = float((found.detach().double() - wanted.detach()).abs().max() / wanted.detach().abs().max())
    return error if math.isfinite(error) else math.inf


def _child(shapes: Sequence[Shape], ours: bool, connection: Connection) -> None:
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # what the C library says of a damaged heap
    torch.set_num_threads(1)
    for shape in shapes:
        with keep_freed_memory():
            result = errors(shape, ours)
        release_freed_memory()  # a damaged heap shows here
        connection.send(result)


def _in_child(shapes: Sequence[Shape], ours: bool) -> list[tuple[float, ...] | str]:
    """The results of convolutions in one process; of the one that ended it, how, and nothing of those behind it."""
    context = multiprocessing.get_context("fork")  # this process has not computed anything, so a fork is whole
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(shapes, ours, sender))
    process.start()
    sender.close()
    results: list[tuple[float, ...] | str] = []
    try:
        while len(results) < len(shapes) and receiver.poll(TIMEOUT_S):
            results.append(receiver.recv())
        if len(results) < len(shapes):
            process.kill()
            results.append(f"no end after {TIMEOUT_S} s")
    except EOFError:
        process.join()
        results.append(f"process ended by signal {-(process.exitcode or 0)}")
    process.join()
    return results


def measured(shapes: Sequence[Shape], ours: bool) -> Iterator[tuple[Shape, tuple[float, ...] | str]]:
    """The errors of every convolution; how the process ended of one that gives none."""
    for chunk in (shapes[n : n + CHUNK] for n in range(0, len(shapes), CHUNK)):
        results = _in_child(chunk, ours)
        # What writes into memory of others may end the process later, or spoil what comes after it.
        if any(isinstance(result, str) for result in results):
            results = [_in_child([shape], ours)[0] for shape in chunk]
        yield from zip(chunk, results, strict=True)


def wrong(shape: Shape, result: tuple[float, ...] | str) -> str | None:
    """What is wrong with a result, in words; None if rounding explains it."""
    if isinstance(result, str):
        return result
    parts = [f"{name} {error:.1e}" for name, error in zip(RESULTS, result, strict=True) if error > LIMITS[shape.dtype]]
    return ", ".join(parts) or None


def sweep(number: int, listed: int) -> int:
    """Run both kinds of convolution over the shapes, print what is wrong; returns how many of the project's are."""
    chosen = random.Random(0).sample(found := list(shapes()), min(number, len(found)))
    print(f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {len(chosen)} convolutions")
    for name, ours in (("PyTorch's own", False), ("the project's", True)):
        results = list(measured(chosen, ours))
        bad = [(shape, text) for shape, result in results if (text := wrong(shape, result))]
        for dtype in TYPES:
            found = [result for shape, result in results if shape.dtype == dtype and not isinstance(result, str)]
            columns = zip(*found, strict=True)
            largest = ", ".join(f"{part} {max(column):.1e}" for part, column in zip(RESULTS, columns, strict=True))
            print(f"{name}, {dtype}: largest relative error: {largest}")
        print(f"{name}: {len(bad)} wrong")
        kinds = Counter(
            (s.dtype, len(s.size), s.channels_last, s.kernel, s.stride, s.padding, s.transposed) for s, _ in bad
        )
        for shape, text in bad[:listed]:
            print(f"  {shape}: {text}")
        if len(bad) > listed:
            print(f"  and {len(bad) - listed} more, of {len(kinds)} kinds (type, axes, order, kernel, stride, padding)")
    return len(bad)  # of the project's, which came last


def main() -> None:
    """Print the sweep of every instruction set; the exit code says whether the project's convolutions are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", nargs="+", help="ONEDNN_MAX_CPU_ISA, e.g. DEFAULT AVX512_CORE_BF16 AVX512_CORE AVX2")
    parser.add_argument("--number", type=int, default=10**6, help="take so many convolutions, drawn by chance, of all")
    parser.add_argument("--listed", type=int, default=40, help="how many wrong ones to name")
    options = parser.parse_args()
    if options.isa is None:
        sys.exit(min(sweep(options.number, options.listed), 1))
    code = 0
    for isa in options.isa:
        print(f"\nONEDNN_MAX_CPU_ISA={isa}", flush=True)
        command = [sys.executable, __file__, "--number", str(options.number), "--listed", str(options.listed)]
        # Read when oneDNN is loaded: a process that has begun cannot change it.
        code |= subprocess.run(command, env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa}, check=False).returncode
    sys.exit(code)


if __name__ == "__main__":
    main()
