"""Writing the repaired copy of one case; what could not be repaired is not written at all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.core import DataError, LabelMap, VolsegError
from pipeline.core.files import atomic_path, file_hash, read_json, text_hash, write_json
from pipeline.data.case_files import CaseFiles
from pipeline.data.check_case import CaseFacts, check_case
from pipeline.data.repair_cases import PlannedCase
from pipeline.data.repair_images import repair_images
from pipeline.data.repair_labels import LabelRules, repair_labels
from pipeline.data.repair_parts import Change, Part
from pipeline.data.volume_file import PICTURE_SUFFIXES, join_source, split_source, volume_suffix
from pipeline.data.volumes import write_label_map, write_voxels

__all__ = ["RepairTask", "RepairedCase", "repair_case"]

_VERSION = "1"  # of the repairs; another one makes every case anew


@dataclass(frozen=True)
class RepairTask:
    """A case to repair.

    Args:
        case: Its files.
        channels: Names of the dataset's channels.
        rules: How label maps are repaired.
        out: Folder of the copy.
    """

    case: PlannedCase
    channels: tuple[str, ...]
    rules: LabelRules
    out: Path


@dataclass(frozen=True)
class RepairedCase:
    """What became of a case.

    Args:
        entry: Its row of the copy's list of cases.
        changes: What was repaired.
        facts: What checking the copy found, None if an earlier run wrote it.
    """

    entry: dict[str, Any]
    changes: tuple[Change, ...]
    facts: CaseFacts | None


def repair_case(task: RepairTask) -> RepairedCase:
    """Repair a case, write it to ``images/`` and ``labels/`` and check what was written.

    ``repairs/<id>.json``, written last, tells a later run that the case is there and of which files it was made.

    Args:
        task: The case.

    Raises:
        VolsegError: If something about the case cannot be repaired, or a file cannot be written; of the case nothing is
            left in the copy then.
    """
    files = task.case.files
    record = task.out / "repairs" / f"{files.id}.json"
    digest = _digest(task)
    earlier = _earlier(record)
    names = list(earlier.get("files", ()))
    if earlier.get("hash") == digest and all((task.out / name).is_file() for name in names):
        return RepairedCase(earlier["entry"], tuple(Change(**change) for change in earlier["changes"]), None)
    for name in (*names, record.relative_to(task.out)):
        (task.out / name).unlink(missing_ok=True)
    parts, positioned, changes = repair_images(files, task.channels)
    label, more = repair_labels(files, parts[0].grid, positioned, task.rules) if parts else (None, [])
    changes = [*task.case.changes, *changes, *more]
    written: list[Path] = []
    try:
        images = _write_images(parts, files.id, task.out, written)
        reference = None if label is None else _write_label(label, files.id, task.out, written)
        facts = _checked(task, images, reference)
        entry = _entry(task.case, images, reference)
        made = [path.relative_to(task.out).as_posix() for path in written]
        logged = [asdict(change) for change in changes]
        write_json(record, {"hash": digest, "files": made, "entry": entry, "changes": logged})
    except BaseException:  # also Ctrl-C: half a case must not stay
        for path in written:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    return RepairedCase(entry, tuple(changes), facts)


def _checked(task: RepairTask, images: Sequence[str], reference: str | None) -> CaseFacts:
    """What checking the written files finds; an error in them is raised."""
    label = None if reference is None else task.out / reference
    copy = CaseFiles(task.case.files.id, tuple(task.out / name for name in images), label)
    facts = check_case(copy, task.rules.labels, len(task.channels))
    wrong = [problem.message for problem in facts.problems if problem.severity == "error"]
    if wrong:
        raise DataError(wrong[0])
    return facts


def _entry(case: PlannedCase, images: Sequence[str], reference: str | None) -> dict[str, Any]:
    """A row as ``datalist.json`` has it; what is not known is left out."""
    split = "test" if case.held_out else case.files.split
    row = {"case": case.files.id, "image": list(images), "label": reference, "group": case.files.group, "split": split}
    return {key: value for key, value in row.items() if value is not None}


def _write_images(parts: Sequence[Part], case: str, out: Path, written: list[Path]) -> list[str]:
    """Write or copy every channel; a 4D file is copied once. Returns the sources, relative to the folder."""
    outputs = {n if part.array is not None else split_source(part.source)[0] for n, part in enumerate(parts)}
    names: dict[Path, str] = {}
    sources = []
    for number, part in enumerate(parts):
        file, kind, volume, total = split_source(part.source)
        stem = f"images/{case}" if len(outputs) == 1 else f"images/{case}_{number:04d}"
        if part.array is not None:
            name = stem + _written_suffix(file)
            written.append(out / name)
            write_voxels(part.array, part.grid, out / name, like=file)
            sources.append(name)
            continue
        if file not in names:
            names[file] = stem + volume_suffix(file)
            _copy(file, out / names[file], written)
        sources.append(join_source(names[file], kind, volume, total).as_posix() if kind else names[file])
    return sources


def _write_label(part: Part, case: str, out: Path, written: list[Path]) -> str:
    suffix = volume_suffix(part.source) if part.array is None else _written_suffix(part.source)
    name = f"labels/{case}{suffix}"
    if part.array is None:
        _copy(part.source, out / name, written)
    else:
        written.append(out / name)
        write_label_map(LabelMap(part.array, part.grid), out / name, like=part.source)
    return name


def _written_suffix(file: Path) -> str:
    """The original's ending, unless that format cannot hold every voxel type and grid, or is two files."""
    suffix = volume_suffix(file)
    return ".nii.gz" if suffix in PICTURE_SUFFIXES else ".mha" if suffix == ".mhd" else suffix


def _copy(file: Path, target: Path, written: list[Path]) -> None:
    """Copy byte by byte; no link, because a program that edits a file in place would change the original as well."""
    written.append(target)
    with atomic_path(target) as temporary:
        shutil.copyfile(file, temporary)


def _digest(task: RepairTask) -> str:
    """Hash of the case's files and of all that decides what is done with them."""
    hashes = []
    for file in task.case.files.files:
        try:
            hashes.append(file_hash(file))
        except OSError:  # said, with the reason, when the file's turn comes
            hashes.append("unreadable")
    return text_hash(_VERSION, repr(task.case), repr(task.channels), repr(task.rules), *hashes)


def _earlier(record: Path) -> dict[str, Any]:
    """What an earlier run noted; nothing if there is none, or it is damaged."""
    try:
        found = read_json(record)
    except VolsegError:
        return {}
    return found if isinstance(found, dict) else {}
