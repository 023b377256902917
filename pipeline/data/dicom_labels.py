"""Labels in DICOM: SEG and RTSTRUCT → a label map on the voxels of the image that they were made on.

Frames of a SEG lie anywhere: some slices of the image, in any order, along other axes. Each is put where its position
and directions say, and refused if its pixels are not those of the image. Contours are filled in the plane of the slices
that they lie on. What names of segments mean is said by the dataset, see
:func:`~pipeline.data.volume_file.labels_source`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from pipeline.data.contours import filled
from pipeline.data.dicom import OpenedSeries, Scan, inspect
from pipeline.data.dicom_reader import (
    read_contour_points,
    read_frame_places,
    read_label_object,
    read_plane_labels,
)
from pipeline.data.dicom_series import POSITION_TOLERANCE_MM, LabelObject, Series
from pipeline.data.overlaps import Combination, Overlaps
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

_NEAR = 0.25  # of the distance between voxels: how far from them pixels and contours may lie; pixels also at most
# POSITION_TOLERANCE_MM
_UNIT_TOLERANCE = 2e-3  # of directions, as those of slices
_UNBOUNDED = 1 << 62
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
class Target:
    """The voxels that labels are put on.

    Args:
        grid: Grid of the image.
        series: The series that it is, of every channel that is DICOM.
        on_slices: The first of them if its slices are not simply those of the grid: tilted, or not all there.
    """

    grid: Grid
    series: tuple[OpenedSeries, ...] = ()
    on_slices: OpenedSeries | None = None

    @classmethod
    def of(cls, grid: Grid, channels: Sequence[OpenedSeries | None]) -> Target:
        """The target that an image is, of whose channels some may be DICOM."""
        first = channels[0]
        plain = first is None or (first.stack.regular and not first.stack.tilted)
        return cls(grid, tuple(series for series in channels if series is not None), None if plain else first)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Voxels that labels are drawn on: those of the grid, or the pixels of the slices."""
        if self.on_slices is None:
            return self.grid.shape
        return (*self.on_slices.stack.size, len(self.on_slices.series.planes))

    @cached_property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Distance between these voxels."""
        return np.array(self.grid.spacing_mm)

    def voxels(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fractional voxels (N, 3) of positions (N, 3), LPS in mm."""
        if self.on_slices is None:
            return self.grid.to_voxel(positions * [-1, -1, 1])
        stack = self.on_slices.stack
        first = np.array([plane.position for plane in self.on_slices.series.planes])
        heights, wanted = first @ stack.normal, positions @ stack.normal
        after = np.clip(np.searchsorted(heights, wanted), 1, len(heights) - 1)
        nearest = after - (wanted - heights[after - 1] < heights[after] - wanted)
        beside = (positions - first[nearest]) @ stack.axes / stack.spacing_mm
        return np.column_stack([beside, nearest + (wanted - heights[nearest]) / self.spacing_mm[2]])

    def slice_instances(self) -> tuple[str, ...]:
        """Identifier of the image that each slice along the last axis is; empty if the image is not DICOM."""
        source = self.on_slices or (self.series[0] if self.series else None)
        planes = () if source is None else source.series.planes
        return tuple(plane.sop for plane in planes) if len(planes) == self.shape[2] else ()

    def label_map(self, drawn: NDArray[np.integer[Any]]) -> LabelMap:
        """Labels on the grid of labels (I, J, K) on :attr:`shape`."""
        return LabelMap(drawn if self.on_slices is None else self.on_slices.from_slices(drawn.T), self.grid)


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
class OpenedLabels:
    """DICOM labels whose headers were read: one or several files.

    Args:
        path: Where they were found.
        archive: The zip archive that their files lie in.
        objects: Files and what they hold.
        facts: Of each, see :func:`~pipeline.data.dicom_label_objects.read_labels`.
        scan: All that was found there.
        meaning: What the dataset says of them; None if nothing does.
        case: Case id for messages.
    """

    path: Path
    archive: Path | None
    objects: tuple[LabelObject, ...]
    facts: tuple[dict[str, Any], ...]
    scan: Scan
    meaning: Meaning | None
    case: str | None = None

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
            raise self._refusal("unreadable", "files", "readable ones", got, "Copy them again") from None

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
        checked_size(target.shape, 2, _UNBOUNDED, False, self.path, self.case)
        drawing = _Drawing(self, target, list(doubts))
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
            raise self._refusal("format", "labels", rule, got, "Give the dataset or a list of cases")
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
            raise self._refusal("labels", "segments", "no overlap", "segments that overlap", advice)
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
            raise self._refusal("dicom_names", "names of segments", rule, got, advice)
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

    def _refusal(self, code: str, what: str, expected: str, got: object, advice: str) -> VolumeError:
        return refuse(code, what, expected, got, advice, case=self.case, file=self.path)

    def _unreadable(self, error: ReaderError) -> VolumeError:
        got = f"one that {error}" if error.fatal else str(error)
        if not error.fatal and (error.damaged or "ValueError" in got):
            return self._refusal("truncated", "labels", "a whole file", "a damaged one", "Export it again")
        return self._refusal("unreadable", "labels", "a file that can be read", got, "Copy or export it again")


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
    opened = OpenedLabels(path, archive, objects, (), scan, meaning, case)
    try:
        facts = tuple(read_label_object(archive, item.file) for item in objects)
    except ReaderError as error:
        raise opened._unreadable(error) from None
    return OpenedLabels(path, archive, objects, facts, scan, meaning, case)


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
            raise labels._refusal("dicom_names", "labels", "every name in one file", got, _LOOK)
        seen |= set(names.values())


