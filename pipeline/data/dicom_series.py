"""What a DICOM series is good for: its slices in order, where they lie, and a verdict with its reasons.

Headers come from :mod:`pipeline.data.dicom_reader`; positions and directions here are DICOM's, LPS in mm. No text of a
file is in what is said, only numbers and words of closed lists.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import listed
from pipeline.core.grid import Grid, flip_world
from pipeline.data.dicom_pixels import DECODED, PLAIN
from pipeline.data.dicom_reader import Header

POSITION_TOLERANCE_MM = 0.1
"""How far a slice may lie from its regular place; headers round, and couches shake. At most a tenth of the spacing."""

_DIRECTION_TOLERANCE = 1e-3  # of one number of the direction cosines; the same as between the axes of a grid
_UNIT_TOLERANCE = 2e-3
_STEEPEST_DEGREES = 45.0  # gantries tilt by up to 30 degrees
_FARTHEST_MM, _SPACINGS_MM, _LARGEST_SCALE = 1e5, (1e-4, 1e4), 1e15
_NO_IMAGES = ("SEG", "SR", "PR", "RTSTRUCT", "RTPLAN", "KO")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

Severity = Literal["refused", "corrected", "told"]
Digest = Callable[[str, int], str]


@dataclass(frozen=True)
class Finding:
    """Something about a series that is not plain.

    Args:
        code: One word, for tables.
        severity: Whether the series is refused, corrected, or read as it is.
        expected: The rule, for a sentence.
        got: What there is.
        advice: What is done about it, or what to do.
    """

    code: str
    severity: Severity
    expected: str
    got: str
    advice: str


@dataclass(frozen=True)
class Plane:
    """One slice: a file, or a frame of one.

    Args:
        file: Path, or name in the archive.
        frame: Number of the frame, from 0.
        instance: InstanceNumber of the file; None if it has none.
        sop: SOPInstanceUID; empty if it has none.
        position: (3,) centre of the first pixel, LPS in mm.
        slope: Rescale slope.
        intercept: Rescale intercept.
    """

    file: str
    frame: int
    instance: int | None
    sop: str
    position: NDArray[np.float64]
    slope: float
    intercept: float

    @property
    def name(self) -> str:
        """What it is called in sentences: its numbers alone."""
        number = "without number" if self.instance is None else str(self.instance)
        return f"{number}, frame {self.frame + 1}" if self.frame else number


@dataclass(frozen=True)
class LabelObject:
    """A file that holds labels: segments or contours.

    Args:
        file: Path, or name in the archive.
        kind: BINARY, FRACTIONAL or LABELMAP of a SEG, or RTSTRUCT.
        segments: How many segments or structures it describes.
        series: Identifiers of the series that it says it belongs to.
    """

    file: str
    kind: str
    segments: int
    series: tuple[str, ...]


@dataclass(frozen=True)
class Stack:
    """Where the slices of a series lie.

    Args:
        size: Pixels along i (columns of DICOM's matrix) and j (rows).
        axes: (3, 2), unit vectors along i and j, LPS.
        spacing_mm: Distance between pixels along i and j.
        first: (3,) position of the first slice.
        step: (3,) from one regular slice to the next.
        places: (planes,) place of every slice, in steps from the first; 0, 1, 2, … unless there are gaps.
    """

    size: tuple[int, int]
    axes: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    first: NDArray[np.float64]
    step: NDArray[np.float64]
    places: NDArray[np.float64]

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector at right angles to the slices, along which they are sorted."""
        return _normal(self.axes)

    @property
    def count(self) -> int:
        """Regular slices from the first to the last place."""
        return round(float(self.places[-1])) + 1

    @property
    def regular(self) -> bool:
        """Whether there is a slice at every place, and nowhere else."""
        return len(self.places) == self.count and bool((self.places == np.arange(self.count)).all())

    @property
    def drift_pixels(self) -> NDArray[np.float64]:
        """(2,) pixels along i and j by which a slice is shifted against the one before: 0 unless they are tilted."""
        return np.asarray(self.axes.T @ self.step) / np.asarray(self.spacing_mm) if self.tilted else np.zeros(2)

    @property
    def tilted(self) -> bool:
        """Whether the slices are not stacked at right angles."""
        return self._tilt > _DIRECTION_TOLERANCE

    @property
    def tilt_degrees(self) -> float:
        """Angle between the normal of the slices and the line along which they are stacked."""
        return float(np.degrees(np.arctan(self._tilt)))

    @property
    def _tilt(self) -> float:
        return float(np.linalg.norm(self.axes.T @ self.step) / abs(self.normal @ self.step))

    @property
    def grid(self) -> Grid:
        """Grid of the volume: of tilted slices one with right angles that holds all of them.

        Raises:
            ValueError: If it is none, which the checks before exclude.
        """
        step = self.normal * (self.normal @ self.step) if self.tilted else self.step
        low, size = self.field
        affine = np.eye(4)
        affine[:3, :2] = self.axes * self.spacing_mm
        affine[:3, 2] = step
        affine[:3, 3] = self.first + affine[:3, :2] @ low
        return Grid((size[0], size[1], self.count), flip_world(affine))

    @property
    def field(self) -> tuple[NDArray[np.int64], tuple[int, int]]:
        """First pixel along i and j of the volume, counted from the first slice's own, and the volume's pixels."""
        farthest = self.drift_pixels * (self.count - 1)
        low = np.floor(np.minimum(farthest, 0) + 1e-6).astype(np.int64)
        high = np.ceil(np.maximum(farthest, 0) - 1e-6).astype(np.int64)
        return low, (int(self.size[0] + high[0] - low[0]), int(self.size[1] + high[1] - low[1]))


@dataclass(frozen=True)
class Series:
    """A series of a folder, an archive or a DICOMDIR.

    Args:
        number: Its place in the list, from 1; what ``--series`` takes.
        study: Its study's place, from 1.
        modality: Of DICOM's list; OT for any other.
        images: Frames of all its files; of labels its files.
        planes: The slices of the volume in their order; empty if it is refused.
        stack: Where they lie; None if it is refused.
        findings: What is not plain about it.
        uids: ``study``, ``series`` and ``frame_of_reference``; empty where the files have none.
        names: Texts that may name the patient, if they were asked for.
        archive: The zip archive that its files lie in.
        file_bytes: Of the smallest file that holds a slice, if pixels are stored as they are; 0 if compressed.
        labels: What it holds, if it is one of labels (SEG, RTSTRUCT).
    """

    number: int
    study: int
    modality: str
    images: int
    planes: tuple[Plane, ...]
    stack: Stack | None
    findings: tuple[Finding, ...]
    uids: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    archive: Path | None = None
    file_bytes: int = 0
    labels: tuple[LabelObject, ...] = ()

    @property
    def verdict(self) -> str:
        """``usable``, ``usable with correction`` or ``refused``; ``labels`` if it is one of these."""
        if self.labels:
            return "labels"
        severities = {finding.severity for finding in self.findings}
        if "refused" in severities:
            return "refused"
        return "usable with correction" if "corrected" in severities else "usable"

    @property
    def usable(self) -> bool:
        """Whether it is a volume, and not refused."""
        return self.stack is not None and self.verdict != "refused"

    @property
    def refusal(self) -> Finding:
        """Why it is refused as a volume."""
        labels = Finding("labels", "refused", "images", "labels (SEG or RTSTRUCT)", "Give the series of the images")
        return next((finding for finding in self.findings if finding.severity == "refused"), labels)


def group_series(files: Sequence[str], headers: Sequence[Header]) -> list[list[tuple[str, Header]]]:
    """Files of each series, in a fixed order: by study, series number and identifier, whatever the files are called.

    Files without an identifier are a series by folder. Labels are no part of a series of images.
    """
    groups: dict[tuple[Any, ...], list[tuple[str, Header]]] = defaultdict(list)
    for file, header in zip(files, headers, strict=True):
        if "problem" not in header:
            home = "" if header["series"] else str(Path(file).parent)
            groups[header["study"], header["series"], home, header["labels"] is not None].append((file, header))

    def order(key: tuple[Any, ...]) -> tuple[Any, ...]:
        numbers = [header["number"] for _, header in groups[key] if header["number"] is not None]
        return (key[0], min(numbers, default=1 << 31), *key[1:])

    return [sorted(groups[key], key=lambda item: item[0]) for key in sorted(groups, key=order)]


def arrange(files: Sequence[tuple[str, Header]], digest: Digest, *, allow_gaps: bool = False) -> Series:
    """Judge a series: its slices in order, and what is not plain about it.

    Args:
        files: Path and header of its files, at least one.
        digest: Hash of the stored pixels of a file's frame, for slices at the same place.
        allow_gaps: Whether slices that are missing, or unevenly spaced, are interpolated instead of refused.

    Returns:
        The series, as the first of its list.
    """
    judge = _Judge(digest, allow_gaps)
    first = files[0][1]
    labels = tuple(_label_object(file, header["labels"]) for file, header in files if header["labels"])
    planes, stack = ((), None) if labels else judge.arranged(files)
    refused = any(finding.severity == "refused" for finding in judge.findings)
    plain = all(header["syntax"] in PLAIN for _, header in files)
    return Series(
        number=1,
        study=1,
        modality=first["modality"],
        images=len(labels) or sum(len(header["planes"]) for _, header in files),
        planes=() if refused else planes,
        stack=None if refused else stack,
        findings=tuple(judge.findings),
        uids={name: first[name] for name in ("study", "series", "frame_of_reference")},
        names=first.get("names", {}),
        file_bytes=min(header["bytes"] // len(header["planes"]) for _, header in files) if plain and planes else 0,
        labels=labels,
    )


def _label_object(file: str, facts: Mapping[str, Any]) -> LabelObject:
    return LabelObject(file, facts["kind"], facts["segments"], tuple(facts["series"]))


_Slice = tuple[str, int, Header, Header]  # file, frame, header of the file, of the frame


@dataclass
class _Judge:
    """Collects findings while a series is looked at."""

    digest: Digest
    allow_gaps: bool
    findings: list[Finding] = field(default_factory=list)

    def say(self, code: str, severity: Severity, expected: str, got: str, advice: str) -> None:
        self.findings.append(Finding(code, severity, expected, got, advice))

    def arranged(self, files: Sequence[tuple[str, Header]]) -> tuple[tuple[Plane, ...], Stack | None]:
        """Slices in order and where they lie; nothing once the series is refused."""
        slices = [
            (file, frame, header, plane)
            for file, header in self._images(files)
            for frame, plane in enumerate(header["planes"])
        ]
        slices = self._one_stack(self._placed(slices)) if slices else []
        if not slices or not self._scaled(slices):
            return (), None
        planes = [
            Plane(
                file,
                frame,
                header["instance"],
                header["sop"],
                np.array(plane["position"]),
                (plane["slope"] or [1.0])[0],
                (plane["intercept"] or [0.0])[0],
            )
            for file, frame, header, plane in slices
        ]
        return self._stacked(planes, slices[0])

    def _images(self, files: Sequence[tuple[str, Header]]) -> list[tuple[str, Header]]:
        """Files that hold slices; others, and scouts, are left out where there are some."""
        wrong: dict[str, tuple[str, str, str]] = {
            "no_image": ("images", "other objects", "Give the series of the images"),
            "secondary_capture": ("a scan", "secondary captures (pictures of a screen)", "Give the original series"),
            "colour": ("one grey value per pixel", "colours", "Give the original series"),
            "localizer": ("a volume", "localizer images (scouts)", "Give the series of the scan"),
            "compressed": ("a compression that is read", "one that is not", "Export it without compression"),
        }
        kept, counts = [], dict.fromkeys(wrong, 0)
        for file, header in files:
            code = _unfit(header)
            if code:
                counts[code] += 1
            else:
                kept.append((file, header))
        for code, count in counts.items():
            rule, got, advice = wrong[code]
            if count and (not kept or code == "compressed"):
                self.say(code, "refused", rule, got, advice)
                return []
            if count:
                self.say("scout", "corrected", rule, f"{count} files of {got}", "They are left out")
        if any(header["syntax"] not in PLAIN for _, header in kept):
            self.say("compressed", "told", "any compression that is read", "compressed pixels", "They are decoded")
        if any(header["multi_frame"] for _, header in kept):
            self.say("multi_frame", "told", "slices", "several frames in a file", "Every frame is a slice")
        return kept

    def _placed(self, slices: list[_Slice]) -> list[_Slice]:
        for _, _, header, plane in slices:
            position, orientation, spacing = plane["position"], plane["orientation"], plane["spacing"]
            if position is None or orientation is None or spacing is None:
                lost = [name for name in ("position", "orientation", "spacing") if plane[name] is None]
                got = f"slices without {' and '.join(lost)}"
                self.say("position", "refused", "a position of every slice", got, "Export the original series")
                return []
            lengths = np.linalg.norm(np.array(orientation).reshape(2, 3), axis=1)
            cosine = abs(float(np.dot(orientation[:3], orientation[3:])))
            if (np.abs(lengths - 1) > _UNIT_TOLERANCE).any() or cosine > _DIRECTION_TOLERANCE:
                got = f"rows and columns of length {lengths[0]:.3g} and {lengths[1]:.3g}, cosine {cosine:.2g} between"
                self.say("orientation", "refused", "unit vectors at right angles", got, "Export the series again")
                return []
            far = max(map(abs, position)) > _FARTHEST_MM
            if far or not all(_SPACINGS_MM[0] <= mm <= _SPACINGS_MM[1] for mm in spacing):
                got = f"a spacing of {spacing[0]:.3g} x {spacing[1]:.3g} mm" if not far else "one far outside"
                self.say("position", "refused", "positions and spacings of a body", got, "Export the series again")
                return []
            if header["rows"] < 1 or header["columns"] < 1 or max(header["rows"], header["columns"]) > 65535:
                self.say("position", "refused", "slices of at least a pixel", "none", "Export the series again")
                return []
        return slices

    def _one_stack(self, slices: list[_Slice]) -> list[_Slice]:
        """The slices of one size, orientation and spacing that are the most; few others are left out."""
        groups: list[list[_Slice]] = []
        for item in slices:
            group = next((group for group in groups if _alike(group[0], item)), None)
            groups.append([item]) if group is None else group.append(item)
        if len(groups) < 2:
            return slices
        groups.sort(key=len, reverse=True)
        others = len(slices) - len(groups[0])
        if len(groups[0]) <= 2 * others:
            got = f"{len(groups)} kinds, of {listed(len(group) for group in groups)} slices"
            advice = "Give them as series of their own"
            self.say("orientation", "refused", "slices of one size and orientation", got, advice)
            return []
        got = f"{others} of {len(slices)} slices of another"
        self.say("scout", "corrected", "slices of one size and orientation", got, "They are left out")
        return groups[0]

    def _scaled(self, slices: Sequence[_Slice]) -> bool:
        scales = {((plane["slope"] or [1.0])[0], (plane["intercept"] or [0.0])[0]) for _, _, _, plane in slices}
        large = any(abs(number) > _LARGEST_SCALE for scale in scales for number in scale)
        if large or any(plane["bad_scale"] for _, _, _, plane in slices):
            got = "a table of values" if not large else "one beyond all values"
            self.say("scale", "refused", "a finite rescale slope and intercept", got, "Export the original series")
            return False
        if len(scales) > 1:
            got = f"{len(scales)} different ones"
            self.say("mixed_slopes", "told", "one rescale slope and intercept", got, "Each slice is scaled by its own")
        return True

    def _stacked(self, planes: list[Plane], example: _Slice) -> tuple[tuple[Plane, ...], Stack | None]:
        _, _, header, facts = example
        axes = np.array(facts["orientation"]).reshape(2, 3).T
        normal = _normal(axes)
        planes.sort(key=lambda plane: (float(normal @ plane.position), plane.file, plane.frame))
        planes = self._without_duplicates(planes, normal)
        if not planes:
            return (), None
        size, spacing = (header["columns"], header["rows"]), (facts["spacing"][1], facts["spacing"][0])
        stack = Stack(size, axes, spacing, planes[0].position, normal, np.zeros(1))
        if len(planes) == 1:
            thickness = next((abs(n[0]) for n in (header["between"], facts["thickness"]) if n and n[0]), None)
            if thickness is None or not _SPACINGS_MM[0] <= thickness <= _SPACINGS_MM[1]:
                self.say("single", "refused", "several slices", "one, without thickness", "Give the whole series")
                return (), None
            got, advice = f"one, {thickness:g} mm thick", "It is a volume of one slice"
            self.say("single", "corrected", "several slices", got, advice)
            return tuple(planes), replace(stack, step=normal * thickness)
        placed = self._steps(planes, stack)
        return (tuple(planes), placed) if placed is not None else ((), None)

    def _without_duplicates(self, planes: list[Plane], normal: NDArray[np.float64]) -> list[Plane]:
        """One slice per position; several at one that are the same are dropped, others refuse the series."""
        heights = np.array([float(normal @ plane.position) for plane in planes])
        gaps = np.diff(heights)
        # Copies, too, may be off their place a little.
        close = min(POSITION_TOLERANCE_MM, 0.1 * float(np.median(gaps[gaps > 1e-3]))) if (gaps > 1e-3).any() else 1e-3
        kept: list[Plane] = []
        dropped: list[Plane] = []
        for plane in planes:
            if not kept or float(normal @ (plane.position - kept[-1].position)) > close:
                kept.append(plane)
                continue
            one, two = ((p.slope, p.intercept, self.digest(p.file, p.frame)) for p in (kept[-1], plane))
            beside = float(np.linalg.norm(plane.position - kept[-1].position)) > POSITION_TOLERANCE_MM
            if one != two or beside:
                got = f"different images {kept[-1].name} and {plane.name} at one"
                advice = "Split the series by time, echo or reconstruction"
                self.say("duplicate", "refused", "one image per position", got, advice)
                return []
            dropped.append(plane)
        if dropped:
            got = f"{len(dropped)} images twice (number {listed(plane.name for plane in dropped)})"
            self.say("duplicate", "corrected", "one image per position", got, "The copies are left out")
        return kept

    def _steps(self, planes: list[Plane], stack: Stack) -> Stack | None:
        """Where the slices lie; None if they are missing or unevenly spaced and may not be interpolated."""
        positions = np.array([plane.position for plane in planes])
        heights = (positions - stack.first) @ stack.normal
        distance = float(np.median(np.diff(heights)))
        places = np.rint(heights / distance)
        # By the last slice: a rounded median would add up over many slices.
        step = (positions[-1] - positions[0]) / max(places[-1], 1)
        tolerance = min(POSITION_TOLERANCE_MM, 0.1 * distance)
        off = np.linalg.norm(positions - positions[0] - places[:, None] * step, axis=1)
        even = off.max() <= tolerance and (np.diff(places) >= 1).all()
        stack = replace(stack, step=step, places=places)
        total = stack.count
        missing = sorted(set(range(total)) - set(places.astype(int).tolist())) if even and total < 100_000 else []
        if even and total == len(planes):
            return self._tilt(stack, tolerance)
        if even:
            got = f"{len(missing)} of {total} slices missing, number {listed(n + 1 for n in missing)} "
            got += f"(number 1 is the image {planes[0].name})"
            code, rule = "missing", "a slice at every position"
        else:
            gaps = np.diff(heights)
            got = f"slices from {gaps.min():.4g} to {gaps.max():.4g} mm apart"
            if (off.max() > tolerance) and (np.abs(np.diff(gaps)).max(initial=0) <= tolerance):
                got = f"slices up to {off.max():.3g} mm beside their place"
            code, rule = "spacing", f"slices at even distances within {tolerance:.2g} mm"
            # Between uneven slices the volume is interpolated at the closest regular distance.
            stack = replace(stack, step=positions[-1] - positions[0], places=heights / heights[-1])
            steps = max(1, round(float(heights[-1]) / distance))
            stack = replace(stack, step=stack.step / steps, places=stack.places * steps)
        if not self.allow_gaps or stack.count > 2 * len(planes):
            advice = "Send the whole series, or allow gaps to be interpolated"
            self.say(code, "refused", rule, got, advice)
            return None
        self.say(code, "corrected", rule, got, "What lies between is interpolated")
        return self._tilt(stack, tolerance)

    def _tilt(self, stack: Stack, tolerance: float) -> Stack | None:
        drift = np.linalg.norm(stack.axes.T @ stack.step) * (stack.count - 1)
        if drift <= tolerance:
            # Rounded positions say less of the direction than the cosines do. Those are rounded, too: the product of
            # the two is not quite a unit vector. It is taken as it is, and from the last slice on, as highdicom does:
            # one place for a series, whichever of the two reads it.
            product = np.cross(stack.axes[:, 0], stack.axes[:, 1])
            step = product * (product @ stack.step)
            last = stack.first + stack.step * float(stack.places[-1])
            return replace(stack, step=step, first=last - step * float(stack.places[-1]))
        if not stack.tilted:
            return stack
        degrees = stack.tilt_degrees
        if degrees > _STEEPEST_DEGREES:
            rule = f"slices tilted by at most {_STEEPEST_DEGREES:.0f} degrees"
            self.say("tilted", "refused", rule, f"{degrees:.1f} degrees", "Export the original series")
            return None
        got, advice = f"slices tilted by {degrees:.1f} degrees (gantry tilt)", "The volume is straightened"
        self.say("tilted", "corrected", "slices stacked at right angles", got, advice)
        return stack


def _normal(axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) unit vector at right angles to two others, (3, 2)."""
    normal = np.cross(axes[:, 0], axes[:, 1])
    return np.asarray(normal / np.linalg.norm(normal))


def _unfit(header: Header) -> str:
    """Why a file holds no slice of a volume; empty if it may hold some."""
    if not header["rows"] or header["modality"] in _NO_IMAGES or not header["allocated"]:
        return "no_image"
    if header["sop_class"] == _SECONDARY_CAPTURE or header["sop_class"].startswith(f"{_SECONDARY_CAPTURE}."):
        return "secondary_capture"
    if header["samples"] != 1 or not header["photometric"].startswith("MONOCHROME"):
        return "colour"
    if "LOCALIZER" in header["type"]:
        return "localizer"
    return "" if header["syntax"] in DECODED else "compressed"


def _alike(one: _Slice, other: _Slice) -> bool:
    same = all(one[2][name] == other[2][name] for name in ("rows", "columns"))
    spacing = np.allclose(one[3]["spacing"], other[3]["spacing"], rtol=1e-3, atol=0)
    direction = np.abs(np.subtract(one[3]["orientation"], other[3]["orientation"])).max() <= _DIRECTION_TOLERANCE
    return bool(same and spacing and direction)
