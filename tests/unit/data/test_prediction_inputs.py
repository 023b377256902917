"""What ``volseg predict`` is given: files, folders, patterns and lists."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from generated_dicom import make_slices, save
from pydicom.uid import generate_uid

from pipeline.core.errors import DataError, VolsegError
from pipeline.data.prediction_inputs import DicomWanted, find_inputs


def touch(root: Path, *names: str) -> Path:
    """Files whose content does not matter."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def names(*paths: Path | str, channels: int = 1) -> list[tuple[str, ...]]:
    """Id and image file names of every case."""
    found = find_inputs(paths, channels)
    assert found.failed == ()
    return [(case.id, *(path.name for path in case.images)) for case in found.cases]


def test_files_and_folders(tmp_path: Path) -> None:
    touch(tmp_path, "d/b.nii.gz", "d/a_0001.nrrd", "d/.hidden.nii.gz", "d/readme.txt", "d/b.seg.nrrd", "e/c.mha")
    found = names(tmp_path / "d", tmp_path / "e/c.mha", tmp_path / "d/b.nii.gz")
    assert found == [("a_0001", "a_0001.nrrd"), ("b", "b.nii.gz"), ("c", "c.mha")]
    touch(tmp_path, "n/x_0000.nii", "n/y_0000.nii")
    assert names(tmp_path / "n") == [("x", "x_0000.nii"), ("y", "y_0000.nii")]


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "s/a.nii.gz", "s/b.nii.gz", "s/notes.csv", "s/a.seg.nrrd", "s/deep/c.nii.gz", "odd[1].nii.gz")
    monkeypatch.chdir(tmp_path)
    assert names("s/*.nii.gz") == [("a", "a.nii.gz"), ("b", "b.nii.gz")]
    assert names("s/*") == [("a", "a.nii.gz"), ("b", "b.nii.gz"), ("c", "c.nii.gz")]  # folders stand for their volumes
    assert names("**/c.nii.gz", "s/deep") == [("c", "c.nii.gz")]
    assert names("odd[1].nii.gz") == [("odd[1]", "odd[1].nii.gz")]  # a file of this name is no pattern
    with pytest.raises(DataError, match=r"^s/\*\.mha: pattern: expected at least one volume, got nothing that matches"):
        find_inputs(["s/*.mha"], 1)
    with pytest.raises(DataError, match="got 1 files and folders without any"):
        find_inputs(["s/*.csv"], 1)


def test_several_channels(tmp_path: Path, nifti, ramp) -> None:
    touch(tmp_path, "x_0001.nii", "x_0000.nii")
    nifti("four.nii.gz", np.stack([ramp] * 2, axis=-1))
    assert names(tmp_path, channels=2) == [
        ("four", "four.nii.gz#channel=1of2", "four.nii.gz#channel=2of2"),
        ("x", "x_0000.nii", "x_0001.nii"),
    ]


def test_a_case_without_all_channels_fails_alone(tmp_path: Path) -> None:
    touch(tmp_path, "x_0001.nii", "x_0000.nii", "y_0000.nii", "damaged.nii.gz")
    found = find_inputs([tmp_path], 2)
    assert [case.id for case in found.cases] == ["x"]
    (damaged, first), (missing, second) = found.failed
    assert (damaged, missing) == ("damaged", "y")
    assert first.startswith(f"case damaged: {tmp_path / 'damaged.nii.gz'}: file: expected a gzip-compressed NIfTI")
    assert second == (
        f"case y: {tmp_path}: channels: expected 2 files ending in _0000, _0001, got y_0000.nii. "
        "Give one file per channel, in the order of the training data."
    )


def test_files_of_further_channels_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "x_0000.nii", "x_0001.nii", "x_0002.nii", "x_0003.nii")
    found = find_inputs([tmp_path], 2)
    assert [path.name for path in found.cases[0].images] == ["x_0000.nii", "x_0001.nii"]
    assert found.notes == ("case x: expected 2 channels, got more. Left out: x_0002.nii, x_0003.nii.",)
    (note,) = find_inputs([tmp_path], 1).notes
    assert note.startswith("case x_0001: expected one channel, got a name like that of a second channel of x_0000.")
    (tmp_path / "x_0000.nii").unlink()
    assert find_inputs([tmp_path], 1).notes == ()  # numbers of scans


