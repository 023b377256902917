"""Which files belong to a case, and which cases to a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.core.errors import DataError, sentence
from pipeline.core.files import file_hash
from pipeline.core.labels import LabelTable
from pipeline.core.paths import absence
from pipeline.data.volume_file import detached_files, join_source, split_source

Split = Literal["train", "validation"]
"""Part of a split that a dataset fixes itself."""


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
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    organs: tuple[tuple[int, Path], ...] = ()
    group: str | None = None
    soft: bool = False
    split: Split | None = None

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
    """

    name: str
    root: Path
    layout: str
    channels: tuple[str, ...]
    labels: LabelTable
    cases: tuple[CaseFiles, ...]
    tests: tuple[CaseFiles, ...] = ()

    def as_monai(self) -> list[dict[str, Any]]:
        """The labelled cases as MONAI's datasets take them, to be read by ``transforms(plan)``.

        Returns:
            ``id``, ``image`` (a source per channel, which may be one of a 4D file), ``label`` (the label map, or a
            source per organ), and ``group`` and ``split``, which a split of one's own must not tear apart.
        """
        return [
            {"id": f.id, "image": [*f.images], "label": f.label_sources, "group": f.group or "", "split": f.split or ""}
            for f in self.cases
        ]

    @property
    def is_ct(self) -> bool:
        """Whether every channel is CT, in Hounsfield units."""
        return all(channel.strip().upper() == "CT" for channel in self.channels)


def content_hashes(files: CaseFiles) -> list[str]:
    """Content hash of every file of a case, in the order of ``files``.

    Raises:
        DataError: If a file cannot be read.
    """
    hashes = []
    for path in files.files:
        try:
            hashes.append(file_hash(path))
        except OSError as error:
            got, advice = absence(path) or (f"an error ({error.strerror})", "Check path and permissions")
            raise DataError(sentence("file", "a readable file", got, advice, case=files.id, file=path)) from None
    return hashes
