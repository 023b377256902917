"""Commands take DICOM series wherever they take NIfTI, and no text of a file comes out of them."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from generated_dicom import SECRET, make_slices, save, slices_of
from generated_labels import make_rtstruct, make_seg, real_slices
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from scipy.ndimage import gaussian_filter
from toy import toy_case
from toy_dicom import as_dicom, require_no_secret, run, whole

from pipeline.core.errors import VolsegError
from pipeline.core.volume import LabelMap
from pipeline.data.dicom import open_series
from pipeline.data.layouts import open_dataset
from pipeline.data.store import open_prepared
from pipeline.data.volumes import open_volume, read_image, read_label_map, write_image, write_label_map
from pipeline.preprocess.prepare_case import prepare_case
from pipeline.stages.predict import Predictor
from pipeline.stages.prepare import make_plan


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
            names = json.loads((dataset / "labels.json").read_text())
            described = {"names": names, "channels": ["CT"]}  # what a series says by itself
            (tmp_path / kind / "labels.json").write_text(json.dumps(described))
    return tmp_path


def test_datasets_may_have_dicom_images(pairs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = open_dataset(pairs / "dicom")
    assert [(case.id, case.images[0].name) for case in found.cases] == [
        (f"toy_{n}", f"toy_{n}#series=CT") for n in range(3)
    ]
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


KINDS = ("BINARY", "FRACTIONAL", "LABELMAP", "RTSTRUCT")


@pytest.fixture
def labelled(pairs: Path) -> Path:
    """The toy dataset with DICOM labels of every kind; a segment that is in no table has the secret's name."""
    for index in range(3):
        image, labels = whole(index), toy_case(index)[1]
        slices = slices_of(image.array[0].astype(np.int16), image.grid.affine, seed=f"{index}")
        masks = {"Box left": labels.array.T == 1, "box_small": labels.array.T == 2}
        for kind in KINDS:
            extra = {} if kind == "LABELMAP" else {SECRET: labels.array.T >= 0}
            every = masks | extra
            if kind == "FRACTIONAL":
                every = {name: mask * 0.8 for name, mask in every.items()}
            made = make_rtstruct(slices, every) if kind == "RTSTRUCT" else make_seg(slices, every, kind)
            home = pairs / kind
            shutil.copytree(pairs / "dicom" / "images" / f"toy_{index}", home / "images" / f"toy_{index}")
            (home / "labels").mkdir(exist_ok=True)
            made.save_as(home / "labels" / f"toy_{index}.dcm", enforce_file_format=True)
            shutil.copy(pairs / "nifti" / "labels.json", home)
    return pairs


