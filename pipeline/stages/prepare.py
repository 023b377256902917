"""From a dataset folder to prepared cases, a plan and folds.

:func:`preprocess` measures every case, makes the plan (or follows one that is given, or keeps what was edited in the
plan of an earlier run), prepares the cases and draws the folds. ``volseg plan`` shares the first half. Torch and MONAI
are imported in workers only: this process needs neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config.settings import PreprocessSettings, Settings
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import OutputFolder, copy_file, file_hash, read_record, remove_leftovers, signature, write_json
from pipeline.core.signals import Progress, silent
from pipeline.core.together import RunsTogether
from pipeline.data.check import CheckReport, check_dataset, lost_case
from pipeline.data.dataset import CaseFiles, Dataset, own_split
from pipeline.data.layouts import open_dataset
from pipeline.data.prepared_cases import CaseInfo, case_folder
from pipeline.data.volume_file import split_source
from pipeline.data.volumes import read_grid
from pipeline.engine.local import Batch, Run, collect, default_jobs, map_cases, open_engine
from pipeline.preprocess.fingerprint import CaseFingerprint, dataset_fingerprint, fingerprint_case, samples_per_case
from pipeline.preprocess.plan_file import FIRST_STAGE, PLAN_FILE, Plan, read_plan, write_plan
from pipeline.preprocess.planning import plan_from_fingerprints
from pipeline.sample.folds import Fold, follows_split, read_splits, usual_folds, write_splits
from pipeline.stages.memory import (
    READING_WORKER_BYTES,
    TORCH_WORKER_BYTES,
    check_bytes,
    fingerprint_bytes,
    prepare_bytes,
)

PAGE_FILE = "fingerprint.html"
"""The page that shows what was measured."""

# Seconds that a fingerprint takes for any case, and more for each of its voxels; and that workers take to start.
_CASE_S, _VOXEL_S, _START_S = 2e-3, 2e-8, 1.0

_SHOWN = 5  # reasons of failed cases that one message quotes


def reading_jobs(dataset: Dataset, jobs: int) -> int:
    """The workers asked for; 1 where this process has read all cases before workers would have begun."""
    first = dataset.cases[0]
    with suppress(VolsegError):  # a damaged file is reported when its turn comes
        voxels = read_grid(first.images[0]).voxels * (len(first.images) + 1)
        if len(dataset.cases) * (_CASE_S + voxels * _VOXEL_S) < _START_S:
            return 1
    return jobs


def take_fingerprints(
    dataset: Dataset, section: PreprocessSettings, run: Run, progress: Progress
) -> tuple[list[CaseFingerprint], list[tuple[str, str]]]:
    """The fingerprints of all usable cases, by id, and what became of the other cases; one must be usable."""
    measure = partial(
        fingerprint_case,
        labels=dataset.labels,
        orientation=section.orientation,
        crop=section.crop,
        channels=len(dataset.channels),
        samples=samples_per_case(len(dataset.cases)),
    )
    cases = {files.id: files for files in dataset.cases}
    prints, failed = collect(run, measure, cases, progress, "fingerprint", fingerprint_bytes)
    if not prints:
        advice = f"The first says: {failed[0][1]}"
        raise VolsegError(sentence("dataset", "at least one usable case", "none", advice, file=dataset.root))
    return [prints[case] for case in sorted(prints)], failed


def fresh_plan(dataset: Dataset, prints: Sequence[CaseFingerprint], section: PreprocessSettings, run: Run) -> Plan:
    """A plan from fingerprints, for this machine's memory unless the settings name another."""
    return plan_from_fingerprints(dataset, prints, section, section.memory_gb or _memory_gb(run))


def make_plan(
    dataset: Dataset, settings: Settings | None = None, *, jobs: int | None = None, progress: Progress = silent
) -> Plan:
    """Measure every labelled case of a dataset and plan, without writing anything.

    Args:
        dataset: What ``open_dataset`` gave.
        settings: Section ``preprocess``; by default all defaults.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Raises:
        VolsegError: If a case is not usable, with the reason of the first.
    """
    section = (settings or Settings()).preprocess
    workers = reading_jobs(dataset, jobs or default_jobs(len(dataset.cases)))
    with open_engine(workers, READING_WORKER_BYTES, light=True) as run:
        prints, failed = take_fingerprints(dataset, section, run, progress)
        if failed:  # as_monai would list them, and a loader would fail hours later
            got, advice = f"{len(failed)} that are not", f"Repair or remove them. The first says: {failed[0][1]}"
            raise VolsegError(sentence("dataset", "usable cases only", got, advice, file=dataset.root))
        return fresh_plan(dataset, prints, section, run)


