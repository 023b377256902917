"""What a DICOM object takes from the series that it was made of, and the mask as all kinds of objects need it.

Of the series' own elements an object has only those by which it belongs to patient, study and place: those that the
standard requires, and the ones that say whether names were taken out. No description and no comment, no institution and
no device is copied.

Everything that is written follows from the mask, the series and who made the mask, identifiers too: what is made twice
has the same identifiers, so that an archive does not hold it twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import NAMESPACE_OID, uuid5

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.core.files import own_version
from pipeline.core.labels import LabelTable
from pipeline.core.notices import unheard
from pipeline.core.volume import Image, LabelMap
from pipeline.data.dicom import OpenedSeries
from pipeline.data.dicom_reader import read_attributes, read_headers
from pipeline.data.dicom_series import Plane
from pipeline.data.organ_codes import OrganCode, label_text, organ_codes
from pipeline.data.reader_process import ReaderError
from pipeline.data.volume_file import refuse
from pipeline.evaluate.organ_statistics import OrganStatistics, organ_statistics

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PLACE_TOLERANCE_MM = 1e-3
"""How far a slice that is read back may lie from the series' own; numbers are written with 16 characters."""

_LARGEST_NUMBER = 21_474_835  # its hundredfold, and some, are 32 bits (VR IS)

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"

