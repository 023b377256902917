"""The layout of Drishti-GS1, its soft maps and its split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.core import DataError
from pipeline.data.case_files import CaseFiles
from pipeline.data.check import check_dataset
from pipeline.data.itk import write_picture
from pipeline.data.layouts import Dataset, open_dataset
from pipeline.data.organ_masks import read_reference
from pipeline.data.reader import VolumeReader
from pipeline.data.volume_file import VolumeError

DISC = np.array([[0, 64, 127, 128], [191, 255, 255, 255]], np.uint8)  # two rows of four pixels
CUP = np.array([[0, 0, 0, 0], [0, 128, 255, 64]], np.uint8)
PHOTO = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def write_case(part: Path, references: str, name: str, *, folder: str = "Images") -> Path:
    maps = part / references / name / "SoftMap"
    for path, pixels in (
        (part / folder / f"{name}.png", PHOTO),
        (maps / f"{name}_ODsegSoftmap.png", DISC),
        (maps / f"{name}_cupsegSoftmap.png", CUP),
    ):
        write_picture(pixels, path)
    return maps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cases to train with and one to validate with."""
    write_case(tmp_path / "Training", "GT", "drishtiGS_002")
    write_case(tmp_path / "Training", "GT", "drishtiGS_004", folder="Images/GLAUCOMA")
    write_case(tmp_path / "Test", "Test_GT", "drishtiGS_001")
    return tmp_path


def test_cases_channels_split_and_regions(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert (dataset.layout, dataset.channels, dataset.tests) == ("drishti", ("R", "G", "B"), ())
    assert [(case.id, case.split) for case in dataset.cases] == [
        ("drishtiGS_001", "validation"),
        ("drishtiGS_002", "train"),
        ("drishtiGS_004", "train"),
    ]
    assert dataset.labels.organs == ("rim", "cup")
    assert dataset.labels.regions == {"disc": (1, 2), "cup": (2,)}
    assert dataset.labels.targets == ("disc", "cup")
    case = dataset.cases[2]
    assert case.images[0] == folder / "Training/Images/GLAUCOMA/drishtiGS_004.png#channel=1of3"
    assert [source.name for source in case.label_sources] == [
        "drishtiGS_004_ODsegSoftmap.png#soft=1",
        "drishtiGS_004_cupsegSoftmap.png#soft=2",
    ]


def test_organs_are_where_half_of_the_experts_agree(folder: Path) -> None:
    case = open_dataset(folder).cases[0]
    reference = read_reference(case)
    assert reference.array[..., 0].T.tolist() == [[0, 0, 0, 1], [1, 2, 2, 1]]
    reader = VolumeReader(labels=True)
    array, _ = reader.get_data(reader.read(case.label_sources))
    np.testing.assert_array_equal(array, reference.array)


def test_a_cup_in_its_disc_is_no_problem(folder: Path) -> None:
    report = check_dataset(open_dataset(folder))
    assert {problem.code for problem in report.problems} == {"duplicate_content"}
    assert report.summary["cases_with_organ"] == {"disc": 3, "cup": 3}


@pytest.mark.parametrize("inner", ["Drishti-GS1_files", "a/Drishti-GS1_files"])
def test_the_folders_that_the_archive_brings_along(folder: Path, tmp_path: Path, inner: str) -> None:
    outside = tmp_path / "outside"
    for part in ("Training", "Test"):
        (outside / inner).mkdir(parents=True, exist_ok=True)
        (folder / part).rename(outside / inner / part)
    dataset = open_dataset(outside)
    assert (dataset.layout, dataset.name, len(dataset.cases)) == ("drishti", "outside", 3)


def test_test_images_without_references_are_held_out(folder: Path) -> None:
    (folder / "Test" / "Test_GT").rename(folder / "Test" / "elsewhere")
    dataset = open_dataset(folder)
    assert [case.id for case in dataset.cases] == ["drishtiGS_002", "drishtiGS_004"]
    assert [(case.id, case.labelled) for case in dataset.tests] == [("drishtiGS_001", False)]
    assert dataset.tests[0].images[0].name == "drishtiGS_001.png#channel=1of3"


def problems(dataset: Dataset) -> dict[str, str]:
    return {
        problem.case or "": problem.message
        for problem in check_dataset(dataset).problems
        if problem.severity == "error"
    }


def test_missing_files_are_named(folder: Path) -> None:
    cup = folder / "Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_cupsegSoftmap.png"
    cup.unlink()
    (folder / "Training/Images/GLAUCOMA/drishtiGS_004.png").unlink()
    write_picture(PHOTO, folder / "Test/Images/drishtiGS_009.png")  # without references
    found = problems(open_dataset(folder))
    rule = "expected an existing file, got nothing there. Check the path."
    assert found == {
        "drishtiGS_002": f"case drishtiGS_002: {cup}: file: {rule}",
        "drishtiGS_004": f"case drishtiGS_004: {folder}/Training/Images/drishtiGS_004.png: file: {rule}",
        "drishtiGS_009": f"case drishtiGS_009: {folder}/Test/Test_GT/drishtiGS_009/SoftMap/"
        f"drishtiGS_009_ODsegSoftmap.png: file: {rule}",
    }


def test_sizes_that_differ_and_maps_without_agreement(folder: Path) -> None:
    maps = folder / "Training/GT/drishtiGS_002/SoftMap"
    write_picture(CUP[:, :3], maps / "drishtiGS_002_cupsegSoftmap.png")
    write_picture(PHOTO[:, :2], folder / "Training/Images/GLAUCOMA/drishtiGS_004.png")
    write_picture(DISC // 4, folder / "Test/Test_GT/drishtiGS_001/SoftMap/drishtiGS_001_ODsegSoftmap.png")
    found = problems(open_dataset(folder))
    assert "organ mask grid: expected the grid of drishtiGS_002_ODsegSoftmap.png" in found["drishtiGS_002"]
    assert "got shapes (4, 2, 1) and (3, 2, 1)" in found["drishtiGS_002"]
    assert "label map grid: expected the image grid" in found["drishtiGS_004"]
    assert "soft map: expected half agreement (128 or more) somewhere, got at most 63." in found["drishtiGS_001"]


def test_two_images_of_one_name(folder: Path) -> None:
    write_picture(PHOTO, folder / "Training/Images/NORMAL/drishtiGS_002.png")
    with pytest.raises(
        DataError, match=r"case drishtiGS_002: .*images: expected one file per case, got .*\. Remove or"
    ):
        open_dataset(folder)


def test_masks_that_are_not_declared_soft_stay_strict(folder: Path) -> None:
    path = folder / "Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_ODsegSoftmap.png"
    with pytest.raises(
        VolumeError, match=r"organ mask: expected 0 and one other value, got \[64, 127, 128, 191, 255\]"
    ):
        read_reference(CaseFiles("x", (), organs=((1, path),)))
