"""Dataset folders of every layout, made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # its usual name

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.labels import LabelTable
from pipeline.data.check import check_dataset
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.itk import write_picture
from pipeline.data.layout_names import LAYOUTS
from pipeline.data.layouts import _READERS, open_dataset, rgb_channels
from pipeline.data.monai_reader import VolumeReader
from pipeline.data.organ_masks import read_reference
from pipeline.data.prediction_inputs import find_inputs
from pipeline.data.volume_file import VolumeError
from pipeline.data.volumes import open_header, read_image, read_label_map


def touch(root: Path, *names: str) -> None:
    """Files whose content does not matter."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def describe(root: Path, content: object, name: str = "dataset.json") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content), encoding="utf-8")
    return root / name


NAMES = {"0": "background", "1": "liver", "2": "spleen"}


def test_decathlon(tmp_path) -> None:
    content = {
        "name": "Belly",
        "modality": {"0": "CT"},
        "labels": NAMES,
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in ("b", "a")],
        "test": ["./imagesTs/t.nii.gz"],
    }
    file = describe(tmp_path, content)
    touch(tmp_path, "labelsTs/t.nii.gz")
    for path in (tmp_path, str(file)):
        dataset = open_dataset(path)
        assert (dataset.name, dataset.layout, dataset.channels, dataset.is_ct) == ("Belly", "decathlon", ("CT",), True)
        assert dataset.labels == LabelTable({1: "liver", 2: "spleen"})
        assert dataset.cases == tuple(
            CaseFiles(c, (tmp_path / f"imagesTr/{c}.nii.gz",), tmp_path / f"labelsTr/{c}.nii.gz") for c in ("a", "b")
        )
        assert dataset.tests == (CaseFiles("t", (tmp_path / "imagesTs/t.nii.gz",), tmp_path / "labelsTs/t.nii.gz"),)


def test_decathlon_4d_and_numbered_channels(tmp_path, nifti, ramp) -> None:
    nifti("imagesTr/a.nii.gz", np.stack([ramp, ramp + 1], axis=-1))
    touch(tmp_path, "imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz")
    content = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": NAMES,
        "training": [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in ("a", "b")],
    }
    describe(tmp_path, content)
    first, second = open_dataset(tmp_path).cases
    assert [path.name for path in first.images] == ["a.nii.gz#channel=1of2", "a.nii.gz#channel=2of2"]
    assert first.files == (tmp_path / "imagesTr/a.nii.gz", tmp_path / "labelsTr/a.nii.gz")
    assert read_image(first.images).array[:, 0, 0, 0].tolist() == [0, 1]
    assert [path.name for path in second.images] == ["b_0000.nii.gz", "b_0001.nii.gz"]


def test_nnunet(tmp_path) -> None:
    touch(
        tmp_path,
        *(f"imagesTr/{c}_000{n}.nii.gz" for c in ("k_01", "k_02") for n in (0, 1)),
        "imagesTr/._k_01_0000.nii.gz",
        "labelsTr/k_01.nii.gz",
        "labelsTr/k_02.nii.gz",
        "labelsTr/k_03.nii.gz",
        "imagesTs/t_0000.nii.gz",
        "imagesTs/t_0001.nii.gz",
    )
    labels = {"background": 0, "kidney": 1, "tumour": 2, "ignore": 3}
    describe(tmp_path, {"channel_names": {"1": "T2", "0": "T1"}, "labels": labels, "file_ending": ".nii.gz"})
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.channels, dataset.is_ct) == ("nnunet", ("T1", "T2"), False)
    assert dataset.labels == LabelTable({1: "kidney", 2: "tumour"}, ignore_label=3)
    assert [case.id for case in dataset.cases] == ["k_01", "k_02", "k_03"]
    assert dataset.cases[0].images == (tmp_path / "imagesTr/k_01_0000.nii.gz", tmp_path / "imagesTr/k_01_0001.nii.gz")
    assert dataset.cases[2].images[1] == tmp_path / "imagesTr/k_03_0001.nii.gz"  # missing: reported by check
    assert dataset.tests[0].id == "t"
    assert len(dataset.tests[0].images) == 2
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    describe(tmp_path, {"channel_names": {"0": "CT"}, "labels": regions, "regions_class_order": [1, 2]})
    table = LabelTable({1: "label_1", 2: "core"}, 3, {"whole": (1, 2), "core": (2,)}, (1, 2))
    assert open_dataset(tmp_path).labels == table


