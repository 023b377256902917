"""Labels in DICOM: SEG and RTSTRUCT → a label map on the voxels of the image that they were made on.

Here they are opened, and the names of their segments become values; what names mean is said by the dataset, see
:func:`~pipeline.data.volume_file.labels_source`. :mod:`~pipeline.data.dicom_drawing` puts them on the voxels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import VolsegError, listed
from pipeline.core.files import file_hash, text_hash
from pipeline.core.grid import Grid, flip_world
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.dicom import Scan, inspect
from pipeline.data.dicom_drawing import UNBOUNDED, Drawing, Drawn, LabelFiles, Target
from pipeline.data.dicom_reader import (
    read_frame_places,
    read_label_object,
)
from pipeline.data.dicom_series import LabelObject, Series
from pipeline.data.reader_process import ReaderError
from pipeline.data.segment_names import SegmentNames, plain_name
from pipeline.data.volume_file import (
    ANY_SERIES,
    Doubt,
    VolumeError,
    checked_size,
    labels_content,
    refusal_of,
    refuse,
    split_source,
    wanted_series,
)

_LOOK = "Look at them with volseg inspect, and name one: #series=NUMBER behind the path"


@dataclass(frozen=True)
class Meaning:
    """What a dataset says of DICOM labels.

    Args:
        labels: Its label table.
        images: The images that they belong to, one source per channel; the first one's voxels count.
        names: Names of segments that are spelled otherwise than in the table → names of the table; None for segments
            that are left out.
    """

    labels: LabelTable
    images: tuple[Path, ...]
    names: Mapping[str, str | None] = field(default_factory=dict)

    def to_json(self, home: Path) -> dict[str, Any]:
        """For a source: images are named from the folder of the labels, so that a dataset can be moved."""
        images = [_relative(image, home) for image in self.images]
        return {"labels": self.labels.to_json(), "images": images, "names": dict(self.names)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], home: Path) -> Meaning:
        """Undo :meth:`to_json`.

        Raises:
            ValueError: If it was changed.
        """
        images, names = content.get("images"), content.get("names")
        if not isinstance(images, list) or not isinstance(names, Mapping) or not images:
            raise ValueError("labels: expected images and names, got something else. Open the dataset.")
        found = tuple(Path(os.path.normpath(home / str(image))) for image in images)
        return cls(LabelTable.from_json(content.get("labels") or {}), found, dict(names))


def _relative(image: Path, home: Path) -> str:
    try:
        return os.path.relpath(image, home)
    except ValueError:  # another drive
        return str(image.absolute())


@dataclass(frozen=True)
class LabelsRead:
    """What came out of DICOM labels.

    Args:
        label_map: On the image's grid.
        shared: Voxels of several segments that no value stands for together; they have the later one's.
        doubts: What was left out, and what should be looked at.
    """

    label_map: LabelMap
    shared: int
    doubts: tuple[Doubt, ...]


@dataclass(frozen=True)
class OpenedLabels(LabelFiles):
    """DICOM labels whose headers were read: one or several files.

    Args:
        path: Where they were found.
        archive: The zip archive that their files lie in.
        scan: All that was found there.
        case: Case id for messages.
        objects: Files and what they hold.
        facts: Of each, see :func:`~pipeline.data.dicom_label_objects.read_labels`.
        meaning: What the dataset says of them; None if nothing does.
    """

    objects: tuple[LabelObject, ...]
    facts: tuple[dict[str, Any], ...]
    meaning: Meaning | None

    @cached_property
    def names(self) -> tuple[dict[int, str], ...]:
        """Number → name of the segments of every file. These are texts of the files, and no part of a message."""
        return tuple({number: plain_name(name, number) for number, name in fact["segments"]} for fact in self.facts)

    def content_hash(self) -> str:
        """Hash of their files.

        Raises:
            VolumeError: If one cannot be read.
        """
        files = [self.archive] if self.archive else [Path(item.file) for item in self.objects]
        try:
            return text_hash(
                *(file_hash(file) for file in files), *(item.file for item in self.objects if self.archive)
            )
        except OSError as error:
            got = f"an error ({error.strerror})"
            raise self.refusal("unreadable", "files", "readable ones", got, "Copy them again") from None

    def read(self, target: Target) -> LabelsRead:
        """The label map on the voxels of an image.

        Raises:
            VolumeError: If the labels belong to another image, lie beside its voxels, or cannot be read.
        """
        assert self.meaning is not None  # asked only of labels of a dataset
        table = self.meaning.labels
        names = SegmentNames((*table.regions, *table.names.values()), self.meaning.names)
        organs, left = self._organs(names)
        drawn = self.draw(target, organs, left)
        found = [table.value_where(together) for together in drawn.organs]
        values = np.array([value for value, _ in found])
        array = values.astype(np.min_scalar_type(int(values.max())))[drawn.index]
        counts = np.bincount(drawn.index.ravel(), minlength=len(found))
        shared = sum(int(count) for count, (_, exact) in zip(counts, found, strict=True) if not exact)
        return LabelsRead(target.label_map(array), shared, drawn.doubts)

    def draw(self, target: Target, organs: Sequence[Mapping[int, str]], doubts: Iterable[Doubt] = ()) -> Drawn:
        """The organs that each voxel lies in.

        Args:
            target: The voxels.
            organs: Of every file, segment → organ; segments that are not there are left out.
            doubts: What is known already.

        Raises:
            VolumeError: As :meth:`read`.
        """
        checked_size(target.shape, 2, UNBOUNDED, False, self.path, self.case)
        drawing = Drawing(self, target, list(doubts))
        for n, (item, facts) in enumerate(zip(self.objects, self.facts, strict=True)):
            drawing.require_reference(facts)
            try:
                (drawing.contours if item.kind == "RTSTRUCT" else drawing.frames)(item, facts, organs[n])
            except ReaderError as error:
                raise self._unreadable(error) from None
            except ValueError as error:
                if isinstance(error, VolsegError):
                    raise
                raise refusal_of(f"{self.path}: {error}", "labels", self.case) from None
        return drawing.done()

    def own_label_map(self) -> LabelMap:
        """Labels without a dataset: of a SEG, its segments' numbers on the voxels of its own frames.

        Raises:
            VolumeError: If it is no SEG, its frames are no volume, or segments overlap.
        """
        if len(self.objects) > 1 or self.objects[0].kind == "RTSTRUCT":
            rule, got = "one SEG, or a dataset that names the image", listed(item.kind for item in self.objects)
            raise self.refusal("format", "labels", rule, got, "Give the dataset or a list of cases")
        item, facts = self.objects[0], self.facts[0]
        try:
            grid = _own_grid(read_frame_places(self.archive, item.file, facts["frames"]), facts)
        except ReaderError as error:
            raise self._unreadable(error) from None
        except ValueError as error:
            raise refusal_of(f"{self.path}: {error}", "labels", self.case) from None
        drawn = self.draw(Target(grid), [{number: str(number) for number in self.names[0]}])
        several = [together for together in drawn.organs if len(together) > 1]
        if several:
            advice = "Give the dataset: its label table says what overlaps mean"
            raise self.refusal("labels", "segments", "no overlap", "segments that overlap", advice)
        values = np.array([int(next(iter(together), "0")) for together in drawn.organs])
        return LabelMap(values.astype(np.min_scalar_type(int(values.max())))[drawn.index], grid)

    def _organs(self, names: SegmentNames) -> tuple[list[dict[int, str]], list[Doubt]]:
        """Of every file, segment → organ, and what is said of segments that are left out."""
        require_own_names(self)
        unknown = sum(not names.knows(name) for found in self.names for name in found.values())
        every = sum(map(len, self.names))
        advice = "Map their names in labels.json (dicom_names); volseg inspect --show-names lists them"
        if unknown == every and every:
            rule, got = "names of the label table", f"{every} others"
            raise self.refusal("dicom_names", "names of segments", rule, got, advice)
        organs = [
            {number: organ for number, name in found.items() if (organ := names.organ(name)) is not None}
            for found in self.names
        ]
        if not unknown:
            return organs, []
        numbers = listed(n for found in self.names for n, name in found.items() if not names.knows(name))
        got = f"{unknown} others (number {numbers})"
        rule, advice = "names of the label table", f"They are left out. {advice}"
        return organs, [Doubt("warning", "dicom_names", "names of segments", rule, got, advice)]

    def _unreadable(self, error: ReaderError) -> VolumeError:
        got = f"one that {error}" if error.fatal else str(error)
        if not error.fatal and (error.damaged or "ValueError" in got):
            return self.refusal("truncated", "labels", "a whole file", "a damaged one", "Export it again")
        return self.refusal("unreadable", "labels", "a file that can be read", got, "Copy or export it again")


def open_labels(source: Path | str, *, case: str | None = None) -> OpenedLabels:
    """Open DICOM labels.

    Args:
        source: A folder, archive, DICOMDIR or file, with the number or kind of a series or without; what a dataset says
            of the labels may be behind it. Without a series all SEG and RTSTRUCT there belong together.
        case: Case id for messages.

    Raises:
        VolumeError: If there are no labels, or they cannot be read.
    """
    inner, content = labels_content(source)
    path, wanted = split_source(inner)[0], wanted_series(inner)[0]
    try:
        meaning = Meaning.from_json(content, path.parent) if content else None
        scan = inspect(path)
    except VolumeError as error:
        raise refusal_of(error, error.code, case) from None
    except ValueError as error:
        raise refusal_of(f"{path}: {error}", "format", case) from None
    series = _chosen(scan, wanted, case)
    archive, objects = series[0].archive, tuple(item for found in series for item in found.labels)
    opened = OpenedLabels(path, archive, scan, case, objects, (), meaning)
    try:
        facts = tuple(read_label_object(archive, item.file) for item in objects)
    except ReaderError as error:
        raise opened._unreadable(error) from None
    return replace(opened, facts=facts)


def _chosen(scan: Scan, wanted: str, case: str | None) -> list[Series]:
    every = [series for series in scan.series if series.labels]
    if wanted.isdecimal():
        found = [series for series in every if series.number == int(wanted)]
    else:
        found = [series for series in every if wanted == ANY_SERIES or series.modality == wanted.upper()]
    if found:
        return found
    there = listed(f"{series.number} ({series.modality})" for series in scan.series)
    damaged = "; ".join(f"{count} files: {reason}" for reason, count in scan.damaged)
    got = f"series {there}" if there else damaged or "no DICOM file"
    rule = "a SEG or RTSTRUCT" if wanted == ANY_SERIES else f"labels in series {wanted}"
    advice = _LOOK if every else "Check the path"
    raise refuse("missing" if not there else "format", "labels", rule, got, advice, case=case, file=scan.path)


def require_own_names(labels: OpenedLabels) -> None:
    """Refuse files of which two have a segment of the same name: those of two readers, say.

    Raises:
        VolumeError: If there are such.
    """
    seen: set[str] = set()
    for number, names in enumerate(labels.names, start=1):
        if twice := seen & set(names.values()):
            got = f"{len(twice)} names of file {number} in another one, too"
            raise labels.refusal("dicom_names", "labels", "every name in one file", got, _LOOK)
        seen |= set(names.values())


def _own_grid(places: NDArray[np.float64], facts: Mapping[str, Any]) -> Grid:
    """The grid that the frames of a SEG lie on by themselves.

    Raises:
        ValueError: If they are no stack of slices.
    """
    if not np.isfinite(places[:, 1:]).all() or (np.ptp(places[:, 4:], axis=0) > 1e-4).any():
        raise ValueError("labels: expected frames along the same directions, got others. Give the dataset.")
    directions, (down, across) = places[0, 4:10].reshape(2, 3), places[0, 10:12]
    normal = np.cross(*directions)
    heights = np.unique(np.round(places[:, 1:4] @ normal, 4))
    gaps = np.diff(heights)
    step = float(gaps.min()) if len(gaps) else facts["thickness"]
    if len(gaps) and (np.abs(gaps / step - np.rint(gaps / step)) > 0.1).any():
        raise ValueError("labels: expected frames at even distances, got others. Give the dataset.")
    count = round(float(heights[-1] - heights[0]) / step) + 1
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = directions[0] * across, directions[1] * down, normal * step
    affine[:3, 3] = places[int((places[:, 1:4] @ normal).argmin()), 1:4]
    return Grid((facts["columns"], facts["rows"], count), flip_world(affine))
