"""Objects belong to patient and study of their series and tell nothing else of it; what is written was meant."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_readers import segmented, series, sided, valid, write
from generated_dicom import SECRET
from pydicom.dataset import Dataset

from pipeline.core.errors import VolsegError
from pipeline.core.volume import LabelMap
from pipeline.data.dicom import open_series
from pipeline.data.volume_file import VolumeError
from pipeline.export import dicom_objects, segmentation, structure_set
from pipeline.export.dicom_objects import KINDS, DicomOutput
from pipeline.export.dicom_source import Maker, Segmented, SourceSeries, Target

# Type 2 of patient and study: an object must have them, and they must be the series'.
REQUIRED = {"PatientName", "PatientID", "StudyID", "AccessionNumber", "ReferringPhysicianName"}


def elements(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Keyword and text of every element, also in sequences."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)
        elif element.keyword != "PixelData":
            yield element.keyword, str(element.value)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write(segmented(series(tmp_path / "s")), tmp_path / "out", *KINDS)


def test_of_the_series_only_what_the_standard_requires_is_copied(files: dict[str, Path]) -> None:
    for kind, path in files.items():
        words = [word.lower() for word in SECRET.split("^")]
        found = {name for name, text in elements(pydicom.dcmread(path)) if any(word in text.lower() for word in words)}
        assert found == REQUIRED, kind
        assert not any(word in path.name.lower() for word in words)


def test_objects_belong_to_the_patient_the_study_and_the_place_of_their_series(
    files: dict[str, Path], tmp_path: Path
) -> None:
    source = pydicom.dcmread(next((tmp_path / "s").iterdir()))
    for kind, path in files.items():
        written = pydicom.dcmread(path)
        for name in (*REQUIRED, "StudyInstanceUID"):
            assert written[name].value == source[name].value, (kind, name)
        assert written.SeriesInstanceUID != source.SeriesInstanceUID
        if kind in ("seg", "rtstruct"):
            assert written.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert (written.Manufacturer, written.SeriesNumber) == ("volseg", 700 + KINDS.index(kind) + 1)
    assert len({pydicom.dcmread(path).SeriesInstanceUID for path in files.values()}) == 4


@pytest.mark.parametrize(
    ("number", "written"), [(5, 501), ("", 1), (-5, 1), (21_474_835, 2_147_483_501), (2**31 - 1, 1)]
)
def test_the_number_follows_that_of_the_series_as_far_as_there_are_numbers(
    number: object, written: int, tmp_path: Path
) -> None:
    files = write(segmented(series(tmp_path / "s", SeriesNumber=number)), tmp_path / "out", "seg")
    assert pydicom.dcmread(files["seg"]).SeriesNumber == written
    valid(files["seg"])


@pytest.mark.parametrize(
    ("letters", "name"),
    [("GB18030", "Wang^XiaoDong=王^小东"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう")],
)
def test_names_keep_their_letters(letters: object, name: str, tmp_path: Path) -> None:
    path = series(tmp_path / "s", PatientName=name, SpecificCharacterSet=letters)
    for file in write(segmented(path), tmp_path / "out", *KINDS).values():
        written = pydicom.dcmread(file)
        assert (str(written.PatientName), written.SpecificCharacterSet) == (name, "ISO_IR 192")


def test_nothing_is_said_of_elements_that_are_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Values no library takes: too long, of another form, several, of other letters."""
    wrong = {
        "PatientName": f"{SECRET}^{'x' * 100}=a=b=c=d",
        "PatientID": SECRET * 10,
        "PatientBirthDate": SECRET,
        "PatientSex": SECRET,
        "StudyDate": "2020-01-01",
        "StudyTime": "noon",
        "StudyID": [SECRET, SECRET],
        "AccessionNumber": "Ä" * 20,
        "SpecificCharacterSet": "ISO_IR 100",
        "IssuerOfPatientID": "Müller",
    }
    path = series(tmp_path / "s", **wrong)
    with caplog.at_level(logging.DEBUG):
        files = write(segmented(path), tmp_path / "out", *KINDS)
    said = caplog.text + "".join(capfd.readouterr())
    assert "SECRET" not in said
    for file in files.values():
        written = pydicom.dcmread(file)
        assert (written.PatientID, written.IssuerOfPatientID) == (SECRET * 10, "Müller")
        assert written.AccessionNumber == "Ä" * 20
        empty = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
        assert [written[name].value for name in empty] == [""] * 4


