"""The repaired copy of a dataset, case by case: which cases it will have, and writing one of them.

What could not be repaired is not written at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.documents import read_json
from pipeline.core.errors import DataError, VolsegError
from pipeline.core.files import OutputFolder, inside, text_hash, write_json
from pipeline.core.volume import LabelMap
from pipeline.data.check import CaseFacts, check_case
from pipeline.data.dataset import CaseFiles, Dataset, source_hash
from pipeline.data.header_text import copy_volume
from pipeline.data.repair_volumes import Change, LabelRules, RepairedVolume, repair_images, repair_labels
from pipeline.data.volume_file import PICTURE_SUFFIXES, join_source, split_source, volume_suffix
from pipeline.data.volumes import open_header, write_label_map, write_voxels

_VERSION = "2"  # of the repairs; another one makes every case anew


@dataclass(frozen=True)
class PlannedCase:
    """A case of the copy.

    Args:
        files: Its original files.
        held_out: Whether it is one of the dataset's held-out or unlabelled cases.
        changes: What was repaired about the case as a whole.
    """

    files: CaseFiles
    held_out: bool
    changes: tuple[Change, ...] = ()


def planned_cases(dataset: Dataset) -> list[PlannedCase]:
    """Choose the cases of a repaired copy, each with an id of its own, held-out ones last.

    An unlabelled 4D image of a dataset with one channel becomes a case per volume, all of one group. A case listed
    twice with the same files is kept once. Different cases of one name get numbers and, because one name often means
    one patient, one group.
    """
    listed = [PlannedCase(files, False) for files in dataset.cases]
    listed += [PlannedCase(files, True) for files in dataset.tests]
    volumes = [part for case in listed for part in _volumes(case, len(dataset.channels))]
    return _own_names(list({(case.files, case.held_out): case for case in volumes}.values()))


def _volumes(case: PlannedCase, channels: int) -> Iterable[PlannedCase]:
    """The case itself, or one per volume of its 4D image."""
    files = case.files
    count = 1
    if channels == 1 and len(files.images) == 1 and not files.labelled and not split_source(files.images[0])[1]:
        try:
            header = open_header(files.images[0], straighten=True)
        except DataError:  # said when its turn comes
            return [case]
        count = 1 if header.is_colour else header.volumes
    if count == 1:
        return [case]
    parts = []
    for n in range(1, count + 1):
        source, name = join_source(files.images[0], "channel", n, count), f"{files.id}_{n:0{len(str(count))}d}"
        done, before = "one case per volume", f"a 4D file of {count} volumes"
        change = Change(name, str(files.images[0]), "dimensions", done, before, f"volume {n}")
        own = replace(files, id=name, images=(source,), group=files.group or files.id)
        parts.append(PlannedCase(own, case.held_out, (change,)))
    return parts


def _own_names(cases: list[PlannedCase]) -> list[PlannedCase]:
    taken = Counter(case.files.id for case in cases)
    names = set(taken)
    seen: Counter[str] = Counter()
    result = []
    for case in cases:
        name = case.files.id
        if taken[name] == 1:
            result.append(case)
            continue
        seen[name] += 1
        number = seen[name]
        # A case of the dataset may be called name_2 already.
        while number > 1 and f"{name}_{number}" in names:
            number += 1
        own = name if number == 1 else f"{name}_{number}"
        names.add(own)
        before = f"{taken[name]} cases called {name}"
        change = Change(own, str(case.files.images[0]), "duplicate_id", "own name, one group", before, own)
        files = replace(case.files, id=own, group=case.files.group or name)
        result.append(PlannedCase(files, case.held_out, (*case.changes, change)))
    return result


@dataclass(frozen=True)
class RepairTask:
    """A case to repair.

    Args:
        case: Its files.
        channels: Names of the dataset's channels.
        rules: How label maps are repaired.
        out: Folder of the copy.
        keep_text: Keep the free text of headers.
    """

    case: PlannedCase
    channels: tuple[str, ...]
    rules: LabelRules
    out: Path
    keep_text: bool = False


@dataclass(frozen=True)
class RepairOutcome:
    """What became of a case.

    Args:
        entry: Its row of the copy's list of cases.
        changes: What was repaired.
        facts: What checking the copy found, None if an earlier run wrote it.
    """

    entry: dict[str, Any]
    changes: tuple[Change, ...]
    facts: CaseFacts | None


def repair_case(task: RepairTask) -> RepairOutcome:
    """Repair a case, write it to ``images/`` and ``labels/`` and check what was written.

    ``repairs/<id>.json``, written last, tells a later run that the case is finished and which files it was made from.

    Raises:
        VolsegError: If something about the case cannot be repaired, or a file cannot be written; of the case nothing is
            left in the copy then.
    """
    files = task.case.files
    record = task.out / "repairs" / f"{files.id}.json"
    content_hash = _content_hash(task)
    earlier = _earlier(record)
    if earlier is not None:
        there = {name for name in earlier.files if (path := inside(task.out, name)) and path.is_file()}
        listed = {str(split_source(name)[0]) for name in (*earlier.entry.image, *filter(None, [earlier.entry.label]))}
        if earlier.hash == content_hash and there == {*earlier.files} == listed:
            return RepairOutcome(_entry(task.case, earlier.entry.image, earlier.entry.label), earlier.changes, None)
        # What an earlier version of the case wrote may have other names now.
        OutputFolder(task.out).remove(earlier.files)
    record.unlink(missing_ok=True)
    # Copies, no hard links: a program that edits a file in place would change the original as well.
    parts, positioned, changes = repair_images(files, task.channels)
    label, more = repair_labels(files, parts[0].grid, positioned, task.rules) if parts else (None, [])
    changes = [*task.case.changes, *changes, *more]
    written: list[Path] = []
    try:
        images = _write_images(parts, task, written, changes)
        reference = None if label is None else _write_label(label, task, written, changes)
        facts = _checked(task, images, reference)
        entry = _entry(task.case, images, reference)
        made = [path.relative_to(task.out).as_posix() for path in written]
        logged = [asdict(change) for change in changes]
        write_json(record, {"hash": content_hash, "files": made, "entry": entry, "changes": logged})
    except BaseException:  # also Ctrl-C: half a case must not stay
        for path in written:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    return RepairOutcome(entry, tuple(changes), facts)


def would_repair(task: RepairTask) -> bool:
    """Whether a repair changes a case; nothing is written.

    Raises:
        VolsegError: If something about it cannot be repaired.
    """
    files = task.case.files
    parts, positioned, changes = repair_images(files, task.channels)
    _, more = repair_labels(files, parts[0].grid, positioned, task.rules)
    return len(parts) == len(task.channels) and bool([*task.case.changes, *changes, *more])


@dataclass(frozen=True)
class _Row:
    """What the record of a case says of its row in the list of cases."""

    image: tuple[str, ...]
    label: str | None = None


@dataclass(frozen=True)
class _Record:
    """The record of a case."""

    hash: str
    files: tuple[str, ...]
    entry: _Row
    changes: tuple[Change, ...]


def _earlier(record: Path) -> _Record | None:
    """What an earlier run wrote of the case; None if the record is missing or damaged."""
    try:
        found: _Record = read_json(record, kind=_Record)
    except VolsegError:
        return None
    return found


def _checked(task: RepairTask, images: Sequence[str], reference: str | None) -> CaseFacts:
    """What checking the written files finds; an error in them is raised."""
    label = None if reference is None else task.out / reference
    # Checked as it was written: whatever is still wrong must not look repaired.
    copy = CaseFiles(task.case.files.id, tuple(task.out / name for name in images), label)
    facts = check_case(copy, task.rules.labels, len(task.channels))
    wrong = [problem.message for problem in facts.problems if problem.severity == "error"]
    if wrong:
        raise DataError(wrong[0])
    return facts


def _entry(case: PlannedCase, images: Sequence[str], reference: str | None) -> dict[str, Any]:
    """A row as ``datalist.json`` has it; what is not known is left out."""
    split = "test" if case.held_out else case.files.split
    row: dict[str, Any] = {"case": case.files.id, "image": list(images), "label": reference}
    row |= {"group": case.files.group, "split": split, "fold": case.files.fold}
    return {key: value for key, value in row.items() if value is not None}


def _write_images(
    parts: Sequence[RepairedVolume], task: RepairTask, written: list[Path], changes: list[Change]
) -> list[str]:
    """Write or copy every channel; a 4D file is copied once. Returns the sources, relative to the folder."""
    case, out = task.case.files.id, task.out
    outputs = {n if part.array is not None else split_source(part.source)[0] for n, part in enumerate(parts)}
    names: dict[Path, str] = {}
    sources = []
    for number, part in enumerate(parts):
        file, kind, volume, total = split_source(part.source)
        stem = f"images/{case}" if len(outputs) == 1 else f"images/{case}_{number:04d}"
        if part.array is not None:
            name = stem + _written_suffix(file)
            written.append(out / name)
            write_voxels(part.array, part.grid, out / name, like=file, settle=part.settle)
            sources.append(name)
            continue
        if file not in names:
            names[file] = stem + volume_suffix(file)
            written.append(out / names[file])
            changes += _copy(task, file, out / names[file])
        sources.append(join_source(names[file], kind, volume, total).as_posix() if kind else names[file])
    return sources


def _copy(task: RepairTask, file: Path, target: Path) -> list[Change]:
    """Copy a file; the change is that text of its header was cleared."""
    cleared = copy_volume(file, target, keep_text=task.keep_text)
    # The names of the fields, not what they said: the log travels with the copy.
    before, after = ", ".join(cleared), "empty; --keep-header-text keeps it"
    change = Change(task.case.files.id, str(file), "header_text", "free text of the header cleared", before, after)
    return [change] if cleared else []


def _write_label(part: RepairedVolume, task: RepairTask, written: list[Path], changes: list[Change]) -> str:
    case, out = task.case.files.id, task.out
    suffix = volume_suffix(part.source) if part.array is None else _written_suffix(part.source)
    name = f"labels/{case}{suffix}"
    written.append(out / name)
    if part.array is None:
        changes += _copy(task, part.source, out / name)
    else:
        label_map = LabelMap(part.array, part.grid)
        write_label_map(label_map, out / name, like=part.source, settle=part.settle)
    return name


def _written_suffix(file: Path) -> str:
    """The original's ending, unless that format cannot hold every voxel type and grid, or is several files."""
    suffix = volume_suffix(file)
    return ".nii.gz" if suffix in ("", *PICTURE_SUFFIXES) else ".mha" if suffix == ".mhd" else suffix


def _content_hash(task: RepairTask) -> str:
    """Hash of the case's files and of all that decides what is done with them."""
    hashes = []
    for file in task.case.files.files:
        try:
            hashes.append(source_hash(file, (*task.case.files.images, *task.case.files.label_sources)))
        except (OSError, VolsegError):  # reported, with the reason, when the file is read
            hashes.append("unreadable")
    return text_hash(_VERSION, repr(task.case), repr(task.channels), repr(task.rules), repr(task.keep_text), *hashes)
