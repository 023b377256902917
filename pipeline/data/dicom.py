"""DICOM: a folder, a zip archive, a DICOMDIR or a file ⇔ series, and a series ⇔ a volume in RAS+ mm.

Tilted slices (the gantry of a CT) are straightened: the volume has right angles, and :meth:`OpenedSeries.on_slices`
brings a mask back to the slices that the scanner made. What a series is good for is judged in
:mod:`pipeline.data.dicom_series`; files are read by a process of its own, :mod:`pipeline.data.dicom_reader`.

A source may say which series it means, see :func:`~pipeline.data.volume_file.series_source`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.documents import require_regular
from pipeline.core.errors import VolsegError, listed
from pipeline.core.files import file_hash, text_hash
from pipeline.core.grid import Grid
from pipeline.core.volume import Image, LabelMap, require_same_grid
from pipeline.data.dicom_file import MOST_FILES
from pipeline.data.dicom_reader import (
    archive_members,
    directory_files,
    pixel_digest,
    read_headers,
    read_pixels,
)
from pipeline.data.dicom_series import LabelObject, Series, Stack, arrange, group_series
from pipeline.data.reader_process import ReaderError
from pipeline.data.volume_file import (
    ANY_SERIES,
    DICOM_SUFFIXES,
    Doubt,
    VolumeError,
    VolumeFile,
    checked_size,
    refusal_of,
    refuse,
    series_source,
    split_source,
    volume_suffix,
    wanted_series,
)

T = TypeVar("T", bound=np.generic)

_DICOMDIR = "DICOMDIR"
_UNBOUNDED = 1 << 62
# Words in the names of channels, and the modality that they mean.
_CHANNELS = {
    "CT": {"ct", "cta", "cect", "ncct"},
    "MR": {"mr", "mri", "t1", "t1w", "t1ce", "t1c", "t1gd", "t2", "t2w", "t2f", "flair", "adc", "dwi", "swi", "pd"},
    "PT": {"pet", "pt", "suv"},
}
_LOOKED_AT = 64  # files of a folder that are looked at to see whether it holds DICOM


@dataclass(frozen=True)
class Scan:
    """What was found in a folder, an archive or a DICOMDIR.

    Args:
        path: Where.
        series: In a fixed order, numbered from 1.
        others: Files that are not DICOM.
        damaged: How many files cannot be read, by reason.
        missing: Files that a DICOMDIR names and that are not there.
    """

    path: Path
    series: tuple[Series, ...]
    others: int = 0
    damaged: tuple[tuple[str, int], ...] = ()
    missing: int = 0

    def numbers_of(self, labels: LabelObject) -> tuple[tuple[int, ...], int]:
        """Numbers of the series that labels belong to, and how many of these are not there."""
        found = {series.uids["series"]: series.number for series in self.series}
        return tuple(sorted(found[uid] for uid in labels.series if uid in found)), len({*labels.series} - {*found})

    def to_json(self) -> dict[str, Any]:
        """For machines: everything that ``volseg inspect`` tells."""
        return {
            "path": str(self.path),
            "series": [_entry(series) | self._labels(series) for series in self.series],
            "other_files": self.others,
            "damaged_files": [{"files": count, "reason": reason} for reason, count in self.damaged],
            "missing_files": self.missing,
        }

    def _labels(self, series: Series) -> dict[str, Any]:
        told = [(item, *self.numbers_of(item)) for item in series.labels]
        entries = [
            {"kind": item.kind, "segments": item.segments, "of_series": list(numbers), "of_others": others}
            for item, numbers, others in told
        ]
        return {"labels": entries} if entries else {}


def _entry(series: Series) -> dict[str, Any]:
    stack = series.stack
    grid = None if stack is None else stack.grid
    found = {
        "number": series.number,
        "study": series.study,
        "modality": series.modality,
        "images": series.images,
        "verdict": series.verdict,
        "shape": None if grid is None else list(grid.shape),
        "spacing_mm": None if grid is None else [round(mm, 6) for mm in grid.spacing_mm],
        "orientation": None if grid is None else grid.orientation,
        "findings": [vars(finding) for finding in series.findings],
    }
    return found | ({"names": dict(series.names)} if series.names else {})


@dataclass(frozen=True)
class OpenedSeries:
    """A series that can be read as a volume.

    Args:
        path: Where it was found.
        series: What is known of it.
        case: Case id for messages.
        lost: How many files of what was found there are damaged or missing; some may have been its slices.
    """

    path: Path
    series: Series
    case: str | None = None
    lost: int = 0

    @property
    def stack(self) -> Stack:
        """Where its slices lie."""
        assert self.series.stack is not None  # it was chosen because it is usable
        return self.series.stack

    @property
    def grid(self) -> Grid:
        """Grid of its volume."""
        return self.stack.grid

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """What was corrected, and whether slices at the ends may be missing, which leave no gap."""
        corrected = [
            Doubt("warning", f"dicom_{found.code}", "DICOM series", found.expected, found.got, found.advice)
            for found in self.series.findings
            if found.severity == "corrected"
        ]
        if self.lost:
            rule, got = "files that can be read", f"{self.lost} that are damaged or missing"
            advice = "They are left out; if they were its first or last slices, copy or export the series again"
            corrected.append(Doubt("warning", "dicom_files", "DICOM series", rule, got, advice))
        return tuple(corrected)

    def image(self) -> Image:
        """The volume, float32 (1, I, J, K).

        Raises:
            VolumeError: If pixels cannot be read.
        """
        return Image(self.voxels()[None], self.grid)

    def voxels(self) -> NDArray[np.float32]:
        """Intensities (I, J, K) on the grid: each slice scaled by its own slope and intercept.

        Beside tilted slices, and below and above them, lies the lowest value of the series.

        Raises:
            VolumeError: If pixels cannot be read.
        """
        stack = self.stack
        size = stack.field[1]
        slices = np.empty((len(self.series.planes), stack.size[1], stack.size[0]), np.float32)
        for rows, number in self._stored():
            plane = self.series.planes[number]
            # In float64: a slope of many digits, times values of 16 bits, loses some of them in float32.
            slices[number] = rows * np.float64(plane.slope) + plane.intercept
        if stack.regular and not stack.tilted:
            return slices.T
        lowest = np.float32(slices.min())
        volume = np.full((stack.count, size[1], size[0]), lowest, np.float32)
        for number in range(stack.count):
            self._fill(volume[number], slices, number, lowest)
        return volume.T

    def on_slices(self, label_map: LabelMap) -> NDArray[np.integer[Any]]:
        """A mask of the volume on the slices as the scanner made them.

        Args:
            label_map: Labels on :attr:`grid`.

        Returns:
            (slices, rows, columns), in the order of ``series.planes``, as DICOM stores them: every pixel has the label
            of the nearest voxel.

        Raises:
            DataError: If the label map is on another grid.
        """
        require_same_grid(self.grid, label_map.grid, "mask grid", "that of the series", case=self.case)
        stack = self.stack
        low, shape = stack.field
        found = np.empty((len(self.series.planes), stack.size[1], stack.size[0]), label_map.array.dtype)
        for number, place in enumerate(stack.places):
            # Pixel (i, j) of a slice lies at voxel (i, j) - low + its drift.
            shift = np.rint(place * stack.drift_pixels).astype(np.int64) - low
            i, j = (np.clip(np.arange(stack.size[axis]) + shift[axis], 0, shape[axis] - 1) for axis in (0, 1))
            found[number] = label_map.array[:, :, min(round(float(place)), stack.count - 1)][np.ix_(i, j)].T
        return found

    def from_slices(self, slices: NDArray[T]) -> NDArray[T]:
        """Labels of the slices as the scanner made them on the volume: what :meth:`on_slices` brings back.

        Args:
            slices: (slices, rows, columns), in the order of ``series.planes``.

        Returns:
            (I, J, K) on :attr:`grid`. Where slices are missing, the nearest one's; 0 beside tilted ones.
        """
        stack = self.stack
        low, shape = stack.field
        found = np.zeros((stack.count, shape[1], shape[0]), slices.dtype)
        for number in range(stack.count):
            nearest = int(np.abs(stack.places - number).argmin())
            i, j = (int(n) for n in np.rint(stack.places[nearest] * stack.drift_pixels).astype(np.int64) - low)
            found[number, j : j + stack.size[1], i : i + stack.size[0]] = slices[nearest]
        return found.T

    def content_hash(self) -> str:
        """Hash of all that its voxels depend on.

        Raises:
            VolumeError: If a file cannot be read.
        """
        archive = self.series.archive
        files = [archive] if archive else [Path(plane.file) for plane in self.series.planes]
        try:
            hashes = [file_hash(file) for file in dict.fromkeys(files)]
        except OSError as error:
            got = f"an error ({error.strerror})"
            raise refuse("unreadable", "files", "readable ones", got, "Copy them again", file=self.path) from None
        return text_hash(*hashes, *(f"{plane.frame}" for plane in self.series.planes), str(self.stack.places.tolist()))

    def _stored(self) -> Iterator[tuple[NDArray[Any], int]]:
        """Stored pixels (rows, columns) of every slice, and its number; the frames of a file together."""
        numbers: dict[str, list[int]] = {}
        for number, plane in enumerate(self.series.planes):
            numbers.setdefault(plane.file, []).append(number)
        shape = self.stack.size[1], self.stack.size[0]
        for file, members in numbers.items():
            frames = [self.series.planes[number].frame for number in members]
            try:
                pixels = read_pixels(self.series.archive, file, frames, shape)
            except ReaderError as error:
                image = self.series.planes[members[0]].name
                what, rule, advice = f"pixels of image {image}", "readable pixels", "Copy or export the series again"
                got, code = f"one that {error}" if error.fatal else str(error), "unreadable"
                if not error.fatal and (error.damaged or "ValueError" in got):
                    got, code = "truncated or damaged pixels", "truncated"
                raise refuse(code, what, rule, got, advice, case=self.case, file=self.path) from None
            yield from zip(pixels, members, strict=True)

    def _fill(self, plane: NDArray[np.float32], slices: NDArray[np.float32], number: int, lowest: np.float32) -> None:
        """Fill a slice (J, I) of the volume: between the nearest ones, moved to where it lies beside the first."""
        stack = self.stack
        after = min(int(np.searchsorted(stack.places, number)), len(stack.places) - 1)
        before = after if stack.places[after] <= number else after - 1
        gap = float(stack.places[after] - stack.places[before])
        share = (number - float(stack.places[before])) / gap if gap else 0.0
        between = slices[before] if share == 0 else slices[before] * (1 - share) + slices[after] * share
        if not stack.tilted:
            plane[:] = between
            return
        low = stack.field[0]
        moved = [float(number * stack.drift_pixels[axis]) - float(low[axis]) for axis in (0, 1)]
        start = [int(np.floor(shift + 1e-6)) for shift in moved]
        part = [max(0.0, shift - first) for shift, first in zip(moved, start, strict=True)]
        padded = between
        for axis, fraction in ((1, part[0]), (0, part[1])):
            if fraction > 1e-6:  # linear, between a pixel and the one before; one more comes at the end
                widths = [(1, 1) if a == axis else (0, 0) for a in (0, 1)]
                wide = np.pad(padded, widths, constant_values=lowest)
                here, back = (np.take(wide, np.arange(k, wide.shape[axis] - 1 + k), axis=axis) for k in (1, 0))
                padded = here * np.float32(1 - fraction) + back * np.float32(fraction)
        rows, columns = padded.shape
        target = plane[start[1] : start[1] + rows, start[0] : start[0] + columns]
        target[:] = padded[: target.shape[0], : target.shape[1]]


def is_dicom(path: Path) -> bool:
    """Whether a path is one that is read as DICOM: by its content, or an archive that may hold some."""
    if volume_suffix(path):
        return False
    name = path.name.lower()
    try:
        if path.is_dir():
            return holds_dicom(path)
        return path.is_file() and (name.endswith((*DICOM_SUFFIXES, ".zip")) or path.name == _DICOMDIR or _marked(path))
    except OSError:
        return False


def holds_dicom(folder: Path, *, deep: bool = True) -> bool:
    """Whether a folder holds DICOM files; of those below the first few are looked at, if ``deep``."""
    return next(iter(_dicom_files(folder, deep=deep)), None) is not None


def _dicom_files(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    """DICOM files among the first files of a folder."""
    looked = 0
    for home, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if deep and name[0] != ".")
        for name in sorted(name for name in names if name[0] != "."):
            looked += 1
            if _marked(Path(home, name)):
                yield Path(home, name)
            if looked >= _LOOKED_AT:
                return


def is_one_study(folders: Sequence[Path]) -> bool:
    """Whether all of some folders hold DICOM files, and of one study; a file of each is looked at."""
    if not all(folder.is_dir() and not volume_suffix(folder) for folder in folders):
        return False
    first = [next(iter(_dicom_files(folder)), None) for folder in folders]
    files = [str(file) for file in first if file is not None]
    if len(files) < len(folders):
        return False
    studies = {header.get("study", "") for header in read_headers(None, files)}
    return len(folders) == 1 or (len(studies) == 1 and studies != {""})


def inspect(path: Path | str, *, allow_gaps: bool = False, names: bool = False) -> Scan:
    """Find and judge all series.

    Args:
        path: A folder, with all below it; a zip archive; a DICOMDIR; or a file.
        allow_gaps: Whether slices that are missing, or unevenly spaced, are interpolated instead of refused.
        names: Whether to read texts that may name the patient.

    Returns:
        The series of images and of labels, each with a verdict and its reasons, numbered from 1.

    Raises:
        VolumeError: If nothing is there, or it cannot be read.
    """
    path = Path(path)
    files = _files(path)
    # What is there may change between two looks.
    stamp = (len(files), *((status.st_mtime_ns, status.st_size) for status in map(os.stat, _stamped(path, files))))
    return _scan(path, tuple(files), stamp, allow_gaps, names)


def open_series(source: Path | str, *, case: str | None = None) -> OpenedSeries:
    """Choose the series that a source means.

    Args:
        source: A folder, archive, DICOMDIR or file, with a series or without.
        case: Case id for messages.

    Raises:
        VolumeError: If there is no such series, it is refused, or several could be meant.
    """
    path, (wanted, allow_gaps) = split_source(source)[0], wanted_series(source)
    try:
        found = inspect(path, allow_gaps=allow_gaps)
    except VolumeError as error:
        raise refusal_of(error, error.code, case) from None
    lost = sum(count for _, count in found.damaged) + found.missing
    return OpenedSeries(path, _chosen(found, wanted, case), case, lost)


def open_dicom(source: Path | str, *, case: str | None = None) -> VolumeFile:
    """Read and judge the headers of a series; see :func:`open_series`.

    Raises:
        VolumeError: As :func:`open_series`, or if its voxels take more memory than there is.
    """
    opened = open_series(source, case=case)
    grid, series = opened.grid, opened.series
    stored = [plane for plane in series.planes if series.file_bytes]
    available = series.file_bytes * len(stored) if stored else _UNBOUNDED
    pixels = (*opened.stack.size, len(series.planes))
    checked_size(pixels, 1, available, False, opened.path, case)
    # In memory for a moment both the slices and, if they are moved, the volume.
    twice = 1 if opened.stack.regular and not opened.stack.tilted else 2
    checked_size(grid.shape, 4 * twice, _UNBOUNDED, False, opened.path, case)
    # Named with its series: two of one folder are two volumes.
    return VolumeFile(Path(source), grid, 1, None, opened.voxels, doubts=opened.doubts)


def with_modality(source: Path, channel: str, *, allow_gaps: bool = False) -> Path:
    """A DICOM source that names no series, with the modality that the name of its channel tells; others as they are."""
    if volume_suffix(source) or split_source(source)[1] or not is_dicom(source):
        return source
    words = re.findall("[a-z0-9]+", channel.lower())
    modality = next((kind for kind, names in _CHANNELS.items() if names & set(words)), "")
    return series_source(source, modality, allow_gaps=allow_gaps)


def _chosen(found: Scan, wanted: str, case: str | None) -> Series:
    """The series that is meant, if it is usable and no other could be meant."""
    path, every = found.path, found.series
    look = "Look at them with volseg inspect, and name one: #series=NUMBER behind the path, or --series"
    if not every:
        problem = "; ".join(f"{count} files: {reason}" for reason, count in found.damaged)
        other = f"{found.others} other files" if found.others else "no file"
        got = problem or (f"{found.missing} files that are not there" if found.missing else other)
        raise refuse("format", "input", "DICOM images", got, "Check the path", case=case, file=path)
    if wanted.isdecimal():
        number = int(wanted)
        if not 1 <= number <= len(every):
            rule, got = f"a number from 1 to {len(every)}", wanted
            raise refuse("missing", "series", rule, got, look, case=case, file=path)
        fitting = [every[number - 1]]
    else:
        kind = wanted.upper()
        fitting = [series for series in every if wanted == ANY_SERIES or series.modality == kind]
        fitting = [series for series in fitting if series.usable] or fitting
        if not fitting:
            modalities = listed(sorted({series.modality for series in every}))
            got = f"{len(every)} series of {modalities}"
            raise refuse("missing", "input", f"a {kind} series", got, look, case=case, file=path)
    if len(fitting) == 1 and fitting[0].usable:
        return fitting[0]
    if len(fitting) == 1:
        why = fitting[0].refusal
        what = "DICOM series" if len(every) == 1 else f"DICOM series {fitting[0].number}"
        damaged = sum(count for _, count in found.damaged)
        got = f"{why.got}; {damaged} files are damaged" if damaged else why.got
        raise refuse(f"dicom_{why.code}", what, why.expected, got, why.advice, case=case, file=path)
    usable = [series for series in fitting if series.usable]
    got = (
        f"{len(usable)} (number {listed(series.number for series in usable)})"
        if usable
        else f"{len(fitting)}, all refused (the first: {fitting[0].refusal.got})"
    )
    rule = "one series that can be used" if wanted == ANY_SERIES else f"one {wanted.upper()} series that can be used"
    raise refuse("dicom_series", "input", rule, got, look, case=case, file=path)


def _files(path: Path) -> list[str]:
    """Files to be looked at: paths, of an archive the names in it."""
    try:
        require_regular(path)
    except VolsegError as error:
        raise refusal_of(error, "format", None) from None
    try:
        if path.is_dir():
            found = list(islice(_walked(path), MOST_FILES + 1))
            if len(found) > MOST_FILES:
                advice = "Give the folder of one study"
                raise refuse("size", "folder", f"at most {MOST_FILES} files", "more", advice, file=path)
            return found
        if path.name.lower().endswith(".zip"):
            return [name for name in archive_members(path) if Path(name).name != _DICOMDIR]
        if path.name == _DICOMDIR:
            return [str(path.parent / name) for name in directory_files(path)]
        path.stat()
        return [str(path)]
    except ReaderError as error:
        got = f"one that {error}" if error.fatal else str(error)
        raise refuse("unreadable", "file", "one that can be read", got, "Copy it again", file=path) from None
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        got = "nothing there" if missing else f"an error ({error.strerror})"
        code = "missing" if missing else "unreadable"
        raise refuse(code, "input", "a DICOM folder, archive or file", got, "Check the path", file=path) from None


def _walked(folder: Path) -> Iterator[str]:
    """All files below a folder but hidden ones and DICOMDIRs, in a fixed order."""
    for home, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name != _DICOMDIR and name[0] != "." and Path(home, name).is_file():
                yield str(Path(home, name))


def _stamped(path: Path, files: Sequence[str]) -> list[Path]:
    """Files whose changes are noticed."""
    if path.is_file() and path.name != _DICOMDIR:
        return [path]
    return [file for file in map(Path, files) if file.exists()]


@lru_cache(maxsize=32)
def _scan(path: Path, files: tuple[str, ...], _: tuple[Any, ...], allow_gaps: bool, names: bool) -> Scan:
    archive = path if path.is_file() and path.name.lower().endswith(".zip") else None
    here = list(files)
    if archive is None:  # of others than DICOM a folder may hold many, and they are told without a process
        there = [file for file in files if Path(file).is_file()]
        here = [file for file in there if file.lower().endswith(DICOM_SUFFIXES) or _marked(Path(file))]
        missing, others = len(files) - len(there), len(there) - len(here)
    else:
        missing = others = 0
    try:
        headers = read_headers(archive, here, names=names)
    except ReaderError as error:
        raise refuse(
            "unreadable", "files", "readable ones", f"one that {error}", "Copy them again", file=path
        ) from None
    reasons: dict[str, int] = {}
    for header in headers:
        if header.get("problem") == "other":
            others += 1
        elif "problem" in header:
            reasons[header["problem"]] = reasons.get(header["problem"], 0) + 1
    groups = group_series(here, headers)
    studies = list(dict.fromkeys(group[0][1]["study"] for group in groups))
    digest = partial(_digest, archive, path)
    series = tuple(
        replace(
            arrange(group, digest, allow_gaps=allow_gaps),
            number=number,
            study=studies.index(group[0][1]["study"]) + 1,
            archive=archive,
        )
        for number, group in enumerate(groups, start=1)
    )
    return Scan(path, series, others, tuple(sorted(reasons.items())), missing)


def _digest(archive: Path | None, path: Path, file: str, frame: int) -> str:
    try:
        return pixel_digest(archive, file, frame)
    except ReaderError:  # pixels that cannot be read are like no others
        return f"{file} {frame}"


def _marked(path: Path) -> bool:
    """Whether a file has DICOM's mark behind its preamble; pipes are not opened."""
    try:
        require_regular(path)
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except (VolsegError, OSError, ValueError):
        return False
