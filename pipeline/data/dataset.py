"""Which files belong to a case, and which cases to a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.core.documents import short
from pipeline.core.errors import DataError, sentence
from pipeline.core.files import file_hash, text_hash
from pipeline.core.labels import LabelTable
from pipeline.core.paths import absence, utf8_name
from pipeline.data.detached_files import detached_bytes, detached_files
from pipeline.data.dicom import is_dicom, open_series
from pipeline.data.dicom_labels import open_labels
from pipeline.data.volume_file import join_source, split_source, volume_suffix

Split = Literal["train", "validation"]
"""Part of a split that a dataset fixes itself."""

_NUMBER = re.compile(r"[0-9]{1,4}")
_NAME_BYTES, _PATH_LENGTH = 255, 4000  # what file systems take


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case. They need not exist: ``volseg check`` reports what is missing.

    A channel that is one volume of a 4D file is named ``brain.nii.gz#channel=2of4``.

    Args:
        id: Name of the case.
        images: One source per channel, in channel order.
        label: Label map file, or None.
        organs: Instead of a label map: label value and binary mask file of every organ.
        group: What must not be split between training and validation, e.g. the patient; None if unknown.
        soft: The organ masks are soft maps: shares of agreement. The organ is where at least half agree.
        split: ``train`` or ``validation`` where the dataset itself fixes the split.
        fold: The fold in which it validates, where the dataset itself fixes the folds; None if it always trains.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    organs: tuple[tuple[int, Path], ...] = ()
    group: str | None = None
    soft: bool = False
    split: Split | None = None
    fold: int | None = None

    @property
    def labelled(self) -> bool:
        """Whether there is a reference."""
        return self.label is not None or bool(self.organs)

    @property
    def label_sources(self) -> tuple[Path, ...]:
        """What a reader of labels takes: the label map, or one ``organ.nii.gz#label=5`` per organ; empty without.

        Of soft maps it is ``organ.png#soft=5``.
        """
        if self.label is not None:
            return (self.label,)
        return tuple(join_source(path, "soft" if self.soft else "label", value) for value, path in self.organs)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file on disk, each once: images first, then the label map or the organ masks.

        A header whose voxels lie elsewhere, such as ``.mhd``, is followed by the files that hold them.
        """
        # Channels of a 4D file are one file, masks may be shared: a dictionary keeps each once, in order.
        headers = [split_source(source)[0] for source in (*self.images, *self.label_sources)]
        return tuple(dict.fromkeys(file for header in headers for file in (header, *detached_files(header))))


@dataclass(frozen=True)
class Dataset:
    """A dataset folder, opened.

    Args:
        name: Its name.
        root: Its folder.
        layout: How it is laid out: decathlon, nnunet, pairs, organs, drishti or datalist.
        channels: Name of every channel, e.g. ``("CT",)`` or ``("T1", "T2")``.
        labels: Label values and organ names.
        cases: Labelled cases, sorted by id.
        tests: Held-out or unlabelled cases, sorted by id; some may have labels.
        notes: What its description says and has no effect, or does not fit what is there; one sentence each.
    """

    name: str
    root: Path
    layout: str
    channels: tuple[str, ...]
    labels: LabelTable
    cases: tuple[CaseFiles, ...]
    tests: tuple[CaseFiles, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Make the name one that files, tables and pages can hold."""
        object.__setattr__(self, "name", utf8_name(self.name))

    def as_monai(self) -> list[dict[str, Any]]:
        """The labelled cases as MONAI's datasets take them, to be read by ``transforms(plan)``.

        Returns:
            ``id``, ``image`` (a source per channel, which may be one of a 4D file), ``label`` (the label map, or a
            source per organ), and ``group`` and ``split``, which a split of one's own must not tear apart; where the
            dataset fixes folds, ``fold``.
        """
        return [
            {"id": f.id, "image": [*f.images], "label": f.label_sources, "group": f.group or "", "split": f.split or ""}
            | ({} if f.fold is None else {"fold": f.fold})
            for f in self.cases
        ]

    @property
    def is_ct(self) -> bool:
        """Whether every channel is CT, in Hounsfield units."""
        return all(channel.strip().upper() == "CT" for channel in self.channels)


def own_split(cases: Iterable[CaseFiles]) -> dict[str, str | int | None] | None:
    """How a dataset itself splits its cases: case id → the fold, else the part; None where folds are to be drawn."""
    parts: dict[str, str | int | None] = {
        files.id: files.split if files.fold is None else files.fold for files in cases
    }
    fixed = any(part == "validation" or isinstance(part, int) for part in parts.values())
    return parts if fixed else None


def channels_in_order(found: Any) -> tuple[str, ...] | None:
    """Names of channels as people and other tools write them: ``"CT"``, a list, ``{"0": "CT"}`` or ``{"CT": 0}``.

    None if there are none.

    Raises:
        ValueError: If it is none of these, or numbers are missing.
    """
    if found in (None, "", [], {}):
        return None
    names: Any = [found] if isinstance(found, str) else found
    if isinstance(found, Mapping):
        numbers: dict[int, str] = {}
        for key, value in found.items():
            # What is no text cannot be a name; of two texts a key of digits is the number.
            number, name = (key, value) if isinstance(value, str) and _NUMBER.fullmatch(key) else (value, key)
            if isinstance(number, int | str) and not isinstance(number, bool) and _NUMBER.fullmatch(str(number)):
                numbers[int(number)] = name
        first = 0 if 0 in numbers else 1
        names = [numbers.get(n) for n in range(first, first + len(found))]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        rule = "names of channels, numbered from 0 without gaps"
        raise ValueError(f'expected {rule}, got {short(found)}. Write {{"0": "T1", "1": "T2"}}.')
    return tuple(names)


def possible_file(name: str) -> str:
    """A path of a list or of a command, as it is.

    Raises:
        DataError: If no file can have this name, whose look-up would end in an error of the system.
    """
    path = str(split_source(name)[0])  # what is behind it, of labels much, is no part of the file's name
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in path.split("/"))
    if not name.strip() or "\0" in name or longest > _NAME_BYTES or len(path) > _PATH_LENGTH:
        rule = f"a file name of at most {_NAME_BYTES} bytes between slashes"
        raise DataError(f"expected {rule}, got {short(name)}. Correct the name.")
    return name


def source_hash(path: Path, sources: Iterable[Path], case: str | None = None) -> str:
    """Content hash of a file, or of those series and labels of a DICOM folder, archive or file that some sources mean.

    Raises:
        DataError: If a series cannot be used.
        OSError: If the file cannot be read.
    """
    if volume_suffix(path) or not is_dicom(path):
        return file_hash(path)
    meant = [source for source in sources if split_source(source)[0] == path]
    hashes = [
        (open_labels if split_source(source)[1] == "labels" else open_series)(source, case=case).content_hash()
        for source in meant
    ]
    return hashes[0] if len(hashes) == 1 else text_hash(*hashes)


def content_hashes(files: CaseFiles) -> list[str]:
    """Content hash of every file of a case, in the order of ``files``.

    Raises:
        DataError: If a file cannot be read.
    """
    for source in (*files.images, *files.label_sources):
        detached_bytes(split_source(source)[0], files.id)  # voxels elsewhere are not even looked at
    hashes = []
    for path in files.files:
        try:
            hashes.append(source_hash(path, (*files.images, *files.label_sources), files.id))
        except OSError as error:
            got, advice = absence(path) or (f"an error ({error.strerror})", "Check path and permissions")
            raise DataError(sentence("file", "a readable file", got, advice, case=files.id, file=path)) from None
    return hashes
