"""DICOM series made from arrays: any direction, spacing, tilt, scale and compression, with names that must not leak."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

# Wrong values are written on purpose.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE

SECRET = "ZZTOP^SECRET"
"""Stands in every text of a generated file, and must stand nowhere else."""

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
_TEXTS = (
    *("PatientName", "PatientID", "OtherPatientNames", "PatientComments", "PatientAddress", "InstitutionName"),
    *(
        "ReferringPhysicianName",
        "StudyDescription",
        "SeriesDescription",
        "ProtocolName",
        "OperatorsName",
        "StationName",
    ),
    *(
        "StationName",
        "AccessionNumber",
        "StudyID",
        "ImageComments",
        "PerformedProcedureStepDescription",
        "DeviceSerialNumber",
    ),
    *("Manufacturer", "BodyPartExamined", "RequestedProcedureDescription", "AcquisitionComments", "PatientBirthName"),
)


def make_slices(
    array: NDArray[Any],
    *,
    axes: Sequence[Sequence[float]] = AXIAL,
    spacing_mm: Sequence[float] = (1.0, 1.0, 2.0),
    origin: Sequence[float] = (-10.0, 20.0, 30.0),
    step: Sequence[float] | None = None,
    slopes: Sequence[float] | None = None,
    intercepts: Sequence[float] | None = None,
    seed: str = "a",
    **tags: Any,
) -> list[Dataset]:
    """Slices of a series.

    Args:
        array: (K, J, I), int16 or uint16.
        axes: Directions in which i and j grow, LPS.
        spacing_mm: Along i, j and k.
        origin: Position of the first voxel, LPS.
        step: From one slice to the next; by default at right angles.
        slopes: Rescale slope of each slice; none by default.
        intercepts: Rescale intercept of each slice.
        seed: Other ones give another series.
        tags: Further elements of every slice.
    """
    row, column = np.asarray(axes, dtype=float)
    way = np.cross(row, column) * spacing_mm[2] if step is None else np.asarray(step, dtype=float)
    slices = []
    for k, pixels in enumerate(array):
        slices.append(one := Dataset())
        for name in _TEXTS:
            setattr(one, name, SECRET)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[seed, str(k)])
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = (
            generate_uid(entropy_srcs=[text]) for text in ("study", f"series {seed}", "frame")
        )
        one.Modality, one.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL", SECRET.replace("^", " ")]
        one.SeriesNumber, one.InstanceNumber = 7, k + 1
        one.ImagePositionPatient = [float(f"{x:.9g}") for x in np.asarray(origin) + k * way]
        one.ImageOrientationPatient = [float(f"{x:.10g}") for x in (*row, *column)]
        one.PixelSpacing = [spacing_mm[1], spacing_mm[0]]  # between rows first
        one.SliceThickness = abs(spacing_mm[2])
        one.Rows, one.Columns = pixels.shape
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
        one.PixelData = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
        one["PixelData"].VR = "OW"
        if slopes is not None:
            one.RescaleSlope, one.RescaleIntercept = slopes[k], (intercepts or [0.0] * len(array))[k]
        for name, value in tags.items():
            setattr(one, name, value)
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = (
            one.SOPClassUID,
            one.SOPInstanceUID,
        )
    return slices


def save(slices: Sequence[Dataset], folder: Path, first: int = 0) -> Path:
    """Write slices as ``IM00000``, …, and give the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(slices, start=first):
        one.save_as(folder / f"IM{number:05d}", enforce_file_format=True)
    return folder


def compressed(one: Dataset, syntax: str, folder: Path) -> Dataset:
    """The same slice, without loss, in another transfer syntax."""
    if syntax == ExplicitVRBigEndian:
        one.PixelData = np.frombuffer(one.PixelData, "<u2").astype(">u2").tobytes()
        one.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    elif syntax == JPEG_LOSSLESS:  # encoded by the GDCM that SimpleITK brings
        path = folder / "jpeg.dcm"
        image = sitk.GetImageFromArray(np.frombuffer(one.PixelData, "<i2").reshape(1, one.Rows, one.Columns))
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.SetFileName(str(path))
        writer.Execute(image)
        encoded = pydicom.dcmread(path)
        assert encoded.file_meta.TransferSyntaxUID == JPEG_LOSSLESS
        one.PixelData = encoded.PixelData
        one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
        one.file_meta.TransferSyntaxUID = pydicom.uid.UID(JPEG_LOSSLESS)
    elif pydicom.uid.UID(syntax).is_encapsulated:
        one.compress(syntax, generate_instance_uid=False)
    else:
        one.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    return one


def enhanced(slices: Sequence[Dataset], order: Sequence[int]) -> Dataset:
    """One file of several frames, in the given order, with the place of each in its functional group."""
    one = Dataset()
    one.update(slices[0])
    one.SOPClassUID, one.Modality = pydicom.uid.EnhancedCTImageStorage, "CT"
    one.file_meta = slices[0].file_meta
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.NumberOfFrames = len(order)
    one.PixelData = b"".join(slices[n].PixelData for n in order)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = one.PixelSpacing, one.SliceThickness
    plane.ImageOrientationPatient = one.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    one.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for n in order:
        place, scale, group = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = slices[n].ImagePositionPatient
        scale.RescaleSlope, scale.RescaleIntercept = slices[n].RescaleSlope, slices[n].RescaleIntercept
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [scale]
        frames.append(group)
    one.PerFrameFunctionalGroupsSequence = frames
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(one, name)
    return one


def slices_of(array: NDArray[Any], affine: NDArray[Any], **options: Any) -> list[Dataset]:
    """Slices of a volume (I, J, K), int16, whose affine (4, 4) is to RAS+ mm."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = (lps[:3, :2] / spacing[:2]).T
    geometry = {"axes": axes, "spacing_mm": spacing, "origin": lps[:3, 3], "step": lps[:3, 2]}
    return make_slices(np.ascontiguousarray(array.T), **geometry, **options)
