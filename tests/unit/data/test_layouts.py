"""Dataset folders of every layout, made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import DataError, LabelTable, VolsegError
from pipeline.data.layouts import CaseFiles, open_dataset
from pipeline.data.organ_masks import read_reference
from pipeline.data.volumes import read_image


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