@pytest.mark.parametrize("kind", KINDS)
def test_prepared_cases_are_those_of_the_nifti_labels(
    kind: str, labelled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("nifti", kind):
        words = ("preprocess", labelled / name, "-o", labelled / f"{name}_prepared", "--jobs", 1)
        code, out = run(capfd, *words, "--set", "preprocess.spacing_mm=[2,2,2]", "--set", "sample.folds=2")
        assert code == 0, out
        require_no_secret(out)
    require_no_secret(folders=(labelled / f"{kind}_prepared",))
    for index in range(3):
        one, other = (open_prepared(labelled / f"{name}_prepared", f"toy_{index}") for name in ("nifti", kind))
        for before, after in zip(one, other, strict=True):
            np.testing.assert_array_equal(before[...], after[...])
        assert np.unique(one[1][...]).tolist() == [0, 1, 2]


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["ct_20_slices", "mr_hippocampus_crop"])
def test_real_cases_are_prepared_as_with_the_nifti_labels(name: str, real_data: Path, tmp_path: Path) -> None:
    slices = real_slices(real_data / "dicom" / name)
    save(slices, tmp_path / "image")
    grid = open_volume(tmp_path / "image").grid
    smooth = gaussian_filter(read_image(tmp_path / "image").array[0], 3)
    labels = np.digitize(smooth, np.quantile(smooth, [0.6, 0.9]))
    if name == "ct_20_slices":
        labels = read_label_map(real_data / "dicom" / f"{name}_labels.nii.gz").reoriented(grid.orientation).array
    write_label_map(LabelMap(labels, grid), tmp_path / "nifti.nii.gz")
    organs = {f"organ {value}": value == labels.T for value in np.unique(labels) if value}
    make_seg(slices, organs).save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    make_rtstruct(slices, organs).save_as(tmp_path / "rtstruct.dcm", enforce_file_format=True)
    (tmp_path / "labels.json").write_text(json.dumps({organ.split()[1]: organ for organ in organs}))
    files = {"nifti": "nifti.nii.gz", "seg": "seg.dcm", "rtstruct": "rtstruct.dcm"}
    rows = "".join(f"{case},image,{file}\n" for case, file in files.items())
    (tmp_path / "datalist.csv").write_text(f"case,image,label\n{rows}")
    data = open_dataset(tmp_path)
    plan = make_plan(replace(data, cases=tuple(case for case in data.cases if case.id == "nifti")))
    for case in data.cases:
        assert prepare_case(case, plan, tmp_path / "prepared")
    expected = [array[...] for array in open_prepared(tmp_path / "prepared", "nifti")]
    assert len(np.unique(expected[1])) == len(organs) + 1
    for case in ("seg", "rtstruct"):
        for before, after in zip(expected, open_prepared(tmp_path / "prepared", case), strict=True):
            np.testing.assert_array_equal(after[...], before)


