"""From a dataset in one layout to the same dataset in another, for other tools and back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.settings import Settings
from pipeline.core.errors import VolsegError
from pipeline.core.files import read_json, remove_leftovers, write_json
from pipeline.core.progress import Progress, silent
from pipeline.data.convert_case import ConversionOutcome, ConvertTask, convert_case
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.layout_writers import ConvertedDataset, converted_dataset, description_file, write_description
from pipeline.data.layouts import open_dataset
from pipeline.engine.local import Batch, Outcome, Run, collect, default_jobs, open_engine
from pipeline.sample.folds import read_splits, usual_folds
from pipeline.stages.memory import READING_WORKER_BYTES, rewrite_bytes

RECORD_FILE = "conversion.json"
"""What was converted from where; it marks a folder as an earlier conversion."""

_RECORD_S = 5.0  # seconds between two writes of the record while cases are converted
_NNUNET_NAME = re.compile(r"Dataset\d{3}_.+")


def convert(
    dataset: Path,
    out: Path,
    to: str,
    *,
    layout: str | None = None,
    link: bool = False,
    jobs: int | None = None,
    progress: Progress = silent,
) -> Batch:
    """Write a dataset in another layout.

    Volumes are ``.nii.gz``. What is so already is copied byte by byte, all else written anew without loss. Beside the
    layout's own files stands ``conversion.json``. A case whose files have not changed since an earlier run is kept. The
    file that describes the dataset comes last and lists the cases that could be converted.

    Args:
        dataset: Dataset folder or datalist.
        out: Folder to write: new, empty, or of an earlier conversion of the same dataset to the same layout.
        to: Layout to write; one of :data:`pipeline.data.layout_names.WRITTEN_LAYOUTS`.
        layout: Name of the dataset's layout; by default recognised.
        link: Make hard links of files that need no change, instead of copies.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Raises:
        VolsegError: If there is no dataset, the layout cannot hold it, or the folder is not free.
    """
    opened = open_dataset(dataset, layout)
    target = converted_dataset(opened, out, to)
    origin = {"source": str(dataset.resolve()), "layout": to}
    _require_apart(dataset, opened, out)
    earlier = _earlier_cases(out, origin)
    sources, targets = _everyone(opened), _everyone(target.dataset)
    entries = {
        new.id: {
            "source": old.id,
            "files": [path.relative_to(out).as_posix() for path in new.files],
            "hash": earlier.get(new.id, {}).get("hash", ""),
        }
        for old, new in zip(sources, targets, strict=True)
    }
    record = {**origin, "renumbered_labels": _as_text(target.renumbered), "cases": entries}
    write_json(out / RECORD_FILE, record)  # before any volume: a killed run knows its own files
    _remove_stale(out, target.dataset, earlier, entries)
    tasks = [
        ConvertTask(old, new, opened.labels, target.dataset.labels, link, entries[new.id]["hash"])
        for old, new in zip(sources, targets, strict=True)
    ]
    ids = [files.id for files in targets]
    with open_engine(jobs or default_jobs(len(tasks)), READING_WORKER_BYTES) as run:
        recorded = _recording(run, ids, record, out / RECORD_FILE)
        results, failed = collect(
            recorded, convert_case, tasks, ids, progress, "convert", lambda task: rewrite_bytes(task.source)
        )
    _remove_empty_folders(out)
    write_json(out / RECORD_FILE, record)
    notes = (*target.notes, *_case_notes(results), *_describe(opened, target, results))
    return Batch(
        tuple(case for case, result in sorted(results.items()) if result.new),
        tuple(case for case, result in sorted(results.items()) if not result.new),
        tuple(sorted(failed)),
        notes,
    )


def _everyone(dataset: Dataset) -> tuple[CaseFiles, ...]:
    return (*dataset.cases, *dataset.tests)


def _as_text(values: Mapping[int, int]) -> dict[str, int]:
    return {str(old): new for old, new in values.items()}


def _require_apart(dataset: Path, opened: Dataset, out: Path) -> None:
    """Refuse to write into the source; a table of files may have the new folder beside it."""
    root, target = opened.root.resolve(), out.resolve()
    listed = opened.layout == "datalist" and dataset.is_file()
    if target == root or (root in target.parents and not listed):
        rule = f"a folder outside the dataset {opened.root}"
        raise VolsegError(f"{out}: expected {rule}, got one in it. Choose another output folder.")


def _earlier_cases(out: Path, origin: Mapping[str, str]) -> dict[str, Any]:
    """Entries of the record of an earlier conversion; refuses a folder that holds anything else."""
    if out.exists() and not out.is_dir():
        raise VolsegError(f"{out}: expected a folder, got a file. Choose another output folder.")
    if not any(out.glob("[!.]*")):
        return {}
    rule = "a new or empty folder, or an earlier conversion of this dataset to this layout"
    advice = "Choose another output folder or empty this one."
    try:
        there = read_json(out / RECORD_FILE)
        same = {key: there[key] for key in origin} == origin
        got = f"one of {there['source']} to {there['layout']}"
        cases = {
            str(case): {"files": [*entry["files"]], "hash": entry["hash"]} for case, entry in there["cases"].items()
        }
    except (VolsegError, KeyError, TypeError, AttributeError):
        raise VolsegError(f"{out}: expected {rule}, got other files. {advice}") from None
    if not same:
        raise VolsegError(f"{out}: expected {rule}, got {got}. {advice}")
    return cases


def _remove_stale(out: Path, target: Dataset, earlier: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    """Remove the description, until it is true again, and the volumes of cases that the dataset no longer has.

    Also temporary files of a run that was killed: nnU-Net would take them for cases.
    """
    description_file(target).unlink(missing_ok=True)
    remove_leftovers(out, deep=True)
    current = {name for entry in entries.values() for name in entry["files"]}
    for name in {name for entry in earlier.values() for name in entry["files"]} - current:
        path = out / name
        if path.resolve().is_relative_to(out.resolve()):
            path.unlink(missing_ok=True)


def _remove_empty_folders(out: Path) -> None:
    """Of cases that failed or are gone: in the layout ``organs`` their folders would count as cases."""
    for folder in sorted((path for path in out.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):  # not empty
            folder.rmdir()


def _recording(run: Run, ids: Sequence[str], record: dict[str, Any], path: Path) -> Run:
    """The engine's function, which also enters every outcome in the record and writes it now and then."""

    def recorded(
        function: Callable[[Any], Any], items: Sequence[Any], bytes_of: Callable[[Any], int] | None = None
    ) -> Iterator[Outcome[Any]]:
        written = time.monotonic()
        for outcome in run(function, items, bytes_of):
            record["cases"][ids[outcome.index]]["hash"] = "" if outcome.value is None else outcome.value.content_hash
            if time.monotonic() - written > _RECORD_S:
                write_json(path, record)
                written = time.monotonic()
            yield outcome

    return recorded