def test_pairs(tmp_path, nifti, ramp, blob) -> None:
    nifti("images/a_img.nii.gz", ramp - 1000)
    nifti("images/b.nrrd.nii", ramp - 1000)
    nifti("images/new.nii.gz", ramp)
    nifti("labels/a_seg.nii.gz", blob * 3)
    touch(tmp_path, "labels/b.nrrd.nii", "labels/c.nii.gz", "images/notes.txt")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "pairs"
    assert dataset.name == tmp_path.name
    assert dataset.labels == LabelTable({3: "label_3", 6: "label_6"})
    assert dataset.channels == ("CT",)  # there is air
    assert [case.id for case in dataset.cases] == ["a", "b.nrrd", "c"]
    assert dataset.cases[0].label == tmp_path / "labels/a_seg.nii.gz"
    assert dataset.cases[2].images == (tmp_path / "images/c.nii.gz",)
    assert [case.id for case in dataset.tests] == ["new"]
    describe(tmp_path, {"liver": 3, "gut": 6}, "labels.json")
    assert open_dataset(tmp_path, "pairs").labels == LabelTable({3: "liver", 6: "gut"})
    touch(tmp_path, "labels/a.nii.gz")
    with pytest.raises(DataError, match=r"expected one file per case and channel, got a\.nii\.gz and a_seg\.nii\.gz"):
        open_dataset(tmp_path)


def test_pairs_with_channel_numbers(tmp_path) -> None:
    touch(tmp_path, *(f"imagesTr/p_000{n}.nii.gz" for n in (1, 0)), "labelsTr/p.nii.gz", "imagesTs/t_0000.nii.gz")
    describe(tmp_path, {"labels": NAMES, "channels": ["T1", "T2"], "groups": {"p": 17}})
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "pairs"
    assert [path.name for path in dataset.cases[0].images] == ["p_0000.nii.gz", "p_0001.nii.gz"]
    assert dataset.cases[0].group == "17"
    assert dataset.tests[0].id == "t"
    assert not dataset.is_ct


def test_pairs_of_numbered_scans(tmp_path) -> None:
    touch(tmp_path, *(f"{part}/scan_000{n}.nii.gz" for n in (0, 1) for part in ("images", "labels")))
    describe(tmp_path, NAMES, "labels.json")
    dataset = open_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["scan_0000", "scan_0001"]
    assert dataset.channels == ("image",)


def test_organs(tmp_path, nifti, blob) -> None:
    for case, organs in (("s1", {"spleen": 2, "liver": 1}), ("s2", {"aorta": 1})):
        nifti(f"{case}/ct.nii.gz", blob)
        for organ, value in organs.items():
            nifti(f"{case}/segmentations/{organ}.nii.gz", (blob == value).astype(np.uint8))
    (tmp_path / "groups.csv").write_text("Case, Group\ns2, patient 9\n", encoding="utf-8")
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.channels) == ("organs", ("CT",))
    assert dataset.labels == LabelTable({1: "aorta", 2: "liver", 3: "spleen"})
    first, second = dataset.cases
    assert first.images == (tmp_path / "s1/ct.nii.gz",)
    assert first.organs == (
        (2, tmp_path / "s1/segmentations/liver.nii.gz"),
        (3, tmp_path / "s1/segmentations/spleen.nii.gz"),
    )
    assert (first.group, second.group) == (None, "patient 9")
    assert read_reference(first).values() == (0, 2, 3)
    describe(tmp_path, {"7": "spleen"}, "labels.json")
    dataset = open_dataset(tmp_path)
    assert dataset.labels == LabelTable({7: "spleen"})
    assert [case.id for case in dataset.tests] == ["s2"]


def test_organs_with_several_channels(tmp_path) -> None:
    touch(tmp_path, "s1/T1.nii.gz", "s1/T2.nii.gz", "s2/T1.nii.gz", *(f"s{n}/segmentations/gut.nii.gz" for n in (1, 2)))
    dataset = open_dataset(tmp_path)
    assert dataset.channels == ("T1", "T2")
    assert dataset.cases[1].images == (tmp_path / "s2/T1.nii.gz", tmp_path / "s2/T2.nii.gz")


