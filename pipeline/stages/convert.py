"""From a dataset in one layout to the same dataset in another, for other tools and back.

``conversion.json`` is the record of the folder. The file that describes the dataset is removed first and written last,
so that a folder with one is complete.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.settings import Settings
from pipeline.core.documents import conform, read_json
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import OutputFolder, remove_leftovers, write_json
from pipeline.core.paths import real
from pipeline.core.signals import Progress, silent
from pipeline.data.convert_case import ConversionOutcome, ConvertTask, convert_case
from pipeline.data.dataset import CaseFiles, Dataset, own_split
from pipeline.data.layout_writers import ConvertedDataset, converted_dataset, description_file, write_description
from pipeline.data.layouts import open_dataset
from pipeline.engine.local import Batch, Outcome, Run, collect, default_jobs, open_engine
from pipeline.sample.folds import read_splits, usual_folds
from pipeline.stages.memory import READING_WORKER_BYTES, rewrite_bytes

_RECORD = "conversion.json"
_EARLIER = "an earlier conversion of this dataset to this layout"
_RECORD_S = 5.0  # seconds between two writes of the record while cases are converted
_NNUNET_NAME = re.compile(r"Dataset\d{3}_.+")


def convert(
    dataset: Path,
    out: Path,
    to: str,
    *,
    layout: str | None = None,
    link: bool = False,
    keep_header_text: bool = False,
    jobs: int | None = None,
    progress: Progress = silent,
) -> Batch:
    """Write a dataset in another layout.

    Volumes are ``.nii.gz``. What is so already is copied, all else written anew without loss. Beside the
    layout's own files stands ``conversion.json``. A case whose files have not changed since an earlier run is kept. The
    file that describes the dataset comes last and lists the cases that could be converted.

    Args:
        dataset: Dataset folder or datalist.
        out: Folder to write: new, empty, or of an earlier conversion of the same dataset to the same layout.
        to: Layout to write; one of :data:`pipeline.data.layout_names.WRITTEN_LAYOUTS`.
        layout: Name of the dataset's layout; by default recognised.
        link: Make hard links of files that need no change, instead of copies.
        keep_header_text: Keep the free text of headers, which may name a patient.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Raises:
        VolsegError: If there is no dataset, the layout cannot hold it, or the folder is not free.
        AllFailedError: If no case could be converted.
    """
    opened = open_dataset(dataset, layout)
    target = converted_dataset(opened, out, to)
    origin = {"source": str(dataset.resolve()), "layout": to}
    require_apart(opened, dataset, out)
    folder = OutputFolder(out, _RECORD, origin)
    earlier = _earlier_cases(folder)
    sources, targets = (*opened.cases, *opened.tests), (*target.dataset.cases, *target.dataset.tests)
    entries: dict[str, dict[str, Any]] = {
        new.id: {
            "source": old.id,
            "files": [path.relative_to(out).as_posix() for path in new.files],
            "hash": earlier[new.id].hash if new.id in earlier else "",
        }
        for old, new in zip(sources, targets, strict=True)
    }
    renumbered = {str(old): new for old, new in target.renumbered.items()}
    # Entries that are not done yet have the content hash of an earlier run, or none: convert_case compares it.
    record = {**origin, "renumbered_labels": renumbered, "cases": entries}
    write_json(folder.record, record)
    description_file(target.dataset).unlink(missing_ok=True)
    remove_leftovers(out, deep=True)  # nnU-Net would take them for cases
    now = {name for entry in entries.values() for name in entry["files"]}
    folder.remove({name for entry in earlier.values() for name in entry.files} - now)
    tasks = {
        new.id: ConvertTask(
            old, new, opened.labels, target.dataset.labels, link, entries[new.id]["hash"], keep_header_text
        )
        for old, new in zip(sources, targets, strict=True)
    }
    with open_engine(jobs or default_jobs(len(tasks)), READING_WORKER_BYTES) as run:
        recorded = _recording(run, list(tasks), record, folder.record)
        results, failed = collect(
            recorded, convert_case, tasks, progress, "convert", lambda task: rewrite_bytes(task.source)
        )
    folder.remove_empty_folders()  # of cases that failed or are gone: in the layout organs they would count as cases
    write_json(folder.record, record)
    notes = (*target.notes, *_case_notes(results), *_describe(opened, target, results))
    return Batch.of({case: result.new for case, result in results.items()}, failed, notes).require_some()


def require_apart(opened: Dataset, dataset: Path, out: Path) -> None:
    """Refuse to write into a dataset or around its files; beside a list of cases there may be other folders.

    Raises:
        VolsegError: If the folder is not apart from the dataset.
    """
    # Links are resolved, so that a second way into the dataset is no way around the rule.
    place, root = out.resolve(), opened.root.resolve()
    homes = {real(file).parent for case in (*opened.cases, *opened.tests) for file in case.files}
    around = place == root or any(place in (home, *home.parents) for home in homes)
    # A datalist may lie in any folder, also in the one where results go; other descriptions lie in their dataset.
    listed = opened.layout == "datalist" and dataset.is_file()
    if around or (root in place.parents and not listed):
        rule, got = "a folder outside the dataset", f"one of the dataset {opened.root}"
        raise VolsegError(sentence("output folder", rule, got, "Choose another folder", file=out))


@dataclass(frozen=True)
class _Entry:
    """What the record says of a case."""

    files: tuple[str, ...]
    hash: str


def _earlier_cases(folder: OutputFolder) -> dict[str, _Entry]:
    """What an earlier conversion recorded of every case."""
    folder.require_own(_EARLIER)
    try:
        cases = folder.earlier.get("cases") if folder.earlier else {}
        found: dict[str, _Entry] = conform(cases, dict[str, _Entry], folder.record)
    except VolsegError:
        # Files that no record names would stay, and other tools would take them for cases.
        folder.refuse(f"a new folder, or {_EARLIER}", f"a damaged {_RECORD}")
    return found


def _recording(run: Run, ids: Sequence[str], record: dict[str, Any], path: Path) -> Run:
    """The engine's function, which also enters every outcome in the record and writes it now and then."""

    def recorded(
        function: Callable[[Any], Any], items: Sequence[Any], bytes_of: Callable[[Any], int] | None = None
    ) -> Iterator[Outcome[Any]]:
        written = time.monotonic()
        # Not after every case: with 20,000 cases the record is megabytes. A killed run repeats what it had not noted.
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
    cleared = sorted(case for case, result in results.items() if result.cleared)
    if cleared:
        what = f"the headers of {len(cleared)} cases held free text, e.g. {cleared[0]}"
        notes.append(f"{what}: cleared in the copies; --keep-header-text keeps it")
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
    # Only here does the folder become a dataset that others can open.
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
    fixed = own_split(old for old, _ in cases)
    sample = Settings().sample
    try:
        folds = usual_folds(groups, fixed, sample.folds, sample.split_seed)
    except VolsegError as error:
        return [f"{path} was not written: {error}"]
    content = [
        {"train": [names[case] for case in fold.train], "val": [names[case] for case in fold.validation]}
        for fold in folds
    ]
    # A user may have edited the folds, or nnU-Net written its own: valid ones are kept.
    try:
        if path.is_file() and read_json(path) != content:
            read_splits(path, list(names.values()))
            return [f"{path}: kept, although it is not what would be written. Delete it to have it written anew."]
    except VolsegError as error:
        return [f"{error} Or delete the file to have it written anew."]
    write_json(path, content)
    what = "the dataset's own split" if fixed else f"{len(folds)} folds, those that volseg preprocess draws"
    return [f"{path}: {what}. nnU-Net takes it over when it plans; delete it for nnU-Net's own folds"]
