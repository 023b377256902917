"""One training as values: what it is given, what it reports, where it stands, and one update of its weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsFloat, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_

from pipeline.config.settings import Settings, TrainSettings
from pipeline.model.base import SegmentationNetwork
from pipeline.model.device import PLAIN, Execution, autocast
from pipeline.sample.augment import PatchGeometry
from pipeline.train.distributed import SINGLE, Processes
from pipeline.train.log import EpochRecord
from pipeline.train.schedule import build_optimizer


@dataclass(frozen=True)
class Callbacks:
    """Functions that a training calls while it goes on; by default none of them does anything.

    Args:
        on_start: Called once with the epochs of earlier runs and the expected number of epochs.
        on_step: Called after every step with the share of the training that is done and the epoch's mean loss so far.
        on_epoch: Called after every epoch with its record and the expected number of epochs.
        log: Called with lines for the user, most of them before the training begins.
    """

    on_start: Callable[[Sequence[EpochRecord], int], None] = lambda records, epochs: None
    on_step: Callable[[float, SupportsFloat], None] = lambda share, loss: None
    on_epoch: Callable[[EpochRecord, int], None] = lambda record, epochs: None
    log: Callable[[str], None] = lambda text: None


NO_CALLBACKS = Callbacks()


@dataclass(frozen=True)
class ValidationScores:
    """Result of a full-volume validation.

    Args:
        dice: Organ → mean Dice over the cases that have it; None where no case has it.
        mean_dice: Mean over organs, None if no case has any.
        cases: Per case, organ → Dice.
    """

    dice: Mapping[str, float | None]
    mean_dice: float | None
    cases: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Validation:
    """How to score a network on full volumes.

    Args:
        score: Takes the network in evaluation mode and whether all cases are wanted instead of the quick subset.
        quick: Number of cases of the quick subset.
        all: Number of all cases.
        passes: Mirrored and rotated images that are averaged where all cases are wanted; the quick subset never is.
    """

    score: Callable[[nn.Module, bool], ValidationScores]
    quick: int
    all: int
    passes: int = 1

    @property
    def complete(self) -> bool:
        """Whether scoring the quick subset is scoring all cases."""
        return self.quick == self.all and self.passes == 1

    @property
    def longer(self) -> float:
        """How many times as long as the quick subset all cases take."""
        return self.passes * self.all / self.quick


@dataclass(frozen=True, eq=False)
class TrainRun:
    """One run of a training: what decides it, where it writes, and which processes share it.

    Args:
        folder: Folder of the fold; a checkpoint there is continued.
        training_hash: Content hash of everything that must not change before continuing.
        settings: All settings, with class weights in place of the word ``plan``.
        geometry: The axes of its patches.
        processes: Those that train together; the first one writes.
        how: How the network is executed.
        began: ``time.monotonic()`` when the run began: loading counts towards a time budget.
    """

    folder: Path
    training_hash: str
    settings: Settings
    geometry: PatchGeometry
    processes: Processes = SINGLE
    how: Execution = PLAIN
    began: float = field(default_factory=lambda: time.monotonic())  # looked up when called: tests replace the clock


@dataclass(frozen=True)
class EpochPart:
    """The steps that an epoch has had so far.

    Args:
        loss: Sum of their losses.
        steps: Their number.
        patches: Patches trained on.
        seconds: Time spent.
        waited_s: Time spent on waiting for batches.
        ended: Whether no further step belongs to it; its validation may still be to come.
    """

    loss: float = 0.0
    steps: int = 0
    patches: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    ended: bool = False


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands.

    Args:
        elapsed_s: Time spent, over all runs.
        iteration: Iterations done.
        best_dice: Best validation mean Dice so far, or None.
        stale: Validations since the best one.
        validation_s: Duration of the last validation.
        finished: Whether the training has ended.
        length: Its length as the settings gave it; another one may continue a finished training.
        records: All finished epochs.
        part: The epoch that has begun.
    """

    elapsed_s: float = 0.0
    iteration: int = 0
    best_dice: float | None = None
    stale: int = 0
    validation_s: float = 0.0
    finished: bool = False
    length: str = ""
    records: Sequence[EpochRecord] = field(default_factory=tuple)
    part: EpochPart = EpochPart()


@dataclass(frozen=True, eq=False)
class TrainState:
    """What an update of the weights uses and changes; a checkpoint holds its first four parts.

    Args:
        network: Its weights and buffers, on the device that trains.
        average: Moving average of weights and buffers; empty if there is none.
        optimizer: Its moments.
        scaler: Loss scale of fp16.
        model: The network, wrapped where several processes train it.
        dtype: Type of the network's arithmetic.
        how: How the network is executed.
        norms: Parameter → norm of its gradient in the last update, on the device; empty where none are asked for.
    """

    network: SegmentationNetwork
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    model: nn.Module
    dtype: torch.dtype
    how: Execution
    norms: dict[str, Tensor] = field(default_factory=dict)