def test_labels_json_names_the_channels_too(tmp_path) -> None:
    touch(tmp_path, "s1/image_0000.nii.gz", "s1/image_0001.nii.gz", "s1/segmentations/liver.nii.gz")
    describe(tmp_path, {"names": {"1": "liver"}, "channels": ["T2", "T1"]}, "labels.json")
    assert open_dataset(tmp_path).channels == ("T2", "T1")
    describe(tmp_path, {"names": {"1": "liver"}, "channels": ["T2"]}, "labels.json")
    assert open_dataset(tmp_path).channels == ("image_0000", "image_0001")
    touch(tmp_path, "p/images/a.nii.gz", "p/labels/a.nii.gz")
    describe(tmp_path / "p", {"names": {"1": "liver"}, "channels": ["PET"]}, "labels.json")
    assert open_dataset(tmp_path / "p").channels == ("PET",)


def test_a_4d_test_case_of_decathlon_has_its_label(tmp_path) -> None:
    touch(tmp_path, "imagesTs/t.nii.gz", "labelsTs/t.nii.gz")
    content = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": NAMES,
        "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/t.nii.gz"],
    }
    describe(tmp_path, content)
    assert open_dataset(tmp_path).tests[0].label == tmp_path / "labelsTs/t.nii.gz"


def test_datalist_csv(tmp_path) -> None:
    (tmp_path / "datalist.csv").write_text(
        "case,image,label,group,split\nb,x/b1.nii.gz;x/b2.nii.gz,y/b.nii.gz,p1,Train\na,a1.mha;a2.mha,a.mha,,val\n"
        "t,t1.mha;t2.mha,,,test\n\n",
        encoding="utf-8-sig",
    )
    describe(tmp_path, {"1": "liver"}, "labels.json")
    for path in (tmp_path, tmp_path / "datalist.csv"):
        dataset = open_dataset(path)
        assert dataset.layout == "datalist"
        assert dataset.channels == ("channel_1", "channel_2")
        assert dataset.cases == (
            CaseFiles("a", (tmp_path / "a1.mha", tmp_path / "a2.mha"), tmp_path / "a.mha", split="validation"),
            CaseFiles(
                "b",
                (tmp_path / "x/b1.nii.gz", tmp_path / "x/b2.nii.gz"),
                tmp_path / "y/b.nii.gz",
                group="p1",
                split="train",
            ),
        )
        assert [case.id for case in dataset.tests] == ["t"]


def test_datalist_json(tmp_path) -> None:
    rows = [
        {"image_2": "t2.nii", "image_1": "t1.nii", "label": "l.nii", "group": 4},
        {"case": "z", "image": ["z_0000.nii", "z_0001.nii"], "label": "z.nii"},
    ]
    file = describe(tmp_path, {"name": "N", "channels": ["T1", "T2"], "labels": NAMES, "cases": rows}, "mine.json")
    dataset = open_dataset(file)
    assert (dataset.name, dataset.layout, dataset.channels) == ("N", "datalist", ("T1", "T2"))
    assert dataset.cases[0] == CaseFiles(
        "t1", (tmp_path / "t1.nii", tmp_path / "t2.nii"), tmp_path / "l.nii", group="4"
    )
    assert dataset.cases[1].id == "z"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "case,label\na,a.nii\n",
            r"row 1: expected an image, or image_1, image_2, …, got the keys case, label\. Name the",
        ),
        (
            "case,image,split\na,a.nii,val\nb,b.nii,\nc,c.nii,test\n",
            r"split: expected train or val in every row, got none in 1 of 2 rows, e.g. case b\. Name the split",
        ),
        ("case,image,split\na,a.nii,tset\n", r"row 1, split: expected train, val or test, got 'tset'\. Write train,"),
        (
            "case,image,label\nx/a,a.nii,b.nii\n",
            r"row 1, id: expected a name without / \\ : that is more than dots, got 'x/a'",
        ),
        ("case,image\na,a.nii\n", r"expected at least one labelled case, got 1 cases without a label map\. Add label"),
        ("case,image\n", r"expected at least one labelled case, got a folder that holds list\.csv"),
    ],
)
def test_bad_datalists(tmp_path, text, message) -> None:
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / 'list.csv'))}: .*{message}"):
        open_dataset(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"1": "liver", "2": "liver"}, "label table: expected unique names, got 'liver' for 1 and 2"),
        ({"liver": 1, "spleen": 1}, "labels: expected one name per value, got 'liver' and 'spleen' for 1"),
        ({"liver": "one"}, "labels: expected one integer per label, got 'one' for 'liver'"),
        (["liver"], "labels: expected an object of values and names, got list"),
    ],
)
def test_bad_label_names(tmp_path, labels, message) -> None:
    describe(tmp_path, {"labels": labels, "training": [{"image": "a.nii", "label": "b.nii"}]})
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / 'dataset.json'))}: {message}"):
        open_dataset(tmp_path)


