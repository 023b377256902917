"""What ``volseg predict`` takes and writes, and what is left when something goes wrong on the way."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from command_line import run
from torch import Tensor
from toy import write_toy

from pipeline.core import files as core_files
from pipeline.core.errors import VolsegError
from pipeline.core.volume import Image, LabelMap
from pipeline.data.legend import organ_color
from pipeline.data.volumes import read_image, read_label_map
from pipeline.infer.segment import SearchRegion
from pipeline.infer.tta import Pass
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import Predictor, predict
from pipeline.stages.prediction_files import Output


@pytest.fixture
def scans(dataset: Path, tmp_path: Path) -> Path:
    """Three images that may be changed."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in (0, 1, 2):
        shutil.copy(dataset / "images" / f"toy_{index}.nii.gz", folder)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is computed while this is in place."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_with_region", refuse)
        yield


def record(out: Path) -> dict[str, dict[str, object]]:
    return {entry["prediction"]: entry for entry in json.loads((out / "predictions.json").read_text())["cases"]}


def written(out: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


BESIDE = ["labels.ctbl", "labels.json", "labels.lut", "labels.txt", "predictions.json"]


def test_masks_in_another_format_with_names_and_colours(
    dataset: Path, model: Path, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plain = predict(model, [scans], tmp_path / "plain", device="cpu")
    batch = predict(model, [str(scans / "*.nii.gz")], out, device="cpu", output=Output("seg.nrrd"))
    assert batch.done == plain.done == ("toy_0", "toy_1", "toy_2")
    assert written(out) == [*BESIDE, *(f"toy_{n}.seg.nrrd" for n in range(3))]
    for n in range(3):
        found, expected = read_label_map(out / f"toy_{n}.seg.nrrd"), read_label_map(tmp_path / f"plain/toy_{n}.nii.gz")
        assert np.array_equal(found.array, expected.array)
        assert found.grid.matches(expected.grid)
    image = sitk.ReadImage(str(out / "toy_0.seg.nrrd"))
    assert [image.GetMetaData(f"Segment{n}_Name") for n in (0, 1)] == ["box_left", "box_small"]
    assert json.loads((out / "labels.json").read_text())["colors"] == {"1": organ_color(0), "2": organ_color(1)}
    summary = evaluate(out, dataset / "labels", tmp_path / "scores")
    organ = summary["organs"]["box_left"]
    assert (organ["n"], organ["n_missing_prediction"]) == (6, 3)
    assert organ["dice"]["mean"] > 0.8 / 2  # those that are missing count as 0


def test_some_organs_only(dataset: Path, model: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(model, [scans], out, device="cpu")
    of_all = evaluate(out, dataset / "labels", tmp_path / "scores")
    whole = read_label_map(out / "toy_1.nii.gz")
    assert predict(model, [scans], out, device="cpu", output=Output(organs=("box_small",))).done[1] == "toy_1"
    assert np.array_equal(read_label_map(out / "toy_1.nii.gz").array, np.where(whole.array == 2, 2, 0))
    assert json.loads((out / "labels.json").read_text()) == {
        "names": {"2": "box_small"},
        "ignore_label": None,
        "colors": {"2": organ_color(1)},
        "chosen_from": {"names": {"1": "box_left", "2": "box_small"}, "ignore_label": None},
    }
    of_one = evaluate(out, dataset / "labels", tmp_path / "scores")
    assert of_one["organs"] == {"box_small": of_all["organs"]["box_small"]}
    assert of_one["failures"] == []
    assert "does not name them: box_left (1)." in of_one["notes"][0]
    assert record(out)["toy_1.nii.gz"]["organs"] == ["box_small"]
    with pytest.raises(VolsegError, match=r"labels.json: expected the organs of the masks that stay there, e.g. toy_1"):
        predict(model, [scans / "toy_0.nii.gz"], out, device="cpu")


def test_organ_files_and_statistics_are_made_of_masks_that_are_there(
    model: Path, scans: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    predict(model, [scans], out, device="cpu")
    request.getfixturevalue("no_network")
    both = Output(split=True, statistics=True)
    batch = predict(model, [scans], out, device="cpu", output=both)
    assert (batch.done, batch.kept, batch.failed) == ((), ("toy_0", "toy_1", "toy_2"), ())
    mask, image = read_label_map(out / "toy_2.nii.gz"), read_image(scans / "toy_2.nii.gz")
    organ = read_label_map(out / "toy_2" / "box_left.nii.gz")
    assert np.array_equal(organ.array, mask.array == 1)
    assert organ.grid == mask.grid
    entry = json.loads((out / "statistics.json").read_text())["cases"][2]["organs"]["box_left"]
    assert entry["voxels"] == np.count_nonzero(mask.array == 1)
    assert entry["volume_ml"] == pytest.approx(entry["voxels"] * 0.0075)
    inside = image.array[0][mask.array == 1]
    assert entry["intensity"]["image"] == pytest.approx({"mean": inside.mean(), "sd": inside.std()}, rel=1e-5)
    with (out / "statistics.csv").open(newline="") as stream:
        rows = [(row["case"], row["name"]) for row in csv.DictReader(stream)]
    assert rows == [(f"toy_{n}", name) for n in range(3) for name in ("box_left", "box_small")]
    stamps = {name: (out / name).stat().st_mtime_ns for name in written(out) if name.startswith("toy_")}
    assert len(predict(model, [scans], out, device="cpu", output=both).kept) == 3
    assert {name: (out / name).stat().st_mtime_ns for name in stamps} == stamps


def test_nothing_outlives_the_image_it_was_made_of(dataset: Path, model: Path, scans: Path, tmp_path: Path) -> None:
    out, both = tmp_path / "out", Output(split=True, statistics=True)
    predict(model, [scans], out, device="cpu", output=both)
    shutil.copy(dataset / "images" / "toy_4.nii.gz", scans / "toy_1.nii.gz")
    assert predict(model, [scans], out, device="cpu").done == ("toy_1",)
    assert [name for name in written(out) if name.startswith("toy_1")] == ["toy_1.nii.gz"]
    cases = json.loads((out / "statistics.json").read_text())["cases"]
    assert [entry["case"] for entry in cases] == ["toy_0", "toy_2"]
    (out / "toy_2" / "box_left.nii.gz").unlink()
    batch = predict(model, [scans], out, device="cpu", output=both)
    assert (batch.done, len(batch.kept)) == ((), 3)
    assert np.array_equal(
        read_label_map(out / "toy_1" / "box_small.nii.gz").array, read_label_map(out / "toy_1.nii.gz").array == 2
    )
    assert (out / "toy_2" / "box_left.nii.gz").is_file()


def test_every_mask_says_how_it_came_about(model: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(model, [scans / "toy_1.nii.gz"], out, device="cpu", output=Output(split=True))
    (entry,) = record(out).values()
    image = read_image(scans / "toy_1.nii.gz")
    assert entry["inputs"] == {str(scans / "toy_1.nii.gz"): core_files.file_hash(scans / "toy_1.nii.gz")}
    assert entry["grid"] == {"shape": list(image.grid.shape), "affine": image.grid.affine.tolist()}
    assert entry["model"] == {"folder": str(model), "hash": entry["model"]["hash"]}
    assert entry["settings"][0]["overlap"] == 0.5
    assert entry["provenance"].keys() == {"volseg", "torch", "monai", "python", "device", "started", "seconds"}
    assert entry["organ_files"] == ["box_left.nii.gz", "box_small.nii.gz"]
    assert entry["organs"] is None


def test_notes_on_images_that_say_nothing_or_lie_in_two_places(
    model: Path, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command ends well: whoever looks at the masks decides."""
    source = nib.load(scans / "toy_2.nii.gz")
    array = np.asarray(source.dataobj)
    empty = nib.Nifti1Image(np.zeros(source.shape, np.float32), source.affine)
    nib.save(empty, scans / "toy_0.nii.gz")
    empty.header["sform_code"] = empty.header["qform_code"] = 0
    nib.save(nib.Nifti1Image(np.full(source.shape, 7.0), None, empty.header), scans / "toy_1.nii.gz")
    tiny = nib.Nifti1Image(array, np.diag([1e-3, 1e-3, 1e-3, 1]) @ source.affine)
    nib.save(tiny, scans / "toy_2.nii.gz")  # metres, and no unit says so
    out = tmp_path / "out"
    code, shown, _ = run(capfd, "predict", model, scans, "-o", out, "--device", "cpu")
    assert code == 0
    notes = {name: entry["notes"] for name, entry in record(out).items()}
    assert notes["toy_0.nii.gz"] == {
        "constant": "case toy_0: image intensities: expected more than one value, got 0 everywhere. "
        "The mask means nothing; check the file."
    }
    assert "got 7 everywhere" in notes["toy_1.nii.gz"]["constant"]
    assert "sform_code and qform_code: expected one above 0, got 0 and 0" in notes["toy_1.nii.gz"]["form_codes"]
    assert "image size: expected more than one voxel of the model" in notes["toy_2.nii.gz"]["extent"]
    shown = " ".join(shown.split())
    assert "1 more like it, see predictions.json." in shown
    assert "expected one above 0, got 0 and 0." in shown
    header = nib.load(out / "toy_1.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)


def test_an_image_much_larger_than_the_training_cases_is_noted(model: Path, scans: Path, tmp_path: Path) -> None:
    """A model of crops finds organs all over a head; around an image that ends in zeros there is nothing to find."""
    source = nib.load(scans / "toy_0.nii.gz")
    array = np.asarray(source.dataobj)
    wide = np.pad(array, [(0, 30), (0, 30), (0, 30)], mode="wrap")
    nib.save(nib.Nifti1Image(wide, source.affine), scans / "toy_0.nii.gz")
    padded = np.pad(array, [(0, 30), (0, 30), (0, 30)])
    nib.save(nib.Nifti1Image(padded, source.affine), scans / "toy_1.nii.gz")
    nib.save(nib.Nifti1Image(wide[:, :, :16], source.affine), scans / "toy_2.nii.gz")  # along two axes only
    shutil.copytree(model, tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    card["plan"]["crop"] = "nonzero"
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    predict(tmp_path / "model", scans, tmp_path / "out", device="cpu")
    notes = {name: entry.get("notes", {}) for name, entry in record(tmp_path / "out").items()}
    assert notes["toy_0.nii.gz"]["field of view"] == (
        "case toy_0: image size: expected about 40 x 36 x 40 mm, as the training cases have it, "
        "got 100 x 81 x 115 mm. Crop it around the organs, or expect some where there are none."
    )
    assert "field of view" not in notes["toy_1.nii.gz"]
    assert "field of view" not in notes["toy_2.nii.gz"]


def test_what_the_models_spacing_makes_too_large_is_refused(
    model: Path, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = nib.load(scans / "toy_0.nii.gz")
    large = nib.Nifti1Image(np.asarray(source.dataobj), np.diag([100, 100, 100, 1]) @ source.affine)
    nib.save(large, scans / "toy_0.nii.gz")
    code, shown, errors = run(
        capfd, "predict", model, scans, "-o", tmp_path / "out", "--device", "cpu", "--max-memory", "0.1"
    )
    assert code == 2
    text = " ".join((shown + errors).split())
    assert "case toy_0: image of spacing 200 x 150 x 250 mm, resampled to the model's spacing of" in text
    assert "expected at most 100 MB of memory, got" in text
    assert "or raise --max-memory." in text
    assert " at 0x" not in text
    assert {path.name for path in (tmp_path / "out").glob("toy_*")} == {"toy_1.nii.gz", "toy_2.nii.gz"}


def test_where_a_model_looked_is_told(
    model: Path, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("predict", model, scans / "toy_1.nii.gz", "-o", out, "--device", "cpu")
    assert run(capfd, *words)[0] == 0
    assert record(out)["toy_1.nii.gz"]["roi"] is None
    whole = read_label_map(out / "toy_1.nii.gz")
    for way in ("body", "organs", "auto"):
        assert run(capfd, *words, "--roi", way, "--set", "infer.roi_margin_mm=4")[0] == 0
        told = record(out)["toy_1.nii.gz"]["roi"]
        assert told.keys() == {"looked_at", "windows", "skipped", "box", "why"}
        assert told["windows"] == 8  # of 16 voxels, over 20 x 18 x 20 of 2 mm
        assert told["looked_at"] in ("body", "organs") or told["why"]
        if told["box"] is None:  # every window shows some of the noise
            assert np.array_equal(read_label_map(out / "toy_1.nii.gz").array, whole.array)
    code, _, err = run(capfd, *words, "--roi", "head")
    assert code == 1
    assert "infer.roi" in err


def test_a_corrupt_file_among_ten(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    images, out = write_toy(tmp_path / "ten", 10) / "images", tmp_path / "out"
    whole = (images / "toy_4.nii.gz").read_bytes()
    (images / "toy_4.nii.gz").write_bytes(whole[: len(whole) // 2])
    code, text, _ = run(capfd, "predict", model, images, "-o", out, "--device", "cpu")
    assert code == 2
    assert "failed  case toy_4: " in text
    assert f"9 predicted, 0 up to date, 1 failed: {out}" in text
    assert written(out) == [*BESIDE, *(f"toy_{n}.nii.gz" for n in range(10) if n != 4)]
    code, text, _ = run(capfd, "predict", model, images / "toy_4.nii.gz", "-o", tmp_path / "alone", "--device", "cpu")
    assert code == 3
    request.getfixturevalue("no_network")
    code, text, _ = run(capfd, "predict", model, images, "-o", out, "--device", "cpu")
    assert code == 2
    assert f"0 predicted, 9 up to date, 1 failed: {out}" in text


@pytest.mark.parametrize("full", [".part.toy_1.nii.gz", ".part.box_small.nii.gz", ".part.statistics.json"])
def test_a_disk_that_is_full_for_a_while(
    model: Path,
    scans: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    full: str,
) -> None:
    out, sync = tmp_path / "out", core_files._sync

    def fail(path: Path) -> None:
        if path.name.endswith(full) and (path.parent.name in ("out", "toy_1")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    words = ("predict", model, scans, "-o", out, "--device", "cpu", "--split", "--statistics")
    with monkeypatch.context() as patch:
        patch.setattr(core_files, "_sync", fail)
        code, text, _ = run(capfd, *words)
    assert code == 2
    assert "the disk is full, nothing was written. Free some space and run again." in text
    done = 3 if "statistics" in full else 2
    assert f"{done} predicted, 0 up to date, 1 failed: {out}" in text
    assert [name for name in written(out) if ".part." in name] == []
    assert record(out)["toy_0.nii.gz"]["hash"]
    code, text, _ = run(capfd, *words)
    assert code == 0
    assert f"{3 - done} predicted, {done} up to date, 0 failed: {out}" in text
    organs = [f"toy_{n}/box_{name}.nii.gz" for n in range(3) for name in ("left", "small")]
    expected = [*BESIDE, "statistics.csv", "statistics.json", *(f"toy_{n}.nii.gz" for n in range(3)), *organs]
    assert written(out) == sorted(expected)
    assert len((out / "statistics.csv").read_text().splitlines()) == 7


def test_a_disk_that_is_full_from_the_start(
    model: Path, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.core.files.os.fsync", full)
    code, _, err = run(capfd, "predict", model, scans, "-o", tmp_path / "out", "--device", "cpu")
    assert code == 1
    assert "the disk is full" in err
    assert written(tmp_path / "out") == []


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("windows", [0, 1, 3])
def test_a_signal_ends_a_prediction_in_order(
    model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    windows: int,
) -> None:
    images, out, whole, one = (
        write_toy(tmp_path / "six", 6) / "images",
        tmp_path / "out",
        Predictor.predict_with_region,
        Pass.__call__,
    )
    seen: list[str] = []

    def predicting(self: Predictor, image: Image, case: str, **more: object) -> tuple[LabelMap, SearchRegion | None]:
        seen.append(case)
        stop()
        return whole(self, image, case, **more)

    def looking(self: Pass, windows: Tensor) -> list[Tensor]:
        seen.append("window")
        stop()
        return one(self, windows)

    def stop() -> None:
        if "toy_2" in seen and len(seen) - seen.index("toy_2") == windows + 1:
            os.kill(os.getpid(), number)

    words = ("predict", model, images, "-o", out, "--device", "cpu", "--statistics", "--set", "infer.batch_size=1")
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_with_region", predicting)
        patch.setattr(Pass, "__call__", looking)
        code, text, err = run(capfd, *words)
    assert code == 128 + number
    assert "note  4 of 6 cases were not reached." in text
    assert f"2 predicted, 0 up to date, 0 failed: {out}" in text
    assert err.endswith("Interrupted. What was finished is kept: the same command goes on from there.")
    assert written(out) == sorted([*BESIDE, "statistics.csv", "statistics.json", "toy_0.nii.gz", "toy_1.nii.gz"])
    assert all(entry["hash"] for entry in record(out).values())
    assert len((out / "statistics.csv").read_text().splitlines()) == 5
    code, text, _ = run(capfd, *words)
    assert code == 0
    assert f"4 predicted, 2 up to date, 0 failed: {out}" in text
    assert len((out / "statistics.csv").read_text().splitlines()) == 13


def test_what_a_killed_run_left_is_removed(model: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(model, [scans / "toy_0.nii.gz"], out, device="cpu")
    (out / ".0123abcd.part.toy_1.nii.gz").write_bytes(b"half")
    predict(model, [scans], out, device="cpu")
    assert written(out) == [*BESIDE, "toy_0.nii.gz", "toy_1.nii.gz", "toy_2.nii.gz"]


def test_progress_counts_what_is_computed(model: Path, scans: Path, tmp_path: Path) -> None:
    predict(model, [scans / "toy_1.nii.gz"], tmp_path, device="cpu")
    (scans / "toy_2.nii.gz").write_bytes(b"")
    told: list[tuple[int, int, str]] = []
    batch = predict(model, [scans], tmp_path, device="cpu", progress=lambda *progress: told.append(progress))
    assert told == [(1, 3, "predict"), (1, 2, "predict"), (2, 2, "predict")]
    assert (batch.done, batch.kept, [case for case, _ in batch.failed]) == (("toy_0",), ("toy_1",), ["toy_2"])


def test_one_input_needs_no_list_also_in_a_thread(model: Path, scans: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(predict, model, str(scans / "toy_1.nii.gz"), tmp_path, device="cpu").result()
    assert batch.done == ("toy_1",)
    assert predict(model, scans / "toy_1.nii.gz", tmp_path, device="cpu").kept == ("toy_1",)


def test_a_listed_image_that_is_gone_fails_alone(model: Path, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("case,image\nmine,scans/toy_0.nii.gz\nlost,scans/no.nii.gz\n")
    batch = predict(model, [tmp_path / "list.csv"], tmp_path / "out", device="cpu")
    assert batch.done == ("mine",)
    ((case, reason),) = batch.failed
    assert case == "lost"
    assert "no.nii.gz" in reason
    assert (tmp_path / "out" / "mine.nii.gz").is_file()


def test_wrong_words_cost_no_work(
    model: Path, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], no_network: None
) -> None:
    words = ("predict", model, scans, "-o", tmp_path / "out", "--device", "cpu")
    for wrong, message in (
        (("--format", "dcm"), "format: expected one of nii.gz, nii, nrrd, seg.nrrd, mha, got 'dcm'"),
        (("--organs", "liver"), "organs: expected some of box_left, box_small, got liver. Correct the names."),
        (("--organs", " , "), "--organs: expected names such as liver,spleen, got none."),
        (("-o", tmp_path / "mask.nii.gz"), "expected a folder, got the name of a file."),
    ):
        code, _, err = run(capfd, *words, *wrong)
        assert code == 1
        assert message in err.replace(" │ ", " ").replace("│ ", "")
    assert not list(tmp_path.glob("out")) + list(tmp_path.glob("mask*"))
