"""DICOM structured reports (SR): the volume of every organ that was found, and of CT and MR its mean intensity.

A report refers to the segments of a segmentation, which must go with it.

Reference: PS3.16 TID 1500 (Measurement Report), TID 1411 (Volumetric ROI Measurements).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.data.organ_codes import SIDES, Code
from pipeline.evaluate.organ_statistics import OrganStatistics
from pipeline.export.dicom_source import Segmented, Target, mismatch
from pipeline.export.segmentation import coded

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_VOLUME, _MILLILITRE = Code("118565006", "SCT", "Volume"), Code("mL", "UCUM", "milliliter")
_MEAN = Code("373098007", "SCT", "Mean")
# CID 100: what was examined, by modality.
_PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
}
_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")


class _Quantity(NamedTuple):
    """What intensities are: name and unit."""

    name: Code
    unit: Code


# CID 7180. Of other modalities no one can say what a mean would be of.
_ATTENUATION = _Quantity(Code("112031", "DCM", "Attenuation Coefficient"), Code("[hnsf'U]", "UCUM", "Hounsfield unit"))
_SIGNAL = _Quantity(Code("110852", "DCM", "MR signal intensity"), Code("1", "UCUM", "no units"))


def measurements(case: Segmented, segmentation: Dataset) -> Dataset:
    """A report on all organs that were found; where none was, on all, each of 0 mL.

    Args:
        case: The mask, with the image for means.
        segmentation: What :func:`~pipeline.export.segmentation.segmentation` made of it.
    """
    import highdicom as hd

    maker = case.maker
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=case.uid("observer"), name=maker.name, manufacturer_name=maker.name, serial_number=maker.serial
    )
    observer = hd.sr.ObserverContext(coded(Code("121007", "DCM", "Device")), device)
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=coded(_PROCEDURES.get(case.source.modality, _PROCEDURE)),
        imaging_measurements=[_group(case, target, found, segmentation) for target, found in _measured(case)],
    )
    # The first tells of patient and study; it must be of a class that the library knows.
    of_segmentation = case.source.common()
    for name in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
        setattr(of_segmentation, name, segmentation[name].value)
    return hd.sr.ComprehensiveSR(
        evidence=[of_segmentation, *_images(case)],
        content=report,
        series_instance_uid=case.uid("SR series"),
        series_number=case.source.number_of(2),
        sop_instance_uid=case.uid(f"SR of {segmentation.SOPInstanceUID}"),
        instance_number=1,
        manufacturer=maker.name,
        manufacturer_model_name=maker.name,
        software_versions=maker.version,
        device_serial_number=maker.serial,
        is_complete=True,
        is_final=False,
        series_description="Measurements",
        specific_character_set="ISO_IR 192",
    )


def _measured(case: Segmented) -> list[tuple[Target, OrganStatistics]]:
    """What is reported on, and its numbers."""
    everything = list(zip(case.targets, case.statistics, strict=True))
    return [(target, found) for target, found in everything if found.voxels] or everything


def _images(case: Segmented) -> list[Dataset]:
    """The series' images, once each, as evidence."""
    found = {}
    for plane in case.source.planes:
        if plane.sop not in found:
            found[plane.sop] = image = case.source.common()
            image.SOPClassUID, image.SOPInstanceUID = case.source.sop_class, plane.sop
            image.SeriesInstanceUID = case.source.uid
    return list(found.values())


def _quantity(case: Segmented) -> _Quantity | None:
    """What the intensities of the series are, as far as its headers say."""
    if case.source.modality == "CT":
        # Absent in most; other values are of spectral scanners and of localizers.
        return _ATTENUATION if case.source.patient.get("RescaleType", "HU") in ("HU", "", None) else None
    return _SIGNAL if case.source.modality == "MR" else None


def _group(case: Segmented, target: Target, found: OrganStatistics, segmentation: Dataset) -> Any:
    import highdicom as hd

    numbers = [hd.sr.Measurement(coded(_VOLUME), found.volume_ml, coded(_MILLILITRE))]
    quantity, mean = _quantity(case), found.means[0] if found.means else None
    if quantity is not None and mean is not None and np.isfinite(mean):
        unit = coded(quantity.unit)
        numbers.append(hd.sr.Measurement(coded(quantity.name), mean, unit, derivation=coded(_MEAN)))
    code = target.code
    algorithm = hd.sr.AlgorithmIdentification(case.maker.name, case.maker.version)
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(case.uid(f"tracking {target.name}"), target.label),
        referenced_segment=hd.sr.ReferencedSegment(
            segmentation.SOPClassUID,
            segmentation.SOPInstanceUID,
            target.number,
            source_series=hd.sr.SourceSeriesForSegmentation(case.source.uid),
        ),
        finding_category=coded(code.category),
        finding_type=coded(code.type),
        finding_sites=_sites(target) or None,
        measurements=numbers,
        algorithm_id=None if case.maker.manual else algorithm,
    )


def _sites(target: Target) -> list[Any]:
    """Where it is: the region, or the organ itself, with its side or part."""
    import highdicom as hd

    code = target.code
    place, modifier = (code.type, code.modifier) if code.region is None else (code.region, code.region_modifier)
    if place.scheme != "SCT":
        return []
    side = modifier if modifier in SIDES.values() else None
    part = None if side is not None or modifier is None else coded(modifier)
    return [hd.sr.FindingSite(coded(place), None if side is None else coded(side), part)]


def check_measurements(case: Segmented, path: Path, segmentation: str) -> None:
    """Compare a file with the volumes of the mask; ``segmentation`` is the identifier of what it refers to.

    Raises:
        VolsegError: If a number, a segment or the reference differs.
    """
    import pydicom

    written = pydicom.dcmread(path)
    expected = {target.number: found.volume_ml for target, found in _measured(case)}
    volumes: dict[int, float] = {}
    for group in _groups(written):
        reference = _item(group, "121191").ReferencedSOPSequence[0]
        if reference.ReferencedSOPInstanceUID != segmentation:
            raise mismatch("a report on the segmentation", "one on another")
        number = reference.ReferencedSegmentNumber
        volumes[int(number)] = float(_item(group, _VOLUME.value).MeasuredValueSequence[0].NumericValue)
    if set(volumes) != set(expected):
        raise mismatch("the organs of the mask", f"{len(volumes)} others")
    if any(abs(volumes[n] - expected[n]) > 1e-9 * max(1.0, expected[n]) for n in expected):
        raise mismatch("the volumes of the mask", "others")


def _groups(written: Dataset) -> list[Dataset]:
    """The measurement groups of a report."""
    return [item for item in _item(written, "126010").ContentSequence if _name(item) == "125007"]


def _item(container: Dataset, code: str) -> Dataset:
    for item in container.ContentSequence:
        if _name(item) == code:
            found: Dataset = item
            return found
    raise mismatch("a report of template 1500", f"one without {code}")


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)
