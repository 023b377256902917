"""From a dataset folder to prepared cases, a plan and folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Settings
from pipeline.core.errors import VolsegError
from pipeline.data.check import CheckReport, check_dataset
from pipeline.data.check_case import lost_case
from pipeline.data.layouts import CaseFiles, Dataset, open_dataset
from pipeline.engine import default_jobs, open_engine
from pipeline.preprocess.fingerprint import CaseFingerprint
from pipeline.preprocess.plan_file import PLAN_FILE, write_plan
from pipeline.preprocess.prepare_task import PrepareTask
from pipeline.sample.folds import Fold, read_splits, usual_folds, write_splits
from pipeline.stages.batch import Batch, Progress, collect, mapped, quiet
from pipeline.stages.memory import READING_WORKER_BYTES, TORCH_WORKER_BYTES, check_bytes, prepare_bytes
from pipeline.stages.plan_choice import (
    fresh_plan,
    given_plan,
    kept_patches,
    reading_jobs,
    require_fitting,
    take_fingerprints,
)

__all__ = ["check", "preprocess"]


def check(
    dataset: Path, *, layout: str | None = None, jobs: int | None = None, progress: Progress = quiet
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
        return check_dataset(opened, map_cases=mapped(run, progress, "check", check_bytes, lost_case))


def preprocess(
    dataset: Path,
    out: Path,
    settings: Settings,
    *,
    layout: str | None = None,
    jobs: int | None = None,
    progress: Progress = quiet,
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
    from pipeline.preprocess.prepare import prepare_case

    return prepare_case(task)


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
