"""Full-volume validation during training: sliding windows over prepared cases, Dice per organ or region.

Lives above training, inference and evaluation, which know nothing of each other; training gets it as a function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from pipeline.config.settings import Settings
from pipeline.data.store import open_prepared
from pipeline.evaluate.overlap import overlaps
from pipeline.evaluate.summary import organ_means
from pipeline.infer.trained_model import CaseInference
from pipeline.infer.tta import mirror_axes, rotation_of, views
from pipeline.infer.windows import in_volume
from pipeline.model.device import choose_dtype
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan_file import Plan
from pipeline.train.distributed import SINGLE, Processes
from pipeline.train.state import Validation, ValidationScores


def make_validation(
    prepared: Path,
    cases: Sequence[str],
    spec: NetworkSpec,
    plan: Plan,
    settings: Settings,
    device: torch.device,
    processes: Processes = SINGLE,
) -> Validation:
    """How training scores a network on full volumes.

    Dice of every organ (or region) is counted on the prepared grid: one absent from reference and prediction is left
    out, one that is in only one of them scores 0.

    Args:
        prepared: Folder of the prepared dataset.
        cases: Validation cases, at least one.
        spec: The network's description.
        plan: The dataset's plan.
        settings: Sections ``infer`` (what it mirrors and rotates counts where all cases are scored, not while training,
            for speed) and ``train``.
        device: Where to compute.
        processes: Those that train together: each scores its share of the cases, and all learn of all.

    Returns:
        The validation; its quick subset are the first ``train.validation_cases``.
    """
    dtype = choose_dtype(device, settings.train.precision)
    subset = cases[: settings.train.validation_cases]
    axes = mirror_axes(plan, spec.dims, settings) if settings.infer.mirror else ()
    rotation = rotation_of(plan, spec) if settings.infer.rotate else None
    table = plan.label_table.indexed()

    def validate(network: nn.Module, everything: bool) -> ValidationScores:
        rows: dict[str, dict[str, float | None]] = {}
        chosen = cases if everything else subset
        for case in chosen[processes.rank :: processes.count]:
            image, label = open_prepared(prepared, case)
            volume = torch.from_numpy(image[...]).to(device=device, dtype=torch.float32)
            turned = (axes, rotation) if everything else ((), None)
            inference = CaseInference([network], spec, plan, settings.infer, dtype, *turned)
            axis, labels = inference.labels(volume, volume.shape[1:])
            index = torch.cat([rows for _, rows in labels]).movedim(0, axis)
            found = overlaps(label[...], index.cpu().numpy(), table, case=case)
            rows[case] = {
                overlap.name: None if overlap.status == "true_negative" else overlap.dice for overlap in found
            }
        return _summary(processes.gathered(rows))

    sizes = settings.infer.window_size
    window = in_volume(sizes if isinstance(sizes, tuple) else spec.patch_size, plan, spec)
    passes = len(views(axes, rotation and rotation.within(window)))
    return Validation(validate, len(subset), len(cases), passes)


def _summary(rows: Mapping[str, Mapping[str, float | None]]) -> ValidationScores:
    mean, dice = organ_means(rows.values())
    return ValidationScores(dice, mean, rows)
