"""DICOM SEG and RTSTRUCT made from masks, with names that must not leak in every text but those of the organs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from generated_dicom import SECRET
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from skimage.measure import find_contours

CONTOUR_DATA = 0x30060050
SEGMENTATION, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"

Masks = Mapping[str, NDArray[Any]]
"""Name of an organ → (K, J, I), in the order of the slices."""


def make_seg(slices: Sequence[Dataset], masks: Masks, kind: str = "BINARY", **options: Any) -> Dataset:
    """A SEG as highdicom writes it: masks of bool, of FRACTIONAL shares from 0 to 1; those of LABELMAP lie apart."""
    types = highdicom.seg.SegmentationTypeValues
    kept = [_complete(one) for one in slices]
    described = [_described(n, name) for n, name in enumerate(masks, start=1)]
    array: NDArray[Any] = np.stack(list(masks.values()), axis=-1)
    if kind == "LABELMAP":
        array = (array * np.arange(1, array.shape[-1] + 1)).max(axis=-1).astype(np.uint8)
    elif kind == "BINARY":
        array = array.astype(np.uint8)
    about = ("maker", "model", "1", "serial")
    uids = [generate_uid(entropy_srcs=[kept[0].SeriesInstanceUID, kind, part]) for part in ("series", "instance")]
    made = highdicom.seg.Segmentation(kept, array, types[kind], described, uids[0], 90, uids[1], 1, *about, **options)
    return seeded(made)


def _complete(one: Dataset) -> Dataset:
    """A slice with what the standard asks for; scanners and shared files leave some of it out."""
    one = pydicom.Dataset(one) if not isinstance(one, pydicom.FileDataset) else one
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        if name not in one:
            setattr(one, name, "")
    for name in ("AccessionNumber", "ReferringPhysicianName"):
        if name not in one:
            setattr(one, name, "")
    return one


def real_slices(folder: Path) -> list[Dataset]:
    """Slices of a shared series in order, with the identifiers that were left out of the CT when it became public."""
    slices = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    for one in slices:
        meta = one.file_meta
        one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        for tag in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(one, tag, one.get(tag) or generate_uid(entropy_srcs=[folder.name, tag]))
    normal = np.cross(*np.array(slices[0].ImageOrientationPatient, dtype=float).reshape(2, 3))
    return sorted(slices, key=lambda one: float(normal @ np.array(one.ImagePositionPatient, dtype=float)))


def _described(number: int, name: str) -> highdicom.seg.SegmentDescription:
    manual = highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    return highdicom.seg.SegmentDescription(number, name, codes.SCT.Organ, codes.SCT.Liver, manual)


Frame = tuple[int, NDArray[Any], Sequence[float], Sequence[float], Sequence[float]]
"""Segment, pixels (rows, columns), position, orientation, spacing between rows and between columns."""


def own_seg(names: Sequence[str], frames: Sequence[Frame], reference: Dataset, **tags: Any) -> Dataset:
    """A BINARY SEG whose frames lie anywhere."""
    one = Dataset()
    one.SOPClassUID, one.SOPInstanceUID = SEGMENTATION, generate_uid(entropy_srcs=["own seg", *names])
    one.StudyInstanceUID, one.SeriesInstanceUID = reference.StudyInstanceUID, generate_uid(entropy_srcs=["own series"])
    one.FrameOfReferenceUID, one.Modality, one.SegmentationType = reference.FrameOfReferenceUID, "SEG", "BINARY"
    one.SeriesNumber, one.SamplesPerPixel, one.PhotometricInterpretation = 91, 1, "MONOCHROME2"
    one.Rows, one.Columns = frames[0][1].shape
    one.NumberOfFrames, one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = (
        len(frames),
        1,
        1,
        0,
        0,
    )
    series = Dataset()
    series.SeriesInstanceUID = reference.SeriesInstanceUID
    one.ReferencedSeriesSequence = [series]
    one.SegmentSequence = []
    for number, name in enumerate(names, start=1):
        one.SegmentSequence.append(segment := Dataset())
        segment.SegmentNumber, segment.SegmentLabel = number, name
    groups = []
    for number, _, position, orientation, spacing in frames:
        groups.append(group := Dataset())
        identified, place, plane, measures = Dataset(), Dataset(), Dataset(), Dataset()
        identified.ReferencedSegmentNumber = number
        place.ImagePositionPatient = [float(f"{mm:.10g}") for mm in position]
        plane.ImageOrientationPatient = [float(f"{x:.10g}") for x in orientation]
        measures.PixelSpacing = list(spacing)
        group.SegmentIdentificationSequence, group.PlanePositionSequence = [identified], [place]
        group.PlaneOrientationSequence, group.PixelMeasuresSequence = [plane], [measures]
    one.PerFrameFunctionalGroupsSequence = groups
    bits = np.concatenate([np.asarray(pixels, bool).ravel() for _, pixels, *_ in frames])
    packed = np.packbits(bits, bitorder="little").tobytes()
    one.PixelData = packed + bytes(len(packed) % 2)
    one["PixelData"].VR = "OB"
    return _finished(one, tags)


def frames_of(slices: Sequence[Dataset], masks: Masks) -> list[Frame]:
    """Frames for :func:`own_seg` on the slices themselves; empty ones are left out."""
    return [
        (number, mask[k], one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing)
        for number, mask in enumerate(masks.values(), start=1)
        for k, one in enumerate(slices)
        if mask[k].any()
    ]


def contours_of(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Lines around the pixels of a mask (J, I), half-way to their neighbours: each (points, 2) as i and j."""
    return [line[:-1, ::-1] - 1 for line in find_contours(np.pad(mask, 1).astype(float), 0.5)]


