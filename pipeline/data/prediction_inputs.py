"""Finding the cases to predict: files, folders, patterns, and lists of them.

Lists are ``dataset.json`` and MONAI's datalists, CSV, and text files with a path per line.
"""

from __future__ import annotations

import csv
import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.core.documents import require_regular
from pipeline.core.errors import DataError, listed, sentence
from pipeline.core.paths import absence, entries, is_named, located
from pipeline.data.dataset import CaseFiles, possible_file
from pipeline.data.descriptions import Description, nnunet_content, read_content
from pipeline.data.dicom import holds_dicom, is_dicom, is_one_study, with_modality
from pipeline.data.folder_files import folder_holds, group_channels, list_volumes, or_unread
from pipeline.data.layouts import read_entry, rgb_channels
from pipeline.data.volume_file import (
    LIST_SUFFIXES,
    RGB,
    VOLUME_SUFFIXES,
    checked_path,
    join_source,
    series_source,
    split_source,
    unread_words,
    volume_stem,
    volume_suffix,
)
from pipeline.data.volumes import open_header

_LIST_SUFFIXES = (*LIST_SUFFIXES, ".txt")

_HELD_OUT = ("test", "testing")
_OTHERS = ("cases", "training", "validation")
_IMAGE_COLUMN = re.compile(r"image(_\d+)?$")
_LOOKED_AT = 20  # folders beside volumes
_SEGMENTATION = ".seg.nrrd"  # beside the images where 3D Slicer was at work; no image itself


def read_list(path: Path, channels: int) -> tuple[list[Path], list[CaseFiles]]:
    """Read a list of images.

    A JSON file has them under ``test`` or ``testing``; where there is no such list, under ``training``, ``validation``
    or ``cases``, or it is itself a list. Entries are file names, or objects with ``image`` and perhaps ``case``. A CSV
    file with a column ``image`` (or ``image_1``, ``image_2``, …) has a case per row; if some rows say ``test`` under
    ``split``, only these. Other CSV files, and text files, hold a path per line; several channels have a ``;`` (in CSV
    a comma) between them. Files are relative to the list; those of a text file that are not there, to the current
    folder. They need not exist.

    Args:
        path: A ``.json``, ``.csv`` or ``.txt``.
        channels: Channels that the model wants.

    Returns:
        Files that are grouped to cases by their names, and cases.

    Raises:
        DataError: If it is no such list, or an entry names no image.
        VolsegError: If it cannot be read.
    """
    if path.suffix.lower() == ".json":
        return [], _cases(_entries(path), path, channels)
    rows = _rows(path)
    if path.suffix.lower() == ".csv" and any(_IMAGE_COLUMN.match(name.strip().lower()) for name in rows[0]):
        return [], _cases(_chosen(read_content(path)["cases"]), path, channels)
    if path.suffix.lower() == ".csv" and not volume_suffix(rows[0][0]):
        rule, advice = "a column called image, or a path in every line", "Correct the header line"
        raise DataError(sentence("list", rule, f"the columns {', '.join(rows[0])}", advice, file=path))
    found = [[str(_located(name, path)) for name in row] for row in rows]
    several = [{"image": row} for row in found if len(row) > 1]
    return [Path(row[0]) for row in found if len(row) == 1], _cases(several, path, channels)


def _entries(path: Path) -> list[Mapping[str, Any]]:
    """The entries of a JSON list that are to be predicted."""
    lists = read_content(path)
    held_out, others = ([entry for name in names for entry in lists.get(name) or []] for names in (_HELD_OUT, _OTHERS))
    found = held_out or _chosen(others)
    if not found and isinstance(lists.get("dataset"), Mapping):  # nnU-Net's own list has no held-out cases
        listed = nnunet_content(Description(path.parent, path, lists))["dataset"]
        found = [{"case": name, "image": listed[name]["images"]} for name in listed]
    if not found:
        rule = f"a list of images under {', '.join((*_HELD_OUT, *_OTHERS))}"
        got = "an empty list" if set(lists) == {"cases"} else f"the keys {', '.join(lists) or 'none'}"
        raise DataError(sentence("list", rule, got, "Add one, or give the folder of the images", file=path))
    return found


