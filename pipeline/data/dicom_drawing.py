"""Segments and contours in DICOM, drawn on the voxels of the image that they were made on.

Frames of a SEG lie anywhere: some slices of the image, in any order, along other axes. Each is put where its position
and directions say, and refused if its pixels are not those of the image. Contours of an RTSTRUCT are filled in the
plane of the slices that they lie on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import listed
from pipeline.core.grid import Grid
from pipeline.core.volume import LabelMap
from pipeline.data.contours import filled
from pipeline.data.dicom import OpenedSeries, Scan, inspect
from pipeline.data.dicom_reader import read_contour_points, read_frame_places, read_plane_labels
from pipeline.data.dicom_series import POSITION_TOLERANCE_MM, LabelObject
from pipeline.data.overlaps import Combination, Overlaps
from pipeline.data.volume_file import Doubt, VolumeError, checked_size, refuse

_NEAR = 0.25  # of the distance between voxels: how far from them pixels and contours may lie; pixels also at most
# POSITION_TOLERANCE_MM
_UNIT_TOLERANCE = 2e-3  # of directions, as those of slices
UNBOUNDED = 1 << 62
"""More bytes than any file has: labels are checked for what their voxels take in memory alone."""


@dataclass(frozen=True)
class LabelFiles:
    """Where DICOM labels lie.

    Args:
        path: Where they were found.
        archive: The zip archive that their files lie in.
        scan: All that was found there.
        case: Case id for messages.
    """

    path: Path
    archive: Path | None
    scan: Scan
    case: str | None

    def refusal(self, code: str, what: str, expected: str, got: object, advice: str) -> VolumeError:
        """What is wrong with them, to be raised."""
        return refuse(code, what, expected, got, advice, case=self.case, file=self.path)


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


class Drawing:
    """Segments and contours, one file after the other, on the voxels of an image.

    Args:
        labels: Where the files lie.
        target: The voxels.
        doubts: What is known already; more are added.
    """

    def __init__(self, labels: LabelFiles, target: Target, doubts: list[Doubt]) -> None:
        self.labels, self.target, self.doubts = labels, target, doubts
        self.overlaps = Overlaps(target.shape[::-1])
        self.organs: dict[str, int] = {}

    def done(self) -> Drawn:
        """What was drawn."""
        names = list(self.organs)
        organs = tuple(frozenset(names[n] for n in together) for together in self.overlaps.combinations)
        return Drawn(self.overlaps.index.T, organs, tuple(dict.fromkeys(self.doubts)))

    def _number(self, organ: str) -> int:
        return self.organs.setdefault(organ, len(self.organs))

    def _refusal(self, code: str, what: str, expected: str, got: object, advice: str) -> VolumeError:
        return self.labels.refusal(code, what, expected, got, advice)

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
        checked_size((*shape, max(planes) + 1), 2, UNBOUNDED, False, self.labels.path, self.labels.case)
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
