"""Where a training stands: everything that changes while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.config import TrainSettings
from pipeline.model.base import SegmentationNetwork
from pipeline.train.history import EpochRecord
from pipeline.train.schedule import build_optimizer

__all__ = ["EpochPart", "Progress", "TrainState", "first_state"]


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
class Progress:
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