@pytest.mark.parametrize("kind", KINDS)
def test_check_convert_and_evaluate_take_dicom_labels(
    kind: str, labelled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home, report = labelled / kind, labelled / "report.json"
    code, out = run(capfd, "check", home, "--json", report, "--jobs", 1)
    assert code == 0, out
    require_no_secret(out, report.read_text())
    codes = {problem["code"] for problem in json.loads(report.read_text())["problems"]}
    expected = {"dicom_fractional"} if kind == "FRACTIONAL" else set()
    assert codes == expected | (set() if kind == "LABELMAP" else {"dicom_names"})
    code, out = run(capfd, "convert", home, "--to", "nnunet", "-o", labelled / "nnunet", "-j", 1)
    assert code == 0, out
    require_no_secret(out, folders=(labelled / "nnunet",))
    for index in range(3):
        found = read_label_map(labelled / "nnunet" / "labelsTr" / f"toy_{index}.nii.gz")
        wanted = read_label_map(labelled / "nifti" / "labels" / f"toy_{index}.nii.gz")
        assert found.grid.matches(wanted.grid)
        np.testing.assert_array_equal(found.array, wanted.array)
    code, out = run(capfd, "evaluate", labelled / "nifti" / "labels", home, "-o", labelled / "scores", "--jobs", 1)
    assert code == 0, out
    summary = json.loads((labelled / "scores" / "summary.json").read_text())
    assert summary["overall"]["dice"]["mean"] == 1.0
    require_no_secret(out, folders=(labelled / "scores",))
    code, out = run(capfd, "inspect", home)
    assert code == 0
    count = 2 if kind == "LABELMAP" else 3
    what = "structures (RTSTRUCT)" if kind == "RTSTRUCT" else f"segments (SEG, {kind})"
    assert out.count(f": {count} {what} of series") == 3
    require_no_secret(out)
    code, out = run(capfd, "inspect", home, "--show-names")
    assert SECRET in out


def test_repaired_copies_of_dicom_labels_are_nifti(labelled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out = run(capfd, "check", labelled / "RTSTRUCT", "--fix", labelled / "fixed", "--jobs", 1)
    assert code == 0, out
    for index in range(3):
        found = read_label_map(labelled / "fixed" / "labels" / f"toy_{index}.nii.gz")
        wanted = read_label_map(labelled / "nifti" / "labels" / f"toy_{index}.nii.gz")
        np.testing.assert_array_equal(found.array, wanted.array)
    require_no_secret(out, folders=(labelled / "fixed",))


def test_labels_of_another_series_fail_their_case_alone(labelled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copy(labelled / "BINARY" / "labels" / "toy_1.dcm", labelled / "BINARY" / "labels" / "toy_0.dcm")
    report = labelled / "report.json"
    code, out = run(capfd, "check", labelled / "BINARY", "--json", report, "--jobs", 1)
    assert code == 2
    found = [problem for problem in json.loads(report.read_text())["problems"] if problem["severity"] == "error"]
    assert [(problem["case"], problem["code"]) for problem in found] == [("toy_0", "dicom_reference")]
    assert "expected a reference to series" in found[0]["message"]
    require_no_secret(out, report.read_text())


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


NEEDED = {
    *("ImageType", "PhotometricInterpretation", "SpecificCharacterSet", "SegmentationType", "ContourGeometricType"),
    *("SegmentLabel", "ROIName"),
}
TEXTS = {"LO", "PN", "SH", "ST", "LT", "UT", "UC", "UR", "AE", "CS", "DA", "TM", "DT", "AS"}
SEEDED = [  # the groups below 4 are not of data sets
    tag
    for tag, (kind, *_, word) in DicomDictionary.items()
    if kind in TEXTS and word not in ("", *NEEDED) and tag >> 16 > 4
]


def seed(one: Dataset) -> None:
    """Put the secret into every text of a data set."""
    for tag in SEEDED:
        one.add_new(tag, DicomDictionary[tag][0], SECRET)


def test_nothing_that_any_text_of_labels_says_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros((4, 6, 8), np.int16)
    labels[1:3, 1:4, 2:6] = 1
    slices = make_slices(labels)
    for kind, made in (
        ("seg", make_seg(slices, {"liver": labels == 1, SECRET: labels == 0})),
        ("rtstruct", make_rtstruct(slices, {"liver": labels == 1, SECRET: labels == 0})),
    ):
        home = tmp_path / kind
        save(slices, home / "images" / "p1")
        contours = [item for items in made.get("ROIContourSequence", ()) for item in items.ContourSequence]
        groups = [*made.get("SharedFunctionalGroupsSequence", ()), *made.get("PerFrameFunctionalGroupsSequence", ())]
        for part in (
            made,
            *made.get("SegmentSequence", ()),
            *made.get("StructureSetROISequence", ()),
            *contours,
            *groups,
        ):
            seed(part)
        (home / "labels").mkdir()
        made.save_as(home / "labels" / "p1.dcm", enforce_file_format=True)
        (home / "labels.json").write_text('{"1": "liver"}')
        whole_file = (home / "labels" / "p1.dcm").read_bytes()
        for length in (len(whole_file), len(whole_file) - 9, len(whole_file) // 2, 3000):
            (home / "labels" / "p1.dcm").write_bytes(whole_file[:length])
            code, out = run(capfd, "check", home, "--json", home / "report.json", "--jobs", 1)
            assert (code == 0) or length < len(whole_file)
            require_no_secret(out, (home / "report.json").read_text())
            _, out = run(capfd, "convert", home, "--to", "pairs", "-o", tmp_path / f"{kind}_{length}", "--jobs", 1)
            require_no_secret(out, folders=(tmp_path / f"{kind}_{length}",))
            _, out = run(capfd, "inspect", home / "labels", "--json", home / "found.json")
            require_no_secret(out, (home / "found.json").read_text())
        found = read_label_map(tmp_path / f"{kind}_{len(whole_file)}" / "labels" / "p1.nii.gz")
        np.testing.assert_array_equal(found.array, labels.T)


def test_nothing_that_any_text_tag_says_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slices = make_slices(np.arange(96, dtype=np.int16).reshape(3, 4, 8), slopes=[1.0] * 3)
    assert len(SEEDED) > 1500
    for one in slices:
        seed(one)
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