def test_unrecognised(tmp_path) -> None:
    with pytest.raises(
        DataError, match=r"no: dataset: expected a folder, or a JSON or CSV file, got nothing there\. Check"
    ):
        open_dataset(tmp_path / "no")
    with pytest.raises(DataError, match=r"got an empty folder\. Arrange the files"):
        open_dataset(tmp_path)
    touch(tmp_path, *(f"x{n}.nii.gz" for n in range(10)), "sub/y")
    with pytest.raises(
        DataError, match=r"expected a dataset layout \(decathlon: a dataset.json with .*; pairs: images/ and"
    ):
        open_dataset(tmp_path)
    with pytest.raises(
        DataError, match=r"\(nnunet: imagesTr and .*\), got a folder that holds sub/, x0.nii.gz.* and 3 more"
    ):
        open_dataset(tmp_path, "nnunet")
    with pytest.raises(
        DataError, match=r"layout: expected one of decathlon, nnunet, .* got 'bids'\. Choose one of them"
    ):
        open_dataset(tmp_path, "bids")
    with pytest.raises(
        DataError, match=r"x0.nii.gz: dataset: expected a folder, or a JSON or CSV file, got 'x0.nii.gz'"
    ):
        open_dataset(tmp_path / "x0.nii.gz")
    (tmp_path / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(VolsegError, match=r"dataset.json: expected JSON, got"):
        open_dataset(tmp_path)
    describe(tmp_path, {"training": []})
    with pytest.raises(
        DataError, match="decathlon dataset: expected at least one labelled case, got a folder that holds"
    ):
        open_dataset(tmp_path)


def test_no_label_in_any_map(tmp_path, nifti, blob) -> None:
    nifti("images/a.nii", blob)
    nifti("labels/a.nii", blob * 0)
    with pytest.raises(DataError, match="label maps: expected a value above 0 in at least one, got none"):
        open_dataset(tmp_path)


@pytest.mark.realdata
def test_real_decathlon(real_data) -> None:
    dataset = open_dataset(real_data / "Task04_Hippocampus")
    assert len(dataset.cases) == 208
    assert dataset.labels.organs == ("Anterior", "Posterior")
    assert dataset.channels == ("MRI",)
    assert not dataset.is_ct


# Colour pictures: one file, three channels.

PIXELS = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)  # row 2, column 1 is (33, 34, 35)
LABEL = np.pad(np.ones((2, 2), np.uint8), ((1, 1), (1, 2)))


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_red_green_and_blue_are_channels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_picture(PIXELS, path)
    header = open_header(path)
    assert (header.volumes, header.is_colour, header.grid.shape) == (3, True, (5, 4, 1))
    image = read_image(rgb_channels(path))
    assert image.array[:, 1, 2, 0].tolist() == [33, 34, 35]
    assert image.grid.spacing_mm == pytest.approx((1, 1, 1), rel=1e-6)
    reader = VolumeReader()
    array, _ = reader.get_data(reader.read([str(source) for source in rgb_channels(path)]))
    np.testing.assert_array_equal(array, image.array)


def test_opacity_is_dropped_if_it_says_nothing(tmp_path: Path) -> None:
    opaque = np.dstack([PIXELS, np.full((4, 5), 200, np.uint8)])
    sources = rgb_channels(write(tmp_path / "opaque.png", opaque))
    assert [source.name for source in sources] == [f"opaque.png#channel={n}of3" for n in (1, 2, 3)]
    assert read_image(sources).array[2, 1, 2, 0] == 35
    opaque[0, 0, 3] = 0
    faded = rgb_channels(write(tmp_path / "faded.png", opaque))
    with pytest.raises(
        VolumeError, match=r"faded.png: alpha channel: expected one opacity .*, got opacity from 0 to 200\. Save the"
    ):
        read_image(faded)


