"""``volseg predict --probabilities --entropy --confidence``: what is written, and what goes wrong."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from command_line import run

from pipeline.core import files as core_files
from pipeline.core import machine as scratch
from pipeline.core.errors import VolsegError
from pipeline.core.grid import Box
from pipeline.data.prediction_record import PredictionRecord
from pipeline.data.volumes import read_image, read_label_map
from pipeline.evaluate.case import calibration, dilated_box
from pipeline.evaluate.metrics import Measures
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import Predictor, predict
from pipeline.stages.prediction_files import Output

ORGANS = ("box_left", "box_small")
STEP = 2.0**-14
EVERYTHING = Output(statistics=True, probabilities=("all",), entropy=True)


@pytest.fixture
def scans(dataset: Path, tmp_path: Path) -> Path:
    """Two images that may be changed."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in (0, 1):
        shutil.copy(dataset / "images" / f"toy_{index}.nii.gz", folder)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is computed while this is in place."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_with_region", refuse)
        patch.setattr(Predictor, "predict_soft", refuse)
        yield


LABELS = ("labels.ctbl", "labels.json", "labels.lut", "labels.txt")


def written(out: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def soft_names(case: str) -> list[str]:
    return [f"entropy/{case}.nii.gz", *(f"probabilities/{case}/{organ}.nii.gz" for organ in ORGANS)]


def record(out: Path, case: str) -> dict[str, Any]:
    entries = json.loads((out / "predictions.json").read_text())["cases"]
    return next(entry for entry in entries if entry["case"] == case)


def test_what_is_written_is_what_the_network_says(
    model: Path, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    predict(model, [scans], plain, device="cpu")
    words = ("--device", "cpu", "--probabilities", "all", "--entropy", "--statistics")
    code, _, _ = run(capfd, "predict", model, scans, "-o", out, *words)
    assert code == 0
    beside = [*LABELS, "predictions.json", "statistics.csv", "statistics.json"]
    cases = [name for n in (0, 1) for name in (f"toy_{n}.nii.gz", *soft_names(f"toy_{n}"))]
    assert written(out) == sorted([*beside, *cases])
    for n in (0, 1):
        assert (out / f"toy_{n}.nii.gz").read_bytes() == (plain / f"toy_{n}.nii.gz").read_bytes()
        image = read_image(scans / f"toy_{n}.nii.gz")
        expected = Predictor.load(model, device="cpu").predict_soft(image, ORGANS)
        maps = {**expected.probabilities, None: expected.entropy}
        for name, array in maps.items():
            path = out / (f"probabilities/toy_{n}/{name}.nii.gz" if name else f"entropy/toy_{n}.nii.gz")
            file = nib.load(path)
            assert isinstance(file, nib.Nifti1Image)
            assert (file.get_data_dtype(), file.dataobj.slope, file.dataobj.inter) == (np.int16, STEP, 0)
            np.testing.assert_allclose(file.affine, image.grid.affine, atol=1e-5)
            np.testing.assert_allclose(file.get_fdata(), array, atol=STEP / 2, rtol=0)
        confidence = record(out, f"toy_{n}")["confidence"]
        assert confidence == pytest.approx(expected.confidence)
        assert all(0.5 < value < 1 for value in confidence.values())
    with (out / "statistics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        assert float(row["confidence"]) == pytest.approx(record(out, row["case"])["confidence"][row["name"]], rel=1e-5)


def test_scores_take_the_folder_of_probabilities(
    dataset: Path, model: Path, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, scores = tmp_path / "out", tmp_path / "scores"
    predict(model, [scans], out, device="cpu", output=Output(probabilities=("all",)))
    references = tmp_path / "references"
    references.mkdir()
    for n in (0, 1):
        shutil.copy(dataset / "labels" / f"toy_{n}.nii.gz", references)
    code, _, _ = run(
        capfd, "evaluate", out, references, "-o", scores, "--probabilities", out / "probabilities", "-j", "1"
    )
    assert code == 0
    with (scores / "scores.csv").open(newline="") as stream:
        rows = {(row["case"], row["name"]): row for row in csv.DictReader(stream)}
    for (case, name), row in rows.items():
        reference, mask = (read_label_map(folder / f"{case}.nii.gz") for folder in (references, out))
        value = 1 + ORGANS.index(name)
        either = np.argwhere((reference.array == value) | (mask.array == value))
        box = [slice(low, high + 1) for low, high in zip(either.min(0), either.max(0), strict=True)]
        box = list(dilated_box(Box.of(box), reference.grid.shape, reference.grid.spacing_mm).slices)
        soft = Predictor.load(model, device="cpu").predict_soft(read_image(scans / f"{case}.nii.gz"), (name,))
        expected = calibration(soft.probabilities[name][tuple(box)], reference.array[tuple(box)] == value)
        found = {column: float(row[column]) for column in expected}
        assert found == pytest.approx(expected, abs=2e-3)
        assert found["brier"] < 0.1
    measures = Measures(surface="none", probabilities=out / "probabilities")
    shutil.rmtree(out / "probabilities" / "toy_0")
    (out / "probabilities" / "toy_1" / "box_small.nii.gz").unlink()
    summary = evaluate(out, references, tmp_path / "fewer", measures=measures, jobs=1)
    assert summary["organs"]["box_small"]["brier"]["mean"] == 1.0
    assert summary["organs"]["box_left"]["brier"]["mean"] == pytest.approx(
        (1 + float(rows["toy_1", "box_left"]["brier"])) / 2, abs=1e-5
    )


def test_running_again_does_only_what_is_missing(
    model: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    predict(model, [scans], out, device="cpu", output=Output(split=True))
    assert predict(model, [scans], out, device="cpu", output=EVERYTHING).done == ("toy_0", "toy_1")
    assert (out / "toy_0" / "box_left.nii.gz").is_file()
    stamps = {name: (out / name).stat().st_mtime_ns for name in written(out) if name.endswith(".nii.gz")}
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_with_region", None)
        patch.setattr(Predictor, "predict_soft", None)
        for output in (EVERYTHING, Output(split=True), Output(confidence=True), Output(probabilities=("box_left",))):
            assert predict(model, [scans], out, device="cpu", output=output).kept == ("toy_0", "toy_1")
    assert {name: (out / name).stat().st_mtime_ns for name in stamps} == stamps
    (out / "entropy" / "toy_1.nii.gz").unlink()
    batch = predict(model, [scans], out, device="cpu", output=EVERYTHING)
    assert (batch.done, batch.kept) == (("toy_1",), ("toy_0",))


def test_nothing_outlives_the_image_it_was_made_of(dataset: Path, model: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(model, [scans], out, device="cpu", output=EVERYTHING)
    shutil.copy(dataset / "images" / "toy_4.nii.gz", scans / "toy_1.nii.gz")
    assert predict(model, [scans], out, device="cpu").done == ("toy_1",)
    soft = [name for name in written(out) if name.startswith(("probabilities", "entropy"))]
    assert soft == sorted(soft_names("toy_0"))
    assert "confidence" not in record(out, "toy_1")
    assert record(out, "toy_0")["soft_files"] == sorted(soft_names("toy_0"))


def test_some_organs_of_a_mask_of_some_organs(model: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = Output(organs=("box_small",), probabilities=("all",))
    predict(model, [scans / "toy_0.nii.gz"], out, device="cpu", output=output)
    assert [name for name in written(out) if name.startswith("prob")] == ["probabilities/toy_0/box_small.nii.gz"]
    assert list(record(out, "toy_0")["confidence"]) == ["box_small"]


def test_masks_of_another_format_take_the_soft_outputs_over(model: Path, scans: Path, tmp_path: Path) -> None:
    out, image = tmp_path / "out", scans / "toy_0.nii.gz"
    predict(model, [image], out, device="cpu", output=EVERYTHING)
    predict(model, [image], out, device="cpu", output=Output("nii", probabilities=("box_left",)))
    entries = {entry["prediction"]: entry for entry in json.loads((out / "predictions.json").read_text())["cases"]}
    left = ["entropy/toy_0.nii.gz", "probabilities/toy_0/box_small.nii.gz"]
    assert entries["toy_0.nii.gz"]["soft_files"] == left
    assert entries["toy_0.nii"]["soft_files"] == ["probabilities/toy_0/box_left.nii.gz"]
    assert predict(model, [image], out, device="cpu", output=EVERYTHING).done == ("toy_0",)


@pytest.mark.parametrize("full", [".part.box_small.nii.gz", ".part.toy_1.nii.gz"])
def test_a_disk_that_is_full_while_soft_outputs_are_written(
    model: Path,
    scans: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    full: str,
) -> None:
    out, sync = tmp_path / "out", core_files._sync

    def fail(path: Path) -> None:
        if path.name.endswith(full) and path.parent.name in ("toy_1", "entropy"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    words = ("predict", model, scans, "-o", out, "--device", "cpu", "--probabilities", "all", "--entropy")
    with monkeypatch.context() as patch:
        patch.setattr(core_files, "_sync", fail)
        code, text, _ = run(capfd, *words)
    assert code == 2
    assert "the disk is full, nothing was written. Free some space and run again." in text
    assert f"1 predicted, 0 up to date, 1 failed: {out}" in text
    assert [name for name in written(out) if ".part." in name] == []
    assert not record(out, "toy_1")["hash"]
    code, text, _ = run(capfd, *words)
    assert code == 0
    assert f"1 predicted, 1 up to date, 0 failed: {out}" in text
    assert set(soft_names("toy_1")) <= set(written(out))


def test_a_disk_without_room_for_temporary_files(
    model: Path, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, dir: Path) -> None: ...

        def seek(self, place: int) -> None: ...

        def write(self, content: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(scratch, "TemporaryFile", Full)
    out = tmp_path / "out"
    code, text, _ = run(capfd, "predict", model, scans, "-o", out, "--device", "cpu", "--entropy")
    assert code == 3
    assert f"{out}: the disk is full, nothing was written. Free some space and run again." in text
    assert written(out) == [*LABELS, "predictions.json"]


def test_what_a_killed_run_left_is_removed(model: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(model, [scans / "toy_0.nii.gz"], out, device="cpu", output=EVERYTHING)
    (out / "probabilities" / "toy_0" / ".0123abcd.part.box_left.nii.gz").write_bytes(b"half")
    (out / "entropy" / ".0123abcd.part.toy_1.nii.gz").write_bytes(b"half")
    predict(model, [scans], out, device="cpu", output=EVERYTHING)
    assert [name for name in written(out) if ".part." in name] == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.__main__ import main
rename = Path.replace

def replace(self, target):
    if Path(target).name == "box_small.nii.gz":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.replace = replace
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_run_leaves_nothing_half_written_and_is_finished_by_the_next(
    model: Path, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["predict", model, scans, "-o", out, "--device", "cpu", "--probabilities", "all", "--entropy"]
    killed = subprocess.run([sys.executable, "-c", _KILLED, *map(str, words)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    there = [name for name in written(out) if ".part." not in name and not name.startswith(".predictions.")]
    assert there == [*LABELS, "predictions.json", soft_names("toy_0")[1], "toy_0.nii.gz"]
    assert PredictionRecord(out).entries["toy_0.nii.gz"]["hash"] == ""
    code, text, _ = run(capfd, *words)
    assert code == 0
    assert f"2 predicted, 0 up to date, 0 failed: {out}" in text
    assert [name for name in written(out) if ".part." in name] == []
    assert {*soft_names("toy_0"), *soft_names("toy_1")} <= set(written(out))
    assert [name for name in written(out) if name.startswith(".")] == []


def test_wrong_words_cost_no_work(
    model: Path, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], no_network: None
) -> None:
    out = tmp_path / "out"
    for wrong, message in (
        ("liver", "probabilities: expected all, or some of box_left, box_small, got liver. Correct the names."),
        (",", "--probabilities: expected names such as liver,spleen, got none."),
    ):
        code, _, err = run(capfd, "predict", model, scans, "-o", out, "--probabilities", wrong)
        assert code == 1
        assert message in err.replace(" │ ", " ").replace("│ ", "")
    assert not out.exists()


def test_files_of_others_are_not_overwritten(model: Path, scans: Path, tmp_path: Path, no_network: None) -> None:
    theirs = tmp_path / "entropy" / "toy_0.nii.gz"
    theirs.parent.mkdir()
    theirs.write_bytes(b"mine")
    with pytest.raises(VolsegError, match=r"toy_0.nii.gz: expected a free place or the mask of an earlier prediction"):
        predict(model, [scans], tmp_path, device="cpu", output=Output(entropy=True))
