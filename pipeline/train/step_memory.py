"""What a training takes of a device's memory, found before it begins; what a GPU has left is for cases.

A step is done once with tensors that have a shape and no data, and what lives at one time is added up. So the figure
follows from the very code that trains: network, precision, loss, heads, optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.settings import AugmentSettings, Settings, TrainSettings
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.machine import bytes_in_words
from pipeline.core.regions import Regions
from pipeline.model.base import SegmentationNetwork
from pipeline.model.cost import META, LiveBytes, WithoutData, compute_again, kept_bytes, without_data
from pipeline.model.device import PLAIN, choose_dtype, execute, free_bytes
from pipeline.sample.spatial import MOST_READ
from pipeline.train.distributed import SINGLE, Processes
from pipeline.train.loader import PatchSource, network_size
from pipeline.train.loss import supervised_loss
from pipeline.train.state import first_state, update, update_average, without_margin

STEP_ADVICE = "Lower sample.batch_size (train.accumulate makes up for it) or sample.patch_size, or set train.recompute"
"""What to change where a step takes too much."""

_SPARE = 1.1  # of what is estimated: the allocator rounds up, and freed places do not always fit what comes next


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training takes on a GPU, cached cases not counted.

    Args:
        state: What is there all the time: weights, moments of the optimizer, moving average.
        step: The most that a step takes beside it: gradients, activations, logits, loss, its own batch.
        scratch: What convolutions need beside both, at most.
        batches: Those that are made ahead, and what making them takes.
    """

    state: int
    step: int
    scratch: int
    batches: int

    @property
    def total(self) -> int:
        """All of them at one time."""
        return self.state + self.step + self.scratch + self.batches


def training_memory(
    network: SegmentationNetwork,
    shape: Sequence[int],
    settings: Settings,
    dtype: torch.dtype,
    *,
    regions: Regions = (),
    processes: Processes = SINGLE,
) -> TrainingMemory:
    """Estimate what a training takes on a GPU.

    Args:
        network: With its first weights, on any device; it is not changed.
        shape: Of a batch of one process, (B, C, *S), S a legal spatial size.
        settings: Sections ``augment``, ``loss`` and ``train``.
        dtype: Type of the network's arithmetic.
        regions: Class indices of each region; empty for a softmax.
        processes: Those that train together.

    Raises:
        DataError: If the shape is not legal for the network.
    """
    train = settings.train
    # The map of narrow gaps is made on the processor, from labels that are not there: its patches count below.
    loss = settings.loss.model_copy(update={"border_weight": 0.0})
    border = shape[0] * math.prod(shape[2:]) * torch.float32.itemsize if settings.loss.border_weight > 0 else 0
    live = LiveBytes()
    with live, WithoutData(dtype):
        bare: SegmentationNetwork = without_data(network)
        execute(bare, META, PLAIN)
        if train.recompute:
            compute_again(bare, dtype)
        # float32: scales of fp16 are numbers that are not there.
        state = first_state(bare, train, torch.float32)
        for group in state.optimizer.param_groups:
            group["foreach"] = True  # what optimizers do on a GPU by themselves
        weights = None if loss.class_weights == "none" else torch.empty(bare.out_channels, device=META)

        def objective(heads: Tensor | Mapping[str, Tensor], labels: Tensor) -> Tensor:
            inner = without_margin(labels, bare.margin)
            return supervised_loss(heads, inner, loss, regions=regions, class_weights=weights)

        def step() -> None:
            labels = (shape[0], *shape[2:])
            parts = [
                (torch.empty(*shape, device=META), torch.empty(labels, dtype=torch.int64, device=META))
                for _ in range(train.accumulate)
            ]
            update(state, parts, objective, train, 0.0)
            if dtype == torch.float16:
                state.norms.clear()  # with scales none are kept
            update_average(state, train.ema_decay, 1)

        # Moments come with the first step, and gradients stay until the next one: the second is like all others.
        step()
        state.optimizer.zero_grad(set_to_none=True)
        kept = live.alive
        live.begin()
        step()
    # Several processes gather their gradients in buckets, as large as all of them.
    buckets = sum(p.nbytes for p in bare.parameters() if p.requires_grad) if processes.count > 1 else 0
    return TrainingMemory(
        kept + buckets,
        live.peak_alive - kept + 2 * border,
        live.peak - live.peak_alive,
        batches_bytes(shape, settings.augment, train.accumulate),
    )


def batches_bytes(shape: Sequence[int], settings: AugmentSettings, parts: int = 1) -> int:
    """Bytes of the batches that are made ahead of a step, if every patch of them is changed in every way.

    Args:
        shape: Of a batch, (B, C, *S).
        settings: Section ``augment``.
        parts: Batches of a step.
    """
    patch, channels, dims = math.prod(shape[2:]), shape[1], len(shape) - 2
    voxels = shape[0] * patch
    batch = voxels * (4 * channels + 8)  # float32 intensities, int64 labels
    making = batch
    if settings.enabled:
        # As cut and as changed, and what changes of intensities and mirroring take beside both.
        making = 2 * batch + voxels * max(33, 20 * channels)
        if max(settings.rotate_p, settings.scale_p, settings.elastic_p) > 0:
            # One patch at a time is sampled from what lies around it: intensities, and class indices three times.
            around = MOST_READ * (4 * channels + 12)
            places = 4 * dims * (2 if settings.elastic_p > 0 else 1)
            making = max(making, batch + int(patch * (around + places + 8 * channels + 8)))
    # While one batch trains, the next is finished, and that after it in the making.
    return (2 * parts - 1) * batch + making


def room_for_cases(memory: TrainingMemory, shape: Sequence[int], device: torch.device, validation: int = 0) -> int:
    """Bytes of a GPU that cached cases may take: what training and validation leave; 0 elsewhere.

    Args:
        memory: Of the training.
        shape: Of its batch, for the error.
        device: That trains.
        validation: Bytes that a validation takes beside the training's state.

    Raises:
        VolsegError: If the training alone is more than the device has free, with the numbers.
    """
    free = free_bytes(device)
    if device.type != "cuda" or free is None:
        return 0
    needed = int(_SPARE * memory.total)
    if needed > free:
        raise _too_small(needed, free, shape, device)
    # A validation takes the place of a step. One that does not fit even so makes its sums on the processor.
    during = memory.state + memory.batches + validation
    return free - (needed if during > free else max(needed, during))


def require_memory(network: SegmentationNetwork, source: PatchSource, settings: TrainSettings) -> None:
    """Refuse a batch whose activations alone are more than the processor's free memory.

    What passes may still be too much, by gradients, optimizer and scratch space. Nothing is asked where activations
    are recomputed, and of a GPU, which :func:`room_for_cases` knows better.

    Raises:
        VolsegError: If the memory is too small, with the numbers.
    """
    free = free_bytes(source.device) if source.device.type != "cuda" else None
    if free is None or settings.recompute:
        return
    shape = (source.batch_size, network.in_channels, *network_size(source))
    needed = kept_bytes(network, shape, choose_dtype(source.device, settings.precision))
    # Asked before the first step: on a CPU the system would kill the training without a word.
    if needed > free:
        raise _too_small(needed, free, shape, source.device)


def _too_small(needed: int, free: int, shape: Sequence[int], device: torch.device) -> VolsegError:
    patches = f"{shape[0]} patches of {' x '.join(map(str, shape[2:]))}"
    rule = f"at least {bytes_in_words(needed)} for a step with {patches}"
    return VolsegError(sentence(f"memory of {device}", rule, bytes_in_words(free), STEP_ADVICE))
