"""Where a training stands: everything that changes while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import SupportsFloat, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from pipeline.config.settings import TrainSettings
from pipeline.model.base import SegmentationNetwork
from pipeline.model.device import PLAIN, Execution, autocast
from pipeline.sample.augment import Direction
from pipeline.train.log import EpochRecord
from pipeline.train.schedule import build_optimizer

# What a training is given and what it reports, as values.

OnStep = Callable[[float, SupportsFloat], None]
"""Called after every step with the share of the training that is done and the epoch's mean loss so far."""


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


@dataclass(frozen=True)
class PatchGeometry:
    """What augmentation needs to know of the axes a network sees.

    Args:
        directions: Anatomical direction of each axis: ``LR``, ``AP`` or ``SI``.
        spacing_mm: Spacing of each axis.
        side_pairs: Class indices of left/right organ pairs.
        regions: Class indices of each region, where regions are trained by a sigmoid each; empty for a softmax over
            classes.
    """

    directions: tuple[Direction, ...]
    spacing_mm: tuple[float, ...]
    side_pairs: tuple[tuple[int, int], ...]
    regions: tuple[tuple[int, ...], ...] = ()


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
        elapsed_s: Time spent, over all sittings.
        iteration: Iterations done.
        best_dice: Best validation mean Dice so far, or None.
        stale: Validations since the best one.
        validation_s: Duration of the last validation.
        finished: Whether the training has ended.
        length: What it was told about its length; another length may continue a finished training.
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
    """The mutable parts of a training; a checkpoint holds all of them, and the random state of dropout.

    Args:
        network: Its weights and buffers, on the device that trains.
        average: Moving average of weights and buffers; empty if there is none.
        optimizer: Its moments.
        scaler: Loss scale of fp16.
    """

    network: SegmentationNetwork
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def first_state(network: SegmentationNetwork, settings: TrainSettings, dtype: torch.dtype) -> TrainState:
    """The state of a training that begins.

    Args:
        network: With its first weights, on the device that trains.
        settings: Section ``train``.
        dtype: Type of the network's arithmetic; float16 needs a loss scale.
    """
    device = next(network.parameters()).device
    kept = network.state_dict().items() if settings.ema_decay > 0 else ()
    return TrainState(
        network,
        {name: tensor.detach().clone() for name, tensor in kept},
        build_optimizer(network, settings),
        torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
    )


# One update of the weights, from one batch or from several parts of it, and their moving average.

Objective = Callable[[Tensor | Mapping[str, Tensor], Tensor], Tensor]
"""The loss of a network's output and labels of the input's size."""


def update(
    state: TrainState,
    model: nn.Module,
    parts: Sequence[tuple[Tensor, Tensor]],
    objective: Objective,
    settings: TrainSettings,
    dtype: torch.dtype,
    rate: float,
    how: Execution = PLAIN,
) -> Tensor:
    """Update the weights once.

    Args:
        state: What is trained, changed in place.
        model: The network, wrapped where several processes train it.
        parts: Images (B, C, *S) and labels (B, *S), taken one pair after the other.
        objective: The loss; the gradients of the parts are averaged.
        settings: Section ``train``.
        dtype: Type of the network's arithmetic.
        rate: Learning rate.
        how: How the network is executed.

    Returns:
        Mean loss of the parts, on the device.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    total: Tensor | float = 0.0
    for number, (images, labels) in enumerate(parts, start=1):
        later = isinstance(model, DistributedDataParallel) and number < len(parts)
        with cast(DistributedDataParallel, model).no_sync() if later else nullcontext():  # gradients are exchanged once
            with autocast(images.device, dtype):
                heads = model(how.images(images))
            loss = objective(heads, labels) / len(parts)
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    if settings.gradient_clip is not None:
        state.scaler.unscale_(state.optimizer)
        clip_grad_norm_(state.network.parameters(), settings.gradient_clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return torch.as_tensor(total)


def update_average(state: TrainState, decay: float, steps: int) -> None:
    """Move the average of the weights, if one is kept, towards the weights.

    Args:
        state: Holds both.
        decay: Share of the average that stays; less in the first steps, at most n / (n + 10) after n, which avoids the
            bias of the first weights.
        steps: Updates done.
    """
    average = state.average
    if not average:
        return
    decay = min(decay, steps / (steps + 10))
    current = state.network.state_dict()
    with torch.no_grad():
        floating = [name for name, tensor in average.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([average[n] for n in floating], [current[n] for n in floating], 1 - decay)
        for name in average.keys() - set(floating):
            average[name].copy_(current[name])


@contextmanager
def other_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The network in evaluation mode for the length of a block, with other weights, none meaning its own."""
    kept = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
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
