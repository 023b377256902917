"""DICOM segmentations (SEG): a mask on the slices of its series, one segment per organ.

BINARY holds a bit per pixel, segment and slice, and is what every archive and viewer takes; segments may overlap.
LABELMAP (DICOM 2024) holds a number per pixel and is many times smaller, but few archives know it yet.

Reference: PS3.3 A.51 (Segmentation IOD), C.8.20; PS3.3 A.51.5 for LABELMAP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import VolsegError, sentence
from pipeline.data.organ_codes import Code
from pipeline.export.dicom_source import Segmented, Target, mismatch

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.dataset import Dataset

SEG_TYPES = ("binary", "labelmap", "auto")
"""How segments are stored; ``auto`` is a label map, but where segments overlap."""

BINARY_CLASS, LABELMAP_CLASS = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
_EXPLICIT, _RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"


def as_labelmap(case: Segmented, seg_type: str) -> bool:
    """Whether a segmentation is a label map.

    Raises:
        VolsegError: If one is asked for that cannot hold overlapping segments.
    """
    if seg_type == "labelmap" and case.overlapping:
        advice = "Take binary, or auto"
        raise VolsegError(sentence("segmentation type", "binary where regions overlap", "labelmap", advice))
    return seg_type != "binary" and not case.overlapping


def segmentation(case: Segmented, seg_type: str = "binary") -> Dataset:
    """A segmentation of all targets of a mask, also of those that are not there.

    Frames without a pixel are left out, as is usual, of a label map none. An empty mask has one slice, in the middle.
    """
    import highdicom as hd

    labelmap = as_labelmap(case, seg_type)
    images, pixels = case.source.images(), _pixels(case)
    if case.empty and not labelmap:
        middle = len(images) // 2
        images, pixels = images[middle : middle + 1], pixels[middle : middle + 1]
    maker = case.maker
    found = hd.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=[_described(case, target) for target in case.targets],
        series_instance_uid=case.uid("SEG series"),
        series_number=case.source.number_of(1),
        sop_instance_uid=case.uid(f"SEG {labelmap}"),
        instance_number=1,
        manufacturer=maker.name,
        manufacturer_model_name=maker.name,
        software_versions=maker.version,
        device_serial_number=maker.serial,
        transfer_syntax_uid=_RLE if labelmap else _EXPLICIT,
        omit_empty_frames=not labelmap,
        content_label="SEGMENTATION",
        content_description="Segmentation",
        series_description="Segmentation",
        specific_character_set="ISO_IR 192",
    )
    found.ContentCreatorName = ""
    return _with_references(case, found)


def _pixels(case: Segmented) -> NDArray[np.unsignedinteger[Any]]:
    """Segment numbers (slices, rows, columns), or where segments overlap a mask of each, (…, segments)."""
    if case.overlapping:
        found = np.empty((*case.index.shape, len(case.targets)), np.uint8)
        for target in case.targets:
            found[..., target.number - 1] = np.isin(case.index, target.classes)
        return found
    return np.asarray(case.segment_numbers()[case.index])


def _described(case: Segmented, target: Target) -> Any:
    import highdicom as hd

    maker, code = case.maker, target.code
    algorithm = None
    if not maker.manual:
        family = coded(Code("123110", "DCM", "Artificial Intelligence"))
        algorithm = hd.AlgorithmIdentificationSequence(maker.name, family, maker.version, parameters=None)
    described = hd.seg.SegmentDescription(
        target.number,
        target.label,
        coded(code.category),
        coded(code.type),
        "MANUAL" if maker.manual else "AUTOMATIC",
        algorithm,
        tracking_uid=case.uid(f"tracking {target.name}"),
        tracking_id=target.label,
        anatomic_regions=None if code.region is None else [coded(code.region)],
        display_color=hd.color.CIELabColor.from_rgb(*target.rgb),
    )
    if code.modifier is not None:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            coded(code.modifier)
        ]
    if code.region_modifier is not None:
        described.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [coded(code.region_modifier)]
    return described


def coded(code: Code) -> Any:
    """A code for DICOM."""
    import highdicom as hd

    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _with_references(case: Segmented, found: Dataset) -> Dataset:
    """The series' own images in place of those that stood for its slices."""
    for frame in found.PerFrameFunctionalGroupsSequence:
        plane = case.source.planes[case.source.plane_at(frame.PlanePositionSequence[0].ImagePositionPatient)]
        for item in frame.DerivationImageSequence[0].SourceImageSequence:
            item.update(case.source.reference(plane))
    found.SourceImageSequence = case.source.references()
    series = found.ReferencedSeriesSequence[0]
    series.ReferencedInstanceSequence = case.source.references()
    found.ReferencedSeriesSequence = [series]
    return found


