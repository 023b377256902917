"""Folders whose volumes are not there, are called otherwise, or are of a format that is not read."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DataError, VolsegError
from pipeline.data.check import check_dataset
from pipeline.data.folder_files import list_volumes
from pipeline.data.layouts import open_dataset
from pipeline.data.prediction_inputs import find_inputs
from pipeline.data.volume_file import unread_format
from pipeline.data.volumes import read_image
from pipeline.evaluate.pairing import find_images, pair_files

NFC, NFD = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 84977953\n"
NNUNET = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}


def describe(root: Path, content: object, name: str = "dataset.json") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content), encoding="utf-8")


def touch(root: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def link(path: Path) -> None:
    """In place of a file, what git-annex leaves where it was not fetched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("../.git/annex/objects/x.nii.gz")


def errors(root: Path) -> dict[str, str]:
    """Case → the first error that check finds."""
    found: dict[str, str] = {}
    for problem in check_dataset(open_dataset(root)).problems:
        if problem.severity == "error":
            found.setdefault(problem.case or "", problem.message)
    return found


def test_what_cannot_be_opened_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "._a.nii.gz", "d.nii.gz.dvc", ".e.nii.gz.icloud", "a.nii.gz.dvc", "notes.txt")
    link(tmp_path / "b.nii.gz")
    (tmp_path / "c.nii.gz").mkdir()  # as a folder per file, which some archives make
    assert [file.name for file in list_volumes(tmp_path)] == [f"{name}.nii.gz" for name in "abcde"]
    assert list_volumes(tmp_path / "none") == []
    refusals = []
    for name in "bcde":
        with pytest.raises(DataError) as caught:
            read_image(tmp_path / f"{name}.nii.gz", case=name)
        refusals.append(str(caught.value).removeprefix(f"case {name}: {tmp_path / name}.nii.gz: file: expected "))
    assert refusals == [
        "an existing file, got a link to ../.git/annex/objects/x.nii.gz, which is not there. Fetch the file (git annex "
        "get, datalad get), mount its disk, or remove the link.",
        "a volume file, got a folder. Give a file in it.",
        "an existing file, got only d.nii.gz.dvc, which stands for it. Fetch the file (dvc pull, brctl download).",
        "an existing file, got only .e.nii.gz.icloud, which stands for it. Fetch the file (dvc pull, brctl download).",
    ]
    (tmp_path / "sub").symlink_to("/not/mounted")
    with pytest.raises(DataError, match="folder that can be listed, got a link to /not/mounted, which is not there"):
        list_volumes(tmp_path / "sub")


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii.gz")
    assert [file.name for file in list_volumes(tmp_path)] == ["a.nii.gz"]
    os.mkfifo(tmp_path / "IM001")
    assert unread_format(tmp_path / "IM001") is None
    with pytest.raises(DataError, match=r"^case p: .*a.nii.gz: file: expected a regular file, got a pipe or a device"):
        read_image(tmp_path / "a.nii.gz", case="p")


@pytest.fixture
def nnunet(tmp_path: Path, nifti, ramp, blob) -> Path:
    """Three cases."""
    describe(tmp_path, NNUNET)
    for number in range(3):
        nifti(f"imagesTr/c{number}_0000.nii.gz", ramp + number)
        nifti(f"labelsTr/c{number}.nii.gz", blob)
    return tmp_path


def test_links_and_pointers_in_nnunet(nnunet: Path) -> None:
    link(nnunet / "labelsTr/c1.nii.gz")
    touch(nnunet, "imagesTr/c2_0000.nii.gz", content=LFS)
    found = errors(nnunet)
    assert sorted(found) == ["c1", "c2"]
    assert f"{nnunet}/labelsTr/c1.nii.gz: file: expected an existing file, got a link to ../.git" in found["c1"]
    assert "got a pointer of Git LFS in place of the file. Fetch the file with git lfs pull." in found["c2"]
    link(nnunet / "imagesTs/t_0000.nii.gz")
    assert [case.id for case in open_dataset(nnunet).tests] == ["t"]


@pytest.mark.parametrize("name", ["dataset.json", "labels.json", "groups.csv", "imagesTs"])
def test_descriptions_and_folders_that_are_links_to_nowhere(nnunet: Path, name: str) -> None:
    link(nnunet / name)
    if name == "labels.json":
        describe(nnunet, {key: value for key, value in NNUNET.items() if key != "labels"})
    with pytest.raises(VolsegError, match=rf"{name}: .*got a link to ../.git/annex/objects/x.nii.gz, which is not"):
        open_dataset(nnunet)