def test_grey_pictures_volumes_and_damaged_files_are_no_colours(tmp_path: Path, nifti, ramp) -> None:
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    files = (write(tmp_path / "grey.png", LABEL), nifti("a.nii", ramp), tmp_path / "damaged.png", tmp_path / "no.png")
    assert [rgb_channels(file) for file in files] == [()] * 4


def test_a_model_of_one_channel_refuses_colours(tmp_path: Path) -> None:
    (case,) = find_inputs([write(tmp_path / "a.png", PIXELS)], 1).cases
    message = r"a.png: shape: expected one number per pixel, got the three colours of a picture\. Save it in greyscale"
    with pytest.raises(VolumeError, match=message):
        read_image(case.images)


def test_label_maps_may_be_greys_stored_as_colours(tmp_path: Path) -> None:
    grey = read_label_map(write(tmp_path / "grey.png", np.dstack([LABEL] * 3)))
    np.testing.assert_array_equal(grey.array[..., 0], LABEL.T)
    coloured = write(tmp_path / "a.png", np.dstack([LABEL, LABEL, 2 * LABEL]))
    message = r"a.png: label map: expected one number per pixel, got colours in 4 pixels\. Save it in greyscale"
    with pytest.raises(VolumeError, match=message):
        read_label_map(coloured)


def test_every_layout_takes_colour_pictures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "images" / f"{name}.png", PIXELS)
        write(tmp_path / "labels" / f"{name}.png", LABEL)
    (tmp_path / "list.csv").write_text("case,image,label\na,images/a.png,labels/a.png\n")
    for path, cases in ((tmp_path, 2), (tmp_path / "list.csv", 1)):
        dataset = open_dataset(path)
        assert dataset.channels == ("R", "G", "B")
        assert len(dataset.cases) == cases
        assert dataset.cases[0].images == rgb_channels(tmp_path / "images" / "a.png")
        assert dataset.cases[0].files == (tmp_path / "images/a.png", tmp_path / "labels/a.png")
        assert not check_dataset(dataset).count("error")


def test_a_grey_picture_among_coloured_ones_is_named(tmp_path: Path) -> None:
    for name, pixels in (("a", PIXELS), ("b", PIXELS[..., 0])):
        write(tmp_path / "images" / f"{name}.png", pixels)
        write(tmp_path / "labels" / f"{name}.png", LABEL)
    report = check_dataset(open_dataset(tmp_path))
    assert [problem.case for problem in report.problems if problem.code == "channels"] == ["b"]
    assert "case b: image channels: expected 3 files, got 1." in next(p.message for p in report.problems)


def test_a_coloured_picture_among_grey_ones_is_named(tmp_path: Path) -> None:
    for name, pixels in (("a", PIXELS), ("b", PIXELS[..., 0]), ("c", PIXELS[..., 1])):
        write(tmp_path / "images" / f"{name}.png", pixels)
        write(tmp_path / "labels" / f"{name}.png", LABEL)
    report = check_dataset(open_dataset(tmp_path))
    wrong = [(problem.case, problem.message) for problem in report.problems if problem.severity == "error"]
    assert [case for case, _ in wrong] == ["a"]
    assert "a.png: shape: expected one number per pixel, got the three colours of a picture. Save it in" in wrong[0][1]


def test_pictures_to_predict_are_cases_whatever_their_numbers(tmp_path: Path) -> None:
    for name in ("eye_0001", "eye_0002", "b"):
        write(tmp_path / f"{name}.png", PIXELS)
    assert [case.id for case in find_inputs([tmp_path], 3).cases] == ["b", "eye_0001", "eye_0002"]
    ((case, problem),) = find_inputs([write(tmp_path / "grey" / "grey.png", LABEL)], 3).failed
    assert case == "grey"
    assert "channels: expected 3 files ending in _0000, _0001, _0002, got grey.png." in problem


# The layout of Drishti-GS1, its soft maps and its split.

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


def test_every_layout_has_a_reader() -> None:
    assert list(_READERS) == list(LAYOUTS)


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
