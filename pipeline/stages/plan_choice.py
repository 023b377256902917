"""Which plan a dataset is prepared by: one from its fingerprint, one that was given, or that of an earlier run."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from pipeline.config import Settings
from pipeline.core.errors import VolsegError
from pipeline.core.files import remove_leftovers
from pipeline.data.case_files import Dataset
from pipeline.engine import Run
from pipeline.preprocess.fingerprint import CaseFingerprint, fingerprint_case, samples_per_case
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.plan_file import PLAN_FILE, read_plan
from pipeline.preprocess.planning import make_plan
from pipeline.stages.batch import Progress, collect
from pipeline.stages.memory import fingerprint_bytes

__all__ = ["fresh_plan", "given_plan", "kept_patches", "require_fitting"]


def fresh_plan(
    dataset: Dataset, settings: Settings, run: Run, progress: Progress
) -> tuple[Plan, list[CaseFingerprint], list[tuple[str, str]]]:
    """A plan from the fingerprints of all usable cases; these, by id; and what became of the other cases.

    Raises:
        VolsegError: If no case is usable.
    """
    section = settings.preprocess
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
    found = [prints[case] for case in sorted(prints)]
    return make_plan(dataset, found, section, section.memory_gb or _memory_gb()), found, failed


def _memory_gb() -> float:
    """What this machine has; torch, which knows, takes a second to import, while workers could already be at work."""
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
