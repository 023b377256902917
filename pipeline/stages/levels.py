"""Measuring every level of a trained UNet++ on validation cases: Dice, size, time, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import torch
from torch import nn

from pipeline.core.errors import VolsegError, sentence
from pipeline.export.pruning import LevelRow
from pipeline.model.cost import count_parameters, multiply_adds
from pipeline.model.device import autocast, choose_dtype, out_of_memory, to_device
from pipeline.model.folder import ModelCard, load_network
from pipeline.model.memory import watch_memory
from pipeline.model.unetpp import UNetPlusPlus
from pipeline.validation import make_validation

__all__ = ["CaseDice", "LevelTask", "MeasuredLevel", "load_level", "mean_scores", "measure_levels", "supervised"]

CaseDice = Mapping[str, Mapping[str, float | None]]
"""Case id → organ → Dice; None where the organ is in neither reference nor prediction."""


@dataclass(frozen=True)
class LevelTask:
    """What is measured on what.

    Args:
        model: Model folder.
        card: Its description.
        prepared: Folder of the prepared dataset.
        splits: Fold → its validation cases.
        device: Where to compute.
    """

    model: Path
    card: ModelCard
    prepared: Path
    splits: Mapping[int, Sequence[str]]
    device: torch.device


@dataclass(frozen=True)
class MeasuredLevel:
    """One level on all validation cases.

    Args:
        row: What is shown of it.
        folds: Fold → Dice of its validation cases.
    """

    row: LevelRow
    folds: Mapping[int, CaseDice]


def measure_levels(task: LevelTask, on_case: Callable[[], None]) -> Iterator[MeasuredLevel]:
    """Measure the levels one after the other, the smallest first, and then the average of all heads.

    Args:
        task: The model, which has a head on every level, and the cases.
        on_case: Called after every case.

    Yields:
        One entry per level, ascending, then that of the average.

    Raises:
        VolsegError: If weights or cases cannot be read, or the memory is too small.
    """
    with torch.device("meta"):
        network = supervised(task.card.network.build(), task.model)
        parts = [_part(network, level) for level in range(1, network.depth + 1)]
        parts.append(_part(network, None))
    with watch_memory(task.device) as peak_bytes:
        for level, part in zip([*range(1, network.depth + 1), None], parts, strict=True):
            measured = {fold: _measure(task, level, fold, on_case) for fold in task.splits}
            folds = {fold: {case: dice for case, (dice, _) in cases.items()} for fold, cases in measured.items()}
            seconds = median(duration for cases in measured.values() for _, duration in cases.values())
            mean, dice = mean_scores([row for cases in folds.values() for row in cases.values()])
            size = count_parameters(part), multiply_adds(part, task.card.network.patch_size, part.in_channels)
            yield MeasuredLevel(LevelRow(level, mean, dice, *size, seconds, peak_bytes()), folds)


def supervised(network: nn.Module, model: Path) -> UNetPlusPlus:
    """The network, if it has levels to choose from.

    Args:
        network: Of a model folder.
        model: This folder, for messages.

    Raises:
        VolsegError: If it is neither UNet++ nor UNet+, or has a single head.
    """
    if not isinstance(network, UNetPlusPlus):
        got, advice = type(network).__name__, "Other networks have no levels to choose from"
        raise VolsegError(sentence("network", "unetpp or unetplus", got, advice, file=model))
    if not network.deep_supervision:
        rule, advice = "one trained with deep supervision", "Train it with model.deep_supervision: true"
        raise VolsegError(sentence("network", rule, "one with a single head", advice, file=model))
    return network


def mean_scores(rows: Sequence[Mapping[str, float | None]]) -> tuple[float | None, dict[str, float | None]]:
    """Mean over organs of the mean over cases, and the latter; None where there is nothing to average.

    Args:
        rows: Organ → Dice of each case, at least one case.
    """
    columns = {organ: [value for row in rows if (value := row[organ]) is not None] for organ in rows[0]}
    dice = {organ: fmean(values) if values else None for organ, values in columns.items()}
    means = [value for value in dice.values() if value is not None]
    return (fmean(means) if means else None), dice


def load_level(model: Path, card: ModelCard, fold: int, level: int | None) -> UNetPlusPlus:
    """A trained network, cut off at a level.

    Args:
        model: Model folder.
        card: Its description.
        fold: A trained fold.
        level: 1 to the depth of the network; None for the whole network, averaging all of its heads.

    Returns:
        The network on the CPU in evaluation mode.

    Raises:
        VolsegError: If the weights cannot be read.
    """
    return _part(supervised(load_network(model, card, fold), model), level)


def _part(network: UNetPlusPlus, level: int | None) -> UNetPlusPlus:
    if level is not None:
        return network.prune(level)
    network.mode = "accurate"
    return network


def _measure(
    task: LevelTask, level: int | None, fold: int, on_case: Callable[[], None]
) -> dict[str, tuple[Mapping[str, float | None], float]]:
    """Dice and seconds of every validation case of a fold."""
    card, device = task.card, task.device
    found: dict[str, tuple[Mapping[str, float | None], float]] = {}
    try:
        network = to_device(load_level(task.model, card, fold, level), device)
        patch = torch.zeros(1, card.network.in_channels, *card.network.patch_size, device=device)
        with torch.no_grad(), autocast(device, choose_dtype(device, card.settings.train.precision)):
            network(patch)  # what libraries do once should not count for the first case
        for case in task.splits[fold]:
            validation = make_validation(task.prepared, [case], card.network, card.plan, card.settings, device)
            began = time.perf_counter()
            scores = validation.score(network, False)  # not mirrored
            found[case] = scores.cases[case], time.perf_counter() - began
            on_case()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        expected, advice = "enough to predict a case", "Lower infer.batch_size in model.json, or use --device cpu"
        raise VolsegError(sentence(f"memory of {device}", expected, "too little", advice, file=task.model)) from None
    return found