@pytest.mark.parametrize(("name", "lost"), [("StudyInstanceUID", "study"), ("SeriesInstanceUID", "series")])
def test_a_series_without_identifiers_is_refused(name: str, lost: str, tmp_path: Path) -> None:
    opened = open_series(series(tmp_path / "s", **{name: ""}))
    with pytest.raises(VolumeError, match=f"expected identifiers of study, series and images, got none of {lost}"):
        SourceSeries.of(opened)


def test_a_series_without_a_frame_of_reference_gets_one(tmp_path: Path) -> None:
    files = write(segmented(series(tmp_path / "s", FrameOfReferenceUID="")), tmp_path / "out", "seg", "rtstruct")
    places = {pydicom.dcmread(path).FrameOfReferenceUID for path in files.values()}
    assert len(places) == 1
    assert places.pop().startswith("2.25.")


def test_the_same_mask_has_the_same_identifiers_and_another_has_others(tmp_path: Path) -> None:
    path = series(tmp_path / "s")
    first, again = (write(segmented(path), tmp_path / name, *KINDS) for name in ("a", "b"))
    one = sided(open_series(path).grid)
    other = write(segmented(path, LabelMap(one.array[::-1].copy(), one.grid)), tmp_path / "c", *KINDS)
    made = write(segmented(path, maker=Maker(serial="another model")), tmp_path / "d", *KINDS)
    for kind in KINDS:
        uids = [pydicom.dcmread(found[kind]).SOPInstanceUID for found in (first, again, other, made)]
        assert uids[0] == uids[1]
        assert len(set(uids)) == 3


def test_who_made_the_mask(tmp_path: Path) -> None:
    path = series(tmp_path / "s")
    hand = write(segmented(path, maker=Maker("manual", "unknown", "manual", True)), tmp_path / "a", "seg", "rtstruct")
    program = write(segmented(path, maker=Maker("other", "2", "x")), tmp_path / "b", "seg", "rtstruct")
    told = []
    for files in (hand, program):
        segment = pydicom.dcmread(files["seg"]).SegmentSequence[0]
        structure = pydicom.dcmread(files["rtstruct"]).StructureSetROISequence[0]
        name = segment.get("SegmentAlgorithmName")
        told.append((segment.SegmentAlgorithmType, name, structure.ROIGenerationAlgorithm))
    assert told == [("MANUAL", None, "MANUAL"), ("AUTOMATIC", "other", "AUTOMATIC")]


