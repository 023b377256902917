"""DICOM objects that hold labels: SEG (segments) and RTSTRUCT (contours). Loaded by the process that reads.

Only numbers, identifiers and the names of segments come out of them. The names are texts of the file: whoever asks for
them keeps them out of messages.

Reference: DICOM PS3.3, A.51 (Segmentation), A.90 (Label Map Segmentation), A.19 (RT Structure Set).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dicom_file import (
    RefusedError,
    file_bytes,
    file_stamp,
    items,
    numbers,
    opened,
    read_dataset,
    uid,
    whole,
    words,
)
from pipeline.data.dicom_pixels import PLAIN, frame_decoder, syntax_of
from pipeline.data.overlaps import Combination, Overlaps
from pipeline.data.reader_process import allow_memory

PLACE_NUMBERS = 12
"""Numbers that say where a frame lies: its segment (0 if its pixels say), position, orientation, spacing."""

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # segments, label map
_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_FRAME_BYTES = 16_384  # that pydicom takes for what is said of a frame
_MOST_FRAMES, _MOST_CONTOURS, _MOST_SEGMENTS, _MOST_INSTANCES = 100_000, 200_000, 65_535, 50_000

TAGS = (
    *("SegmentationType", "SegmentSequence", "ReferencedSeriesSequence", "StructureSetROISequence"),
    "ReferencedFrameOfReferenceSequence",
)
"""Elements that :func:`label_facts` looks at."""


def label_facts(dataset: Any, *, names: bool = False) -> dict[str, Any] | None:
    """What kind of labels a data set holds, how many, and the series that they belong to; None if it holds none.

    Args:
        dataset: At least its elements :data:`TAGS`.
        names: Whether to give the names of its segments.
    """
    kind = _kind(dataset)
    if not kind:
        return None
    segments = _segments(dataset, kind)
    facts = {"kind": kind, "segments": len(segments), "series": _series(dataset)}
    return facts | ({"names": [name for _, name in segments]} if names else {})


def read_labels(archive: str, file: str) -> dict[str, Any]:
    """Everything about the labels of a file but the frames and contours themselves.

    Returns:
        ``kind`` (BINARY, FRACTIONAL, LABELMAP, RTSTRUCT), ``segments`` (number and name of each), ``series``,
        ``instances`` and ``frames_of_reference`` that they refer to. Of a SEG also ``frames``, ``rows``, ``columns``,
        ``bits``, whether they are ``plain`` (not compressed), ``bytes`` of the file, ``maximum`` and ``thickness``; of
        an RTSTRUCT ``contours``: ``segment``, ``points``, ``closed``, and ``instance``, a place in ``instances`` or -1.

    Raises:
        RefusedError: If it holds no labels, or more than the limits.
    """
    dataset = _dataset(archive, file)
    kind = _kind(dataset)
    if not kind:
        raise RefusedError("an object without labels that are read (SEG, RTSTRUCT)")
    facts: dict[str, Any] = {"kind": kind, "segments": _segments(dataset, kind), "series": _series(dataset)}
    if kind == "RTSTRUCT":
        return facts | _contours(dataset)
    frames, rows, columns = (whole(dataset, name) or 0 for name in ("NumberOfFrames", "Rows", "Columns"))
    if not (1 <= frames <= _MOST_FRAMES and 1 <= rows <= 65535 and 1 <= columns <= 65535):
        raise RefusedError(f"{frames} frames of {rows} x {columns} pixels")
    size = {"frames": frames, "rows": rows, "columns": columns, "bits": whole(dataset, "BitsAllocated") or 0}
    reference = uid(dataset, "FrameOfReferenceUID")
    shared = items(dataset, "SharedFunctionalGroupsSequence")[:1]
    thickness = _grouped(shared, "PixelMeasuresSequence", "SliceThickness", 1)
    return {
        **facts,
        **size,
        "plain": syntax_of(dataset) in PLAIN,
        "bytes": file_bytes(archive, file),
        "thickness": thickness[0] if thickness else 1.0,
        "maximum": (whole(dataset, "MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 1,
        "instances": [] if facts["series"] else _source_instances(dataset),
        "frames_of_reference": [reference] if reference else [],
    }


def frame_places(archive: str, file: str) -> NDArray[np.float64]:
    """Where the frames of a SEG lie, (frames, PLACE_NUMBERS); NaN for what is not said."""
    dataset = _dataset(archive, file)
    allow_memory((whole(dataset, "NumberOfFrames") or 0) * _FRAME_BYTES)
    shared = items(dataset, "SharedFunctionalGroupsSequence")[:1]
    own = items(dataset, "PerFrameFunctionalGroupsSequence")
    wanted = (
        ("SegmentIdentificationSequence", "ReferencedSegmentNumber", 1),
        ("PlanePositionSequence", "ImagePositionPatient", 3),
        ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        ("PixelMeasuresSequence", "PixelSpacing", 2),
    )
    every = [_grouped(shared, *name) for name in wanted]
    places = np.full((whole(dataset, "NumberOfFrames") or 0, PLACE_NUMBERS), np.nan)
    for frame, group in zip(places, own, strict=False):
        start = 0
        for name, common in zip(wanted, every, strict=True):
            found = _grouped([group], *name) or common
            if found is not None:
                frame[start : start + name[2]] = found
            start += name[2]
    if not own and len(places) == 1:
        places[0] = np.concatenate(
            [[np.nan] * name[2] if found is None else found for name, found in zip(wanted, every, strict=True)]
        )
    return places


def plane_labels(
    archive: str, file: str, planes: Sequence[int], segments: Sequence[int]
) -> tuple[NDArray[np.uint16], list[Combination]]:
    """The segments of a SEG on its planes.

    Args:
        archive: The zip archive that the file lies in, or an empty text.
        file: Its path, or its name in the archive.
        planes: The plane of every frame, numbered from 0; -1 for frames that are left out.
        segments: The segment of every frame; 0 if its pixels say which.

    Returns:
        (planes, rows, columns), and the segments that each of its numbers stands for.

    Raises:
        RefusedError: If pixels have a value that no segment is described for.
    """
    dataset = _dataset(archive, file)
    kind = _kind(dataset)
    decode = frame_decoder(dataset)
    maximum = (whole(dataset, "MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 1
    known = {number for number, _ in _segments(dataset, kind)}
    background = (whole(dataset, "PixelPaddingValue") or 0) if kind == "LABELMAP" else 0
    found = Overlaps((max(planes) + 1, int(dataset.Rows), int(dataset.Columns)))
    for frame, (plane, segment) in enumerate(zip(planes, segments, strict=True)):
        if plane < 0:
            continue
        pixels, part = decode(frame), found.index[plane]
        if kind != "LABELMAP":
            # In integers of 64 bits: twice a pixel of 8 bits may be more than 8 bits hold.
            inside = pixels.astype(np.int64) * 2 >= maximum if kind == "FRACTIONAL" else pixels != 0
            found.add(part, inside, [(), (segment,)])
            continue
        values, numbered = np.unique(pixels, return_inverse=True)
        lost = [int(value) for value in values if value != background and int(value) not in known]
        if lost:
            raise RefusedError(f"pixels of {len(lost)} values that no segment is described for, such as {lost[0]}")
        single: list[Combination] = [(), *(() if value == background else (int(value),) for value in values)]
        empty = values == background
        numbered = np.where(empty[numbered], 0, numbered + 1).reshape(pixels.shape)
        found.add(part, numbered, single)
    _dataset_of.cache_clear()  # nothing more is asked of it
    return found.index, found.combinations


def contour_points(archive: str, file: str) -> NDArray[np.float64]:
    """Points of all contours of an RTSTRUCT, one after the other, (points, 3), LPS in mm."""
    dataset = _dataset(archive, file)
    parts = [_points(contour) for _, contour in _each_contour(dataset)]
    _dataset_of.cache_clear()
    return np.concatenate(parts).reshape(-1, 3) if parts else np.empty((0, 3))


# Asked several things one after the other, of which the largest is to read the file.
@lru_cache(maxsize=1)
def _dataset_of(archive: str, file: str, *_: Any) -> Any:
    with opened(archive, file) as stream:
        return read_dataset(stream)


def _dataset(archive: str, file: str) -> Any:
    return _dataset_of(*file_stamp(archive, file))


def _kind(dataset: Any) -> str:
    """BINARY, FRACTIONAL, LABELMAP or RTSTRUCT; empty if there are no labels that are read."""
    sop_class = uid(dataset, "SOPClassUID")
    if sop_class == _STRUCTURE_SET:
        return "RTSTRUCT"
    if sop_class not in _SEGMENTATIONS:
        return ""
    kind = next(iter(words(dataset.get("SegmentationType"))), "")
    return kind if kind in ("BINARY", "FRACTIONAL", "LABELMAP") else ""


def _segments(dataset: Any, kind: str) -> list[tuple[int, str]]:
    """Number and name of every segment or structure, ascending; the background of a label map is none."""
    sequence, number, name = (
        ("StructureSetROISequence", "ROINumber", "ROIName")
        if kind == "RTSTRUCT"
        else ("SegmentSequence", "SegmentNumber", "SegmentLabel")
    )
    found: dict[int, str] = {}
    for item in items(dataset, sequence)[: _MOST_SEGMENTS + 1]:
        n = whole(item, number)
        if n is None or n in found or len(found) >= _MOST_SEGMENTS:
            raise RefusedError("segments without a number of their own")
        found[n] = str(item.get(name) or "")[:1000] or _meaning(item)
    if kind == "LABELMAP":
        found.pop(0, None)
    return sorted(found.items())


def _meaning(segment: Any) -> str:
    codes = items(segment, "SegmentedPropertyTypeCodeSequence")[:1]
    return str(codes[0].get("CodeMeaning") or "")[:1000] if codes else ""


def _series(dataset: Any) -> list[str]:
    """Series that labels say they belong to."""
    found = items(dataset, "ReferencedSeriesSequence")
    for reference in items(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in items(reference, "RTReferencedStudySequence"):
            found += items(study, "RTReferencedSeriesSequence")
    return [name for name in dict.fromkeys(uid(item, "SeriesInstanceUID") for item in found[:_MOST_FRAMES]) if name]


def _source_instances(dataset: Any) -> list[str]:
    """Images that frames were made from, where no series is named."""
    found: dict[str, None] = {}
    groups = [dataset, *items(dataset, "SharedFunctionalGroupsSequence")]
    for group in [*groups, *items(dataset, "PerFrameFunctionalGroupsSequence")]:
        sources = [group, *items(group, "DerivationImageSequence")]
        for image in (image for source in sources for image in items(source, "SourceImageSequence")):
            if len(found) < _MOST_INSTANCES and (name := uid(image, "ReferencedSOPInstanceUID")):
                found[name] = None
    return list(found)


def _grouped(groups: Sequence[Any], sequence: str, name: str, count: int) -> list[float] | None:
    """Numbers of an element of a functional group."""
    inner = (item for group in groups for item in items(group, sequence))
    return next((found for item in inner if (found := numbers(item, name, count)) is not None), None)


def _contours(dataset: Any) -> dict[str, Any]:
    """What is known of contours without reading their points."""
    instances: dict[str, int] = {}
    columns: dict[str, list[int]] = {"segment": [], "points": [], "closed": [], "instance": []}
    for number, contour in _each_contour(dataset):
        images = items(contour, "ContourImageSequence")[:1]
        image = uid(images[0], "ReferencedSOPInstanceUID") if images else ""
        place = instances.setdefault(image, len(instances)) if image else -1
        kind = next(iter(words(contour.get("ContourGeometricType"))), "")
        values = (number, _count(contour), int(kind in _CLOSED), place)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    structures = items(dataset, "StructureSetROISequence")
    references = {uid(item, "ReferencedFrameOfReferenceUID") for item in structures} - {""}
    return {"contours": columns, "instances": list(instances), "frames_of_reference": sorted(references)}


def _each_contour(dataset: Any) -> Iterator[tuple[int, Any]]:
    """Number of the structure and item of every contour."""
    every = (
        (whole(structure, "ReferencedROINumber"), contour)
        for structure in items(dataset, "ROIContourSequence")
        for contour in items(structure, "ContourSequence")
    )
    for n, (number, contour) in enumerate(islice(every, _MOST_CONTOURS + 1)):
        if n == _MOST_CONTOURS:
            raise RefusedError(f"more than {_MOST_CONTOURS} contours")
        if number is None:
            raise RefusedError("contours of a structure without number")
        yield number, contour


def _raw(contour: Any) -> bytes:
    """The text of a contour's points as it is in the file: an object for each number takes ten times the memory."""
    from pydicom.dataelem import RawDataElement

    element = contour.get_item("ContourData") if "ContourData" in contour else None
    if element is None:
        return b""
    if isinstance(element, RawDataElement):
        return bytes(element.value or b"")
    value = element.value
    values = [value] if isinstance(value, str | float | int) else list(value or ())
    return "\\".join(map(str, values)).encode("ascii", "replace")


def _count(contour: Any) -> int:
    """Points of a contour."""
    raw = _raw(contour).strip(b" \0")
    values = raw.count(b"\\") + 1 if raw else 0
    if values % 3:
        raise RefusedError(f"a contour of {values} numbers, not three for each point")
    return values // 3


def _points(contour: Any) -> NDArray[np.float64]:
    raw = _raw(contour).strip(b" \0")
    found = np.array(raw.split(b"\\") if raw else [], dtype=np.bytes_).astype(np.float64)
    if not np.isfinite(found).all():
        raise RefusedError("points of a contour that are no finite numbers")
    return found
