"""DICOM structure sets (RTSTRUCT): the contours of every organ on every slice, for radiotherapy.

A contour runs half way between pixels inside and outside, so that a reader that asks which pixel centres it holds gets
the mask back. A hole is joined with its outline by a channel of no width (the keyhole technique, PS3.3 C.8.8.6.3):
every reader understands it, whether it counts crossings or joins areas.

Reference: PS3.3 A.19 (RT Structure Set IOD), C.8.8.5, C.8.8.6, C.8.8.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import Box
from pipeline.data.contours import filled
from pipeline.export.dicom_source import Segmented, Target, mismatch
from pipeline.export.segmentation import coded

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

STRUCTURE_SET_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired, but what this reference asks for
_CHANNEL = 0.25  # pixels between a row of pixel centres and a channel, which so passes none of them


def structure_set(case: Segmented) -> Dataset:
    """The contours of all targets; one that is not there has none, and keeps its number."""
    import highdicom as hd
    from pydicom.dataset import Dataset

    maker = case.maker
    head = case.source.images()[0]
    found = hd.SOPClass(
        study_instance_uid=case.source.study,
        series_instance_uid=case.uid("RTSTRUCT series"),
        series_number=case.source.number_of(3),
        sop_instance_uid=case.uid("RTSTRUCT"),
        sop_class_uid=STRUCTURE_SET_CLASS,
        instance_number=1,
        modality="RTSTRUCT",
        manufacturer=maker.name,
        manufacturer_model_name=maker.name,
        software_versions=maker.version,
        device_serial_number=maker.serial,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description="Structures",
        specific_character_set="ISO_IR 192",
    )
    found.copy_patient_and_study_information(head)
    found.OperatorsName = ""
    found.FrameOfReferenceUID = case.source.frame_of_reference
    found.PositionReferenceIndicator = head.get("PositionReferenceIndicator", "")
    found.StructureSetLabel = "SEGMENTATION"
    found.StructureSetDate, found.StructureSetTime = found.InstanceCreationDate, found.InstanceCreationTime
    found.ApprovalStatus = "UNAPPROVED"
    place = Dataset()
    place.FrameOfReferenceUID = case.source.frame_of_reference
    study, series = Dataset(), Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, case.source.study
    series.SeriesInstanceUID = case.source.uid
    series.ContourImageSequence = [case.source.reference(plane) for plane in case.source.planes]
    study.RTReferencedSeriesSequence = [series]
    place.RTReferencedStudySequence = [study]
    found.ReferencedFrameOfReferenceSequence = [place]
    found.StructureSetROISequence = [_region(case, target) for target in case.targets]
    found.ROIContourSequence = [_drawn(case, target) for target in case.targets]
    found.RTROIObservationsSequence = [_observed(case, target) for target in case.targets]
    return found


def _region(case: Segmented, target: Target) -> Dataset:
    from pydicom.dataset import Dataset

    found = Dataset()
    found.ROINumber, found.ROIName = target.number, target.label
    found.ReferencedFrameOfReferenceUID = case.source.frame_of_reference
    found.ROIGenerationAlgorithm = "MANUAL" if case.maker.manual else "AUTOMATIC"
    return found


def _observed(case: Segmented, target: Target) -> Dataset:
    from pydicom.dataset import Dataset

    found = Dataset()
    found.ObservationNumber = found.ReferencedROINumber = target.number
    found.RTROIInterpretedType = "ORGAN"
    found.ROIInterpreter = ""
    found.SegmentedPropertyCategoryCodeSequence = [coded(target.code.category)]
    code = coded(target.code.type)
    if target.code.modifier is not None:
        code.SegmentedPropertyTypeModifierCodeSequence = [coded(target.code.modifier)]
    found.RTROIIdentificationCodeSequence = [code]
    return found


def _drawn(case: Segmented, target: Target) -> Dataset:
    from pydicom.dataset import Dataset

    found = Dataset()
    found.ROIDisplayColor = list(target.rgb)
    found.ReferencedROINumber = target.number
    there = np.flatnonzero(case.pixels[:, target.number - 1])
    if not len(there):
        return found
    drawn = []
    for number in there.tolist():
        for contour in contours(case.mask(target, number)):
            drawn.append(one := Dataset())
            one.ContourImageSequence = [case.source.reference(case.source.planes[number])]
            one.ContourGeometricType = "CLOSED_PLANAR"
            one.NumberOfContourPoints = len(contour)
            one.ContourData = [f"{mm:.5f}" for mm in _in_patient(case, number, contour).ravel()]
    found.ContourSequence = drawn
    return found


def _in_patient(case: Segmented, plane: int, contour: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions (points, 3), LPS in mm, of points in pixels along columns (i) and rows (j)."""
    stack = case.source.opened.stack
    found: NDArray[np.float64] = case.source.planes[plane].position + (contour * stack.spacing_mm) @ stack.axes.T
    return found


