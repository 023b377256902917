"""Commands write DICOM objects of masks: with the prediction, or of a mask that is there."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_readers import by_place, require_same_voxels
from generated_dicom import SECRET, make_slices, save, slices_of
from toy_dicom import as_dicom, require_no_secret, run, whole

from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.dicom import open_series
from pipeline.data.volumes import read_label_map, write_image, write_label_map
from pipeline.stages.predict import Predictor
from pipeline.stages.prediction_files import Output


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def entry(folder: Path) -> dict[str, object]:
    (found,) = json.loads((folder / "predictions.json").read_text())["cases"]
    return dict(found)


def test_predict_writes_objects_beside_the_mask_and_keeps_them(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scan, out = as_dicom(1, tmp_path / "p1"), tmp_path / "masks"
    words = ("predict", model, scan, "-o", out, "--statistics")
    code, said = run(capfd, *words, "--dicom", "sr")
    assert code == 0
    assert sorted(path.name for path in (out / "dicom").iterdir()) == ["p1.seg.dcm", "p1.sr.dcm"]
    mask = read_label_map(out / "p1.nii.gz")
    require_same_voxels(by_place(out / "dicom" / "p1.seg.dcm"), mask)
    assert entry(out)["dicom_files"] == ["dicom/p1.seg.dcm", "dicom/p1.sr.dcm"]
    # The volumes are those of the statistics, the maker is the model.
    (case,) = json.loads((out / "statistics.json").read_text())["cases"]
    report = hd.sr.srread(out / "dicom" / "p1.sr.dcm")
    assert report.DeviceSerialNumber == entry(out)["model"]["hash"]  # type: ignore[index]
    groups = report.content.get_volumetric_roi_measurement_groups()
    volumes = {group.tracking_identifier: group.get_measurements()[0].value for group in groups}
    expected = {name: organ["volume_ml"] for name, organ in case["organs"].items() if organ["voxels"]}
    assert volumes == pytest.approx(expected, rel=1e-9)
    words_of_series = [word.lower() for word in SECRET.split("^")]
    assert not any(word in said.lower() for word in words_of_series)
    require_no_secret((out / "predictions.json").read_text())
    # Again: nothing is made anew.
    before = stamps(out)
    assert run(capfd, *words, "--dicom", "seg,sr")[0] == 0
    kept = [name for name in before if name.endswith((".nii.gz", ".dcm"))]
    assert len(kept) == 3
    assert all(stamps(out)[name] == before[name] for name in kept)
    # Another kind: the mask stays, and so does its first object, but for another way to store it.
    assert run(capfd, *words, "--dicom", "rtstruct,sc")[0] == 0
    after = stamps(out)
    assert {name for name in after if name not in before} == {"dicom/p1.rtstruct.dcm", "dicom/p1.sc.dcm"}
    assert all(after[name] == before[name] for name in ("p1.nii.gz", "dicom/p1.seg.dcm"))
    assert run(capfd, *words, "--dicom", "seg", "--seg-type", "labelmap")[0] == 0
    assert stamps(out)["p1.nii.gz"] == before["p1.nii.gz"]
    assert pydicom.dcmread(out / "dicom" / "p1.seg.dcm").SegmentationType == "LABELMAP"
    # The report on the segments of the other one went with it.
    assert entry(out)["dicom_files"] == [f"dicom/p1.{kind}.dcm" for kind in ("rtstruct", "sc", "seg")]
    assert not (out / "dicom" / "p1.sr.dcm").exists()


def test_objects_of_a_mask_that_was_replaced_go_with_it(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scan, out = as_dicom(1, tmp_path / "p1"), tmp_path / "masks"
    assert run(capfd, "predict", model, scan, "-o", out, "--dicom", "seg")[0] == 0
    assert run(capfd, "predict", model, scan, "-o", out, "--set", "infer.overlap=0.25")[0] == 0
    assert not list((out / "dicom").iterdir())
    assert "dicom_files" not in entry(out)
    # With the new mask they are written anew, if they are wanted again.
    assert run(capfd, "predict", model, scan, "-o", out, "--dicom", "seg")[0] == 0
    made = pydicom.dcmread(out / "dicom" / "p1.seg.dcm")
    assert run(capfd, "predict", model, scan, "-o", out, "--dicom", "seg", "--set", "infer.overlap=0.25")[0] == 0
    again = pydicom.dcmread(out / "dicom" / "p1.seg.dcm")
    assert again.DeviceSerialNumber == entry(out)["model"]["hash"] != made.DeviceSerialNumber  # type: ignore[index]


def test_organs_that_were_chosen_become_segments_with_the_colours_they_have_among_all(
    model: Path, tmp_path: Path
) -> None:
    scan, predictor = as_dicom(1, tmp_path / "p1"), Predictor.load(model)
    predictor.predict_files(scan, tmp_path / "a", output=Output(dicom=("seg",)))
    predictor.predict_files(scan, tmp_path / "b", output=Output(dicom=("seg",), organs=("box_small",)))
    both, one = (pydicom.dcmread(tmp_path / name / "dicom" / "p1.seg.dcm").SegmentSequence for name in "ab")
    assert [item.SegmentLabel for item in both] == ["box_left", "box_small"]
    assert [item.SegmentLabel for item in one] == ["box_small"]
    assert one[0].RecommendedDisplayCIELabValue == both[1].RecommendedDisplayCIELabValue


def test_other_inputs_than_series_and_series_without_identifiers_fail_before_the_work(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_image(whole(1), tmp_path / "scan.nii.gz")
    scan = as_dicom(1, tmp_path / "p1", StudyInstanceUID="")
    for path, rule in ((tmp_path / "scan.nii.gz", "a DICOM series"), (scan, "identifiers of study, series and images")):
        code, said = run(capfd, "predict", model, path, "-o", tmp_path / "masks", "--dicom", "seg")
        assert code == 3
        assert f"expected {rule}" in said
    assert not list((tmp_path / "masks").glob("*.nii.gz"))
    code, said = run(capfd, "predict", model, scan, "-o", tmp_path / "masks", "--dicom", "seg,pdf")
    assert (code, "DICOM objects: expected some of seg, sr, rtstruct, sc, got pdf" in said) == (1, True)


@pytest.fixture
def masked(tmp_path: Path) -> tuple[Path, Path]:
    """A series beside others of its study, and a mask on its grid with the names of its values."""
    image = whole(1)
    scan = as_dicom(1, tmp_path / "study" / "a", seed="a", SeriesNumber=1)
    other = make_slices(np.zeros((4, 5, 6), np.int16), seed="b", SeriesNumber=8)  # on another grid
    save(other, tmp_path / "study" / "b")
    grid = open_series(scan).grid
    labels = np.random.default_rng(0).integers(0, 3, grid.shape).astype(np.uint8)
    assert image.grid.matches(grid.reoriented(image.grid.orientation))
    write_label_map(LabelMap(labels, grid), tmp_path / "masks" / "p1.nii.gz")
    (tmp_path / "masks" / "labels.json").write_text('{"1": "kidney_left", "2": "spleen"}')
    return tmp_path / "masks" / "p1.nii.gz", tmp_path / "study"


def test_a_mask_that_is_there_becomes_objects_of_the_series_on_its_grid(
    masked: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mask, study = masked
    code, said = run(capfd, "dicom", mask, study, "-o", tmp_path / "out", "--objects", "seg,sr,rtstruct,sc")
    assert code == 0
    require_no_secret(said)
    names = ["p1.rtstruct.dcm", "p1.sc.dcm", "p1.seg.dcm", "p1.sr.dcm"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.dcm")) == names
    assert all(f"Written: {tmp_path / 'out' / name}".replace(" ", "") in said.replace(" ", "") for name in names)
    written = pydicom.dcmread(tmp_path / "out" / "p1.seg.dcm")
    assert written.ReferencedSeriesSequence[0].SeriesInstanceUID == open_series(study / "a").series.uids["series"]
    require_same_voxels(by_place(tmp_path / "out" / "p1.seg.dcm"), read_label_map(mask))
    # Turned by another program, and rounded: still the same voxels.
    turned = read_label_map(mask).reoriented("ASR")
    write_label_map(turned, tmp_path / "masks" / "turned.nrrd")
    assert run(capfd, "dicom", tmp_path / "masks" / "turned.nrrd", study, "-o", tmp_path / "out")[0] == 0
    require_same_voxels(by_place(tmp_path / "out" / "turned.seg.dcm"), turned)
    # A later run may replace its own files, and no one else's.
    assert run(capfd, "dicom", mask, study, "-o", tmp_path / "out")[0] == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "p1.seg.dcm").write_bytes(b"someone's")
    code, said = run(capfd, "dicom", mask, study, "-o", tmp_path / "other")
    assert (code, "expected a free place or an object of an earlier run" in said) == (1, True)
    assert (tmp_path / "other" / "p1.seg.dcm").read_bytes() == b"someone's"


def test_objects_of_an_earlier_mask_of_that_name_do_not_stay(
    masked: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mask, study = masked
    out = tmp_path / "out"

    def there(objects: str, *more: str) -> list[str]:
        assert run(capfd, "dicom", mask, study, "-o", out, "--objects", objects, *more)[0] == 0
        found = sorted(path.name.split(".")[1] for path in out.glob("*.dcm"))
        assert json.loads((out / "dicom.json").read_text())["files"] == [f"p1.{kind}.dcm" for kind in found]
        return found

    assert there("sr") == ["seg", "sr"]
    assert there("rtstruct") == ["rtstruct", "seg", "sr"]
    # A report on segments that are not there any more goes, and so do all objects of another mask.
    assert there("seg", "--seg-type", "labelmap") == ["rtstruct", "seg"]
    other = read_label_map(mask)
    write_label_map(LabelMap(other.array[::-1].copy(), other.grid), mask)
    assert there("seg") == ["seg"]


def test_what_made_the_mask_can_be_said(
    masked: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mask, study = masked
    code, _ = run(capfd, "dicom", mask, study, "-o", tmp_path / "out", "--objects", "seg", "--made-by", "manual")
    assert code == 0
    written = pydicom.dcmread(tmp_path / "out" / "p1.seg.dcm")
    assert {item.SegmentAlgorithmType for item in written.SegmentSequence} == {"MANUAL"}


def test_colours_that_a_prediction_noted_are_taken(
    masked: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mask, study = masked
    content = LabelTable({1: "kidney_left", 2: "spleen"}).to_json() | {"colors": {"1": "#ff0000", "2": "#00ff00"}}
    (mask.parent / "labels.json").write_text(json.dumps(content))
    assert run(capfd, "dicom", mask, study, "-o", tmp_path / "out", "--objects", "rtstruct")[0] == 0
    drawn = pydicom.dcmread(tmp_path / "out" / "p1.rtstruct.dcm").ROIContourSequence
    assert [list(item.ROIDisplayColor) for item in drawn] == [[255, 0, 0], [0, 255, 0]]


def test_what_cannot_be_written_is_said(
    masked: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mask, study = masked
    cases = [
        ((mask, study, "--series", "2"), "mask grid: expected that of the series"),
        ((mask, study / "b"), "mask grid: expected that of the series"),
        ((mask, study, "--series", "9"), "series: expected a number from 1 to 2, got 9"),
        ((mask, tmp_path / "masks"), "expected DICOM images"),
        ((mask, study, "--objects", ","), "DICOM objects: expected some of seg, sr, rtstruct, sc, got none"),
        ((mask, study, "--seg-type", "labelmap"), "expected binary or auto with sr, got labelmap"),
    ]
    for words, rule in cases:
        code, said = run(capfd, "dicom", *words, "-o", tmp_path / "out")
        assert (code, rule in said) == (1, True), said
    (mask.parent / "labels.json").unlink()
    code, said = run(capfd, "dicom", mask, study, "-o", tmp_path / "out")
    assert (code, "mask: expected names of its label values, got none" in said) == (1, True)
    assert not (tmp_path / "out").exists()


def test_gaps_and_tilts_are_told_and_the_mask_lies_on_the_slices_that_are_there(
    masked: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mask, study = masked
    (study / "a" / "IM00005").unlink()
    code, said = run(capfd, "dicom", mask, study, "-o", tmp_path / "out", "--allow-gaps")
    assert code == 0
    assert "What lies between is interpolated" in said
    grid = read_label_map(mask).grid
    frames = pydicom.dcmread(tmp_path / "out" / "p1.seg.dcm").PerFrameFunctionalGroupsSequence
    heights = {tuple(f.PlanePositionSequence[0].ImagePositionPatient) for f in frames}
    assert len(heights) == min(grid.shape[2], len(slices_of(np.zeros(grid.shape, np.int16), grid.affine))) - 1