# PS3.3 C.7.1.1 and C.7.2.1: what is of type 1 or 2 (also if only of animals), and what tells patients of one number
# apart. Objects of one patient and one study must agree in these.
_PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence"),
    *("BreedRegistrationSequence", "PatientSexNeutered", "ResponsiblePerson", "ResponsibleOrganization"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("LongitudinalTemporalInformationModified",),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
# C.7.4.1, C.7.6.1 and what tells the unit of intensities.
_IMAGE = (
    *("PositionReferenceIndicator", "LossyImageCompression", "LossyImageCompressionRatio"),
    *("LossyImageCompressionMethod", "RescaleType", "Units"),
)
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
# Values that would not be what the standard allows come out empty, as if they were not known.
_FORMS = {
    "PatientSex": re.compile("[MFO]"),
    "PatientBirthDate": re.compile(r"\d{8}"),
    "StudyDate": re.compile(r"\d{8}"),
    "StudyTime": re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?"),
    "LossyImageCompression": re.compile("0[01]"),
}


@contextmanager
def as_they_are() -> Iterator[None]:
    """Elements of a series pass unchanged, whatever pydicom thinks of them, and nothing is said of them."""
    import pydicom

    settings = pydicom.config.settings
    modes = settings.reading_validation_mode, settings.writing_validation_mode
    with unheard("pydicom", "highdicom", "pipeline.export"):
        settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
        try:
            yield
        finally:
            settings.reading_validation_mode, settings.writing_validation_mode = modes


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """A series that objects can be made of.

    Args:
        opened: Its slices, in their order.
        patient: Elements that every object of the study has in common.
        sop_class: SOP class of its images.
        multi_frame: Whether its images have several frames.
        thickness_mm: Of a slice, as its header says; else the distance between slices.
        number: SeriesNumber; 0 if it has none.
    """

    opened: OpenedSeries
    patient: Dataset
    sop_class: str
    multi_frame: bool
    thickness_mm: float
    number: int

    @classmethod
    def of(cls, opened: OpenedSeries) -> SourceSeries:
        """Read what objects take from a series, of its first slice.

        Raises:
            VolumeError: If its images have no identifiers that objects could refer to, or a file cannot be read.
        """
        series = opened.series
        lost = [name for name in ("study", "series") if not series.uids[name]]
        lost += ["images"] if any(not plane.sop for plane in series.planes) else []
        if lost:
            rule, got = "identifiers of study, series and images", f"none of {' and '.join(lost)}"
            advice = "Export it from the archive again: what is made of it could not be filed there"
            raise refuse("dicom_uids", "DICOM series", rule, got, advice, case=opened.case, file=opened.path)
        file = series.planes[0].file
        try:
            header = read_headers(series.archive, [file])[0]
            found = read_attributes(series.archive, file, (*_PATIENT_AND_STUDY, *_IMAGE))
        except ReaderError as error:
            advice = "Copy or export the series again"
            raise refuse(
                "unreadable", "header", "a readable one", str(error), advice, case=opened.case, file=opened.path
            ) from None
        step = float(abs(opened.stack.normal @ opened.stack.step))
        thickness = next((abs(n[0]) for n in (header.get("thickness"),) if n and n[0]), step)
        frames = bool(header.get("multi_frame"))
        return cls(opened, _patient(found), header.get("sop_class", ""), frames, thickness, header.get("number") or 0)

    @property
    def planes(self) -> tuple[Plane, ...]:
        """Its slices, in the order of :meth:`OpenedSeries.on_slices`."""
        return self.opened.series.planes

    @property
    def modality(self) -> str:
        """Of DICOM's list."""
        return self.opened.series.modality

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return self.opened.series.uids["series"]

    @property
    def study(self) -> str:
        """StudyInstanceUID."""
        return self.opened.series.uids["study"]

    @property
    def frame_of_reference(self) -> str:
        """FrameOfReferenceUID; a series without has one of its own."""
        return self.opened.series.uids["frame_of_reference"] or _uid(self.uid, "frame of reference")

    def number_of(self, kind: int) -> int:
        """SeriesNumber of an object of a kind from 1: 703 beside series 7.

        A series without a number counts as 0, and so does one whose number would become longer than DICOM's.
        """
        return (self.number if 0 < self.number <= _LARGEST_NUMBER else 0) * 100 + kind

    def images(self) -> list[Dataset]:
        """A data set for each slice, as if it were an image of one frame, with the elements that objects may take.

        Its SOP class is that of CT, whatever the series': libraries take some classes only as they know them.
        """
        return [self._image(plane) for plane in self.planes]

    def _image(self, plane: Plane) -> Dataset:
        stack = self.opened.stack
        image = self.common()
        image.SOPClassUID, image.SOPInstanceUID, image.SeriesInstanceUID = CT_IMAGE, plane.sop, self.uid
        image.Modality = self.modality
        image.Columns, image.Rows = stack.size
        image.PixelSpacing = [stack.spacing_mm[1], stack.spacing_mm[0]]  # between rows first
        image.SliceThickness = self.thickness_mm
        image.ImageOrientationPatient = stack.axes.T.ravel().tolist()
        image.ImagePositionPatient = plane.position.tolist()
        return image

    def common(self) -> Dataset:
        """What every object has in common with the series."""
        from pydicom.dataset import Dataset

        found = Dataset()
        found.update(self.patient)
        found.StudyInstanceUID, found.FrameOfReferenceUID = self.study, self.frame_of_reference
        return found

    def reference(self, plane: Plane | None = None, *, sop: str = "") -> Dataset:
        """A reference to a slice, or to a whole image by its identifier."""
        from pydicom.dataset import Dataset

        found = Dataset()
        found.ReferencedSOPClassUID = self.sop_class
        found.ReferencedSOPInstanceUID = sop if plane is None else plane.sop
        if plane is not None and self.multi_frame:
            found.ReferencedFrameNumber = plane.frame + 1
        return found

    def require_reference(self, item: Dataset, plane: Plane) -> None:
        """Refuse an item that refers to something else than a slice.

        Raises:
            VolsegError: If it does.
        """
        if any(item.get(element.keyword) != element.value for element in self.reference(plane)):
            raise mismatch("references to the slices of the series", "another")

    def references(self) -> list[Dataset]:
        """A reference to each of its images, once."""
        return [self.reference(sop=sop) for sop in dict.fromkeys(plane.sop for plane in self.planes)]

    def plane_at(self, position: Any) -> int:
        """Number of the slice at a position (LPS, mm).

        Raises:
            VolsegError: If there is none.
        """
        away = np.linalg.norm(self._positions - np.array(position, dtype=float), axis=1)
        return self._nearest(away)

    def plane_through(self, points: NDArray[np.float64]) -> int:
        """Number of the slice that points (points, 3) lie on.

        Raises:
            VolsegError: If there is none.
        """
        normal = self.opened.stack.normal
        return self._nearest(np.abs(points @ normal - (self._positions @ normal)[:, None]).max(axis=1))

    def _nearest(self, away: NDArray[np.float64]) -> int:
        nearest = int(away.argmin())
        if away[nearest] > PLACE_TOLERANCE_MM:
            raise mismatch("slices at the places of the series'", f"one {away[nearest]:.3g} mm beside")
        return nearest

    @cached_property
    def _positions(self) -> NDArray[np.float64]:
        return np.array([plane.position for plane in self.planes])


def _patient(found: Mapping[str, Any]) -> Dataset:
    """Elements as they are, but for those that no reader would take."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataset import Dataset

    with as_they_are():
        patient = Dataset.from_json({f"{tag_for_keyword(name):08X}": element for name, element in found.items()})
        for name, form in _FORMS.items():
            if name in patient and not form.fullmatch(str(patient[name].value or "")):
                delattr(patient, name)
        for name in _REQUIRED:
            if name not in patient:
                setattr(patient, name, "")
    return patient


class Maker(NamedTuple):
    """Who made a mask.

    Args:
        name: A program, or a person's hand.
        version: Of the program.
        serial: What tells its models apart, 64 characters at most.
        manual: Whether a person drew it.
    """

    name: str = "volseg"
    version: str = own_version()
    serial: str = "volseg"
    manual: bool = False


VOLSEG = Maker()


class Target(NamedTuple):
    """An organ or region as a segment.

    Args:
        number: Segment number, from 1: its place in the label table, whether it is there or not.
        name: Its name.
        classes: Class indices it consists of.
        code: What it is.
        color: ``#rrggbb``.
    """

    number: int
    name: str
    classes: tuple[int, ...]
    code: OrganCode
    color: str

    @property
    def label(self) -> str:
        """Its name as DICOM can hold it."""
        return label_text(self.name)

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        red, green, blue = bytes.fromhex(self.color.removeprefix("#"))
        return red, green, blue


@dataclass(frozen=True, eq=False)
class Segmented:
    """A series and its mask.

    Args:
        source: The series.
        label_map: Label values on the grid of its volume.
        table: What they mean; of a table with regions these are the segments, which may overlap.
        colors: Organ or region → ``#rrggbb``.
        image: Intensities on the same grid, for means and pictures.
        maker: Who made the mask.

    Raises:
        DataError: If the mask is on another grid, or has values that the table does not name.
    """

    source: SourceSeries
    label_map: LabelMap
    table: LabelTable
    colors: Mapping[str, str]
    image: Image | None = None
    maker: Maker = VOLSEG

    def __post_init__(self) -> None:
        """Refuse values without a name: they would be lost."""
        try:
            _ = self.index
        except ValueError as error:
            case = self.source.opened.case
            raise DataError(f"case {case}: {error}" if case else str(error)) from None

    @cached_property
    def index(self) -> NDArray[np.signedinteger[Any]]:
        """Class indices on the slices of the series, (slices, rows, columns); 0 where nothing is, or it is ignored."""
        found = self.table.to_index(self.source.opened.on_slices(self.label_map))
        found[found < 0] = 0
        return found

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """What becomes a segment, in the order of the table."""
        codes, held = organ_codes(self.table.targets), self.table.indexed().target_values
        return tuple(
            Target(number, name, classes, codes[name], self.colors[name])
            for number, (name, classes) in enumerate(held.items(), start=1)
        )

    @cached_property
    def overlapping(self) -> bool:
        """Whether a label value belongs to several segments."""
        held = [number for target in self.targets for number in target.classes]
        return len(held) > len(set(held))

    @cached_property
    def pixels(self) -> NDArray[np.int64]:
        """Pixels of every target on every slice, (slices, targets)."""
        count = self.table.classes
        found = np.array([np.bincount(plane.ravel(), minlength=count) for plane in self.index])
        return np.stack([found[:, list(target.classes)].sum(axis=1) for target in self.targets], axis=1)

    @property
    def empty(self) -> bool:
        """Whether nothing was found on any slice."""
        return not self.pixels.any()

    @cached_property
    def statistics(self) -> tuple[OrganStatistics, ...]:
        """Volume and mean of every target on the volume of the series, as a prediction's statistics have them."""
        return organ_statistics(self.label_map, self.table, self.image)

    def mask(self, target: Target, plane: int) -> NDArray[np.bool_]:
        """Where a target is on a slice, (rows, columns)."""
        index = self.index[plane]
        return index == target.classes[0] if len(target.classes) == 1 else np.isin(index, target.classes)

    def segment_numbers(self) -> NDArray[np.unsignedinteger[Any]]:
        """Class index → number of its segment; of segments that do not overlap."""
        found: NDArray[np.unsignedinteger[Any]] = np.zeros(self.table.classes, np.min_scalar_type(len(self.targets)))
        for target in self.targets:
            found[list(target.classes)] = target.number
        return found

    def uid(self, what: str) -> str:
        """An identifier that follows from the content, and from what it identifies."""
        return _uid(self._identity, what)

    @cached_property
    def _identity(self) -> str:
        content = hashlib.blake2b(np.ascontiguousarray(self.index).data, digest_size=16).hexdigest()
        return "|".join((self.source.uid, content, repr(self.table), *map(str, self.maker)))


def _uid(*parts: str) -> str:
    """A UID made of a UUID (PS3.5 B.2)."""
    return f"2.25.{uuid5(NAMESPACE_OID, '|'.join(parts)).int}"


def mismatch(expected: str, got: object) -> VolsegError:
    """What was written is not what was to be written."""
    advice = "Nothing was kept; this is a defect of volseg or of a library, please report it"
    return VolsegError(sentence("DICOM object read back", expected, got, advice))