@dataclass(frozen=True)
class Drawn:
    """Organs as they were drawn.

    Args:
        index: (I, J, K) on the target's shape, positions in ``organs``.
        organs: The organs that are together in a voxel; the first is none.
        doubts: What was left out, and what should be looked at.
    """

    index: NDArray[np.uint16]
    organs: tuple[frozenset[str], ...]
    doubts: tuple[Doubt, ...]


class _Drawing:
    """Segments and contours, one file after the other, on the voxels of an image."""

    def __init__(self, labels: OpenedLabels, target: Target, doubts: list[Doubt]) -> None:
        self.labels, self.target, self.doubts = labels, target, doubts
        self.overlaps = Overlaps(target.shape[::-1])
        self.organs: dict[str, int] = {}

    def done(self) -> Drawn:
        names = list(self.organs)
        organs = tuple(frozenset(names[n] for n in together) for together in self.overlaps.combinations)
        return Drawn(self.overlaps.index.T, organs, tuple(dict.fromkeys(self.doubts)))

    def _number(self, organ: str) -> int:
        return self.organs.setdefault(organ, len(self.organs))

    def _refusal(self, code: str, what: str, expected: str, got: object, advice: str) -> VolumeError:
        return self.labels._refusal(code, what, expected, got, advice)

    def _doubt(self, severity: str, code: str, expected: str, got: str, advice: str) -> None:
        kind: Any = severity
        self.doubts.append(Doubt(kind, code, "DICOM labels", expected, got, advice))

    def require_reference(self, facts: Mapping[str, Any]) -> None:
        """Refuse labels of another series or frame of reference than the image's."""
        series = self.target.series
        if not series:
            return
        advice = "Give the labels of this image, or the image that they were made on"
        own = [uid for opened in series if (uid := opened.series.uids["series"])]
        if facts["series"] and own and not set(facts["series"]) & set(own):
            rule = f"a reference to series {listed(map(self._told, own))}, the image's"
            got = f"one to series {listed(map(self._told, facts['series']))}"
            raise self._refusal("dicom_reference", "labels", rule, got, advice)
        frame, frames = series[0].series.uids["frame_of_reference"], facts["frames_of_reference"]
        if frame and frames and frame not in frames:
            rule = f"frame of reference {frame} of series {self._told(own[0]) if own else 'the image'}"
            where = f" of series {listed(map(self._told, facts['series']))}" if facts["series"] else ""
            raise self._refusal("dicom_reference", "labels", rule, f"{listed(frames)}{where}", advice)
        images = {plane.sop for opened in series for plane in opened.series.planes} - {""}
        strange = facts["instances"] and images and not images & set(facts["instances"])
        if strange and not (facts["series"] and own):
            got = f"references to {len(facts['instances'])} others"
            raise self._refusal("dicom_reference", "labels", "references to the image's slices", got, advice)
        if not (facts["series"] and own) and not (facts["instances"] and images):
            got, advice = "none", "They are put where their positions say"
            self._doubt("note", "dicom_reference", "a reference to the image's series", got, advice)

    def _told(self, uid: str) -> str:
        """An identifier of a series, and its number where it is known."""
        scans = (self.labels.scan, *(inspect(opened.path) for opened in self.target.series))
        found = (series for scan in scans for series in scan.series if series.uids["series"] == uid)
        known = next(found, None)
        return uid if known is None else f"{uid} ({known.modality}, number {known.number})"

    # Frames of a SEG.

    def frames(self, item: LabelObject, facts: Mapping[str, Any], organs: Mapping[int, str]) -> None:
        """Add the segments of a SEG."""
        places = read_frame_places(self.labels.archive, item.file, facts["frames"])
        if facts["kind"] == "FRACTIONAL":
            got = f"shares, of {facts['maximum']} at most"
            advice = f"Voxels of at least {-(-facts['maximum'] // 2)} belong to a segment"
            self._doubt("note", "dicom_fractional", "in or out", got, advice)
        segments, planes, geometry = self._planes(places, facts, organs)
        if max(planes, default=-1) < 0:
            return
        shape = facts["rows"], facts["columns"]
        if facts["plain"] and facts["bits"] * facts["frames"] * shape[0] * shape[1] > 8 * facts["bytes"]:
            got, advice = f"a file of {facts['bytes']} bytes", "Copy or export it again"
            rule = f"{facts['frames']} frames of {shape[0]} x {shape[1]} pixels"
            raise self._refusal("truncated", "labels", rule, got, advice)
        checked_size((*shape, max(planes) + 1), 2, _UNBOUNDED, False, self.labels.path, self.labels.case)
        found, together = read_plane_labels(self.labels.archive, item.file, planes, segments, shape)
        # What is left out, and the background, is no mask; segments of one organ are one.
        combinations: list[Combination] = [
            tuple(sorted({self._number(organs[n]) for n in combination if n in organs})) for combination in together
        ]
        empty = np.array([not combination for combination in combinations])
        lost = 0
        for plane, place in enumerate(geometry):
            pixels = np.where(empty[found[plane]], 0, found[plane])
            lost += self._put(pixels, place, combinations)
        if lost:
            got, advice = f"{lost} labelled voxels outside it", "Give all slices of the image"
            raise self._refusal("label_grid", "labels", "labels within the image", got, advice)

    def _planes(
        self, places: NDArray[np.float64], facts: Mapping[str, Any], organs: Mapping[int, str]
    ) -> tuple[list[int], list[int], list[_Place]]:
        """Segment and plane of every frame, -1 if it is left out, and where the planes lie."""
        if not np.isfinite(places[:, 1:]).all():
            got = f"{int((~np.isfinite(places[:, 1:]).all(axis=1)).sum())} frames without"
            advice = "Export it with positions in the patient"
            raise self._refusal("labels", "labels", "position, directions and spacing of frames", got, advice)
        single = facts["kind"] == "LABELMAP"
        described = {number for number, _ in facts["segments"]}
        if not single and not set(places[:, 0]) <= described:
            got, advice = "others", "Export it again"
            raise self._refusal("labels", "labels", "frames of the segments that are described", got, advice)
        segments = [0 if single else int(number) for number in places[:, 0]]
        wanted = [single or number in organs for number in segments]
        # Rounded: the same slice may be told in other digits for another segment.
        planes, number = np.unique(np.round(places[wanted, 1:], 4), axis=0, return_inverse=True)
        kept = iter(number.ravel().tolist())
        frames = [next(kept) if take else -1 for take in wanted]
        pairs = [pair for pair in zip(frames, segments, strict=True) if pair[0] >= 0]
        if len(set(pairs)) < len(pairs):
            got, advice = f"{len(pairs) - len(set(pairs))} more", "Export it again"
            raise self._refusal("labels", "labels", "one frame of a segment at a position", got, advice)
        return segments, frames, [self._place(plane, facts) for plane in planes]

    def _place(self, plane: NDArray[np.float64], facts: Mapping[str, Any]) -> _Place:
        """Where a frame of given position, orientation and spacing lies among the voxels.

        Raises:
            VolumeError: If its pixels are no voxels of the image.
        """
        position, directions, (down, across) = plane[:3], plane[3:9].reshape(2, 3), plane[9:11]
        columns, rows = (max(facts[name] - 1, 1) for name in ("columns", "rows"))
        corners = position + np.array([[0, 0, 0], across * columns * directions[0], down * rows * directions[1]])
        lengths = np.linalg.norm(directions, axis=1)
        if (np.abs(lengths - 1) > _UNIT_TOLERANCE).any() or min(down, across) <= 0:
            got, advice = "others", "Export it again"
            raise self._refusal("labels", "labels", "unit vectors and a spacing above 0 of frames", got, advice)
        voxels = self.target.voxels(corners)
        ways = voxels[1:] - voxels[0]
        axes = np.abs(ways * self.target.spacing_mm).argmax(axis=1)
        expected = np.tile(np.rint(voxels[0]), (3, 1))
        for way, (axis, count) in enumerate(zip(axes, (columns, rows), strict=True)):
            expected[way + 1, axis] += np.sign(ways[way, axis]) * count
        off = np.abs(voxels - expected) * self.target.spacing_mm
        near = (off <= np.minimum(POSITION_TOLERANCE_MM, _NEAR * self.target.spacing_mm)).all()
        if axes[0] == axes[1] or not near:
            size = " x ".join(f"{mm:.4g}" for mm in self.target.spacing_mm)
            rule = f"pixels of frames on voxels of the image ({size} mm) within {POSITION_TOLERANCE_MM:g} mm"
            got = f"pixels of {across:.4g} x {down:.4g} mm, up to {off.max():.3g} mm beside them"
            advice = "Export the labels on the image's own grid, or drop the case"
            raise self._refusal("label_grid", "labels", rule, got, advice)
        signs = [int(np.sign(ways[n, axes[n]])) for n in (0, 1)]
        start = [int(n) for n in expected[0]]
        return _Place((start[0], start[1], start[2]), (int(axes[0]), int(axes[1])), (signs[0], signs[1]))

    def _put(self, pixels: NDArray[np.uint16], place: _Place, combinations: Sequence[Combination]) -> int:
        """Add a frame (rows, columns); gives how many labelled pixels lie outside the image."""
        (across, down), shape = place.axes, self.target.shape
        depth = 3 - across - down
        index: list[Any] = [0, 0, 0]
        cut: list[slice] = []
        for axis, sign, count in ((down, place.signs[1], pixels.shape[0]), (across, place.signs[0], pixels.shape[1])):
            start = place.start[axis] - (count - 1 if sign < 0 else 0)
            low, high = max(0, -start), max(0, min(count, shape[axis] - start))
            index[2 - axis] = slice(start + low, start + max(low, high))
            cut.append(slice(low, max(low, high)))
        turned = pixels[:: place.signs[1], :: place.signs[0]]
        inside = turned[tuple(cut)] if 0 <= place.start[depth] < shape[depth] else turned[:0]
        if inside.size:
            index[2 - depth] = place.start[depth]
            part = self.overlaps.index[tuple(index)]
            # Axes of the array come in the order k, j, i.
            self.overlaps.add(part, inside if down > across else inside.T, combinations)
        return int(np.count_nonzero(pixels)) - int(np.count_nonzero(inside))

    # Contours of an RTSTRUCT.

    def contours(self, item: LabelObject, facts: Mapping[str, Any], organs: Mapping[int, str]) -> None:
        """Add the structures of an RTSTRUCT."""
        column = {name: np.array(values, np.int64) for name, values in facts["contours"].items()}
        total = int(column["points"].sum())
        points = read_contour_points(self.labels.archive, item.file, total)
        wanted = np.isin(column["segment"], list(organs))
        closed = (column["closed"] == 1) & (column["points"] > 0)
        if (wanted & ~closed).any():
            got = f"{int((wanted & ~closed).sum())} lines, points or empty ones"
            self._doubt("warning", "rtstruct_open", "closed contours", got, "They are left out")
        if not (wanted & closed).any():
            return
        corners = self.target.voxels(points) if total else points
        ends = np.cumsum(column["points"])
        found = [
            _Contour(
                int(column["segment"][n]), int(column["instance"][n]), corners[ends[n] - column["points"][n] : ends[n]]
            )
            for n in np.flatnonzero(wanted & closed)
        ]
        gaps = 0
        for segment, organ in organs.items():
            own = [contour for contour in found if contour.segment == segment]
            gaps += self._fill(own, organ, facts["instances"]) if own else 0
        if gaps:
            advice = "Nothing to do if the parts lie apart; interpolate the contours in the planning system otherwise"
            rule = "contours on all slices between the first and the last of an organ"
            self._doubt("note", "rtstruct_gaps", rule, f"{gaps} slices without", advice)

    def _fill(self, contours: Sequence[_Contour], organ: str, instances: Sequence[str]) -> int:
        """Fill the contours of a structure, slice by slice; gives how many slices between have none."""
        axis = self._axis(contours)
        slices: dict[int, list[_Contour]] = {}
        for contour in contours:
            slices.setdefault(contour.slice(axis), []).append(contour)
        outside = [n for n in slices if not 0 <= n < self.target.shape[axis]]
        if outside:
            got = f"contours on {len(outside)} slices outside it"
            raise self._refusal("label_grid", "labels", "contours on the image's slices", got, "Give all its slices")
        self._require_slices(slices, axis, instances)
        x, y = (n for n in range(3) if n != axis)
        size = self.target.shape[y], self.target.shape[x]
        for n, found in slices.items():
            box, mask = filled([contour.corners[:, (x, y)] for contour in found], size)
            index: list[Any] = [slice(None)] * 3
            index[2 - axis] = n
            part = self.overlaps.index[tuple(index)][box.slices]
            self.overlaps.add(part, mask, [(), (self._number(organ),)])
        return max(slices) - min(slices) + 1 - len(slices)

    def _axis(self, contours: Sequence[_Contour]) -> int:
        """The axis across whose slices all contours lie."""
        axes = (2,) if self.target.on_slices is not None else (2, 1, 0)
        far = [max(contour.distance(axis) for contour in contours) for axis in range(3)]
        found = next((axis for axis in axes if far[axis] <= _NEAR), None)
        if found is None:
            off = min(far[axis] * self.target.spacing_mm[axis] for axis in axes)
            rule = f"contours in slices of the image, within {_NEAR:g} of their distance"
            advice = "Export the structures on this series, or drop the case"
            raise self._refusal("label_grid", "labels", rule, f"some up to {off:.3g} mm beside them", advice)
        return found

    def _require_slices(self, slices: Mapping[int, Sequence[_Contour]], axis: int, instances: Sequence[str]) -> None:
        """Refuse contours that refer to another slice than the one that they lie on."""
        own = self.target.slice_instances() if axis == 2 else ()
        if not own:
            return
        wrong = sum(
            contour.instance >= 0 and instances[contour.instance] in own and instances[contour.instance] != own[n]
            for n, found in slices.items()
            for contour in found
        )
        if wrong:
            got = f"{wrong} that lie on another one"
            raise self._refusal(
                "label_grid", "labels", "contours on the slices they refer to", got, "Export them again"
            )


@dataclass(frozen=True)
class _Place:
    """Where a frame lies: the voxel of its first pixel, the axes along which columns and rows go, and which way."""

    start: tuple[int, int, int]
    axes: tuple[int, int]
    signs: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Contour:
    """A closed contour: its structure, the image that it refers to (-1: none), its corners (points, 3) in voxels."""

    segment: int
    instance: int
    corners: NDArray[np.float64]

    def slice(self, axis: int) -> int:
        """The slice across an axis that it lies on."""
        along = self.corners[:, axis]
        return int(np.rint((along.min() + along.max()) / 2))

    def distance(self, axis: int) -> float:
        """How far its corners lie from that slice, in slices."""
        return float(np.abs(self.corners[:, axis] - self.slice(axis)).max())


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
