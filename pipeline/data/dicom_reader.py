"""DICOM files and archives of them, read by pydicom and its decoders in a process of its own.

The process that asks loads none of these libraries. What it gets are numbers, identifiers and words of closed lists, so
that no text of a file (which may name a patient) can come into a message; names only where they are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dicom_file import (
    NotDicomError,
    RefusedError,
    archive_names,
    file_bytes,
    is_marked,
    items,
    numbers,
    opened,
    read_dataset,
    referenced_files,
    uid,
    whole,
    words,
)
from pipeline.data.dicom_label_objects import (
    PLACE_NUMBERS,
    TAGS,
    contour_points,
    frame_places,
    label_facts,
    plane_labels,
    read_labels,
)
from pipeline.data.dicom_pixels import frame_digest, read_frames, syntax_of
from pipeline.data.overlaps import Combination
from pipeline.data.reader_process import ReaderError, Readers, serve_requests, voxels_limit_s
from pipeline.data.volume_file import DICOM_SUFFIXES

MOST_FRAMES = 20_000
"""Most frames of a file."""

_HEADERS_S, _BATCH = 120.0, 64  # files whose headers are asked for at once
_LONGEST_ATTRIBUTE = 4096  # characters of an element that is copied to what is made of a series
_FRAMES_IN_A_SECOND = 100  # whose places are read, at least; a usual machine reads 1500
_DAMAGE = re.compile("corrupt|premature|truncat|not enough|unexpected end", re.I)

# Words that may come into messages and tables. PS3.3 C.7.3.1.1.1 (modality, those with images) and C.7.6.3.1.2.
MODALITIES = (
    *("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "XC", "OT", "SC", "ES", "OP", "OPT", "SM", "IVUS"),
    *("SEG", "SR", "PR", "RTSTRUCT", "RTDOSE", "RTPLAN", "KO"),
)
_PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_TYPES = ("ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "LOCALIZER", "AXIAL", "VOLUME", "MIXED", "RESAMPLED", "MPR")
_NAMES = ("PatientName", "PatientID", "StudyDate", "StudyDescription", "SeriesDescription", "SeriesInstanceUID")
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("SeriesNumber", "InstanceNumber", "ImageType", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SpecificCharacterSet"),
    *TAGS,
)
Header = dict[str, Any]


def archive_members(path: Path) -> list[str]:
    """Names of the files in a zip archive.

    Raises:
        ReaderError: If it cannot be read, is encrypted or too large, or a name leads out of it.
    """
    return list(_READERS.ask({"task": "members", "zip": str(path), "limit_s": _HEADERS_S})[0]["members"])


def directory_files(path: Path) -> list[str]:
    """Files that a DICOMDIR names, relative to it, with ``/``.

    Raises:
        ReaderError: If it cannot be read, or a name leads out of its folder.
    """
    return list(_READERS.ask({"task": "directory", "files": [str(path)], "limit_s": _HEADERS_S})[0]["members"])


def read_headers(archive: Path | None, files: Sequence[str], *, names: bool = False) -> list[Header]:
    """What is needed of the headers of files.

    Args:
        archive: The zip archive that they lie in, if they do.
        files: Their paths, or their names in the archive.
        names: Whether to give texts that may name the patient, under ``names``.

    Returns:
        One per file, in their order. A file that is not DICOM, or damaged, has only ``problem``: ``other`` or a reason.
    """
    request = {"task": "headers", "zip": str(archive or ""), "names": names, "limit_s": _HEADERS_S}
    found: list[Header] = []
    for start in range(0, len(files), _BATCH):
        batch = list(files[start : start + _BATCH])
        try:
            found += _READERS.ask({**request, "files": batch})[0]["headers"]
        except ReaderError:  # a file of them is to blame: only that is lost
            for file in batch:
                try:
                    found += _READERS.ask({**request, "files": [file]})[0]["headers"]
                except ReaderError as error:
                    found.append({"problem": f"one that {error}" if error.fatal else "a damaged header"})
    return found


def read_attributes(archive: Path | None, file: str, names: Sequence[str]) -> dict[str, Any]:
    """Elements of a file, by keyword, in DICOM's JSON model (PS3.18 F.2): they may name the patient.

    Elements that are empty, damaged or longer than any name are left out.

    Raises:
        ReaderError: If the file cannot be read.
    """
    request = {"task": "attributes", "zip": str(archive or ""), "files": [file], "names": list(names)}
    return dict(_READERS.ask({**request, "limit_s": _HEADERS_S})[0]["attributes"])


def pixel_digest(archive: Path | None, file: str, frame: int) -> str:
    """A hash of the stored pixels of a frame, also if it is compressed; arguments as for :func:`read_pixels`.

    Raises:
        ReaderError: If they cannot be read.
    """
    request = {"task": "digest", "zip": str(archive or ""), "files": [file], "frame": frame, "limit_s": _HEADERS_S}
    return str(_READERS.ask(request)[0]["digest"])


def read_pixels(archive: Path | None, file: str, frames: Sequence[int], shape: tuple[int, int]) -> NDArray[Any]:
    """Stored pixels of some frames of a file, (frames, rows, columns), integers.

    Args:
        archive: The zip archive that the file lies in, if it does.
        file: Its path, or its name in the archive.
        frames: Their numbers, from 0.
        shape: Rows and columns that its header promises.

    Raises:
        ReaderError: If they cannot be read, or are more or fewer.
    """
    values = len(frames) * shape[0] * shape[1]
    request = {"task": "pixels", "zip": str(archive or ""), "files": [file], "frames": list(frames), "values": values}
    answer, array = _READERS.ask({**request, "limit_s": voxels_limit_s(values)})
    if any(_DAMAGE.search(line) for line in answer.get("said", ())):
        raise ReaderError("damaged pixels", damaged=True)
    assert array is not None  # what was asked for came, or an error
    if array.shape != (len(frames), *shape):
        raise ReaderError("pixels of another shape than its header's", damaged=True)
    return array


def read_label_object(archive: Path | None, file: str) -> dict[str, Any]:
    """What :func:`~pipeline.data.dicom_label_objects.read_labels` tells of a file.

    Raises:
        ReaderError: If it cannot be read, or holds no labels.
    """
    request = {"task": "labels", "zip": str(archive or ""), "files": [file], "limit_s": _HEADERS_S}
    found: dict[str, Any] = _READERS.ask(request)[0]["labels"]
    return found


def read_frame_places(archive: Path | None, file: str, frames: int) -> NDArray[np.float64]:
    """Where the frames of a SEG lie, (frames, PLACE_NUMBERS); see :mod:`~pipeline.data.dicom_label_objects`.

    Raises:
        ReaderError: If they cannot be read.
    """
    limit_s = _HEADERS_S + frames / _FRAMES_IN_A_SECOND
    request = {"task": "places", "zip": str(archive or ""), "files": [file], "limit_s": limit_s}
    array = _READERS.ask({**request, "values": frames * PLACE_NUMBERS})[1]
    assert array is not None  # what was asked for came, or an error
    return array


def read_plane_labels(
    archive: Path | None, file: str, planes: Sequence[int], segments: Sequence[int], shape: tuple[int, int]
) -> tuple[NDArray[np.uint16], list[Combination]]:
    """What :func:`~pipeline.data.dicom_label_objects.plane_labels` makes of a file.

    Args:
        archive: The zip archive that the file lies in, if it does.
        file: Its path, or its name in the archive.
        planes: The plane of every frame.
        segments: The segment of every frame.
        shape: Rows and columns that its header promises.

    Raises:
        ReaderError: If it cannot be read.
    """
    pixels = shape[0] * shape[1]
    request = {"task": "planes", "zip": str(archive or ""), "files": [file], "values": (max(planes) + 1) * pixels}
    frames = {"planes": list(planes), "segments": list(segments), "limit_s": voxels_limit_s(len(planes) * pixels)}
    answer, array = _READERS.ask({**request, **frames})
    if array is None or array.shape[1:] != shape:
        raise ReaderError("pixels of another shape than its header's", damaged=True)
    return array, [tuple(combination) for combination in answer["combinations"]]


def read_contour_points(archive: Path | None, file: str, points: int) -> NDArray[np.float64]:
    """Points of all contours of an RTSTRUCT, (points, 3), LPS in mm.

    Raises:
        ReaderError: If they cannot be read.
    """
    request = {"task": "points", "zip": str(archive or ""), "files": [file], "limit_s": voxels_limit_s(3 * points)}
    array = _READERS.ask({**request, "values": 3 * points})[1]
    assert array is not None  # what was asked for came, or an error
    return array


# The other side: what runs in the process.


def serve() -> None:
    """Answer requests until there are no more."""
    serve_requests(_answer, _loaded)


def _loaded() -> None:
    import logging

    import pydicom
    import pydicom.pixels

    # What pydicom finds odd in a file quotes it; none of it may be said.
    logging.getLogger("pydicom").disabled = True
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[Any] | None, Any]:
    """Answer one request; an error of a library is an answer too, without its text, which may quote the file."""
    try:
        return _answered(request)
    except RefusedError as error:
        return {"error": str(error)}, None, None
    except Exception as error:  # whatever a library raises is about the file
        return {"error": f"an error ({type(error).__name__})"}, None, None


def _answered(request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[Any] | None, Any]:
    task, archive = request["task"], request.get("zip", "")
    if task == "members":
        return {"members": archive_names(archive)}, None, None
    if task == "headers":
        return {"headers": [_header(archive, file, request["names"]) for file in request["files"]]}, None, None
    file = request["files"][0]
    if task == "labels":
        return {"labels": read_labels(archive, file)}, None, None
    if task == "planes":
        found, combinations = plane_labels(archive, file, request["planes"], request["segments"])
        return {"combinations": combinations}, found, found
    if task in ("places", "points"):
        array = (frame_places if task == "places" else contour_points)(archive, file)
        return {}, array, array
    with opened(archive, file) as stream:
        if task == "directory":
            return {"members": referenced_files(stream)}, None, None
        if task == "attributes":
            return {"attributes": _attributes(stream, request["names"])}, None, None
        if task == "digest":
            return {"digest": frame_digest(stream, request["frame"])}, None, None
        pixels = read_frames(stream, request["frames"])
        return {}, pixels, pixels


def _header(archive: str, file: str, names: bool) -> Header:
    try:
        with opened(archive, file, whole=False) as stream:
            tags = [*_TAGS, *(_NAMES if names else ())]
            marked = is_marked(stream)
            if not marked and not file.lower().endswith(DICOM_SUFFIXES):
                raise NotDicomError
            dataset = read_dataset(stream, stop_before_pixels=True, specific_tags=tags)
            header = _facts(dataset, names)
        if names:
            header["names"] = {name: str(dataset.get(name, ""))[:100] for name in _NAMES}
        return {**header, "bytes": file_bytes(archive, file)}
    except NotDicomError:
        # An empty file, say: its name is that of a slice.
        return {"problem": "a damaged header" if file.lower().endswith(DICOM_SUFFIXES) else "other"}
    except RefusedError as error:
        return {"problem": str(error)}
    except OSError as error:
        return {"problem": f"an error ({error.strerror or 'unreadable'})"}
    except Exception as error:  # whatever pydicom raises is about the file
        return {"problem": f"a damaged header ({type(error).__name__})"}


def _attributes(stream: IO[bytes], names: Sequence[str]) -> dict[str, Any]:
    dataset = read_dataset(stream, stop_before_pixels=True, specific_tags=[*names, "SpecificCharacterSet"])
    found: dict[str, Any] = {}
    for name in names:
        with suppress(Exception):  # a damaged one; what pydicom raises is about the element
            element = dataset[name].to_json_dict(None, 0)
            if len(json.dumps(element)) <= _LONGEST_ATTRIBUTE:
                found[name] = element
    return found


def _facts(dataset: Any, names: bool) -> Header:
    """Numbers, identifiers and known words of a data set; of segments also the names, if they are asked for."""
    meta = dataset.file_meta
    if not uid(dataset, "SOPClassUID") and "Rows" not in dataset:
        raise RefusedError("a damaged header")
    types = [word for word in words(dataset.get("ImageType")) if word in _TYPES]
    modality = next(iter(words(dataset.get("Modality"))), "")
    photometric = next(iter(words(dataset.get("PhotometricInterpretation"))), "")
    frames = whole(dataset, "NumberOfFrames")
    labels = label_facts(dataset, names=names)
    return {
        "study": uid(dataset, "StudyInstanceUID"),
        "series": uid(dataset, "SeriesInstanceUID"),
        "sop": uid(dataset, "SOPInstanceUID") or uid(meta, "MediaStorageSOPInstanceUID"),
        "sop_class": uid(dataset, "SOPClassUID") or uid(meta, "MediaStorageSOPClassUID"),
        "frame_of_reference": uid(dataset, "FrameOfReferenceUID"),
        "syntax": syntax_of(dataset),
        "modality": modality if modality in MODALITIES else "OT",
        "number": whole(dataset, "SeriesNumber"),
        "instance": whole(dataset, "InstanceNumber"),
        "type": types,
        "rows": whole(dataset, "Rows") or 0,
        "columns": whole(dataset, "Columns") or 0,
        "samples": whole(dataset, "SamplesPerPixel") or 1,
        "photometric": photometric if photometric in _PHOTOMETRIC else "",
        "allocated": whole(dataset, "BitsAllocated") or 0,
        "thickness": numbers(dataset, "SliceThickness", 1),
        "between": numbers(dataset, "SpacingBetweenSlices", 1),
        "multi_frame": (frames is not None and frames > 1) or "PerFrameFunctionalGroupsSequence" in dataset,
        "labels": labels,
        "planes": [] if labels else _planes(dataset, frames or 1),
    }


def _planes(dataset: Any, frames: int) -> list[Header]:
    """Place and scale of every frame: of its own group, else of the shared one, else of the data set."""
    if not 1 <= frames <= MOST_FRAMES:
        raise RefusedError(f"a file of {frames} frames, not from 1 to {MOST_FRAMES}")
    shared = items(dataset, "SharedFunctionalGroupsSequence")[:1]
    own = items(dataset, "PerFrameFunctionalGroupsSequence")
    if own and len(own) != frames:
        raise RefusedError(f"a file of {frames} frames with {len(own)} positions")
    planes = []
    for frame in range(frames):
        groups = [*(own[frame : frame + 1]), *shared]

        def found(sequence: str, name: str, count: int, groups: Sequence[Any] = groups) -> list[float] | None:
            inner = (item for group in groups for item in items(group, sequence))
            values = next((v for item in inner if (v := numbers(item, name, count)) is not None), None)
            return numbers(dataset, name, count) if values is None else values

        scale = "PixelValueTransformationSequence"
        tables = [group for group in (dataset, *groups) if "ModalityLUTSequence" in group]
        inner = [item for group in groups for item in items(group, scale)]
        planes.append(
            {
                "position": found("PlanePositionSequence", "ImagePositionPatient", 3),
                "orientation": found("PlaneOrientationSequence", "ImageOrientationPatient", 6),
                "spacing": found("PixelMeasuresSequence", "PixelSpacing", 2),
                "thickness": found("PixelMeasuresSequence", "SliceThickness", 1),
                "slope": found(scale, "RescaleSlope", 1),
                "intercept": found(scale, "RescaleIntercept", 1),
                "bad_scale": bool(tables) or any(map(_bad_scale, (dataset, *inner))),
            }
        )
        if not groups:  # without groups every frame has the data set's place: one says it all
            return planes * frames
    return planes


def _bad_scale(item: Any) -> bool:
    """Whether a slope or intercept is there that is no finite number."""
    scale = ("RescaleSlope", "RescaleIntercept")
    return any(item.get(name) not in (None, "") and numbers(item, name, 1) is None for name in scale)


_READERS = Readers("pipeline.data.dicom_reader")