def _chosen(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those whose ``split`` is ``test``, if there are any."""
    split = [(entry.get("split") or "").lower() for entry in entries]
    return [entry for entry, part in zip(entries, split, strict=True) if part == "test" or "test" not in split]


def _cases(entries: Sequence[Mapping[str, Any]], path: Path, channels: int) -> list[CaseFiles]:
    source = Description(path.parent, path, {})
    found = [read_entry(entry, source, channels, f"entry {number}") for number, entry in enumerate(entries, start=1)]
    return [CaseFiles(case.id, case.images) for case in found]  # the label map of a case is no input


def _rows(path: Path) -> list[list[str]]:
    """The filled cells of every line of a CSV or text file that has some and is no comment."""
    require_regular(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix.lower() == ".csv":
                lines = list(csv.reader(stream))
            else:
                lines = [line.split(";") for line in stream if not line.lstrip().startswith("#")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        got, advice = f"an error ({error})", "Save it as plain text"
        raise DataError(sentence("list", "UTF-8 text", got, advice, file=path)) from None
    rows = [row for row in ([cell.strip() for cell in line if cell.strip()] for line in lines) if row]
    if not rows:
        raise DataError(sentence("list", "a path in every line", "an empty file", "Add the images", file=path))
    return rows


def _located(name: str, file: Path) -> Path:
    try:
        beside, here = located(file.parent, possible_file(name)), located(Path(), name)
    except DataError as error:
        raise DataError(f"{file}: list: {error}") from None
    return here.absolute() if not is_named(beside) and is_named(here) else beside


@dataclass(frozen=True)
class DicomWanted:
    """Which series of a DICOM input are predicted.

    Args:
        channels: Names of the model's channels; the only series of their modality is taken.
        series: Instead of it one series per channel, by number or modality.
        allow_gaps: Whether slices that are missing, or unevenly spaced, are interpolated.
    """

    channels: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    allow_gaps: bool = False

    def __post_init__(self) -> None:
        """Refuse what is neither a number nor a modality: it could not be named behind a path."""
        named = {series: series_source(Path("study"), series, allow_gaps=True) for series in self.series}
        wrong = [series for series, source in named.items() if not split_source(source)[1]]
        if wrong:
            rule = "numbers or modalities, such as 2 or CT"
            raise DataError(sentence("series", rule, listed(wrong), "volseg inspect lists them"))

    def sources(self, file: Path, channels: int) -> tuple[tuple[Path, ...], str]:
        """Sources of the channels of a case, and why there are none or an empty text."""
        if split_source(file)[1] and channels == 1:
            return (file,), ""
        gaps = self.allow_gaps
        if len(self.series) == channels:
            return tuple(series_source(file, series, allow_gaps=gaps) for series in self.series), ""
        if channels == 1 and not self.series:
            return (with_modality(file, self.channels[0] if self.channels else "", allow_gaps=gaps),), ""
        got = f"{len(self.series)} of {listed(self.series)}" if self.series else "none"
        advice = "Give --series NUMBER,NUMBER, in the order of the channels; volseg inspect has the numbers"
        case, rule = volume_stem(file), f"{channels}, one per channel"
        return (file,), sentence("series", rule, got, advice, case=case, file=file)


@dataclass(frozen=True)
class Inputs:
    """What was found to predict.

    Args:
        cases: Cases without references, sorted by id.
        failed: Case id and one sentence for every case whose channels are not there.
        notes: Sentences on files that are left out, or may be meant otherwise.
    """

    cases: tuple[CaseFiles, ...]
    failed: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def find_inputs(paths: Sequence[Path | str], channels: int, dicom: DicomWanted | None = None) -> Inputs:
    """Find the cases to predict.

    With several channels, files ``case_0000.nii.gz``, ``case_0001.nii.gz``, … form a case, and a 4D file with that
    many volumes or, if they are three, a colour picture is one. With one channel every file is a case, named as the
    file; only if all of them end in ``_0000`` (nnU-Net's names) is this number left off, as with colour pictures. A
    folder stands for the volumes directly in it, without 3D Slicer's ``.seg.nrrd``. A folder of DICOM files is a case,
    and so is a zip archive of them; a folder of such folders holds a case in each, unless all are of one study. A
    pattern such as ``scans/*.nii.gz`` or ``**/ct.nii.gz`` stands for the volumes and folders that match; for lists see
    :func:`~pipeline.data.prediction_inputs.read_list`.

    Args:
        paths: Files, folders, patterns and lists.
        channels: Channels that the model wants.
        dicom: Which series of DICOM inputs are wanted; by default the only one that can be used.

    Raises:
        DataError: If a path does not exist or holds no volume, or two inputs have the same name.
        VolsegError: If a list cannot be read.
    """
    files: dict[Path, None] = {}
    named: list[CaseFiles] = []
    for path in paths:
        more, cases = _expanded(Path(path), channels)
        files |= dict.fromkeys(more)
        named += cases
    if not files and not named:
        raise DataError(sentence("inputs", "at least one volume", "none", "Give files or folders"))
    wanted = dicom or DicomWanted()
    series = [file for file in files if not volume_suffix(file) and is_dicom(split_source(file)[0])]
    found = _grouped([file for file in files if file not in series], channels)
    found += [(volume_stem(file), *wanted.sources(file, channels)) for file in series]
    for case in named:
        images, problem = case.images, ""
        if len(images) == 1 and not volume_suffix(images[0]) and is_dicom(split_source(images[0])[0]):
            images, problem = wanted.sources(images[0], channels)
        found.append((case.id, images, problem))
    checked = _checked(found, channels)
    left = [note for path in map(Path, paths) if path.is_dir() and (note := _left_out(path, files))]
    return replace(checked, notes=(*checked.notes, *left))


def _left_out(folder: Path, files: Mapping[Path, None]) -> str:
    """A sentence on DICOM folders that lie beside volumes, which are taken instead of them; else an empty text."""
    if not any(file.parent == folder and volume_suffix(file) for file in files):
        return ""
    below = islice((entry for entry in entries(folder) if entry.is_dir()), _LOOKED_AT)
    study = next((entry for entry in below if holds_dicom(entry)), None)
    got, advice = "" if study is None else f"DICOM files in {study.name}, too", "Give their folder to predict them"
    return sentence("inputs", "one kind of images", got, f"The volumes are taken. {advice}", file=folder) if got else ""


def _checked(found: Sequence[tuple[str, tuple[Path, ...], str]], channels: int) -> Inputs:
    """Cases by name, each once, with as many channels as are wanted."""
    by_name: dict[str, tuple[Path, ...]] = {}
    failed: list[tuple[str, str]] = []
    notes: list[str] = []
    for name, images, problem in found:
        # The same file may be named twice, by a pattern and by its path.
        if name in by_name and [path.absolute() for path in by_name[name]] != [path.absolute() for path in images]:
            got = f"{by_name[name][0]} and {images[0]}"
            advice = "Rename one, name the cases in a list (case,image), or predict them into different folders"
            raise DataError(sentence("inputs", "one input per name", got, advice, case=name))
        if name in by_name:
            continue
        by_name[name] = images
        if not problem and len(images) < channels:
            got, advice = ", ".join(path.name for path in images), "Name one file per channel"
            problem = sentence("channels", f"{channels} files", got, advice, case=name)
        problem = problem or _unread(name, images)
        if problem:
            failed.append((name, problem))
        elif len(images) > channels:
            surplus = ", ".join(path.name for path in images[channels:])
            notes.append(f"case {name}: expected {channels} channels, got more. Left out: {surplus}.")
    lost = {name for name, _ in failed}
    cases = (CaseFiles(name, by_name[name][:channels]) for name in sorted(set(by_name) - lost))
    return Inputs(tuple(cases), tuple(sorted(failed)), (*notes, *_doubts(by_name, channels)))


def _unread(case: str, images: Sequence[Path]) -> str:
    """Why an image with an ending of another format is refused; empty if there is none."""
    try:
        for file in (split_source(source)[0] for source in images):
            if not volume_suffix(file) and not is_dicom(file):
                checked_path(file, case)
    except DataError as error:
        return str(error)
    return ""


def _doubts(by_name: Mapping[str, tuple[Path, ...]], channels: int) -> tuple[str, ...]:
    """Whether cases of one channel look like channels of a case."""
    numbered = [name for name in sorted(by_name) if name.endswith("_0000")]
    # A model of one channel may have been given folders made for several.
    twins = [f"{name[:-1]}1" for name in numbered if f"{name[:-1]}1" in by_name]
    if channels != 1 or not twins:
        return ()
    first = twins[0]
    return (
        f"case {first}: expected one channel, got a name like that of a second channel of {first[:-5]}_0000. "
        f"Each file was taken for a case of its own; give only the files that end in _0000 if they are channels.",
    )


def _expanded(path: Path, channels: int) -> tuple[list[Path], list[CaseFiles]]:
    """Files, and cases of a list, that an argument stands for."""
    if not is_named(path) and glob.has_magic(str(path)):
        return _matching(path), []
    if split_source(path)[1] == "series" and is_dicom(split_source(path)[0]):
        return [path], []
    gone = absence(path)
    # A shell that expands scans/* names links to nowhere too: each is a case, which is reported beside the others.
    if gone and is_named(path) and volume_suffix(path):
        return [path], []
    if gone:
        raise DataError(sentence("input", "an existing file or folder", *gone, file=path))
    if path.is_dir():
        found = _in_folder(path)
        if not found:
            rule, advice = f"volumes ({', '.join(VOLUME_SUFFIXES)})", "Check the path, or convert the files to NIfTI"
            raise DataError(sentence("input", rule, *or_unread(path, folder_holds(path), advice), file=path))
        return found, []
    if path.suffix.lower() in _LIST_SUFFIXES:
        files, cases = read_list(path, channels)
        return [inner for file in files for inner in (_in_folder(file) if file.is_dir() else [file])], cases
    if not volume_suffix(path) and not is_dicom(path):
        rule = f"a name ending in {', '.join((*VOLUME_SUFFIXES, *_LIST_SUFFIXES))}"
        raise DataError(sentence("input", rule, *unread_words(path), file=path))
    return [path], []


def _matching(pattern: Path) -> list[Path]:
    """Volumes that match a pattern, and those in matching folders."""
    found_names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
    matches = [Path(name) for name in sorted(found_names)]
    found = [inner for match in matches if match.is_dir() for inner in _in_folder(match)]
    # Of the files those that their folder lists as volumes.
    files = {match for match in matches if not match.is_dir()}
    found += [file for folder in {match.parent for match in files} for file in _images(folder) if file in files]
    if not found:  # beside volumes they may be anything
        found = [file for file in sorted(files) if is_dicom(file)]
    if not found:
        got = f"{len(matches)} files and folders without any" if matches else "nothing that matches"
        raise DataError(sentence("pattern", "at least one volume", got, "Check the pattern", file=pattern))
    return sorted(set(found))


def _in_folder(folder: Path) -> list[Path]:
    """The volumes of a folder; the folder itself if it is a DICOM study."""
    found = _images(folder)
    if not found:
        return [folder] if holds_dicom(folder, deep=False) else []
    return [folder] if is_one_study(found) else found


def _images(folder: Path) -> list[Path]:
    return [file for file in list_volumes(folder) if volume_suffix(file) != _SEGMENTATION]


def _grouped(files: Sequence[Path], channels: int) -> list[tuple[str, tuple[Path, ...], str]]:
    """Case id, sources of its channels, and why they cannot be used or an empty text."""
    # Names such as case_0000 may be whole names: the number is left off only where every file has it.
    if channels == 1 and not all(volume_stem(file).endswith("_0000") for file in files):
        return [(volume_stem(file), (file,), "") for file in files]
    found: list[tuple[str, tuple[Path, ...], str]] = []
    for folder in dict.fromkeys(file.parent for file in files):
        members = [file for file in files if file.parent == folder]
        if channels == len(RGB):
            pictures = {file: colours for file in members if (colours := rgb_channels(file))}
            # nnU-Net's names of colour pictures; others may end in four digits of their own.
            ending = "_0000" if all(volume_stem(file).endswith("_0000") for file in pictures) else ""
            found += [(volume_stem(file).removesuffix(ending), colours, "") for file, colours in pictures.items()]
            members = [file for file in members if file not in pictures]
        for name, parts in group_channels(members).items():
            try:
                found.append((name, _channels(name, parts, channels), ""))
            except DataError as error:  # one bad case never ends a batch
                found.append((name, tuple(parts.values()), str(error)))
    return found


def _channels(name: str, found: Mapping[int, Path], channels: int) -> tuple[Path, ...]:
    """One source per channel of a case; files of further channels come last."""
    wanted = range(channels)
    if set(found) >= set(wanted):
        return tuple(found[n] for n in sorted(found))
    file = next(iter(found.values()))
    if len(found) == 1 and volume_stem(file) == name and open_header(file, case=name).volumes == channels:
        return tuple(join_source(file, "channel", n + 1, channels) for n in wanted)
    numbers = ", ".join(f"_{n:04d}" for n in wanted)
    got = ", ".join(path.name for path in found.values())
    advice = "Give one file per channel, in the order of the training data"
    rule = f"{channels} files ending in {numbers}"
    raise DataError(sentence("channels", rule, got, advice, case=name, file=file.parent))