def first_state(
    network: SegmentationNetwork,
    settings: TrainSettings,
    dtype: torch.dtype,
    how: Execution = PLAIN,
    processes: Processes = SINGLE,
) -> TrainState:
    """The state of a training that begins, of a network with its first weights on the device that trains."""
    device = next(network.parameters()).device
    model = processes.wrapped(network)
    # Not torch.optim.swa_utils.AveragedModel: its first update replaces the average by the weights, and it copies the
    # whole module, which may be compiled. Trainings that began with ours would continue with other numbers.
    kept = network.state_dict().items() if settings.ema_decay > 0 else ()
    average = {name: tensor.detach().clone() for name, tensor in kept}
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return TrainState(network, average, build_optimizer(network, settings), scaler, model, dtype, how)


Objective = Callable[[Tensor | Mapping[str, Tensor], Tensor], Tensor]
"""The loss of a network's output and labels of the input's size."""


def update(
    state: TrainState,
    parts: Sequence[tuple[Tensor, Tensor]],
    objective: Objective,
    settings: TrainSettings,
    rate: float,
) -> Tensor:
    """Update the weights once.

    Args:
        state: What is trained, changed in place.
        parts: Images (B, C, *S) and labels (B, *S), taken one pair after the other.
        objective: The loss; the gradients of the parts are averaged.
        settings: Section ``train``.
        rate: Learning rate.

    Returns:
        Mean loss of the parts, on the device.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    model, total = state.model, cast(Tensor | float, 0.0)
    for number, (images, labels) in enumerate(parts, start=1):
        # Processes exchange gradients in the backward pass of the last part only: once per update.
        later = isinstance(model, DistributedDataParallel) and number < len(parts)
        with cast(DistributedDataParallel, model).no_sync() if later else nullcontext():
            with autocast(images.device, state.dtype):
                heads = model(state.how.images(images))
            loss = objective(heads, labels) / len(parts)
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    if settings.gradient_clip is not None:
        state.scaler.unscale_(state.optimizer)  # the limit is one of true gradients
        _clip(state, settings.gradient_clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return torch.as_tensor(total)


def _clip(state: TrainState, limit: float) -> None:
    """Scale all gradients so that their common norm is at most the limit; notes the norms, but for fp16.

    With fp16 a gradient that is not finite is no news: the step is left out and the scale of the loss lowered.
    """
    trained = {name: value for name, value in state.network.named_parameters() if value.grad is not None}
    gradients = [cast(Tensor, value.grad) for value in trained.values()]
    # As torch's clip_grad_norm_ does, which gives the common norm alone.
    norms = torch._foreach_norm(gradients)
    clip_grads_with_norm_(trained.values(), limit, torch.linalg.vector_norm(torch.stack(norms)))
    if not state.scaler.is_enabled():
        state.norms.update(zip(trained, norms, strict=True))


def update_average(state: TrainState, decay: float, steps: int) -> None:
    """Move the average of the weights, if one is kept, towards the weights.

    A share ``decay`` of the average stays; less in the first steps, at most n / (n + 10) after n, which avoids the bias
    of the first weights.
    """
    average = state.average
    if not average:
        return
    decay = min(decay, steps / (steps + 10))
    current = state.network.state_dict()
    with torch.no_grad():
        floating = [name for name, tensor in average.items() if tensor.is_floating_point()]
        # one call for all tensors: hundreds of small ones would cost a GPU more than the arithmetic
        torch._foreach_lerp_([average[n] for n in floating], [current[n] for n in floating], 1 - decay)
        for name in average.keys() - set(floating):  # counters of batch norms
            average[name].copy_(current[name])


@contextmanager
def other_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The network in evaluation mode for the length of a block, with other weights, none meaning its own."""
    kept = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    # In place, into the network that trains: a second one would take as much memory again.
    network.load_state_dict(dict(weights) or kept)
    network.eval()
    try:
        yield network
    finally:
        network.load_state_dict(kept)


def without_margin(labels: Tensor, margin: Sequence[int]) -> Tensor:
    """The part of labels (B, *S) of the input's size that the logits of valid convolutions cover."""
    inner = (slice(lost, n - lost) for n, lost in zip(labels.shape[1:], margin, strict=True))
    return labels[(slice(None), *inner)]
