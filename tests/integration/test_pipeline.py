"""The whole way from files to a report, on a toy dataset, and what happens when something is wrong on the way."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import read_prepared
from toy import toy_case, toy_settings, write_toy

from pipeline.core.errors import VolsegError
from pipeline.core.grid import ORIENTATIONS
from pipeline.data.prepared_cases import prepared_ids
from pipeline.data.volumes import read_grid, read_image, read_label_map, write_label_map
from pipeline.model.folder import read_card
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.plan_file import read_plan
from pipeline.report.report import write_report
from pipeline.stages.evaluate import evaluate
from pipeline.stages.model_files import LOCK_FILE
from pipeline.stages.predict import Predictor, predict
from pipeline.stages.prepare import preprocess
from pipeline.stages.train import train


def test_the_whole_way(dataset: Path, model: Path, tmp_path: Path) -> None:
    masks, scores = tmp_path / "masks", tmp_path / "scores"
    unseen = write_toy(tmp_path / "unseen", 3, first=6)
    batch = predict(model, [unseen / "images"], masks, device="cpu")
    assert (batch.done, batch.failed, batch.exit_code) == (("toy_6", "toy_7", "toy_8"), (), 0)
    for index in (6, 7, 8):
        name = f"toy_{index}.nii.gz"
        grid, mask = read_grid(unseen / "images" / name), read_label_map(masks / name)
        assert mask.grid.shape == grid.shape
        assert np.abs(mask.grid.affine - grid.affine).max() <= 1e-5
        assert mask.array.dtype == np.uint8
    summary = evaluate(masks, unseen, scores)
    assert summary["overall"]["dice"]["mean"] > 0.8
    with (scores / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["name"]) for row in rows][:2] == [("toy_6", "box_left"), ("toy_6", "box_small")]
    page = write_report(scores, tmp_path / "report.html").read_text()
    assert "box_small" in page
    assert "data:image/png;base64" in page


def test_a_training_leaves_its_curves_as_a_page(model: Path) -> None:
    page = (model / "fold_0" / "training.html").read_text(encoding="utf-8")
    scores = json.loads((model / "fold_0" / "validation.json").read_text())
    assert f"<dd>{scores['mean_dice']:.3f}</dd>" in page
    assert f"Dice of the best weights on {len(scores['cases'])} validation cases." in page
    for organ, dice in scores["organs"].items():
        assert f"{organ}</th><td>{dice:.3f}</td>" in page
    assert page.count("<img") == 1
    assert "default-src 'none'" in page


def test_what_is_done_is_not_done_again(dataset: Path, prepared: Path, model: Path, tmp_path: Path) -> None:
    again = preprocess(dataset, prepared, toy_settings(), jobs=1)
    assert (again.done, len(again.kept)) == ((), 6)
    unseen = write_toy(tmp_path / "unseen", 1, first=6)
    assert predict(model, [unseen / "images"], tmp_path / "masks", device="cpu").done == ("toy_6",)
    stamp = (tmp_path / "masks" / "toy_6.nii.gz").stat().st_mtime_ns
    assert predict(model, [unseen / "images"], tmp_path / "masks", device="cpu").kept == ("toy_6",)
    assert (tmp_path / "masks" / "toy_6.nii.gz").stat().st_mtime_ns == stamp
    shutil.copy(dataset / "images" / "toy_1.nii.gz", unseen / "images" / "toy_6.nii.gz")  # another image, same name
    assert predict(model, [unseen / "images"], tmp_path / "masks", device="cpu").done == ("toy_6",)


def test_a_bad_case_never_ends_a_batch(dataset: Path, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    whole = (broken / "images" / "toy_2.nii.gz").read_bytes()
    (broken / "images" / "toy_2.nii.gz").write_bytes(whole[: len(whole) // 2])
    batch = preprocess(broken, tmp_path / "prepared", toy_settings(), jobs=1)
    assert (len(batch.done), batch.exit_code) == (5, 2)
    ((case, message),) = batch.failed
    assert case == "toy_2"
    assert message.startswith("case toy_2: ")
    assert "toy_2.nii.gz" in message
    assert "toy_2" not in prepared_ids(tmp_path / "prepared")
    predicted = predict(model, [broken / "images"], tmp_path / "masks", device="cpu")
    assert (len(predicted.done), [case for case, _ in predicted.failed]) == (5, ["toy_2"])
    summary = evaluate(tmp_path / "masks", broken / "labels", tmp_path / "scores")
    assert summary["organs"]["box_left"]["n_missing_prediction"] == 1
    assert summary["organs"]["box_left"]["dice"]["min"] == 0.0


def test_prepared_cases_are_on_the_planned_grid(dataset: Path, prepared: Path) -> None:
    plan = read_plan(prepared / "plan.yaml")
    assert (plan.spacing_mm, plan.orientation, plan.label_table.organs) == ((2, 2, 2), "RAS", ("box_left", "box_small"))
    for case in prepared_ids(prepared):
        stored = read_prepared(prepared, case)
        trace = GridHistory.from_json(stored.info["trace"])
        assert trace.prepared.orientation == "RAS"
        assert stored.image.shape[1:] == stored.label.shape == trace.prepared.shape == (20, 18, 20)
        assert set(np.unique(stored.label)) == {0, 1, 2}
        reference = read_label_map(dataset / "labels" / f"{case}.nii.gz")
        for value in (1, 2):  # the organ is where it was in the world
            before = reference.grid.to_world(np.argwhere(reference.array == value)).mean(0)
            after = trace.prepared.to_world(np.argwhere(stored.label == value)).mean(0)
            assert np.abs(before - after).max() < 1.0


def test_the_mask_follows_the_input_through_all_48_orientations(model: Path) -> None:
    predictor = Predictor.load(model, device="cpu")
    image, _ = toy_case(0)
    expected = predictor.predict(image)
    assert len(ORIENTATIONS) == 48
    for orientation in ORIENTATIONS:
        found = predictor.predict(image.reoriented(orientation))
        assert found.grid == image.grid.reoriented(orientation)
        assert np.array_equal(found.array, expected.reoriented(orientation).array)


def test_a_real_ct_comes_back_on_its_own_grid(real_data: Path, model: Path, tmp_path: Path) -> None:
    source = real_data / "ct_multiorgan" / "example_ct_sm.nii.gz"
    mr = real_data / "ct_multiorgan" / "example_mr_sm.nii.gz"  # stored L-P-S
    predict(model, [source, mr], tmp_path, device="cpu")
    for path in (source, mr):
        grid, found = read_grid(path), read_grid(tmp_path / path.name)
        assert found.shape == grid.shape
        assert np.abs(found.affine - grid.affine).max() <= 1e-5
        assert found.orientation == grid.orientation


@pytest.mark.parametrize("name", ["unet", "unetpp"])
def test_2d_networks_run_over_slices(name: str, prepared: Path, tmp_path: Path) -> None:
    settings = toy_settings(name=name, dims=2, deep_supervision=name == "unetpp")
    settings = settings.model_copy(update={"sample": settings.sample.model_copy(update={"patch_size": (16, 16)})})
    result = train(prepared, tmp_path / "m", settings, device="cpu")
    assert (result.scores.mean_dice or 0) > 0.6
    image, labels = toy_case(9)
    found = Predictor.load(tmp_path / "m", device="cpu").predict(image)
    assert found.grid == labels.grid


def test_folds_are_averaged(prepared: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    train(prepared, tmp_path / "m", toy_settings(), fold=1, device="cpu")
    both = Predictor.load(tmp_path / "m", device="cpu")
    assert len(both.networks) == 2
    image, labels = toy_case(8)
    assert both.predict(image).grid == labels.grid
    with pytest.raises(VolsegError, match=r"expected fold 2 to be trained, got 0, 1\. Let `volseg train` finish"):
        Predictor.load(tmp_path / "m", folds=[2])


def test_unetpp_trains_with_deep_supervision(prepared: Path, tmp_path: Path) -> None:
    result = train(prepared, tmp_path / "m", toy_settings(name="unetpp", deep_supervision=True), device="cpu")
    assert (result.scores.mean_dice or 0) > 0.8
    assert read_card(tmp_path / "m").network.name == "unetpp"


def test_a_killed_training_resumes(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    config = tmp_path / "run.json"  # JSON is YAML
    config.write_text(json.dumps(toy_settings().model_dump(mode="json")))
    command = [sys.executable, "-m", "pipeline", "train", str(prepared), "-o", str(out), "-c", str(config)]
    command += ["--device", "cpu", "--set", "train.epochs=200"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        wanted = [out / "fold_0" / name for name in ("last.safetensors", "history.csv")]
        while not all(file.exists() for file in wanted) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    before = len((out / "fold_0" / "history.csv").read_text().splitlines()) - 1
    assert before >= 1
    result = train(prepared, out, toy_settings(), device="cpu")  # the length may change, the rest may not
    assert [record.epoch for record in result.progress.records] == list(range(1, len(result.progress.records) + 1))
    assert len(result.progress.records) >= max(before, 3)
    assert (out / "fold_0" / "model.safetensors").exists()


def test_a_full_disk_leaves_no_half_written_file(
    dataset: Path, prepared: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    _, labels = toy_case(0)
    monkeypatch.setattr("pipeline.core.files.os.fsync", full)
    with pytest.raises(VolsegError, match=r"the disk is full, nothing was written\. Free some space"):
        write_label_map(labels, tmp_path / "mask.nii.gz")
    with pytest.raises(VolsegError, match="the disk is full"):
        train(prepared, tmp_path / "m", toy_settings(), device="cpu")
    with pytest.raises(VolsegError, match="the disk is full"):
        preprocess(dataset, tmp_path / "prepared", toy_settings(), jobs=1)
    with pytest.raises(VolsegError, match="the disk is full"):
        predict(model, [dataset / "images"], tmp_path / "masks", device="cpu")
    left = [(path.name, path.stat().st_size) for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [(LOCK_FILE, 0)]  # kept: to remove it would let in two of those that wait for it


def test_images_in_memory_and_on_disk_give_the_same_mask(dataset: Path, model: Path, tmp_path: Path) -> None:
    path = dataset / "images" / "toy_3.nii.gz"
    predict(model, [path], tmp_path, device="cpu")
    found = Predictor.load(model, device="cpu").predict(read_image(path))
    assert np.array_equal(found.array, read_label_map(tmp_path / path.name).array)
    assert torch.get_num_threads() >= 1