def test_bad_inputs(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.nii", "b/x.nii", "c/readme.md")
    with pytest.raises(DataError, match="no: input: expected an existing file or folder, got nothing there"):
        find_inputs([tmp_path / "no"], 1)
    with pytest.raises(DataError, match=r"c: input: expected volumes \(.nii.gz, .*got a folder that holds readme.md"):
        find_inputs([tmp_path / "c"], 1)
    with pytest.raises(DataError, match=r"readme.md: input: expected a name ending in .nii.gz, .*\.json, \.csv, \.txt"):
        find_inputs([tmp_path / "c/readme.md"], 1)
    with pytest.raises(DataError, match=r"case x: inputs: expected one input per name, got .*x.nii and .*x.nii"):
        find_inputs([tmp_path / "a", tmp_path / "b"], 1)
    with pytest.raises(DataError, match="inputs: expected at least one volume, got none"):
        find_inputs([], 1)


def test_the_same_file_twice_is_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.nii")
    monkeypatch.chdir(tmp_path)
    assert names("a.nii", tmp_path / "a.nii", tmp_path) == [("a", "a.nii")]


def listed(root: Path, content: object, name: str = "dataset.json") -> Path:
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root / name


def test_held_out_images_of_a_dataset_json(tmp_path: Path) -> None:
    content = {
        "modality": {"0": "CT"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/t.nii.gz", {"image": "imagesTs/u.nii.gz", "case": "mine"}],
    }
    found = find_inputs([listed(tmp_path, content)], 1)  # listed files need not exist: their cases fail alone
    assert [(case.id, case.images, case.label) for case in found.cases] == [
        ("mine", (tmp_path / "imagesTs/u.nii.gz",), None),
        ("t", (tmp_path / "imagesTs/t.nii.gz",), None),
    ]
    del content["test"]
    assert names(listed(tmp_path, content)) == [("a", "a.nii.gz")]
    four = {"testing": [{"image": "brain.nii.gz"}], "training": [{"image": "no.nii.gz"}]}
    assert names(listed(tmp_path, four), channels=2) == [
        ("brain", "brain.nii.gz#channel=1of2", "brain.nii.gz#channel=2of2")
    ]


def test_lists_of_monai_and_our_own(tmp_path: Path) -> None:
    assert names(listed(tmp_path, [{"image": ["a_0000.nii", "a_0001.nii"]}]), channels=2) == [
        ("a", "a_0000.nii", "a_0001.nii")
    ]
    table = "case,image,label,split\nx,p/ct.nii,l/x.nii,train\ny,q/ct.nii,,test\n"
    assert names(listed(tmp_path, table, "list.csv")) == [("y", "ct.nii")]
    assert names(listed(tmp_path, table.replace(",test", ","), "list.csv")) == [("x", "ct.nii"), ("y", "ct.nii")]
    rows = "case,image_1,image_2\nz,a.nii,b.nii\n"
    assert names(listed(tmp_path, rows, "list.csv"), channels=2) == [("z", "a.nii", "b.nii")]


def test_a_path_per_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "lists/b.nii", "scans/a.nii", "more/c.nii")
    monkeypatch.chdir(tmp_path)
    text = f"# mine\nb.nii\n\nscans/a.nii\n{tmp_path / 'more'}\ngone.nii\n"
    found = find_inputs([listed(tmp_path, text, "lists/cases.txt")], 1)
    assert [case.images[0] for case in found.cases] == [
        tmp_path / "scans/a.nii",  # where the command runs
        tmp_path / "lists/b.nii",  # beside the list
        tmp_path / "more/c.nii",
        tmp_path / "lists/gone.nii",
    ]
    assert names(listed(tmp_path, "scans/a.nii\nlists/b.nii\n", "plain.csv")) == [("a", "a.nii"), ("b", "b.nii")]
    pairs = listed(tmp_path, "x_0000.nii;x_0001.nii\ny_0000.nii\ny_0001.nii\n", "pairs.txt")
    assert names(pairs, channels=2) == [("x", "x_0000.nii", "x_0001.nii"), ("y", "y_0000.nii", "y_0001.nii")]


def test_cases_of_a_list_with_other_channels(tmp_path: Path) -> None:
    rows = [
        {"case": "few", "image": ["a.nii", "b.nii"]},
        {"case": "many", "image": ["a.nii", "b.nii", "c.nii", "d.nii"]},
    ]
    found = find_inputs([listed(tmp_path, rows, "list.json")], 3)
    assert found.failed == (
        ("few", "case few: channels: expected 3 files, got a.nii, b.nii. Name one file per channel."),
    )
    assert [len(case.images) for case in found.cases] == [3]
    assert found.notes == ("case many: expected 3 channels, got more. Left out: d.nii.",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"labels": {}}, "under test, testing, cases, training, validation, got the keys labels"),
        ("a.json", [], "got an empty list. Add one"),
        ("a.json", [{"label": "x.nii"}], "entry 1: expected an image, or image_1, image_2, …, got the keys label"),
        ("a.json", "{", "expected JSON, got"),
        ("a.csv", "name,path\nx,y.nii\n", "a column called image, or a path in every line, got the columns name, path"),
        ("a.txt", "# nothing\n", "a path in every line, got an empty file"),
    ],
)
def test_bad_lists(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(VolsegError, match=re.escape(message)) as caught:
        find_inputs([listed(tmp_path, content, name)], 1)
    assert str(tmp_path / name) in str(caught.value)


def test_text_that_is_no_text(tmp_path: Path) -> None:
    for name in ("a.txt", "a.csv"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match="list: expected UTF-8 text, got an error"):
            find_inputs([tmp_path / name], 1)


# DICOM.


def test_dicom_studies(tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5), np.int16)
    for name in ("p1", "1.2.840.7"):
        save(make_slices(array, StudyInstanceUID=generate_uid()), tmp_path / "exports" / name / "ct")
    with zipfile.ZipFile(tmp_path / "exports" / "p3.zip", "w") as archive:
        archive.write(tmp_path / "exports" / "p1" / "ct" / "IM00000", "x/IM00000")
    exports = tmp_path / "exports"
    assert names(exports) == [("1.2.840.7", "1.2.840.7"), ("p1", "p1"), ("p3", "p3.zip")]
    assert names(exports / "p1" / "ct", exports / "p3.zip") == [("ct", "ct"), ("p3", "p3.zip")]
    # All of one study: one case, whatever its folders are called.
    for name in ("s1", "s2"):
        save(make_slices(array, seed=name), tmp_path / "study" / name)
    assert names(tmp_path / "study") == [("study", "study")]
    assert names(str(tmp_path / "stu*")) == [("study", "study")]
    (tmp_path / "list.txt").write_text("exports/p1\nstudy#series=2\n")
    assert names(tmp_path / "list.txt") == [("p1", "p1"), ("study", "study#series=2")]
    # Beside volumes they are where these came from.
    touch(exports, "a.nii.gz")
    assert names(exports) == [("a", "a.nii.gz")]
    assert find_inputs([exports], 1).notes == (
        f"{exports}: inputs: expected one kind of images, got DICOM files in 1.2.840.7, too. "
        "The volumes are taken. Give their folder to predict them.",
    )


