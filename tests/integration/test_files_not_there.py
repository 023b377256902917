"""Every command names the case whose file is a link to nowhere or a pointer, and does the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import run
from toy import toy_case, toy_settings, write_toy

from pipeline.core.errors import VolsegError
from pipeline.core.volume import LabelMap
from pipeline.data.volumes import write_image, write_label_map
from pipeline.model.folder import trained_folds
from pipeline.stages.prepare import preprocess

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 84977953\n"


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """Five cases: the label map of the second is a link to nowhere, the image of the third a pointer."""
    folder = write_toy(tmp_path / "toys", 5)
    (folder / "labels/toy_1.nii.gz").unlink()
    (folder / "labels/toy_1.nii.gz").symlink_to("../.git/annex/objects/x.nii.gz")
    (folder / "images/toy_2.nii.gz").write_bytes(LFS)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("check", "{t}"),
        ("plan", "{t}", "-o", "{o}"),
        ("preprocess", "{t}", "-o", "{o}"),
        ("convert", "{t}", "-o", "{o}", "--to", "nnunet"),
        ("check", "{t}", "--fix", "{o}"),
    ],
)
def test_datasets(capfd: pytest.CaptureFixture[str], toys: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out, err = run(capfd, *(word.format(t=toys, o=tmp_path / "out") for word in words), "-j", 1)
    said = "".join((out + err).split())  # tables break lines anywhere
    assert code == 2
    assert f"{toys}/labels/toy_1.nii.gz:file:expected" in said
    for case, got in (("toy_1", "a link to ../.git/annex/objects/x.nii.gz"), ("toy_2", "a pointer of Git LFS")):
        assert f"case{case}:" in said
        assert "".join(got.split()) in said
    for case in ("toy_0", "toy_3", "toy_4"):
        assert f"case{case}:" not in said


def test_predictions_and_scores(capfd: pytest.CaptureFixture[str], toys: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    (toys / "images/toy_3.nii.gz").unlink()
    (toys / "images/toy_3.nii.gz").symlink_to("toy_3.nii.gz")  # to itself
    code, said, _ = run(capfd, "predict", model, toys / "images", "-o", out, "--device", "cpu")
    assert code == 2
    assert [name.name for name in sorted(out.glob("*.nii.gz"))] == [f"toy_{n}.nii.gz" for n in (0, 1, 4)]
    assert f"case toy_2: {toys}/images/toy_2.nii.gz: file: expected an existing file, got a pointer of Git LFS" in said
    assert f"case toy_3: {toys}/images/toy_3.nii.gz: file: expected a readable file, got a link to toy_3.nii.gz" in said
    # One reference, one prediction: neither leaves the scores in silence.
    (out / "toy_4.nii.gz").unlink()
    (out / "toy_4.nii.gz").symlink_to("/not/mounted")
    assert run(capfd, "evaluate", out, toys / "labels", "-o", tmp_path / "scores", "-j", 1)[0] == 2
    summary = json.loads((tmp_path / "scores/summary.json").read_text())
    assert [entry["case"] for entry in summary["failures"]] == ["toy_1", "toy_4"]
    assert {entry["case"]: entry["dice"] for entry in summary["cases"]}["toy_4"] == 0
    code, said, _ = run(capfd, "stats", out, "-o", tmp_path / "stats", "-j", 1)
    assert code == 2
    assert f"case toy_4: {out}/toy_4.nii.gz: file: expected an existing file, got a link to /not/mounted" in said


def test_masks_of_organs_as_references(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    image, label_map = toy_case(0)
    for case in ("a", "b"):
        write_image(image, tmp_path / f"ref/{case}/ct.nii.gz")
        write_label_map(label_map, tmp_path / f"pred/{case}.nii.gz")
        for value in (1, 2):
            mask = LabelMap((label_map.array == value).astype(np.uint8), label_map.grid)
            write_label_map(mask, tmp_path / f"ref/{case}/segmentations/organ_{value}.nii.gz")

    def broken(case: str) -> tuple[int, str, str]:
        path = tmp_path / f"ref/{case}/segmentations/organ_1.nii.gz"
        path.unlink()
        path.symlink_to("/not/mounted")
        return run(capfd, "evaluate", tmp_path / "pred", tmp_path / "ref", "-o", tmp_path / "scores", "-j", 1)

    assert broken("a")[0] == 2
    summary = json.loads((tmp_path / "scores/summary.json").read_text())
    assert [entry["case"] for entry in summary["failures"]] == ["a"]
    assert (summary["overall"]["n_cases"], summary["overall"]["dice"]["mean"]) == (1, 1.0)
    code, _, err = broken("b")
    assert code == 1
    assert "All 2 references failed. The first: case a: " in err
    assert "organ_1.nii.gz: file: expected an existing file, got a link to /not/mounted, which is not there." in err


def test_weights(capfd: pytest.CaptureFixture[str], toys: Path, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    assert trained_folds(copy) == (0,)
    (copy / "fold_1").mkdir()
    (copy / "fold_1/model.safetensors").symlink_to("/not/mounted")
    assert trained_folds(copy) == (0, 1)
    arguments = ("predict", copy, toys / "images/toy_0.nii.gz", "-o", tmp_path / "out", "--device", "cpu")
    code, _, err = run(capfd, *arguments)
    assert code == 1
    assert "fold_1/model.safetensors: weights: expected a safetensors file, got a link to /not/mounted" in err
    (copy / "fold_1/model.safetensors").unlink()
    (copy / "fold_1").rmdir()
    (copy / "fold_1").symlink_to("/not/mounted")
    code, _, err = run(capfd, *arguments)
    assert code == 1
    assert "fold_1/model.safetensors: weights: expected a safetensors file, got" in err
    (copy / "fold_1").unlink()
    (copy / "fold_0/model.safetensors").write_bytes(LFS)
    assert "got a pointer of Git LFS in place of the file. Fetch" in run(capfd, *arguments)[2]


def test_too_few_survivors_say_why_the_others_fell(toys: Path, tmp_path: Path) -> None:
    for name in ("toy_3", "toy_4"):
        (toys / f"images/{name}.nii.gz").unlink()
    with pytest.raises(VolsegError) as caught:
        preprocess(toys, tmp_path / "out", toy_settings(), jobs=1)
    message = str(caught.value)
    assert (
        "folds: expected at least 2 cases (or groups) to train and validate, got 1, as 4 cases cannot be used. "
        in message
    )
    assert [f"case toy_{n}: " in message for n in range(5)] == [False, True, True, True, True]
    assert "got a link to ../.git/annex/objects/x.nii.gz" in message


def test_repairable_is_what_a_repair_mends(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toys", 3)
    label = nib.load(folder / "labels/toy_1.nii.gz")
    values = np.asarray(label.dataobj)

    def store(array: np.ndarray) -> str:
        nib.save(nib.Nifti1Image(array, label.affine), folder / "labels/toy_1.nii.gz")
        return " ".join(run(capfd, "check", folder, "-j", 1)[1].split())

    said = store(values * np.float32(0.5))
    assert "expected whole numbers" in said
    assert "can be repaired" not in said
    assert "can be repaired" not in store(values.astype(np.int16) - 1)
    said = store(values * np.float32(1.0001))
    assert "writes a repaired copy there (case toy_1)." in said
    image = folder / "images/toy_1.nii.gz"
    image.unlink()
    image.symlink_to("/not/mounted")
    assert "can be repaired" not in store(values * np.float32(1.0001))