class TestWhatIsReadBackIsCompared:
    """A library that stores something else, for whatever reason."""

    def wrong(self, tmp_path: Path, kind: str = "seg", seg_type: str = "binary") -> str:
        case = segmented(series(tmp_path / "s"))
        (tmp_path / "out").mkdir()
        earlier = tmp_path / "out" / f"case.{kind}.dcm"
        earlier.write_bytes(b"earlier")
        with pytest.raises(VolsegError, match="DICOM object read back: expected") as caught:
            write(case, tmp_path / "out", kind, seg_type=seg_type)
        # What was there stays, and nothing half done with it.
        assert [path.name for path in (tmp_path / "out").iterdir()] == [earlier.name]
        assert earlier.read_bytes() == b"earlier"
        return str(caught.value)

    @pytest.mark.parametrize("seg_type", ["binary", "labelmap"])
    def test_a_pixel(self, seg_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pixels = segmentation._pixels
        monkeypatch.setattr(segmentation, "_pixels", lambda case: np.roll(pixels(case), 1, axis=2))
        assert "the pixels of the mask, got others in frame 1" in self.wrong(tmp_path, seg_type=seg_type)

    def test_a_slice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pixels = segmentation._pixels
        monkeypatch.setattr(segmentation, "_pixels", lambda case: pixels(case) * (np.arange(5) > 0)[:, None, None])
        assert "all pixels of the mask, got fewer or more" in self.wrong(tmp_path)

    def test_the_order_of_slices(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pixels = segmentation._pixels
        monkeypatch.setattr(segmentation, "_pixels", lambda case: pixels(case)[::-1])
        assert "the pixels of the mask" in self.wrong(tmp_path)

    @pytest.mark.parametrize(("name", "word"), [("position", "slices at the places"), ("axes", "the directions")])
    def test_a_place(self, name: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        image = SourceSeries._image

        def moved(self: SourceSeries, plane: object) -> Dataset:
            found = image(self, plane)  # type: ignore[arg-type]
            if name == "position":
                found.ImagePositionPatient = [x + 0.1 for x in found.ImagePositionPatient]
            else:
                found.ImageOrientationPatient = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
            return found

        monkeypatch.setattr(SourceSeries, "_image", moved)
        assert word in self.wrong(tmp_path)

    def test_a_reference(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        referring, drawn = segmentation._with_references, structure_set._drawn

        def segments(case: Segmented, found: Dataset) -> Dataset:
            frame = referring(case, found).PerFrameFunctionalGroupsSequence[0]
            frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
            return found

        def structure(case: Segmented, target: Target) -> Dataset:
            found = drawn(case, target)
            found.ContourSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
            return found

        monkeypatch.setattr(segmentation, "_with_references", segments)
        monkeypatch.setattr(structure_set, "_drawn", structure)
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        assert "references to the slices of the series, got another" in self.wrong(tmp_path / "a")
        assert "references to the slices of the series, got another" in self.wrong(tmp_path / "b", "rtstruct")

    def test_a_contour(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = structure_set.contours
        monkeypatch.setattr(
            structure_set, "contours", lambda mask: [points + np.array([1.0, 0.0]) for points in drawn(mask)]
        )
        assert "the pixels of the mask, got others of structure 1" in self.wrong(tmp_path, "rtstruct")


def test_an_error_of_a_library_does_not_quote_the_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Dataset:
        raise ValueError(SECRET)

    case = segmented(series(tmp_path / "s"))
    monkeypatch.setattr(dicom_objects, "segmentation", broken)
    with pytest.raises(VolsegError, match=r"DICOM object seg: expected one .*, got an error \(ValueError\)") as caught:
        write(case, tmp_path / "out", "seg")
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_settings_of_pydicom_are_as_they_were(files: dict[str, Path]) -> None:
    assert files
    modes = pydicom.config.settings
    assert modes.writing_validation_mode == pydicom.config.IGNORE  # that of the helper that makes series
    assert logging.getLogger("highdicom").level == logging.NOTSET


@pytest.mark.parametrize(
    ("kinds", "seg_type", "rule"),
    [
        (("seg", "pdf"), "binary", "DICOM objects: expected some of seg, sr, rtstruct, sc, got pdf"),
        (("seg",), "fractional", "segmentation type: expected one of binary, labelmap, auto, got 'fractional'"),
    ],
)
def test_what_is_not_known_is_refused(kinds: tuple[str, ...], seg_type: str, rule: str) -> None:
    with pytest.raises(VolsegError, match=rule):
        DicomOutput(kinds, seg_type)


def test_measurements_bring_their_segmentation() -> None:
    assert DicomOutput(("sr",)).kinds == ("seg", "sr")
    assert DicomOutput(("sc", "seg")).kinds == ("seg", "sc")


def test_dciodvfy_finds_no_error_in_an_overview(files: dict[str, Path]) -> None:
    valid(files["sc"])