def test_folders_of_pairs_that_are_links_to_nowhere(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz")
    link(tmp_path / "labels")
    with pytest.raises(DataError, match="labels: folder: expected a folder that can be listed, got a link to"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match=r"input: .*got a folder that holds images/, labels \(a link to nowhere\)\."):
        find_inputs([tmp_path], 1)


def test_masks_and_folders_of_organs(tmp_path: Path, nifti, ramp, blob) -> None:
    for case in ("s1", "s2", "s3"):
        nifti(f"{case}/ct.nii.gz", ramp + int(case[1]))
        for value, organ in ((1, "liver"), (2, "spleen")):
            nifti(f"{case}/segmentations/{organ}.nii.gz", (blob == value).astype(np.uint8))
    link(tmp_path / "s1/segmentations/liver.nii.gz")
    nifti("s4/ct.nii.gz", ramp)
    link(tmp_path / "s4/segmentations")
    link(tmp_path / "s5")
    (tmp_path / "README.md").symlink_to("nowhere")
    dataset = open_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["s1", "s2", "s3", "s4", "s5"]
    assert dataset.labels.names == {1: "liver", 2: "spleen"}
    found = errors(tmp_path)
    assert sorted(found) == ["s1", "s4", "s5"]
    assert "s1/segmentations/liver.nii.gz: file: expected an existing file, got a link to" in found["s1"]


def test_pairs_and_lists(tmp_path: Path, nifti, ramp, blob) -> None:
    for number in range(3):
        nifti(f"images/c{number}.nii.gz", ramp + number)
        nifti(f"labels/c{number}.nii.gz", blob)
    link(tmp_path / "labels/c1.nii.gz")
    link(tmp_path / "images/c2.nii.gz")
    assert sorted(errors(tmp_path)) == ["c1", "c2"]
    rows = [{"case": f"c{n}", "image": f"images\\c{n}.nii.gz", "label": f"labels\\c{n}.nii.gz"} for n in range(3)]
    describe(tmp_path, rows, "datalist.json")
    assert sorted(errors(tmp_path)) == ["c1", "c2"]


def test_other_files_beside_the_image_of_organs(tmp_path: Path) -> None:
    touch(tmp_path, "a/ct.nii.gz", "a/aparc.mgz", "a/segmentations/x.nii.gz", "b/ct.nii.gz", "b/segmentations/x.mgz")
    dataset = open_dataset(tmp_path)
    assert dataset.channels == ("CT",)
    assert [case.images for case in dataset.cases] == [(tmp_path / f"{case}/ct.nii.gz",) for case in "ab"]
    assert dataset.cases[1].organs == ((1, tmp_path / "b/segmentations/x.mgz"),)


def test_soft_maps(tmp_path: Path) -> None:
    for case in ("a", "b"):
        touch(tmp_path, f"Training/Images/{case}.png")
        for name in ("ODsegSoftmap", "cupsegSoftmap"):
            touch(tmp_path, f"Training/GT/{case}/SoftMap/{case}_{name}.png")
    link(tmp_path / "Training/GT/c")
    assert [case.id for case in open_dataset(tmp_path).cases] == ["a", "b", "c"]


def test_inputs_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "scans/a.nii.gz")
    link(tmp_path / "scans/b.nii.gz")
    (tmp_path / "scans/c.nii.gz").symlink_to("c.nii.gz")  # to itself
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("scans\\a.nii.gz\nscans/b.nii.gz\nscans/c.nii.gz\n")
    files = sorted((tmp_path / "scans").iterdir())  # as a shell expands scans/*
    for given in (["scans"], ["scans/*"], ["scans/*.nii.gz"], ["**/*.nii.gz"], ["list.txt"], files):
        assert [case.id for case in find_inputs(given, 1).cases] == ["a", "b", "c"]
    link(tmp_path / "folder")
    with pytest.raises(DataError, match=r"folder: input: expected an existing file or folder, got a link to ../.git"):
        find_inputs(["folder"], 1)


