"""The most that convolutions reach on a device: FLOP/s of stacks of 3 x 3 x 3 convolutions, forward and backward.

    python benchmarks/ceiling.py --device cuda

Nothing but convolutions of equal width, channels last, without bias: what a network loses beside it is in norms,
activations, skips, heads, loss and optimizer, and in layers too narrow or small to fill the device. Several widths are
tried; the fastest is the ceiling.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
from torch import nn

from pipeline.model.device import autocast, choose_device, choose_dtype, to_device

WIDTHS = (32, 64, 128, 256, 320)
VOXELS = 2**21  # of all patches of the widest of 32 channels; of wider ones fewer, for the same memory
LAYERS = 4
PASSES = 3  # forward, gradient of the input, gradient of the weights


def stack_flops(width: int, shape: tuple[int, ...], batch: int, layers: int) -> int:
    """FLOPs of a stack, forward and backward; a multiply-add is two."""
    voxels = batch
    for length in shape:
        voxels *= length
    return 2 * PASSES * layers * voxels * width * width * 27


def flops_per_s(
    device: torch.device, width: int, shape: tuple[int, ...], batch: int, *, layers: int = LAYERS, seconds: float = 3.0
) -> float:
    """FLOP/s of a stack, repeated for some seconds after two passes that choose algorithms."""
    convolutions = [nn.Conv3d(width, width, 3, padding=1, bias=False) for _ in range(layers)]
    stack = to_device(nn.Sequential(*convolutions), device)
    images = torch.randn((batch, width, *shape), device=device)
    images = images.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    dtype = choose_dtype(device)
    torch.backends.cudnn.benchmark = True
    done, began = -2, 0.0
    while done < 1 or time.monotonic() - began < seconds:
        if done == 0:
            wait_for(device)
            began = time.monotonic()
        with autocast(device, dtype):
            output = stack(images)
        output.backward(torch.ones_like(output))
        stack.zero_grad(set_to_none=True)
        images.grad = None
        done += 1
        if device.type == "cuda" and done > 0 and done % 10 == 0:
            wait_for(device)  # the queue would otherwise run ahead of the clock
    wait_for(device)
    return done * stack_flops(width, shape, batch, layers) / (time.monotonic() - began)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(
    device: torch.device, widths: tuple[int, ...] = WIDTHS, voxels: int = VOXELS, seconds: float = 3.0
) -> dict[int, float]:
    """Width → FLOP/s, of patches of 64^3 voxels, or fewer if so few are wanted."""
    found = {}
    for width in widths:
        wanted = max(1, voxels * min(widths) // width)
        side = min(64, round(wanted ** (1 / 3)))
        found[width] = flops_per_s(device, width, (side, side, side), max(1, wanted // side**3), seconds=seconds)
    return found


def describe(device: torch.device) -> str:
    """Name of the GPU, or of the processor where the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def table(found: dict[int, float]) -> str:
    """Markdown table; the largest is the ceiling."""
    lines = ["| channels | TFLOP/s |", "|---|---|"]
    lines += [f"| {width} | {rate / 1e12:.3g} |" for width, rate in found.items()]
    return "\n".join([*lines, f"| ceiling | {max(found.values()) / 1e12:.3g} |"])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="By default the best there is.")
    parser.add_argument("--voxels", type=int, default=VOXELS, help="of all patches; fewer for a processor")
    chosen = parser.parse_args()
    device = choose_device(chosen.device)
    print(f"{describe(device)}, {choose_dtype(device)}, torch {torch.__version__}")
    print(table(ceilings(device, voxels=chosen.voxels)))


if __name__ == "__main__":
    main()
