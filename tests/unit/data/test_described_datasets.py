"""What descriptions say beside files and labels: folds, validation, channels, nnU-Net's own list, keys in vain."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # its usual name

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.tables import read_csv
from pipeline.data.check import check_dataset
from pipeline.data.dataset import CaseFiles, channels_in_order, own_split
from pipeline.data.layout_writers import converted_dataset, write_description
from pipeline.data.layouts import open_dataset
from pipeline.data.prediction_inputs import find_inputs
from pipeline.sample.folds import Fold, fixed_folds, follows_split, usual_folds

LABELS = {"labels": {"background": 0, "liver": 1}}


def describe(root: Path, content: object, name: str = "dataset.json") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root / name


def row(case: str, **more: object) -> dict[str, object]:
    return {"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz", **more}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def notes(root: Path) -> list[str]:
    return [note.removeprefix(f"{root / 'dataset.json'}: ") for note in open_dataset(root).notes]


# MONAI's datalists.


def test_validation_cases_of_monai_are_labelled_cases_with_that_split(tmp_path: Path) -> None:
    content = {**LABELS, "training": [row("a"), row("b")], "validation": [row("v")], "testing": [{"image": "t.nii"}]}
    describe(tmp_path, content)
    dataset = open_dataset(tmp_path)
    assert [(case.id, case.split) for case in dataset.cases] == [
        ("a", "train"),
        ("b", "train"),
        ("v", "validation"),
    ]
    assert [case.id for case in dataset.tests] == ["t"]
    parts = own_split(dataset.cases)
    assert usual_folds(dict.fromkeys("abv"), parts, 5, 0) == (Fold(("a", "b"), ("v",)),)
    describe(tmp_path, {**content, "validation": [{"image": "v.nii"}], "test": ["u.nii"]})  # no labels: held out
    dataset = open_dataset(tmp_path)
    assert ([case.id for case in dataset.tests], own_split(dataset.cases)) == (["t", "u", "v"], None)


def test_folds_of_monai_are_the_folds(tmp_path: Path) -> None:
    describe(tmp_path, {**LABELS, "training": [row("a", fold=0), row("b", fold=1), row("c", fold=0), row("d")]})
    dataset = open_dataset(tmp_path)
    parts = own_split(dataset.cases)
    assert parts == {"a": 0, "b": 1, "c": 0, "d": None}
    folds = (Fold(("b", "d"), ("a", "c")), Fold(("a", "c", "d"), ("b",)))
    assert usual_folds(dict.fromkeys("abcd"), parts, 5, 0) == folds
    assert all(follows_split(fold, parts) for fold in (*folds, Fold(("b",), ("a",))))
    assert not follows_split(Fold(("a", "d"), ("b", "c")), parts)
    assert not follows_split(Fold(("a",), ("d",)), parts)
    assert [entry.get("fold") for entry in dataset.as_monai()] == [0, 1, 0, None]
    with pytest.raises(DataError, match=r"fold 0: expected no group \(patient\) in both train and validation, got p"):
        fixed_folds(parts, {"a": "p", "b": "p", "c": None, "d": None})
    with pytest.raises(DataError, match="fold 3 train: expected at least one case, got none"):
        fixed_folds({"a": 3}, {})


def test_folds_of_a_table_and_of_a_converted_dataset(tmp_path: Path) -> None:
    describe(tmp_path, "case,image,label,fold\na,a.nii,l.nii,1\nb,b.nii,m.nii,0\nc,c.nii,n.nii,\n", "datalist.csv")
    describe(tmp_path, {"1": "liver"}, "labels.json")
    dataset = open_dataset(tmp_path)
    assert [case.fold for case in dataset.cases] == [1, 0, None]
    target = converted_dataset(dataset, tmp_path / "out", "datalist")
    (tmp_path / "out").mkdir()
    write_description(target.dataset, "")
    assert [case.fold for case in open_dataset(tmp_path / "out").cases] == [1, 0, None]
    lost = "the dataset's own split is lost, because pairs has no place for it; datalist and nnunet have"
    assert converted_dataset(dataset, tmp_path / "pairs", "pairs").notes == (lost,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"training": [row("a", fold=0)], "validation": [row("v")]},
            "split: expected a validation list or folds, got both, e.g. fold 0 of case a. Keep one of the two.",
        ),
        ({"training": [row("a", fold=-1)]}, "training.0.fold: expected at least 0, got -1. Correct"),
        ({"training": [row("a", fold="x")]}, "training.0.fold: expected a valid integer, got 'x'. Correct"),
        ({"training": [row("a", fold=True)]}, "training.0.fold: expected a valid integer, got 'True'. Correct"),
        ({"training": [row("a")], "cases": [row("b")]}, "cases: expected only lists that decathlon has, got another."),
        ({"training": [row("a")], "dataset": {"b": {}}}, "dataset: expected only lists that decathlon has, got ano"),
        ({"cases": [row("a")], "validation": [row("b")]}, "validation: expected only lists that datalist has, got"),
        ({"cases": [row("a", fold=0, split="train")]}, "row 1: expected a fold or a split, got fold 0 and split train"),
        ({"cases": [row("a", image_1="b.nii")]}, "cases.0: expected image, or image_1, image_2, …, got image and im"),
        ({"training": {"a": row("a")}}, "training: expected a valid list, got {'a': {'image'"),
        ({"training": [row("a", label=["a.nii", "b.nii"])]}, "training.0.label: expected a valid string, got ['a.nii'"),
        ({"training": [{"image": 5, "label": "a.nii"}]}, "training.0.image: expected a valid list, got 5."),
        ({"training": [{"image": ["a.nii", None]}]}, "training.0.image.1: expected a valid string, got None."),
        ({"training": [{"image": "x" * 300}]}, "training.0.image.0: expected a file name of at most 255 bytes between"),
        ({"training": [{"image": "a\0b"}]}, "training.0.image.0: expected a file name of at most 255 bytes between"),
        ({"training": [{"image": "images/.."}]}, "training.0.image.0: expected the name of a file, got 'images/..'."),
        ({"training": [row("a", id="a\nb")]}, "training.0.id: expected printable characters, got 'a\\nb'."),
        ({"training": [row("a", group=[1])]}, "training.0.group: expected a valid string, got [1]."),
        ({"training": [7]}, "training.0: expected keys with values, got 7."),
        ({"training": [row("a")], "groups": ["a"]}, "groups: expected keys with values, got ['a']."),
        ({"training": [row("a")], "name": {}}, "name: expected a valid string, got {}."),
        ({"training": [row("a")], "labels": []}, "labels: expected an object of values and names, got list."),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    file = describe(tmp_path, {**LABELS, **content})
    with pytest.raises(VolsegError, match=f"^{re.escape(f'{file}: {message}')}"):
        open_dataset(tmp_path)


# Channels.


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ("CT", ("CT",)),
        (["T1", "T2"], ("T1", "T2")),
        ({"1": "T2", "0": "T1"}, ("T1", "T2")),
        ({"CT": 0}, ("CT",)),
        ({"PET": 1, "CT": 0}, ("CT", "PET")),
        ({"PET": "1", "CT": "0"}, ("CT", "PET")),
        ({"1": "T1", "2": "T2"}, ("T1", "T2")),
        ({"0": "12", "1": "7"}, ("12", "7")),
        ({str(n): f"echo {n}" for n in range(12)}, tuple(f"echo {n}" for n in range(12))),
        (None, None),
        ([], None),
    ],
)
def test_channels_as_people_write_them(found: object, names: tuple[str, ...] | None) -> None:
    assert channels_in_order(found) == names


@pytest.mark.parametrize(
    "found",
    [{"0": "T1", "2": "T2"}, {"CT": 1.5}, {"CT": True}, {"CT": None}, ["T1", None], [["T1"]], 3, {"0": ""}, True],
)
def test_channels_without_a_name_or_a_place_are_refused(tmp_path: Path, found: object) -> None:
    file = describe(tmp_path, {**LABELS, "modality": found, "training": [row("a")]})
    rule = "modality: expected names of channels, numbered from 0 without gaps, got "
    with pytest.raises(VolsegError, match=f"^{re.escape(f'{file}: {rule}')}"):
        open_dataset(tmp_path)
    describe(tmp_path, {"names": {"1": "liver"}, "channels": found}, "labels.json")
    file.unlink()
    with pytest.raises(VolsegError, match=r"labels\.json: channels: expected names of channels"):
        open_dataset(tmp_path)


# nnU-Net.


def test_nnunet_lists_its_files_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/t_0000.nii.gz")
    monkeypatch.setenv("SCANS", "elsewhere")
    listed = {
        "b": {"images": ["x/b1.nii.gz", "x/b2.nii.gz"], "label": "x/b.nii.gz"},
        "c": {"images": ["$SCANS/c1.nii.gz", "/data/c2.nii.gz"], "label": "c.nii.gz"},
    }
    content = {**LABELS, "channel_names": {"0": "T1", "1": "T2"}, "dataset": listed, "numTraining": 2}
    file = describe(tmp_path, content)
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "nnunet"
    assert dataset.cases == (
        CaseFiles("b", (tmp_path / "x/b1.nii.gz", tmp_path / "x/b2.nii.gz"), tmp_path / "x/b.nii.gz"),
        CaseFiles("c", (tmp_path / "elsewhere/c1.nii.gz", Path("/data/c2.nii.gz")), tmp_path / "c.nii.gz"),
    )
    assert [case.id for case in dataset.tests] == ["t"]
    assert dataset.notes == ()
    assert [case.id for case in find_inputs([file], 2).cases] == ["b", "c"]
    describe(tmp_path / "alone", {**content, "numTraining": 3})  # no imagesTr is needed
    (note,) = notes(tmp_path / "alone")
    assert (
        note
        == "numTraining: expected the number of cases, 2, got 3. Correct it, or look for the cases that are missing."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": [1]}, "dataset: expected keys with values, got [1]."),
        ({"dataset": {"a": {"label": "b.nii"}}}, "dataset.a.images: expected one more value, got nothing."),
        ({"dataset": {"a": {"images": []}}}, "dataset.a: expected an image, or image_1, image_2, …, got the keys case"),
        ({"dataset": {"../a": {"images": ["b.nii"]}}}, "dataset.../a, id: expected a name without / \\ : that is more"),
        ({"file_ending": 5}, "file_ending: expected a valid string, got 5."),
        ({"file_ending": "/x"}, "file_ending: expected"),
    ],
)
def test_wrong_keys_of_nnunet(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    file = describe(tmp_path, {**LABELS, "channel_names": {"0": "CT"}, **change})
    with pytest.raises(VolsegError, match=f"^{re.escape(f'{file}: {message}')}"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("listed", [False, True])
def test_one_colour_picture_is_three_channels_of_nnunet(tmp_path: Path, listed: bool) -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    labels = np.zeros((4, 5), np.uint8)
    labels[1:3, 1:3] = 1
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for case in ("a", "b"):
        sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / f"imagesTr/{case}_0000.png"))
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / f"labelsTr/{case}.png"))
        pixels = pixels + 1
    content = {**LABELS, "channel_names": {"0": "R", "1": "G", "2": "B"}, "numTraining": 2, "file_ending": ".png"}
    if listed:
        content["dataset"] = {
            case: {"images": [f"imagesTr/{case}_0000.png"], "label": f"labelsTr/{case}.png"} for case in ("a", "b")
        }
    describe(tmp_path, content)
    dataset = open_dataset(tmp_path)
    assert (dataset.channels, dataset.notes) == (("R", "G", "B"), ())
    assert [path.name for path in dataset.cases[0].images] == [f"a_0000.png#channel={n}of3" for n in (1, 2, 3)]
    assert check_dataset(dataset).problems == ()
    found = find_inputs([tmp_path / "imagesTr"], 3).cases
    assert [(case.id, case.images) for case in found] == [(case.id, case.images) for case in dataset.cases]


# Nothing is ignored in silence.


def test_what_has_no_effect_is_told(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/{c}_000{n}.nii.gz" for c in "ab" for n in (0, 1)), "labelsTr/a.nii.gz")
    touch(tmp_path, "labelsTr/b.nii.gz", "splits_final.json")
    content = {
        **LABELS,
        "channel_names": {"0": "noNorm"},
        "modality": {"0": "MR"},
        "numTraining": 5,
        "numTest": 0,
        "licence": "CC",
        "overwrite_image_reader_writer": "NibabelIO",
        "patients": [],
        "groups": {"a": "p", "c": "p"},
    }
    describe(tmp_path, content)
    surplus, normalization, splits, *others = notes(tmp_path)
    assert normalization.startswith("channel_names: expected names, got noNorm. nnU-Net normalizes by them; here")
    assert surplus.startswith("images: expected 1 channels, got a_0001.nii.gz, b_0001.nii.gz. They are left out;")
    assert splits.startswith(f"{tmp_path / 'splits_final.json'}: not read. Copy it")
    assert [note.split(". ")[0] for note in others] == [
        "numTraining: expected the number of cases, 2, got 5",
        "keys: expected those of layout nnunet, got patients",
        "modality: expected the names of channel_names, got others",
        "groups: expected ids of cases, got c",
    ]
    told = [problem for problem in check_dataset(open_dataset(tmp_path)).problems if problem.code == "description"]
    assert {(problem.case, problem.severity) for problem in told} == {(None, "note")}
    assert len(told) == 7


def test_keys_of_entries_and_of_labels_that_have_no_effect(tmp_path: Path) -> None:
    describe(tmp_path, {**LABELS, "training": [row("a", box=[1]), row("b", split="val")], "tensorImageSize": "3D"})
    (note,) = notes(tmp_path)
    assert note.startswith("keys: expected those of layout decathlon, got box, split. They have no effect; docs/")
    describe(tmp_path, "case,image,label,age\na,a.nii,b.nii,70\n", "t.csv")
    (tmp_path / "dataset.json").unlink()
    describe(tmp_path, {"names": {"1": "liver"}, "colours": {}}, "labels.json")
    (note,) = open_dataset(tmp_path / "t.csv").notes
    assert "keys: expected those of layout datalist, got age, colours." in note
    describe(tmp_path, {**LABELS, "training": [row("a")]})
    (note,) = notes(tmp_path)
    assert note == f"{tmp_path / 'labels.json'}: not read, because dataset.json has labels."
    (tmp_path / "labels.json").unlink()
    touch(tmp_path, "labels/a.nii.gz")
    describe(tmp_path, {**LABELS, "training": [row("a")], "Modality": {"0": "CT"}, "Licence": "CC"})
    (note,) = notes(tmp_path)
    assert "keys: expected those of layout decathlon, got Modality." in note


def test_paths_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("x" * 300, "x/" * 3000):
        for action in (lambda path: open_dataset(path), lambda path: find_inputs([path], 1)):
            with pytest.raises(DataError, match=r"got an error \(File name too long\)"):
                action(tmp_path / name)
    (tmp_path / "cases.txt").write_text("x" * 300)
    with pytest.raises(DataError, match=r"cases\.txt: list: expected a file name of at most 255 bytes"):
        find_inputs([tmp_path / "cases.txt"], 1)


def test_a_missing_channel_of_a_pair_is_named(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"images/{c}_000{n}.nii.gz" for c in "abc" for n in (0, 1, 2)),
        *(f"labels/{c}.nii.gz" for c in "abc"),
    )
    (tmp_path / "images/b_0001.nii.gz").unlink()
    describe(tmp_path, {"1": "liver"}, "labels.json")
    touch(tmp_path, "images/a_0007.nii.gz")  # of one case alone: it has a channel too many
    files = [[path.name[2:6] for path in case.images] for case in open_dataset(tmp_path).cases]
    assert files == [["0000", "0001", "0002", "0007"], ["0000", "0001", "0002"], ["0000", "0001", "0002"]]


def test_lines_and_columns_of_tables_that_do_not_fit(tmp_path: Path) -> None:
    path = describe(tmp_path, "case,image\na,b.nii,c.nii\n", "t.csv")
    with pytest.raises(DataError, match=r"table: expected 2 cells, as the header has, got a, b\.nii, c\.nii\. Put"):
        read_csv(path)
    describe(tmp_path, "case,image, Image \na,b.nii,c.nii\n", "t.csv")
    with pytest.raises(DataError, match=r"table: expected each column once, got 'image'\. Remove one"):
        read_csv(path)
    describe(tmp_path, "case,image\na,b.nii,,\nc\n", "t.csv")
    assert read_csv(path) == [{"case": "a", "image": "b.nii"}, {"case": "c", "image": ""}]