def _case_notes(results: Mapping[str, ConversionOutcome]) -> list[str]:
    notes = []
    not_finite = sorted(case for case, result in results.items() if result.not_finite)
    if not_finite:
        what = f"{len(not_finite)} images hold NaN or infinity, e.g. {not_finite[0]}"
        notes.append(f"{what}: kept as they are, but nnU-Net refuses NaN")
    shared = sorted(case for case, result in results.items() if result.shared)
    if shared:
        what = f"organ masks overlap in {len(shared)} cases, e.g. {shared[0]}"
        notes.append(f"{what}: the organ with the later value has the voxels")
    return notes


def _describe(opened: Dataset, target: ConvertedDataset, results: Mapping[str, ConversionOutcome]) -> list[str]:
    """Write the files that make the folder a dataset; returns notes."""
    dataset = target.dataset
    cases, tests = (tuple(f for f in part if f.id in results) for part in (dataset.cases, dataset.tests))
    if not cases:
        return [f"{description_file(dataset)} was not written, because no labelled case could be converted"]
    notes = []
    if dataset.layout == "nnunet":
        if not _NNUNET_NAME.fullmatch(dataset.root.resolve().name):
            name = re.sub(r"\W+", "_", dataset.name).strip("_") or "Name"
            notes.append(f"nnU-Net finds {dataset.root} only under a name like Dataset501_{name}: rename the folder")
        pairs = [(old, new.id) for old, new in zip(opened.cases, dataset.cases, strict=True) if new.id in results]
        notes += _write_folds(dataset.root / "splits_final.json", pairs)
    origin = f"Converted by volseg from {opened.root.resolve().name} ({opened.layout})."
    if target.renumbered:
        renumbered = ", ".join(f"{old} -> {new}" for old, new in target.renumbered.items())
        origin = f"{origin} Labels renumbered: {renumbered}."
    write_description(replace(dataset, cases=cases, tests=tests), origin)
    return notes


def _write_folds(path: Path, cases: Sequence[tuple[CaseFiles, str]]) -> list[str]:
    """Write the folds that ``volseg preprocess`` draws by default, which nnU-Net takes over when it plans."""
    names = {old.id: new for old, new in cases}
    groups = {old.id: old.group for old, _ in cases}
    fixed = any(old.split == "validation" for old, _ in cases)
    sample = Settings().sample
    try:
        splits = {old.id: old.split for old, _ in cases} if fixed else None
        folds = usual_folds(groups, splits, sample.folds, sample.split_seed)
    except VolsegError as error:
        return [f"{path} was not written: {error}"]
    content = [
        {"train": [names[case] for case in fold.train], "val": [names[case] for case in fold.validation]}
        for fold in folds
    ]
    try:
        if path.is_file() and read_json(path) != content:
            read_splits(path, list(names.values()))
            return [f"{path}: kept, although it is not what would be written. Delete it to have it written anew."]
    except VolsegError as error:
        return [f"{error} Or delete the file to have it written anew."]
    write_json(path, content)
    what = "the dataset's own split" if fixed else f"{len(folds)} folds, those that volseg preprocess draws"
    return [f"{path}: {what}. nnU-Net takes it over when it plans; delete it for nnU-Net's own folds"]