def _memory_gb(run: Run) -> float:
    """What this machine has."""
    # Torch knows how much memory the GPU has. A worker may have imported it already, which takes seconds.
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
        rule, advice = "one with this dataset's channels and labels", "Plan it anew: leave --plan out"
        raise VolsegError(sentence("plan", rule, "others", advice, file=path))
    return plan.model_copy(update={"dataset": dataset.name})


def kept_patches(path: Path, fresh: Plan, settings: Settings) -> tuple[Plan, tuple[str, ...]]:
    """The new plan with patches and class weights of an earlier plan, perhaps edited; and a note if they differ."""
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

    ``plan.yaml`` stands for the record.
    """
    twice = sorted(case for case, number in Counter(files.id for files in dataset.cases).items() if number > 1)
    if twice:
        got = f"{twice[0]} more than once"
        raise VolsegError(sentence("dataset", "unique case ids", got, "Rename a case", file=dataset.root))
    try:
        there = read_plan(out / PLAN_FILE).dataset
    except VolsegError:  # none, or a damaged one: written anew
        there = dataset.name
    if there != dataset.name:
        OutputFolder(out).refuse(f"a new folder or one of dataset {dataset.name}", f"one of {there}")


@contextmanager
def at_work(out: Path) -> Iterator[RunsTogether]:
    """Be one of the runs that plan and prepare in a folder; the first one removes what a killed run left."""
    with RunsTogether(out, "preprocess") as runs:
        with runs.alone():
            if not runs.others():  # else the temporary files are those of a run that lives
                remove_leftovers(out)
                for folder in (out / "cases").glob("*"):
                    remove_leftovers(folder)
        yield runs


def settle_plan(runs: RunsTogether, planned: Plan, out: Path) -> None:
    """Write the plan; where other runs are at work, it must be theirs."""
    rule = "cases that are prepared by one plan"
    advice = "Wait for it; or plan once with `volseg plan`, and give its plan.yaml to all runs as --plan"
    runs.require(rule, "another plan", advice, ended=True, plan=planned.content_hash)
    write_plan(planned, out / PLAN_FILE)
    runs.tell(plan=planned.content_hash)


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
    # Repairs need SimpleITK, which takes 90 MB that plan and preprocess can do without.
    from pipeline.stages.repair import repairable_cases

    opened = open_dataset(dataset, layout)
    with open_engine(jobs or default_jobs(len(opened.cases)), READING_WORKER_BYTES) as run:
        report = check_dataset(opened, map_cases=map_cases(run, progress, "check", check_bytes, lost_case))
        return replace(report, repairable=repairable_cases(opened, report, run, progress))


def plan(
    dataset: Path,
    out: Path,
    settings: Settings,
    *,
    layout: str | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
) -> Batch:
    """Look at a dataset and plan, without preparing anything.

    Writes what was measured as ``fingerprint.json`` and as a page, ``fingerprint.html``, and the plan as ``plan.yaml``.

    Args:
        dataset: Dataset folder or datalist.
        out: Folder for the three files; those that are there are replaced.
        settings: Section ``preprocess``.
        layout: Name of the dataset's layout; by default recognised.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Returns:
        Which cases could be used.

    Raises:
        VolsegError: If there is no dataset, or no usable case.
    """
    # Matplotlib and Jinja take most of a second: only this command draws.
    from pipeline.report.fingerprint_page import write_fingerprint_page

    opened = open_dataset(dataset, layout)
    require_fitting(opened, out)
    workers = reading_jobs(opened, jobs or default_jobs(len(opened.cases)))
    with open_engine(workers, READING_WORKER_BYTES, light=True) as run:
        prints, failed = take_fingerprints(opened, settings.preprocess, run, progress)
        planned = fresh_plan(opened, prints, settings.preprocess, run)
    found = dataset_fingerprint(opened, prints, orientation=planned.orientation)
    with at_work(out) as runs, runs.alone():
        write_json(out / "fingerprint.json", found)
        settle_plan(runs, planned, out)
    write_fingerprint_page(
        found,
        out / PAGE_FILE,
        failures=sorted(failed),
        class_weights=planned.class_weights,
        why=planned.reasons["class_weights"],
        **signature(),
    )
    return Batch(tuple(found.id for found in prints), (), tuple(sorted(failed)), runs.notes)


def preprocess(
    dataset: Path | str,
    out: Path | str,
    settings: Settings | None = None,
    *,
    layout: str | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
    plan: Path | str | None = None,
    extra: Sequence[Any] = (),
) -> Batch:
    """Prepare every labelled case of a dataset: fingerprint, plan, transforms, store, folds.

    Writes ``plan.yaml``, ``splits.json`` and ``cases/<id>/``. What is there already and unchanged is kept. For a
    cascade, ``low_resolution/`` gets the same for its first stage, with the same folds.

    Args:
        dataset: Dataset folder or datalist.
        out: Folder of the prepared dataset.
        settings: Sections ``preprocess`` and ``sample``; by default all defaults.
        layout: Name of the dataset's layout; by default recognised.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.
        plan: A plan to follow, such as an edited ``plan.yaml``; by default one is made from the dataset's fingerprint.
        extra: Further MONAI dictionary transforms, run last.

    Raises:
        VolsegError: If there is no dataset, or no usable case, or the plan is that of another dataset.
        AllFailedError: If no case could be prepared.
    """
    settings, out = settings or Settings(), Path(out)
    opened = open_dataset(dataset, layout)
    require_fitting(opened, out)
    if fixed := own_split(opened.cases):  # one that cannot be used is refused before hours of work
        _fresh_folds(out / "splits.json", opened.cases, fixed, settings)
    given = None if plan is None else given_plan(Path(plan), opened)
    work = _Work(opened, source_of(dataset), settings, jobs or default_jobs(len(opened.cases)), progress, tuple(extra))
    batch, chosen = _prepare_all(work, out, given)
    if not chosen.cascade:
        return batch
    require_fitting(opened, out / FIRST_STAGE)
    first, _ = _prepare_all(work, out / FIRST_STAGE, chosen.first_stage())
    if (out / "splits.json").is_file():  # it may have been edited; the folds of both stages are the same
        copy_file(out / "splits.json", out / FIRST_STAGE / "splits.json")
    failed = dict([*first.failed, *batch.failed])
    done = {case: case in batch.done or case in first.done for case in (*batch.done, *batch.kept)}
    made = {case: written for case, written in done.items() if case not in failed}
    return Batch.of(made, list(failed.items()), dict.fromkeys((*batch.notes, *first.notes)))


@dataclass(frozen=True)
class _Work:
    """What one or both resolutions of a dataset are prepared with."""

    dataset: Dataset
    source: str
    settings: Settings
    jobs: int
    progress: Progress
    extra: tuple[Any, ...]


def _prepare_all(work: _Work, out: Path, given: Plan | None) -> tuple[Batch, Plan]:
    """Prepare every case by a plan, or by one that is made; what became of them, and the plan."""
    opened, settings, progress, extra = work.dataset, work.settings, work.progress, work.extra
    prints: list[CaseFingerprint] = []
    failed: list[tuple[str, str]] = []
    if given is None:
        with open_engine(reading_jobs(opened, work.jobs), READING_WORKER_BYTES, light=True) as run:
            prints, failed = take_fingerprints(opened, settings.preprocess, run, progress)
    with at_work(out) as runs:
        with open_engine(work.jobs, TORCH_WORKER_BYTES) as run:
            chosen = given or fresh_plan(opened, prints, settings.preprocess, run)
            chosen = chosen.model_copy(update={"extra": tuple(type(transform).__name__ for transform in extra)})
            with runs.alone():
                chosen, notes = (chosen, ()) if given else kept_patches(out / PLAN_FILE, chosen, settings)
                settle_plan(runs, chosen, out)
            bad, known = {case for case, _ in failed}, {found.id: found for found in prints}
            usable = [files for files in opened.cases if files.id not in bad]
            cases = {files.id: files for files in runs.shared(usable)}
            prepare = partial(_prepare, plan=chosen, out=out, extra=extra, source=work.source)
            written, more = collect(
                run,
                prepare,
                cases,
                progress,
                "prepare",
                lambda files: prepare_bytes(files, chosen, known.get(files.id)),
            )
        failed += more
        Batch.of(written, failed).require_some()
        with runs.alone():
            notes += (*opened.notes, *remove_former(opened, work.source, out), *_vanished(prints, chosen, out))
            notes += _write_folds(runs, out / "splits.json", opened, written, settings, failed)
    return Batch.of(written, failed, (*notes, *runs.notes)), chosen


def source_of(dataset: Path | str) -> str:
    """What tells whether two runs were given the same dataset."""
    path = Path(dataset).resolve()
    return str(path.parent if path.name == "dataset.json" else path)


def _vanished(prints: Sequence[CaseFingerprint], plan: Plan, out: Path) -> tuple[str, ...]:
    """A note on every organ that has voxels in a case, and none where that was prepared: nothing can learn it there."""
    lost: dict[str, list[str]] = {}
    for case in prints:
        left = _info(case_folder(out, case.id) / "case.json").classes
        if left is None:  # it failed, or an earlier version prepared it
            continue
        present = (n for n, count in enumerate(case.class_voxels[1:], start=1) if count and n not in left)
        for name in (plan.label_table.organs[n - 1] for n in present):
            lost.setdefault(name, []).append(case.id)
    spacing = " x ".join(f"{n:.3g}" for n in plan.spacing_mm)
    advice = "Plan a finer preprocess.spacing_mm if it matters"
    return tuple(
        sentence(name, f"voxels at {spacing} mm", f"none in {len(cases)} of its cases, e.g. {cases[0]}", advice)
        for name, cases in lost.items()
    )


def _info(note: Path) -> CaseInfo:
    return CaseInfo(**read_record(note, CaseInfo))


def remove_former(dataset: Dataset, source: str, out: Path) -> tuple[str, ...]:
    """Remove prepared cases that have left their dataset, which would be trained on; returns a note on them.

    Cases that came from another list stay.
    """
    listed, gone = {files.id for files in dataset.cases}, []
    for note in sorted((out / "cases").glob("*/case.json")):
        if note.parent.name in listed:
            continue
        info = _info(note)
        files = [split_source(Path(path))[0] for path in (*info.images, *info.labels)]
        # Cases that an older version prepared do not tell their dataset; a folder that is not there may come back.
        lost = bool(files) and not any(path.exists() or not path.parent.is_dir() for path in files)
        if info.dataset == source or lost:
            note.unlink()  # first: without it the case is not there
            for path in note.parent.iterdir():
                path.unlink()
            note.parent.rmdir()
            gone.append(note.parent.name)
    if not gone:
        return ()
    number = f"{len(gone)} prepared case{'s' if len(gone) > 1 else ''}"
    return (f"{out}: removed {number} that the dataset no longer has, e.g. {gone[0]}.",)


def _prepare(files: CaseFiles, plan: Plan, out: Path, extra: tuple[Any, ...], source: str) -> bool:
    # Imported here, in a worker: torch and MONAI take seconds, and this process can do without them.
    from pipeline.preprocess.prepare_case import prepare_case

    return prepare_case(files, plan, out, extra, source)


def _write_folds(
    runs: RunsTogether,
    path: Path,
    dataset: Dataset,
    written: Mapping[str, bool],
    settings: Settings,
    failed: Sequence[tuple[str, str]],
) -> tuple[str, ...]:
    """Draw folds, unless there are some, which a user may have edited; returns what is worth knowing about those.

    Runs that were at work together draw them together: each that ends draws them of all cases so far.
    """
    told = runs.together()
    own = {files.id: (files.group, files.split, files.fold) for files in dataset.cases if files.id in written}
    theirs = {case: about for other in told for case, about in other.get("cases", {}).items()}
    cases = [
        CaseFiles(case, (), group=group, split=split, fold=fold)
        for case, (group, split, fold) in sorted((theirs | own).items())
    ]
    known = {files.id: files for files in (*cases, *dataset.cases)}
    fixed = own_split(known.values())
    runs.tell(cases=own)
    if len(cases) < 2 and runs.others():
        return ("The folds are drawn by the runs that are still at work here.",)
    fresh = _fresh_folds(path, cases, fixed, settings, failed)
    if not path.is_file() or any(other.get("folds") == file_hash(path) for other in told):
        write_splits(path, fresh)
        runs.tell(folds=file_hash(path))
        return ()
    # Of all cases of the dataset: one that failed this time is reported as failed, not as missing from the folds.
    try:
        folds = read_splits(path, known)
    except VolsegError as error:
        return (f"{error} Or delete the file to draw new folds.",)
    left_out = sorted(set(written) - {case for fold in folds for case in (*fold.train, *fold.validation)})
    notes = []
    if left_out:
        notes.append(f"{path}: kept; {len(left_out)} cases are in no fold, e.g. {left_out[0]}. Add them, or delete it.")
    if fixed and not all(follows_split(fold, fixed) for fold in folds):
        notes.append(f"{path}: kept, although the dataset fixes another split. Delete it to take that one.")
    elif len(folds) != len(fresh):
        notes.append(f"{path}: kept with its {len(folds)} folds. Delete it to draw {len(fresh)} new ones.")
    return tuple(notes)


def _fresh_folds(
    path: Path,
    cases: Sequence[CaseFiles],
    fixed: Mapping[str, str | int | None] | None,
    settings: Settings,
    failed: Sequence[tuple[str, str]] = (),
) -> tuple[Fold, ...]:
    """The split that the dataset fixes, else drawn folds."""
    groups = {files.id: files.group for files in cases}
    distinct = len({group or f"case {case}" for case, group in groups.items()})
    if distinct < 2:
        rule, got, advice = "at least 2 cases (or groups) to train and validate", str(distinct), "Add cases"
        if failed:
            more = f" And {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
            got = f"{distinct}, as {len(failed)} cases cannot be used"
            advice = f"{' '.join(message for _, message in sorted(failed)[:_SHOWN])}{more}"
        raise VolsegError(sentence("folds", rule, got, advice, file=path))
    splits = {case: fixed[case] for case in groups} if fixed else None
    return usual_folds(groups, splits, settings.sample.folds, settings.sample.split_seed)
