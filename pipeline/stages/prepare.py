"""From a dataset folder to prepared cases, a plan and folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config.settings import PreprocessSettings, Settings
from pipeline.core.errors import VolsegError
from pipeline.core.files import remove_leftovers
from pipeline.core.progress import Progress, silent
from pipeline.data.check import CheckReport, check_dataset, lost_case
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.layouts import open_dataset
from pipeline.data.volumes import read_grid
from pipeline.engine.local import Batch, Run, collect, default_jobs, map_cases, open_engine
from pipeline.preprocess.fingerprint import CaseFingerprint, fingerprint_case, samples_per_case
from pipeline.preprocess.plan_file import PLAN_FILE, Plan, read_plan, write_plan
from pipeline.preprocess.planning import make_plan
from pipeline.sample.folds import Fold, read_splits, usual_folds, write_splits
from pipeline.stages.memory import (
    READING_WORKER_BYTES,
    TORCH_WORKER_BYTES,
    check_bytes,
    fingerprint_bytes,
    prepare_bytes,
)

# What a worker is told to prepare a case; apart from the work, so that sending it needs neither torch nor MONAI.


@dataclass(frozen=True)
class PrepareTask:
    """One case to prepare, as it travels to a worker.

    Args:
        files: Where the case is; it has a reference.
        plan: The dataset's plan.
        out: Folder of the prepared dataset.
        extra: Further MONAI dictionary transforms, run last.
    """

    files: CaseFiles
    plan: Plan
    out: Path
    extra: tuple[Any, ...] = ()


# Which plan a dataset is prepared by: one from its fingerprint, one that was given, or that of an earlier run.

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
    if there.content_hash != fresh.content_hash or all(getattr(fresh, name) == patch for name, patch in kept.items()):
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


def check(
    dataset: Path, *, layout: str | None = None, jobs: int | None = None, progress: Progress = silent
) -> CheckReport:
    """Look for problems in every case of a dataset.

    Args:
        dataset: Dataset folder or datalist.
        layout: Name of its layout; by default recognised.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Raises:
        VolsegError: If there is no dataset at this path.
    """
    opened = open_dataset(dataset, layout)
    with open_engine(jobs or default_jobs(len(opened.cases)), READING_WORKER_BYTES) as run:
        return check_dataset(opened, map_cases=map_cases(run, progress, "check", check_bytes, lost_case))


def preprocess(
    dataset: Path,
    out: Path,
    settings: Settings,
    *,
    layout: str | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
    plan: Path | None = None,
    extra: Sequence[Any] = (),
) -> Batch:
    """Prepare every labelled case of a dataset: fingerprint, plan, transforms, store, folds.

    Writes ``plan.yaml``, ``splits.json`` and ``cases/<id>/``. What is there already and unchanged is kept.

    Args:
        dataset: Dataset folder or datalist.
        out: Folder of the prepared dataset.
        settings: Sections ``preprocess`` and ``sample``.
        layout: Name of the dataset's layout; by default recognised.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.
        plan: A plan to follow, such as an edited ``plan.yaml``; by default one is made from the dataset's fingerprint.
        extra: Further MONAI dictionary transforms, run last.

    Raises:
        VolsegError: If there is no dataset, or no usable case, or the plan is that of another dataset.
    """
    opened = open_dataset(dataset, layout)
    require_fitting(opened, out)
    names = tuple(type(transform).__name__ for transform in extra)
    given = None if plan is None else given_plan(plan, opened)
    workers = jobs or default_jobs(len(opened.cases))
    prints: list[CaseFingerprint] = []
    failed: list[tuple[str, str]] = []
    if given is None:
        with open_engine(reading_jobs(opened, workers), READING_WORKER_BYTES, light=True) as run:
            prints, failed = take_fingerprints(opened, settings.preprocess, run, progress)
    with open_engine(workers, TORCH_WORKER_BYTES) as run:
        chosen = given or fresh_plan(opened, prints, settings.preprocess, run)
        chosen = chosen.model_copy(update={"extra": names})
        chosen, notes = (chosen, ()) if given else kept_patches(out / PLAN_FILE, chosen, settings)
        write_plan(chosen, out / PLAN_FILE)
        bad = {case for case, _ in failed}
        tasks = [PrepareTask(files, chosen, out, tuple(extra)) for files in opened.cases if files.id not in bad]
        ids = [task.files.id for task in tasks]
        known = {found.id: found for found in prints}

        def size_of(task: PrepareTask) -> int:
            return prepare_bytes(task.files, task.plan, known.get(task.files.id))

        written, more = collect(run, _prepare, tasks, ids, progress, "prepare", size_of)
    notes += _write_folds(out / "splits.json", opened, written, settings)
    return Batch(
        tuple(case for case, new in sorted(written.items()) if new),
        tuple(case for case, new in sorted(written.items()) if not new),
        tuple(sorted((*failed, *more))),
        notes,
    )


def _prepare(task: PrepareTask) -> bool:
    """In a worker: only there are torch and MONAI needed, which take seconds to import."""
    from pipeline.preprocess.prepare_case import prepare_case

    return prepare_case(task.files, task.plan, task.out, task.extra)


def _write_folds(path: Path, dataset: Dataset, written: Mapping[str, bool], settings: Settings) -> tuple[str, ...]:
    """Draw folds, unless there are some, which a user may have edited; returns what is worth knowing about those.

    Raises:
        VolsegError: If there are too few cases, or the dataset fixes a split that cannot be used.
    """
    fixed = any(files.split == "validation" for files in dataset.cases)
    fresh = _fresh_folds(path, [files for files in dataset.cases if files.id in written], fixed, settings)
    if not path.is_file():
        write_splits(path, fresh)
        return ()
    try:  # a case that failed this time is reported as failed, not as missing from the folds
        folds = read_splits(path, [files.id for files in dataset.cases])
    except VolsegError as error:
        return (f"{error} Or delete the file to draw new folds.",)
    left_out = sorted(set(written) - {case for fold in folds for case in (*fold.train, *fold.validation)})
    notes = []
    if left_out:
        notes.append(f"{path}: kept; {len(left_out)} cases are in no fold, e.g. {left_out[0]}. Add them, or delete it.")
    sides = {(files.id, files.split) for files in dataset.cases}
    if fixed and any(side not in sides for fold in folds for side in _sides(fold)):
        notes.append(f"{path}: kept, although the dataset fixes another split. Delete it to take that one.")
    elif len(folds) != len(fresh):
        notes.append(f"{path}: kept with its {len(folds)} folds. Delete it to draw {len(fresh)} new ones.")
    return tuple(notes)


def _sides(fold: Fold) -> list[tuple[str, str]]:
    return [*((case, "train") for case in fold.train), *((case, "validation") for case in fold.validation)]


def _fresh_folds(path: Path, cases: Sequence[CaseFiles], fixed: bool, settings: Settings) -> tuple[Fold, ...]:
    """The split that the dataset fixes, else drawn folds."""
    groups = {files.id: files.group for files in cases}
    distinct = len({group or f"case {case}" for case, group in groups.items()})
    if distinct < 2:
        raise VolsegError(
            f"{path}: expected at least 2 cases (or groups) to train and validate, got {distinct}. Add cases."
        )
    splits = {files.id: files.split for files in cases} if fixed else None
    return usual_folds(groups, splits, settings.sample.folds, settings.sample.split_seed)
