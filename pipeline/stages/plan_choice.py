"""Which plan a dataset is prepared by: one from its fingerprint, one that was given, or that of an earlier run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.config import PreprocessSettings, Settings
from pipeline.core.errors import VolsegError
from pipeline.core.files import remove_leftovers
from pipeline.data.case_files import Dataset
from pipeline.data.volumes import read_grid
from pipeline.engine import Run
from pipeline.preprocess.fingerprint import CaseFingerprint, fingerprint_case, samples_per_case
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.plan_file import PLAN_FILE, read_plan
from pipeline.preprocess.planning import make_plan
from pipeline.stages.batch import Progress, collect
from pipeline.stages.memory import fingerprint_bytes

__all__ = ["fresh_plan", "given_plan", "kept_patches", "reading_jobs", "require_fitting", "take_fingerprints"]

_CASE_S, _VOXEL_S, _START_S = 2e-3, 2e-8, 1.0
"""Seconds that a fingerprint takes for any case, and more for each of its voxels; and that workers take to start."""


def reading_jobs(dataset: Dataset, jobs: int) -> int:
    """No more than the workers asked for, and none where one process has read all cases before others would begin."""
    first = dataset.cases[0]
    with suppress(VolsegError):  # its own turn reports it
        voxels = read_grid(first.images[0]).voxels * (len(first.images) + 1)
        if len(dataset.cases) * (_CASE_S + voxels * _VOXEL_S) < _START_S:
            return 1
    return jobs


def take_fingerprints(
    dataset: Dataset, section: PreprocessSettings, run: Run, progress: Progress
) -> tuple[list[CaseFingerprint], list[tuple[str, str]]]:
    """The fingerprints of all usable cases, by id, and what became of the other cases.

    Raises:
        VolsegError: If no case is usable.
    """
    measure = partial(
        fingerprint_case,
        labels=dataset.labels,
        orientation=section.orientation,
        crop=section.crop,
        channels=len(dataset.channels),
        samples=samples_per_case(len(dataset.cases)),
    )
    names = [files.id for files in dataset.cases]
    prints, failed = collect(run, measure, dataset.cases, names, progress, "fingerprint", fingerprint_bytes)
    if not prints:
        first = failed[0][1]
        raise VolsegError(f"{dataset.root}: expected at least one usable case, got none. The first says: {first}")
    return [prints[case] for case in sorted(prints)], failed


def fresh_plan(dataset: Dataset, prints: Sequence[CaseFingerprint], section: PreprocessSettings, run: Run) -> Plan:
    """A plan from fingerprints, for this machine's memory unless the settings name another."""
    return make_plan(dataset, prints, section, section.memory_gb or _memory_gb(run))


def _memory_gb(run: Run) -> float:
    """What this machine has: torch knows, and a worker may have imported it already, which takes seconds."""
    for outcome in run(_planning_memory_gb, [None]):
        if outcome.value is not None:
            return outcome.value
    return _planning_memory_gb(None)


def _planning_memory_gb(_: None) -> float:
    from pipeline.model.device import planning_memory_gb

    return planning_memory_gb()


def given_plan(path: Path, dataset: Dataset) -> Plan:
    """A plan someone wrote or edited, which must have the dataset's channels and labels."""
    plan = read_plan(path)
    if plan.channels != dataset.channels or plan.label_table != dataset.labels:
        rule = "a plan with this dataset's channels and labels"
        raise VolsegError(f"{path}: expected {rule}, got others. Plan it anew: leave --plan out.")
    return plan.model_copy(update={"dataset": dataset.name})


def kept_patches(path: Path, fresh: Plan, settings: Settings) -> tuple[Plan, tuple[str, ...]]:
    """The new plan with patches and class weights of an earlier one, perhaps edited; and a note if they differ."""
    try:
        there = read_plan(path)
    except VolsegError:
        return fresh, ()
    given = {"patch_3d": settings.preprocess.patch_size, "patch_2d": settings.preprocess.patch_size_2d}
    kept = {name: getattr(there, name) for name, size in given.items() if size is None}
    if there.class_weights is not None:  # plans of earlier versions have none
        kept["class_weights"] = there.class_weights
    if there.recipe != fresh.recipe or all(getattr(fresh, name) == patch for name, patch in kept.items()):
        return fresh, ()
    note = f"{path}: kept with its patches, batches and class weights. Delete it to plan new ones."
    return fresh.model_copy(update=kept), (note,)


def require_fitting(dataset: Dataset, out: Path) -> None:
    """Refuse case ids that are used twice, and a folder that holds another dataset, before anything is written.

    What a killed run left in the folder is removed.
    """
    twice = sorted(case for case, number in Counter(files.id for files in dataset.cases).items() if number > 1)
    if twice:
        raise VolsegError(f"{dataset.root}: expected unique case ids, got {twice[0]} more than once. Rename a case.")
    try:
        there = read_plan(out / PLAN_FILE).dataset
    except VolsegError:  # none, or a damaged one: written anew
        there = dataset.name
    if there != dataset.name:
        rule = f"a new folder or one of dataset {dataset.name}"
        raise VolsegError(f"{out}: expected {rule}, got one of {there}. Use another folder.")
    remove_leftovers(out)