def check_segmentation(case: Segmented, path: Path) -> None:
    """Compare a file with the mask, pixel by pixel, by what its frames say of themselves.

    Raises:
        VolsegError: If a pixel, a place or a name differs.
    """
    import pydicom

    written = pydicom.dcmread(path)
    labelmap = written.SOPClassUID == LABELMAP_CLASS
    named = {int(item.SegmentNumber): item.SegmentLabel for item in written.SegmentSequence}
    if labelmap:
        named.pop(0, None)  # the background
    if named != {target.number: target.label for target in case.targets}:
        raise mismatch("the segments of the mask", f"{len(named)} others")
    shared = written.SharedFunctionalGroupsSequence[0]
    _check_directions(case, shared)
    seen = np.zeros_like(case.pixels)
    numbers = case.segment_numbers() if labelmap else None
    frames = zip(written.PerFrameFunctionalGroupsSequence, _stored(written), strict=True)
    for frame, (groups, pixels) in enumerate(frames, start=1):
        plane = case.source.plane_at(groups.PlanePositionSequence[0].ImagePositionPatient)
        (reference,) = groups.DerivationImageSequence[0].SourceImageSequence
        case.source.require_reference(reference, case.source.planes[plane])
        if numbers is not None:
            expected = numbers[case.index[plane]]
            seen[plane] = np.bincount(pixels.ravel(), minlength=len(case.targets) + 1)[1:]
        else:
            segment = _segment(groups, shared)
            expected = case.mask(case.targets[segment - 1], plane)
            seen[plane, segment - 1] = np.count_nonzero(pixels)
        if not np.array_equal(pixels, expected):
            raise mismatch("the pixels of the mask", f"others in frame {frame}")
    # No frame is missing: every pixel of the mask was met.
    if (seen != case.pixels).any():
        raise mismatch("all pixels of the mask", "fewer or more")


def _stored(written: Dataset) -> Iterator[NDArray[Any]]:
    """Frames as they are stored."""
    if written.SOPClassUID == LABELMAP_CLASS:
        from pydicom.pixels.utils import iter_pixels

        yield from iter_pixels(written)
        return
    # Bits of one frame after the other: a frame may begin within a byte, which pydicom does not expect.
    size, packed = written.Rows * written.Columns, np.frombuffer(written.PixelData, np.uint8)
    for start in range(0, size * int(written.NumberOfFrames), size):
        bits = np.unpackbits(packed[start // 8 : (start + size + 7) // 8], bitorder="little")
        yield bits[start % 8 : start % 8 + size].reshape(written.Rows, written.Columns)


def _segment(groups: Dataset, shared: Dataset) -> int:
    held = groups if "SegmentIdentificationSequence" in groups else shared
    return int(held.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _check_directions(case: Segmented, shared: Dataset) -> None:
    """Rows, columns and spacing are those of the series."""
    stack = case.source.opened.stack
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    spacing = [float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing]
    if np.abs(axes - stack.axes.T.ravel()).max() > 1e-6:
        raise mismatch("the directions of the series", "others")
    if np.abs(np.array(spacing) - stack.spacing_mm[::-1]).max() > 1e-6 * max(spacing):
        raise mismatch("the spacing of the series", "another")