def test_a_channel_that_is_not_there(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    link(tmp_path / "b_0001.nii.gz")
    link(tmp_path / "c.nii.gz")  # perhaps a 4D file
    found = find_inputs([tmp_path], 2)
    assert [case.id for case in found.cases] == ["a", "b"]
    assert [(case, "a link to ../.git" in text) for case, text in found.failed] == [("c", True)]


def test_predictions_and_references_that_are_not_there(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/c{n}.nii.gz" for folder in ("pred", "labelsTr") for n in range(3)))
    link(tmp_path / "labelsTr/c0.nii.gz")
    link(tmp_path / "pred/c1.nii.gz")
    link(tmp_path / "imagesTr/c2_0000.nii.gz")
    pairs = pair_files(tmp_path / "pred", tmp_path / "labelsTr")
    assert [(pair.case, pair.prediction and pair.prediction.name) for pair in pairs] == [
        (f"c{n}", f"c{n}.nii.gz") for n in range(3)
    ]
    assert find_images(tmp_path / "pred", pairs)[0] == {"c2": (tmp_path / "imagesTr/c2_0000.nii.gz",)}
    with pytest.raises(VolsegError, match=r"c1.nii.gz: prediction: expected a file or folder, got a link to"):
        pair_files(tmp_path / "pred/c1.nii.gz", tmp_path / "labelsTr/c1.nii.gz")


# Names.


def test_names_in_both_forms_of_unicode(tmp_path: Path, nifti, ramp, blob) -> None:
    describe(tmp_path, {**NNUNET, "channel_names": {"0": "T1", "1": "T2"}, "groups": {NFD: "p1"}})
    nifti(f"imagesTr/{NFD}_0000.nii.gz", ramp)
    nifti(f"imagesTr/{NFC}_0001.nii.gz", ramp)
    nifti(f"labelsTr/{NFC}.nii.gz", blob)
    (case,) = open_dataset(tmp_path).cases
    assert (case.id, case.group, errors(tmp_path)) == (NFC, "p1", {})
    nifti(f"pred/{NFD}_pred.nii.gz", blob)
    (pair,) = pair_files(tmp_path / "pred", tmp_path / "labelsTr")
    assert (pair.case, pair.prediction) == (NFC, tmp_path / f"pred/{NFD}_pred.nii.gz")
    images, _ = find_images(tmp_path / "pred", [pair])
    assert len(images[NFC]) == 2
    (tmp_path / "list.csv").write_text(f"case,prediction\n{NFD},pred/{NFC}_pred.nii.gz\n", encoding="utf-8")
    (pair,) = pair_files(tmp_path / "list.csv", tmp_path / "labelsTr")
    assert (pair.case, pair.prediction) == (NFC, tmp_path / f"pred/{NFD}_pred.nii.gz")
    assert [found.id for found in find_inputs([tmp_path / "imagesTr"], 2).cases] == [NFC]


def test_organs_in_both_forms_of_unicode(tmp_path: Path) -> None:
    touch(tmp_path, f"a/segmentations/{NFC}.nii.gz", f"b/segmentations/{NFD}.nii.gz", "a/ct.nii.gz", "b/ct.nii.gz")
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == {1: NFC}
    assert [[path.name for _, path in case.organs] for case in dataset.cases] == [[f"{NFC}.nii.gz"], [f"{NFD}.nii.gz"]]
    describe(tmp_path, {"5": NFD}, "labels.json")
    assert [len(case.organs) for case in open_dataset(tmp_path).cases] == [1, 1]


def test_a_list_that_was_written_elsewhere(tmp_path: Path, nifti, ramp, blob) -> None:
    nifti(f"imagesTr/{NFD}.nii.gz", ramp)
    nifti(f"labelsTr/{NFD}.nii.gz", blob)
    entry = {"image": f".\\imagesTr\\{NFC}.nii.gz", "label": f".\\labelsTr\\{NFC}.nii.gz"}
    describe(tmp_path, {"modality": {"0": "T1"}, "labels": {"1": "a", "2": "b"}, "training": [entry]})
    assert ([case.id for case in open_dataset(tmp_path).cases], errors(tmp_path)) == ([NFC], {})


def test_endings_in_capital_letters(nnunet: Path) -> None:
    for name in ("imagesTr/c0_0000", "labelsTr/c0", "labelsTr/c1"):
        (nnunet / f"{name}.nii.gz").rename(nnunet / f"{name}.NII.GZ")
    assert (len(open_dataset(nnunet).cases), errors(nnunet)) == (3, {})


@pytest.mark.parametrize(("name", "new"), [("imagesTr/c1_0000", ".nii"), ("labelsTr/c1", ".nrrd")])
def test_another_ending_than_the_described(nnunet: Path, name: str, new: str) -> None:
    (nnunet / f"{name}.nii.gz").rename(nnunet / f"{name}{new}")
    found = errors(nnunet)
    assert list(found) == ["c1"]
    words = f"file: expected an existing file, got nothing there, but {Path(name).name}{new}. Rename it, or"
    assert f"{name}.nii.gz: {words}" in found["c1"]
    touch(nnunet, "labelsTr/c0.png", "imagesTr/c0_0000.png")  # pictures beside them
    assert list(errors(nnunet)) == ["c1"]


def test_an_image_of_another_format_than_the_described(nnunet: Path) -> None:
    (nnunet / "imagesTr/c1_0000.nii.gz").rename(nnunet / "imagesTr/c1_0000.jpg")
    words = "got nothing there, but 'c1_0000.jpg' (pictures), a format that is not read. Convert to .png."
    assert words in errors(nnunet)["c1"]


def test_endings_in_mixed_letters(nnunet: Path) -> None:
    (nnunet / "labelsTr/c1.nii.gz").rename(nnunet / "labelsTr/c1.Nii.gz")
    (nnunet / "labelsTr/c2.nii.gz").rename(nnunet / "labelsTr/c2.NII.gz")
    rule = "expected an ending in small or in capital letters, got 'c1.Nii.gz'. Rename it."
    assert errors(nnunet) == {"c1": f"case c1: {nnunet}/labelsTr/c1.Nii.gz: file: {rule}"}


def test_two_label_maps_of_a_case(nnunet: Path) -> None:
    describe(nnunet, {key: value for key, value in NNUNET.items() if key != "file_ending"})
    touch(nnunet, "labelsTr/c0.png")
    with pytest.raises(DataError, match=r"expected one file per case and channel, got c0.nii.gz and c0.png\. Rename"):
        open_dataset(nnunet)


# Formats that are not read.


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (".mgz", "'c1.mgz' (FreeSurfer), a format that is not read. Convert to .nii.gz, e.g. with mri_convert."),
        (
            ".hdr",
            "'c1.hdr' (NIfTI or Analyze in two files), a format that is not read. Convert to .nii.gz, e.g. with nib",
        ),
        (".bmp", "'c1.bmp' (pictures), a format that is not read. Convert to .png."),
    ],
)
def test_a_case_of_a_format_that_is_not_read(tmp_path: Path, nifti, ramp, blob, ending: str, words: str) -> None:
    for number in (0, 2):
        nifti(f"images/c{number}.nii.gz", ramp + number)
        nifti(f"labels/c{number}.nii.gz", blob)
    touch(tmp_path, f"images/c1{ending}", f"labels/c1{ending}", "images/c0.bmp")
    if ending == ".hdr":
        touch(tmp_path, "images/c1.img", "labels/c1.img")
    (case,) = errors(tmp_path).items()
    assert case[0] == "c1"
    assert words in case[1]
    found = find_inputs([tmp_path / "images"], 1)
    assert [case.id for case in found.cases] == ["c0", "c2"]
    assert [(case, words in text) for case, text in found.failed] == [("c1", True)]


