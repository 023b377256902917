"""What a training needs of its device and makes of it: memory, and arithmetic beside what the device can do."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from pipeline.config.settings import TrainSettings
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.machine import bytes_in_words
from pipeline.model.base import SegmentationNetwork
from pipeline.model.cost import kept_bytes, multiply_adds
from pipeline.model.device import autocast, choose_dtype, free_bytes
from pipeline.train.loader import PatchSource
from pipeline.train.log import EpochRecord

_PASSES = 3  # forward, and backward to the inputs and to the weights
_ROUNDS = 5


def require_memory(network: SegmentationNetwork, source: PatchSource, settings: TrainSettings) -> None:
    """Refuse a batch whose activations alone are more than the device's free memory.

    What passes may still be too much, by gradients, optimizer and scratch space. Nothing is asked where activations
    are recomputed.

    Raises:
        VolsegError: If the memory is too small, with the numbers.
    """
    free = free_bytes(source.device)
    if free is None or settings.recompute:
        return
    size = _network_size(source)
    dtype = choose_dtype(source.device, settings.precision)
    needed = kept_bytes(network, (source.batch_size, network.in_channels, *size), dtype)
    # Asked before the first step: on a CPU the system would kill the training without a word.
    if needed > free:
        patches = f"{source.batch_size} patches of {' x '.join(map(str, size))}"
        rule = f"at least {bytes_in_words(needed)} for a step with {patches}"
        advice = (
            "Lower sample.batch_size (train.accumulate makes up for it) or sample.patch_size, or set train.recompute"
        )
        raise VolsegError(sentence(f"memory of {source.device}", rule, bytes_in_words(free), advice))


def _network_size(source: PatchSource) -> list[int]:
    """Voxels of a patch along the axes that the network sees."""
    return [length for axis, length in enumerate(source.patch_size) if axis != source.squeeze_axis]


class Resources:
    """Completes the records of a training by what it makes of the device.

    Args:
        network: Before it is moved or wrapped.
        source: Where its patches come from.
        dtype: Type of the network's arithmetic.
    """

    def __init__(self, network: SegmentationNetwork, source: PatchSource, dtype: torch.dtype) -> None:
        self.operations = 2 * _PASSES * multiply_adds(network, _network_size(source), network.in_channels)
        self.device = source.device
        self.ceiling = convolution_ceiling(source.device, dtype, network.dims)

    def complete(self, record: EpochRecord) -> EpochRecord:
        """The record with memory, and billions of operations per second, made and possible."""
        made = self.operations * record.patches_per_s / 1e9
        return replace(record, peak_memory_mb=self._peak_mb(), gflops=made, ceiling_gflops=self.ceiling / 1e9)

    def _peak_mb(self) -> float | None:
        """Most that was in use: on a GPU since the last epoch, by PyTorch; else of the process since its start."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return peak / 2**20
        with suppress(ImportError):
            import resource  # not on Windows

            # in bytes on macOS, in KiB elsewhere
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return None


@torch.no_grad()
def convolution_ceiling(device: torch.device, dtype: torch.dtype, dims: int) -> float:
    """Operations per second of one large convolution (2 or 3 axes, kernels of 3); takes a tenth of a second."""
    large = device.type == "cuda"
    channels, edge = 128 if large else 64, {(True, 3): 96, (True, 2): 1024, (False, 3): 24, (False, 2): 96}[large, dims]
    kind, order = ((nn.Conv2d, torch.channels_last), (nn.Conv3d, torch.channels_last_3d))[dims - 2]
    layer = kind(channels, channels, 3, padding=1, bias=False, device=device)
    layer.to(memory_format=order)  # type: ignore[call-overload]
    images = torch.ones((1, channels, *(edge,) * dims), device=device).contiguous(memory_format=order)
    # The best of a few: the first call chooses an algorithm and reserves memory.
    seconds = []
    with autocast(device, dtype):
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            layer(images)
            if large:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    operations = 2 * edge**dims * channels**2 * 3**dims
    return float(operations / min(seconds))