def make_rtstruct(
    slices: Sequence[Dataset],
    masks: Masks,
    lines: Callable[[NDArray[np.bool_]], Sequence[NDArray[np.float64]]] = contours_of,
    digits: int = 12,
    **tags: Any,
) -> Dataset:
    """An RTSTRUCT whose contours lie on the slices.

    Args:
        slices: The series.
        masks: Its organs.
        lines: Draws the contours of a slice, as :func:`contours_of`.
        digits: Of every coordinate; 16 characters are legal.
        tags: Further elements.
    """
    first = slices[0]
    one = Dataset()
    one.SOPClassUID, one.SOPInstanceUID = RTSTRUCT, generate_uid(entropy_srcs=["rtstruct", *masks])
    one.StudyInstanceUID, one.SeriesInstanceUID = first.StudyInstanceUID, generate_uid(entropy_srcs=["rt", *masks])
    one.Modality, one.SeriesNumber = "RTSTRUCT", 92
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [study]
    one.ReferencedFrameOfReferenceSequence = [frame]
    one.StructureSetROISequence, one.ROIContourSequence = [], []
    for number, (name, mask) in enumerate(masks.items(), start=1):
        structure, contours = Dataset(), Dataset()
        structure.ROINumber, structure.ROIName = number, name
        structure.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        contours.ReferencedROINumber, contours.ContourSequence = number, []
        for k, owner in enumerate(slices):
            contours.ContourSequence += [_contour(line, owner, digits) for line in lines(mask[k])]
        one.StructureSetROISequence.append(structure)
        one.ROIContourSequence.append(contours)
    return _finished(one, tags)


def _contour(line: NDArray[np.float64], owner: Dataset, digits: int) -> Dataset:
    row, column = np.array(owner.ImageOrientationPatient, dtype=float).reshape(2, 3)
    down, across = (float(mm) for mm in owner.PixelSpacing)
    origin = np.array(owner.ImagePositionPatient, dtype=float)
    points = origin + line[:, :1] * across * row + line[:, 1:] * down * column
    one, image = Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = owner.SOPClassUID, owner.SOPInstanceUID
    one.ContourImageSequence, one.ContourGeometricType = [image], "CLOSED_PLANAR"
    one.NumberOfContourPoints = len(points)
    # As bytes: pydicom makes an object of every number.
    content = "\\".join(f"{x:.{digits}f}"[:16] for x in points.ravel()).encode()
    content += b" " * (len(content) % 2)
    one[CONTOUR_DATA] = RawDataElement(Tag(CONTOUR_DATA), "DS", len(content), content, 0, True, True)
    return one


def _finished(one: Dataset, tags: Mapping[str, Any]) -> Dataset:
    for name, value in tags.items():
        setattr(one, name, value)
    one.file_meta = FileMetaDataset()
    # Explicit ones have no room for more than 64 kB of contour.
    one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if one.SOPClassUID == RTSTRUCT else ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = (
        one.SOPClassUID,
        one.SOPInstanceUID,
    )
    return seeded(one)


def seeded(one: Dataset) -> Dataset:
    """The data set with the secret in texts that name people and places, also beside the names of organs."""
    for name in ("PatientName", "PatientID", "SeriesDescription", "ContentCreatorName", "OperatorsName"):
        setattr(one, name, SECRET)
    one.StructureSetLabel = one.ContentLabel = one.ContentDescription = one.InstitutionName = SECRET
    for segment in one.get("SegmentSequence", ()):
        segment.SegmentDescription = segment.TrackingID = SECRET
    for structure in one.get("StructureSetROISequence", ()):
        structure.ROIDescription = structure.ROIGenerationDescription = SECRET
    return one
