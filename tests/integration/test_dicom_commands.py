"""Commands take DICOM series wherever they take NIfTI, and no text of a file comes out of them."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from generated_dicom import SECRET, make_slices, save, slices_of
from pydicom.datadict import DicomDictionary
from toy import toy_case
from toy_dicom import as_dicom, require_no_secret, run, whole

from pipeline.core.errors import VolsegError
from pipeline.core.volume import LabelMap
from pipeline.data.dicom import open_series
from pipeline.data.layouts import open_dataset
from pipeline.data.volumes import open_volume, read_image, read_label_map, write_image, write_label_map
from pipeline.stages.predict import Predictor


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, an archive, and a localizer alone."""
    root = tmp_path_factory.mktemp("dicom")
    as_dicom(1, root / "scans" / "1.2.3", seed="one", StudyInstanceUID="1.2.3.1")
    as_dicom(2, root / "p2", seed="two", StudyInstanceUID="1.2.3.2")
    with zipfile.ZipFile(root / "scans" / "p2.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((root / "p2").iterdir()):
            archive.write(file, f"series/{file.name}")
    scout = make_slices(np.zeros((2, 8, 8), np.int16), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save(scout, root / "scans" / "scout")
    return root


def test_predict_makes_of_dicom_what_it_makes_of_nifti(
    model: Path, studies: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out = run(capfd, "predict", model, studies / "scans", "-o", tmp_path / "masks", "--statistics")
    assert code == 2
    assert "scout: DICOM series: expected a volume, got localizer images" in out
    predictor = Predictor.load(model)
    for index, name in ((1, "1.2.3"), (2, "p2")):
        mask = read_label_map(tmp_path / "masks" / f"{name}.nii.gz")
        expected = predictor.predict(whole(index)).reoriented(mask.grid.orientation)
        assert mask.grid.matches(expected.grid)
        np.testing.assert_array_equal(mask.array, expected.array)
    entries = json.loads((tmp_path / "masks" / "predictions.json").read_text())["cases"]
    assert [entry["prediction"] for entry in entries] == ["1.2.3.nii.gz", "p2.nii.gz"]
    require_no_secret(out, folders=(tmp_path / "masks",))
    code, out = run(capfd, "predict", model, studies / "scans", "-o", tmp_path / "masks", "--statistics")
    assert code == 2
    assert json.loads((tmp_path / "masks" / "predictions.json").read_text())["cases"] == entries  # kept


def test_predict_takes_the_series_that_is_asked_for(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    as_dicom(1, study / "a", seed="one", SeriesNumber=1)
    as_dicom(2, study / "b", seed="two", SeriesNumber=2)
    code, out = run(capfd, "predict", model, study, "-o", tmp_path / "masks")
    assert code == 3
    assert "case study" in out
    assert "expected one series that can be used, got 2 (number 1, 2)" in out
    predictor = Predictor.load(model)
    for number, index in ((1, 1), (2, 2)):
        code, _ = run(capfd, "predict", model, study, "-o", tmp_path / "masks", "--series", number)
        assert code == 0
        mask = read_label_map(tmp_path / "masks" / "study.nii.gz")
        expected = predictor.predict(whole(index)).reoriented(mask.grid.orientation)
        np.testing.assert_array_equal(mask.array, expected.array)
    code, out = run(capfd, "predict", model, study, "-o", tmp_path / "masks", "--series", "1,2")
    assert code == 3
    assert "series: expected 1, one per channel, got 2 of 1, 2" in out


def test_gaps_are_refused_until_they_are_allowed(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = as_dicom(1, tmp_path / "p1")
    (path / "IM00005").unlink()
    code, out = run(capfd, "predict", model, path, "-o", tmp_path / "masks")
    assert code == 3
    assert "slices missing, number" in out
    code, out = run(capfd, "predict", model, path, "-o", tmp_path / "masks", "--allow-gaps")
    assert code == 0
    (entry,) = json.loads((tmp_path / "masks" / "predictions.json").read_text())["cases"]
    assert "What lies between is interpolated" in entry["notes"]["dicom_missing"]
    assert "What lies between is interpolated" in out
    require_no_secret(out, folders=(tmp_path / "masks",))


def test_a_tilted_series_comes_back_straightened_and_on_its_slices(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = whole(0)
    affine = image.grid.affine.copy()
    affine[:3, 2] += affine[:3, 1] / np.linalg.norm(affine[:3, 1]) * math.tan(math.radians(12)) * 2.5
    path = save(slices_of(image.array[0].astype(np.int16), affine), tmp_path / "tilted")
    code, _ = run(capfd, "predict", model, path, "-o", tmp_path / "masks")
    assert code == 0
    mask = read_label_map(tmp_path / "masks" / "tilted.nii.gz")
    assert mask.grid.matches(open_volume(path).grid)
    (entry,) = json.loads((tmp_path / "masks" / "predictions.json").read_text())["cases"]
    assert "slices tilted by 12.0 degrees (gantry tilt). The volume is straightened." in entry["notes"]["dicom_tilted"]
    assert open_series(path).on_slices(mask).shape == image.array.shape[:0:-1]


@pytest.fixture
def pairs(dataset: Path, tmp_path: Path) -> Path:
    """The toy dataset whose images are DICOM series, and the same in NIfTI."""
    for index in range(3):
        path = tmp_path / "dicom" / "images" / f"toy_{index}"
        as_dicom(index, path, seed=f"{index}", StudyInstanceUID=f"1.2.{index}")
        image, labels = whole(index), toy_case(index)[1]
        orientation = open_volume(path).grid.orientation
        write_image(image.reoriented(orientation), tmp_path / "nifti" / "images" / f"toy_{index}.nii.gz")
        for kind in ("dicom", "nifti"):
            write_label_map(labels.reoriented(orientation), tmp_path / kind / "labels" / f"toy_{index}.nii.gz")
            shutil.copy(dataset / "labels.json", tmp_path / kind)
    return tmp_path


def test_datasets_may_have_dicom_images(pairs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = open_dataset(pairs / "dicom")
    assert [(case.id, case.images[0].name) for case in found.cases] == [(f"toy_{n}", f"toy_{n}") for n in range(3)]
    reports = {}
    for kind in ("dicom", "nifti"):
        code, out = run(capfd, "check", pairs / kind, "--json", pairs / f"{kind}.json", "--jobs", 1)
        assert code == 0, out
        require_no_secret(out, (pairs / f"{kind}.json").read_text())
        reports[kind] = json.loads((pairs / f"{kind}.json").read_text())
        code, out = run(capfd, "convert", pairs / kind, "--to", "nnunet", "-o", pairs / f"{kind}_nnunet", "-j", 1)
        assert code == 0, out
    assert reports["dicom"]["problems"] == reports["nifti"]["problems"]
    assert reports["dicom"]["summary"] == reports["nifti"]["summary"]
    require_no_secret(folders=(pairs / "dicom_nnunet",))
    for index in range(3):
        one, other = (
            read_image(pairs / f"{kind}_nnunet/imagesTr/toy_{index}_0000.nii.gz") for kind in ("dicom", "nifti")
        )
        assert one.grid.matches(other.grid, 1e-4)
        np.testing.assert_array_equal(one.array, other.array)


def test_a_repaired_copy_of_dicom_images_is_nifti(pairs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out = run(capfd, "check", pairs / "dicom", "--fix", pairs / "fixed", "--jobs", 1)
    assert code == 0, out
    for index in range(3):
        fixed = read_image(pairs / "fixed" / "images" / f"toy_{index}.nii.gz")
        np.testing.assert_array_equal(fixed.array, read_image(pairs / "nifti/images" / f"toy_{index}.nii.gz").array)
    require_no_secret(out, folders=(pairs / "fixed",))


def test_organ_masks_beside_a_series(pairs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index in range(2):
        case = pairs / "organs" / f"case_{index}"
        shutil.copytree(pairs / "dicom" / "images" / f"toy_{index}", case / "ct")
        labels = read_label_map(pairs / "dicom" / "labels" / f"toy_{index}.nii.gz")
        for value, organ in ((1, "left"), (2, "small")):
            mask = LabelMap((labels.array == value).astype(np.uint8), labels.grid)
            write_label_map(mask, case / "segmentations" / f"{organ}.nii.gz")
    found = open_dataset(pairs / "organs")
    assert (found.layout, found.channels) == ("organs", ("CT",))
    assert [case.images[0].name for case in found.cases] == ["ct#series=CT"] * 2
    code, out = run(capfd, "check", pairs / "organs", "--jobs", 1)
    assert code == 0, out


def test_a_datalist_names_series(pairs: Path) -> None:
    study = pairs / "study"
    for index in (0, 1):
        shutil.copytree(pairs / "dicom" / "images" / f"toy_{index}", study / f"{index}")
    table = "case,image,label\n" + "".join(f"c{n},study#series={n + 1},dicom/labels/toy_{n}.nii.gz\n" for n in (0, 1))
    (pairs / "datalist.csv").write_text(table)
    for n, case in enumerate(open_dataset(pairs / "datalist.csv").cases):
        np.testing.assert_array_equal(
            read_image(case.images).array, read_image(pairs / "nifti/images" / f"toy_{n}.nii.gz").array
        )


def test_inspect_lists_series_without_names_unless_asked(
    studies: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out = run(capfd, "inspect", studies, "--json", tmp_path / "found.json")
    assert code == 0
    require_no_secret(out, folders=(tmp_path,))
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(entry["modality"], entry["verdict"]) for entry in found["series"]] == [
        ("CT", "usable"),
        ("CT", "usable"),
        ("CT", "refused"),
    ]
    assert found["series"][0]["shape"] == list(open_volume(studies / "scans" / "1.2.3").grid.shape)
    assert [finding["code"] for finding in found["series"][2]["findings"]] == ["localizer"]
    assert "series 3: expected a volume, got localizer images (scouts). Give the series of the scan." in out
    assert found["other_files"] == 1  # the archive
    archive, names = studies / "scans" / "p2.zip", tmp_path / "names.json"
    code, out = run(capfd, "inspect", archive, "--show-names", "--json", names)
    assert SECRET in out
    assert json.loads(names.read_text())["series"][0]["names"]["PatientName"] == SECRET
    code, out = run(capfd, "inspect", studies / "scans" / "scout")
    assert code == 3
    code, out = run(capfd, "inspect", tmp_path / "none")
    assert code == 1
    assert "input: expected a DICOM folder, archive or file, got nothing there" in out


def test_nothing_that_any_text_tag_says_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slices = make_slices(np.arange(96, dtype=np.int16).reshape(3, 4, 8), slopes=[1.0] * 3)
    needed = {"ImageType", "PhotometricInterpretation", "SpecificCharacterSet"}
    kinds = {"LO", "PN", "SH", "ST", "LT", "UT", "UC", "UR", "AE", "CS", "DA", "TM", "DT", "AS"}
    tags = [tag for tag, (kind, *_, word) in DicomDictionary.items() if kind in kinds and word and word not in needed]
    seeded = [tag for tag in tags if tag >> 16 > 4]  # the groups below are not of data sets
    assert len(seeded) > 1500
    for one in slices:
        for tag in seeded:
            one.add_new(tag, DicomDictionary[tag][0], SECRET)
    good = save(slices, tmp_path / "good")
    shutil.copytree(good, tmp_path / "gap")
    (tmp_path / "gap" / "IM00001").unlink()
    for file in list(good.iterdir()):
        for name, length in (("cut", 3000), ("short", file.stat().st_size - 9)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file.name).write_bytes(file.read_bytes()[:length])
    for name in ("good", "gap", "cut", "short"):
        _, out = run(capfd, "inspect", tmp_path / name, "--json", tmp_path / "found" / f"{name}.json")
        require_no_secret(out)
        try:
            read_image(tmp_path / name)
        except VolsegError as error:
            require_no_secret(str(error))
    require_no_secret(folders=(tmp_path / "found",))