def test_folders_without_a_format_that_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "d/imagesTr/a.jpg", "d/labelsTr/a.jpg", "d/notes.txt")
    words = r"; 2 files such as imagesTr/a.jpg \(pictures\) are of a format that is not read. Convert to .png."
    with pytest.raises(DataError, match=r"at least one labelled case, got a folder that holds imagesTr/, .*" + words):
        open_dataset(tmp_path / "d")
    with pytest.raises(DataError, match=r"got a folder that holds a.jpg; 1 files such as a.jpg \(pictures\)"):
        find_inputs([tmp_path / "d/imagesTr"], 1)
    touch(tmp_path, "series/IM001", "series/IM002", content=bytes(128) + b"DICM")
    words = r"; 2 files such as IM001 \(DICOM\). Put each series into a folder of images/, SEG or RTSTRUCT into labels/"
    assert [case.images for case in find_inputs([tmp_path / "series"], 1).cases] == [(tmp_path / "series",)]
    with pytest.raises(VolsegError, match="prediction folder: expected label maps .*got none" + words):
        pair_files(tmp_path / "series", tmp_path / "d")
    with pytest.raises(DataError, match="expected a dataset layout .*got a folder that holds IM001, IM002" + words):
        open_dataset(tmp_path / "series")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda labels: labels * np.float32(0.999), "label values: expected whole numbers, got 0.999, 1.998 (2 fract"),
        (lambda labels: labels.astype(np.int16) - 1, "label values: expected values from 0 to 4294967295, got -1 to 1"),
    ],
)
def test_labels_that_cannot_be_scanned_say_why(tmp_path: Path, nifti, ramp, blob, change, words: str) -> None:
    nifti("images/a.nii.gz", ramp)
    label = nifti("labels/a.nii.gz", change(blob))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    start = (
        f"{tmp_path}: label maps: expected a value above 0 in at least one, got none (1 of 1 label maps cannot be used)"
    )
    assert str(caught.value).startswith(f"{start}. The first says: case a: {label}: {words}")


def test_labels_of_wrong_paths_say_so(tmp_path: Path, nifti, ramp) -> None:
    nifti("imagesTr/a.nii.gz", ramp)
    describe(tmp_path, [{"case": "a", "image": "imagesTr/a.nii.gz", "label": "labelTr/a.nii.gz"}], "datalist.json")
    with pytest.raises(DataError, match=r"The first says: case a: .*labelTr/a.nii.gz: file: .* got nothing there"):
        open_dataset(tmp_path)
