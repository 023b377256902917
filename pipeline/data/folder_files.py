"""The volumes that a folder names, which of them are channels of one case, and what a folder holds instead."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from pipeline.core.errors import DataError, sentence
from pipeline.core.paths import entries, is_broken_link, is_named
from pipeline.data.dicom import is_dicom
from pipeline.data.volume_file import DICOM_SUFFIXES, unread_format, unread_suffix, volume_stem, volume_suffix

CHANNEL = re.compile(r"(.+)_(\d{4})$")
"""nnU-Net's names of channels, without the ending."""

_SHOWN = 8  # names quoted in a message
_LOOKED_AT = 500  # files that are looked at for a message

# What DVC and the iCloud keep in place of a file that was not fetched.
_PLACEHOLDER = re.compile(r"(?P<dvc>.+)\.dvc|\.(?P<icloud>.+)\.icloud")


def list_volumes(folder: Path, *, dicom_files: bool = False) -> list[Path]:
    """Every volume that a folder names, sorted by name; none if there is no such folder.

    What cannot be opened is listed too, so that its case is reported and never left out in silence: links to nowhere,
    folders named like volumes, files that DVC or the iCloud has not fetched, and formats that are not read, unless a
    volume of the same name that is read lies beside. Hidden files (``._x.nii.gz``) are left out. Where there is no
    other volume, folders that hold DICOM files count, and zip archives: beside volumes they are where these come from.

    Args:
        folder: The folder.
        dicom_files: Whether DICOM files count as folders of them do: each is a case, and no slice of a series.

    Raises:
        DataError: If the folder cannot be listed, for instance because it is a link to nowhere.
    """
    if not is_named(folder):
        return []
    names = [entry.name for entry in entries(folder, hidden=True)]
    left = {match["dvc"] or match["icloud"] for name in names if (match := _PLACEHOLDER.fullmatch(name))}
    names = sorted({*(name for name in names if name[0] != "."), *left})
    read = [folder / name for name in names if volume_suffix(name)]
    # Of a header and its voxels (x.hdr, x.img) the first is enough.
    unread = {volume_stem(name): folder / name for name in reversed(names) if unread_suffix(name)}
    if not unread and not read:
        below = [folder / name for name in names]
        endings = (".zip", *(DICOM_SUFFIXES if dicom_files else ()))
        return [path for path in below if (path.is_dir() or path.name.lower().endswith(endings)) and is_dicom(path)]
    if not unread:
        return read
    stems = {volume_stem(file) for file in read}
    return sorted([*read, *(file for stem, file in unread.items() if stem not in stems)])


def group_channels(files: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """Join ``case_0000.nii.gz`` and ``case_0001.nii.gz`` under ``case``; other names are cases of one channel.

    Raises:
        DataError: If two files claim the same channel of a case.
    """
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in files:
        match = CHANNEL.match(volume_stem(file))
        name, channel = (match[1], int(match[2])) if match else (volume_stem(file), 0)
        if channel in groups[name]:
            raise same_name(groups[name][channel], file)
        groups[name][channel] = file
    return dict(groups)


def by_name(
    files: Iterable[Path],
    name_of: Callable[[Path], str] = volume_stem,
    twice: Callable[[Path, Path], DataError] | None = None,
) -> dict[str, Path]:
    """Files by the name of their case; ``twice`` makes the error of two that have the same, by default ours.

    Raises:
        DataError: If there are two.
    """
    found: dict[str, Path] = {}
    for file in files:
        name = name_of(file)
        if name in found:
            raise (twice or same_name)(found[name], file)
        found[name] = file
    return found


def same_name(first: Path, second: Path) -> DataError:
    """Two files of one folder that claim the same place in a case."""
    got, advice = f"{first.name} and {second.name}", "Rename or remove one"
    return DataError(sentence("file names", "one file per case and channel", got, advice, file=second.parent))


def has_folder(path: Path) -> bool:
    """Whether there is a folder, or a link to one that is not there: listing it says so."""
    return path.is_dir() or is_broken_link(path)


def folder_holds(folder: Path) -> str:
    """The first few names in a folder, for messages; folders end in a slash."""
    found = entries(folder, hidden=True)
    ends = ("/" if entry.is_dir() else " (a link to nowhere)" if is_broken_link(entry) else "" for entry in found)
    names = [f"{entry.name}{end}" for entry, end in zip(found, ends, strict=True)]
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"a folder that holds {shown}{more}" if names else "an empty folder"


def or_unread(folder: Path, got: str, advice: str) -> tuple[str, str]:
    """What is said of a folder in which volumes were looked for in vain, and what to do.

    Args:
        folder: The folder. Volumes of formats that are not read are counted in it and in those below; if there are
            some, they are named, and the advice is how to convert them.
        got: What was found.
        advice: What to do if there are no such files.
    """
    kinds: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    files = (file for file in sorted(islice(folder.rglob("[!.]*"), _LOOKED_AT)) if not volume_suffix(file))
    for file in files:
        if found := unread_format(file):
            kinds[found] += 1
            first.setdefault(found, file.relative_to(folder).as_posix())
    if not kinds:
        return got, advice
    (kind, convert), number = kinds.most_common(1)[0]
    such = f"{got}; {number} files such as {first[kind, convert]} ({kind})"
    if kind == "DICOM":  # a dataset is more than a folder of them
        return such, "Put each series into a folder of images/, SEG or RTSTRUCT into labels/, or write a datalist.csv"
    return f"{such} are of a format that is not read", convert