def test_the_series_that_is_wanted(tmp_path: Path) -> None:
    path = save(make_slices(np.zeros((3, 4, 5), np.int16)), tmp_path / "study")

    def sources(channels: tuple[str, ...], *series: str, gaps: bool = False) -> list[str]:
        found = find_inputs([path], len(channels), DicomWanted(channels, series, gaps))
        return [image.name for case in found.cases for image in case.images] or [text for _, text in found.failed]

    assert sources(("CT",)) == ["study#series=CT"]
    assert sources(("MRI",)) == sources(("T2-FLAIR",)) == ["study#series=MR"]
    assert sources(("PET",), gaps=True) == ["study#series=PT+gaps"]
    assert sources(("image",)) == ["study"]
    assert sources(("CT",), "4") == ["study#series=4"]
    assert sources(("T1", "T2"), "3", "1") == ["study#series=3", "study#series=1"]
    rule = f"case study: {path}: series: expected 2, one per channel, got"
    assert sources(("T1", "T2"))[0].startswith(f"{rule} none. Give --series NUMBER,NUMBER")
    assert sources(("T1", "T2"), "3")[0].startswith(f"{rule} 1 of 3.")
    assert sources(("CT",), "2+gaps", gaps=True) == ["study#series=2+gaps"]
    with pytest.raises(DataError, match="series: expected numbers or modalities, such as 2 or CT, got MR;T2, 1-2"):
        DicomWanted(("T1", "T2", "CT"), ("MR;T2", "3", "1-2"))