def contours(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed contours of a mask (rows, columns), each (points, 2) in pixels along i and j.

    Pixel centres are at whole numbers. Areas that touch at corners only have contours of their own.
    """
    box = Box.around(mask)
    if box is None:
        return []
    from contourpy import FillType, contour_generator

    padded = np.pad(mask[box.slices], 1).astype(np.float64)
    lines = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    start = np.array([box.start[1], box.start[0]]) - 1.0
    found = []
    for points, offsets in zip(*lines, strict=True):
        # Closed: the last point repeats the first.
        parts = [_straightened(points[a : b - 1] + start) for a, b in pairwise(offsets)]
        found.append(_with_holes(parts[0], parts[1:]))
    return found


def _straightened(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed contour without the points in the middle of straight lines."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return points[np.abs(turns) > 1e-9]


def _with_holes(outline: NDArray[np.float64], holes: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One contour of an outline and its holes: a channel leads from each to what is next on its right."""
    # From right to left: what is next on the right of a hole is joined already.
    for hole in sorted(holes, key=lambda points: -float(points[:, 0].max())):
        height = float(hole[hole[:, 0].argmax(), 1]) + _CHANNEL
        here, start = _crossing(hole, height, -np.inf, last=True)
        there, end = _crossing(outline, height, float(start[0]), last=False)
        around = np.concatenate([hole[here + 1 :], hole[: here + 1]])
        outline = np.concatenate(
            [outline[: there + 1], end[None], start[None], around, start[None], end[None], outline[there + 1 :]]
        )
    return outline


def _crossing(
    points: NDArray[np.float64], height: float, beyond: float, *, last: bool
) -> tuple[int, NDArray[np.float64]]:
    """Which edge of a closed contour crosses a height right of some place, and where: the last or the first of them."""
    after = np.roll(points, -1, axis=0)
    # No corner is at this height: they are at whole and half numbers.
    edges = np.flatnonzero((points[:, 1] - height) * (after[:, 1] - height) < 0)
    share = (height - points[edges, 1]) / (after[edges, 1] - points[edges, 1])
    places = points[edges, 0] + share * (after[edges, 0] - points[edges, 0])
    order = [n for n in np.argsort(places, kind="stable") if places[n] > beyond]
    chosen = order[-1] if last else order[0]
    return int(edges[chosen]), np.array([places[chosen], height])


def check_structure_set(case: Segmented, path: Path) -> None:
    """Fill the contours of a file again, and compare with the mask, pixel by pixel.

    Raises:
        VolsegError: If a pixel, a place or a name differs.
    """
    import pydicom

    written = pydicom.dcmread(path)
    named = {int(item.ROINumber): item.ROIName for item in written.StructureSetROISequence}
    if named != {target.number: target.label for target in case.targets}:
        raise mismatch("the structures of the mask", f"{len(named)} others")
    for item in written.ROIContourSequence:
        target = case.targets[int(item.ReferencedROINumber) - 1]
        drawn: dict[int, list[NDArray[np.float64]]] = {}
        for contour in item.get("ContourSequence", ()):
            plane, points = _in_pixels(case, contour)
            case.source.require_reference(contour.ContourImageSequence[0], case.source.planes[plane])
            drawn.setdefault(plane, []).append(points)
        there = np.flatnonzero(case.pixels[:, target.number - 1]).tolist()
        if sorted(drawn) != there:
            raise mismatch("contours on the slices of the mask", f"others of structure {target.number}")
        for plane in there:
            mask = case.mask(target, plane)
            box, inside = filled(drawn[plane], (mask.shape[0], mask.shape[1]))
            # Outside the box nothing is drawn.
            if not np.array_equal(inside, mask[box.slices]) or inside.sum() != mask.sum():
                raise mismatch("the pixels of the mask", f"others of structure {target.number}")


def _in_pixels(case: Segmented, contour: Dataset) -> tuple[int, NDArray[np.float64]]:
    """Which slice a contour lies on, and its points along i and j."""
    stack = case.source.opened.stack
    points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
    plane = case.source.plane_through(points)
    return plane, ((points - case.source.planes[plane].position) @ stack.axes) / np.array(stack.spacing_mm)
