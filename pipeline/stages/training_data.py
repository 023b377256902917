"""Which cases train, where their patches come from, and how they lie: the same for a training and for looking at it."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config import Settings
from pipeline.core.errors import VolsegError
from pipeline.data.store import prepared_ids, read_info
from pipeline.model.spec import NetworkSpec, patches_per_batch
from pipeline.preprocess.plan import Plan
from pipeline.sample.augment import directions
from pipeline.sample.folds import Fold, read_splits
from pipeline.train.balance import sampling_weights
from pipeline.train.source import PatchSource
from pipeline.train.values import Frame

__all__ = ["axes_frame", "patch_source", "training_folds", "training_split"]


def training_split(prepared: Path, fold: int, plan: Plan) -> Fold:
    """The cases of a fold.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        fold: Which fold validates.
        plan: Its plan.

    Raises:
        VolsegError: If there is no such fold, or cases were prepared by another plan.
    """
    folds = training_folds(prepared, plan)
    if not 0 <= fold < len(folds):
        raise VolsegError(f"fold: expected 0 to {len(folds) - 1}, got {fold}. splits.json has {len(folds)} folds.")
    return folds[fold]


def training_folds(prepared: Path, plan: Plan) -> tuple[Fold, ...]:
    """All folds of ``splits.json``; arguments and errors as above."""
    infos = {case: read_info(prepared, case) for case in prepared_ids(prepared)}
    folds = read_splits(prepared / "splits.json", infos, groups={case: info["group"] for case, info in infos.items()})
    used = {case for part in folds for case in (*part.train, *part.validation)}
    other = sorted(case for case in used if infos[case].get("recipe") != plan.recipe)
    if other:
        raise VolsegError(
            f"{prepared}: expected cases prepared by plan.yaml, got {len(other)} prepared otherwise, e.g. {other[0]}. "
            "Run `volseg preprocess` again; in plan.yaml only patch and batch sizes may be edited."
        )
    return tuple(folds)


def patch_source(
    prepared: Path,
    split: Fold,
    spec: NetworkSpec,
    plan: Plan,
    settings: Settings,
    device: torch.device,
    processes: int = 1,
) -> PatchSource:
    """Where the patches of a training come from.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        split: The fold; its training cases are read.
        spec: The network's description, for the patch.
        plan: The dataset's plan.
        settings: Sections ``sample`` and ``train``.
        device: Where batches live.
        processes: How many share every batch.

    Raises:
        DataError: If a case is damaged.
    """
    size, margin = [1, 1, 1], [0, 0, 0]
    for axis, length, lost in zip(plan.axes(spec.dims), spec.patch_size, spec.sizes().margin, strict=True):
        size[axis], margin[axis] = length, lost
    return PatchSource(
        prepared,
        split.train,
        (size[0], size[1], size[2]),
        patches_per_batch(plan, spec, settings.sample),
        settings.sample,
        device,
        squeeze_axis=plan.slice_axis if spec.dims == 2 else None,
        margin=(margin[0], margin[1], margin[2]),
        class_weights=sampling_weights(settings.sample, plan),
        seed=settings.train.seed,
        parts=settings.train.accumulate * processes,
    )


def axes_frame(spec: NetworkSpec, plan: Plan) -> Frame:
    """What augmentation needs to know of the axes that a network sees."""
    named = directions(plan.orientation)
    axes = plan.axes(spec.dims)
    return Frame(
        tuple(named[axis] for axis in axes),
        tuple(plan.spacing_mm[axis] for axis in axes),
        plan.label_table.side_pairs(),
        plan.label_table.region_classes(),
    )
