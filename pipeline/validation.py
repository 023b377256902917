"""Full-volume validation during training: sliding windows over prepared cases, Dice per organ or region.

Lives above training, inference and evaluation, which know nothing of each other; training gets it as a function.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.store import open_prepared, open_stage_map, read_class_voxels
from pipeline.evaluate.overlap import overlaps
from pipeline.infer.segment import with_stage_map
from pipeline.infer.trained_model import TrainedModel, with_room
from pipeline.infer.tta import mirror_axes, rotation_of, views
from pipeline.infer.windows import in_volume
from pipeline.model.folder import ModelCard
from pipeline.train.distributed import SINGLE, Processes
from pipeline.train.state import Validation, ValidationScores


def make_validation(
    prepared: Path,
    cases: Sequence[str],
    card: ModelCard,
    device: torch.device,
    processes: Processes = SINGLE,
    stage_maps: Path | None = None,
) -> Validation:
    """How training scores a network on full volumes.

    Dice of every organ (or region) is counted on the prepared grid: one absent from reference and prediction is left
    out, one that is in only one of them scores 0.

    Args:
        prepared: Folder of the prepared dataset.
        cases: Validation cases, at least one.
        card: Network, plan, and of the settings the sections ``infer`` (what it mirrors and rotates counts where all
            cases are scored, not while training, for speed) and ``train``.
        device: Where to compute.
        processes: Those that train together: each scores its share of the cases, and all learn of all.
        stage_maps: For the second stage of a cascade, the folder of what the first found.

    Returns:
        The validation; its quick subset are ``train.validation_cases`` of them, see :func:`quick_cases`.
    """
    spec, plan, settings = card.network, card.plan, card.settings
    subset = quick_cases(prepared, cases, settings.train.validation_cases)
    quick = settings.infer.model_copy(update={"mirror": False, "rotate": False})

    def validate(network: nn.Module, everything: bool) -> ValidationScores:
        model = TrainedModel(card, [network], device, settings.infer if everything else quick)
        table, found = model.labels.indexed(), dict[str, dict[str, float | None]]()
        chosen = cases if everything else subset
        for case in chosen[processes.rank :: processes.count]:
            image, label = open_prepared(prepared, case)
            array = image[...]
            if stage_maps is not None:
                array = with_stage_map(array, open_stage_map(stage_maps, case, label.shape)[...])
            index = with_room([model], partial(_label_map, array))
            found[case] = {
                overlap.name: None if overlap.status == "true_negative" else overlap.dice
                for overlap in overlaps(label[...], index.numpy(), table, case=case)
            }
        scores = processes.gathered(found)
        # Means of NumPy, not the exact ones of organ_means: a continued training compares its scores with earlier ones,
        # and the last digit may decide which weights are best.
        dice = {organ: _mean([row[organ] for row in scores.values()]) for organ in card.plan.label_table.targets}
        mean = _mean(list(dice.values()))
        return ValidationScores(dice, mean, scores)

    axes = mirror_axes(plan, spec.dims, settings) if settings.infer.mirror else ()
    rotation = rotation_of(plan, spec) if settings.infer.rotate else None
    sizes = settings.infer.window_size
    window = in_volume(sizes if isinstance(sizes, tuple) else spec.patch_size, plan, spec)
    passes = len(views(axes, rotation and rotation.within(window)))
    return Validation(validate, len(subset), len(cases), passes)


def _label_map(volume: NDArray[np.floating[Any]], models: Sequence[TrainedModel]) -> Tensor:
    return models[0].label_map(volume)


def validation_bytes(prepared: Path, cases: Sequence[str], card: ModelCard, network: nn.Module) -> int:
    """Bytes that validating the largest case takes on a GPU, beside the network; 0 without cases."""
    model, needed = TrainedModel(card, [network], torch.device("cpu")), [0]
    for case in cases:
        image, _ = open_prepared(prepared, case)
        channels = image.shape[0] + card.plan.cascade  # with what the first stage found
        needed.append(model.bytes_on_gpu((channels, *image.shape[1:])))
    return max(needed)


def quick_cases(prepared: Path, cases: Sequence[str], number: int | None) -> Sequence[str]:
    """Some of the cases, so that every organ is in as many of them as can be; the first ones where all have all organs.

    The first by name may all be healthy, and would then say nothing about the organ that matters.
    """
    if number is None or number >= len(cases):
        return cases
    held = {case: set(read_class_voxels(prepared, case)) for case in cases}
    count = dict.fromkeys(sorted(set().union(*held.values())), 0)
    chosen: list[str] = []
    while len(chosen) < number:
        left = [case for case in cases if case not in chosen]
        # The organ that was chosen least often decides, as long as a case is left that has it.
        wanted = sorted((times, organ) for organ, times in count.items() if any(organ in held[case] for case in left))
        chosen.append(next((case for case in left if wanted and wanted[0][1] in held[case]), left[0]))
        for organ in held[chosen[-1]]:
            count[organ] += 1
    return sorted(chosen, key=list(cases).index)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
