"""Predictions of the cases that a fold did not train on, their scores, and what is learnt from them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from toy import toy_settings, write_toy

from pipeline.config.settings import InferSettings, Settings
from pipeline.core.errors import VolsegError
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.store import open_prepared
from pipeline.data.volumes import read_grid, read_image, read_label_map, write_label_map
from pipeline.evaluate.overlap import overlaps
from pipeline.infer.cleaning import Cleaning
from pipeline.model.folder import fold_folder, read_card, write_card
from pipeline.preprocess.plan_file import read_plan
from pipeline.stages.convert import convert
from pipeline.stages.cross_validate import cross_validate
from pipeline.stages.predict import Predictor
from pipeline.stages.prepare import preprocess
from pipeline.stages.report import report
from pipeline.stages.train_folds import train_folds


def short() -> Settings:
    content = toy_settings().model_dump()
    content["sample"]["folds"] = 2
    content["train"].update(epochs=1, iterations_per_epoch=25)
    return Settings.model_validate(content)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, prepared, and a model of its two folds."""
    home = tmp_path_factory.mktemp("cv")
    preprocess(write_toy(home / "toy", 4), home / "prepared", short(), jobs=1)
    assert train_folds(home / "prepared", home / "model", short(), devices=["cpu"]).exit_code == 0
    return home


def copied(here: Path, to: Path) -> Path:
    shutil.copytree(here / "model", to)
    return to


def test_every_case_is_predicted_by_the_fold_that_did_not_train_on_it(here: Path, tmp_path: Path) -> None:
    model, out = copied(here, tmp_path / "m"), tmp_path / "m" / "cross_validation"
    told: list[tuple[int, int, str]] = []
    result = cross_validate(model, here / "prepared", device="cpu", jobs=1, progress=lambda *seen: told.append(seen))
    splits = json.loads((here / "prepared" / "splits.json").read_text())
    assert result.batch.done == ("toy_0", "toy_1", "toy_2", "toy_3")
    assert [seen for seen in told if seen[2] == "out of fold"] == [(n, 4, "out of fold") for n in (1, 2, 3, 4)]
    plain = InferSettings(**{**short().infer.model_dump(), "postprocessing": False})
    for fold, split in enumerate(splits):
        predictor = Predictor.load(model, folds=[fold], device="cpu", settings=plain)
        for case in split["validation"]:
            found = read_label_map(out / "predictions" / f"{case}.nii.gz")
            image = here / "toy" / "images" / f"{case}.nii.gz"
            assert found.grid.matches(read_grid(image))
            expected = predictor.predict(read_image(image)).array
            assert (found.array != expected).mean() < 1e-3  # stored intensities are rounded to 16 bits
    with (out / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["name"]) for row in rows[:2]] == [("toy_0", "box_left"), ("toy_0", "box_small")]
    first = read_label_map(out / "predictions" / "toy_0.nii.gz").array
    reference = read_label_map(here / "toy" / "labels" / "toy_0.nii.gz").array
    table = LabelTable({1: "box_left", 2: "box_small"})
    assert [float(row["dice"]) for row in rows[:2]] == [o.dice for o in overlaps(reference, first, table)]
    summary = json.loads((out / "summary.json").read_text())
    folds = summary["cross_validation"]["folds"]
    assert [entry["cases"] for entry in folds] == [split["validation"] for split in splits]
    for entry in folds:
        dice = [float(row["dice"]) for row in rows if row["case"] in entry["cases"] and row["name"] == "box_left"]
        assert entry["dice"]["box_left"] == pytest.approx(np.mean(dice))
        assert entry["mean_dice"] == pytest.approx(np.mean(list(entry["dice"].values())))
    dice = [float(row["dice"]) for row in rows if row["name"] == "box_small"]
    assert summary["organs"]["box_small"]["dice"]["sd"] == pytest.approx(np.std(dice, ddof=1))
    assert result.mean_dice == summary["overall"]["dice"]["mean"]
    assert "data:image/png" in report(out, tmp_path / "report.html", overlays=1).read_text()


def test_only_what_is_missing_is_done_again(here: Path, tmp_path: Path) -> None:
    model, prepared = copied(here, tmp_path / "m"), here / "prepared"
    first = cross_validate(model, prepared, device="cpu", jobs=1)
    again = cross_validate(model, prepared, device="cpu", jobs=1, progress=lambda *_: None)
    assert (again.batch.done, len(again.batch.kept)) == ((), 4)
    assert (again.summary, again.postprocessing) == (first.summary, first.postprocessing)
    stamp = (model / "cross_validation" / "scores.csv").stat().st_mtime_ns
    (model / "cross_validation" / "predictions" / "toy_1.nii.gz").unlink()
    third = cross_validate(model, prepared, device="cpu", jobs=1)
    assert (third.batch.done, third.summary["overall"]) == (("toy_1",), first.summary["overall"])
    assert (model / "cross_validation" / "scores.csv").stat().st_mtime_ns > stamp
    one = cross_validate(model, prepared, folds=[1], device="cpu", jobs=1)
    assert [entry["fold"] for entry in one.summary["cross_validation"]["folds"]] == [1]
    assert len(list((model / "cross_validation" / "predictions").glob("*.nii.gz"))) == 2


def test_a_changed_reference_is_scored_again(here: Path, tmp_path: Path) -> None:
    model, dataset = copied(here, tmp_path / "m"), write_toy(tmp_path / "toy", 4)
    preprocess(dataset, tmp_path / "p", short(), jobs=1)
    first = cross_validate(model, tmp_path / "p", device="cpu", jobs=1)
    path = dataset / "labels" / "toy_3.nii.gz"
    reference = read_label_map(path)
    write_label_map(LabelMap(np.where(reference.array == 2, 0, reference.array), reference.grid), path)
    again = cross_validate(model, tmp_path / "p", device="cpu", jobs=1)
    assert (again.batch.done, len(again.batch.kept)) == ((), 4)  # it is the same prediction
    assert first.summary["organs"]["box_small"]["n_hallucinated"] == 0
    assert again.summary["organs"]["box_small"]["n_hallucinated"] == 1


def test_organ_masks_are_merged_to_references(here: Path, tmp_path: Path) -> None:
    convert(here / "toy", tmp_path / "organs", "organs", jobs=1)
    preprocess(tmp_path / "organs", tmp_path / "p", short(), jobs=1)
    shutil.copy(here / "prepared" / "splits.json", tmp_path / "p" / "splits.json")
    expected = cross_validate(copied(here, tmp_path / "m"), here / "prepared", device="cpu", jobs=1)
    model = copied(here, tmp_path / "m2")
    card = read_card(model)
    write_card(model, card.model_copy(update={"plan": read_plan(tmp_path / "p" / "plan.yaml")}))
    found = cross_validate(model, tmp_path / "p", device="cpu", jobs=1)
    assert found.mean_dice == pytest.approx(expected.mean_dice)
    merged = read_label_map(model / "cross_validation" / "references" / "toy_1.nii.gz")
    assert np.array_equal(merged.array, read_label_map(here / "toy" / "labels" / "toy_1.nii.gz").array)


def test_what_was_learnt_is_done_to_every_mask_unless_switched_off(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, image = copied(here, tmp_path / "m"), here / "toy" / "images" / "toy_0.nii.gz"
    learnt = Cleaning(remove_small_ml={"box_small": 1000.0})
    (model / "postprocessing.json").write_text(json.dumps({"kept": learnt.to_json()}))
    words = ("predict", model, image, "-o", tmp_path / "masks", "--device", "cpu")
    assert run(capfd, *words)[0] == 0
    cleaned = read_label_map(tmp_path / "masks" / "toy_0.nii.gz")
    assert cleaned.values() == (0, 1)
    (entry,) = json.loads((tmp_path / "masks" / "predictions.json").read_text())["cases"]
    assert entry["postprocessing"] == learnt.to_json()
    assert run(capfd, *words, "--set", "infer.postprocessing=false")[0] == 0
    plain = read_label_map(tmp_path / "masks" / "toy_0.nii.gz")
    assert plain.values() == (0, 1, 2)
    assert np.array_equal(np.where(plain.array == 2, 0, plain.array), cleaned.array)
    (entry,) = json.loads((tmp_path / "masks" / "predictions.json").read_text())["cases"]
    assert entry["postprocessing"] is None
    assert np.array_equal(Predictor.load(model, device="cpu").predict(read_image(image)).array, cleaned.array)
    (model / "postprocessing.json").write_text(
        '{"kept": {"keep_largest": ["liver"], "remove_small_ml": {}, "fill_holes": []}}'
    )
    code, _, err = run(capfd, *words)
    assert (code, "expected organs of the model (box_left, box_small), got liver" in err) == (1, True)


def test_a_moved_dataset_is_scored_on_the_prepared_grid(here: Path, tmp_path: Path) -> None:
    model, dataset = copied(here, tmp_path / "m"), write_toy(tmp_path / "toy", 4)
    preprocess(dataset, tmp_path / "p", short(), jobs=1)
    (dataset / "labels" / "toy_2.nii.gz").unlink()
    result = cross_validate(model, tmp_path / "p", device="cpu", jobs=1)
    assert (result.batch.failed, result.exit_code) == ((), 0)
    assert result.summary["cross_validation"]["prepared_grid"] == ["toy_2"]
    assert "none of 1 cases" in result.summary["notes"][0]
    reference = read_label_map(model / "cross_validation" / "references" / "toy_2.nii.gz")
    assert np.array_equal(reference.array, open_prepared(tmp_path / "p", "toy_2")[1][...])
    found = read_label_map(model / "cross_validation" / "predictions" / "toy_2.nii.gz")
    assert (found.grid, found.grid.spacing_mm) == (reference.grid, (2.0, 2.0, 2.0))


def test_a_bad_case_is_a_miss_and_stops_nothing(here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, prepared = copied(here, tmp_path / "m"), tmp_path / "p"
    shutil.copytree(here / "prepared", prepared)
    (prepared / "cases" / "toy_1" / "image.b2nd").write_bytes(b"damaged")
    code, out, _ = run(capfd, "cross-validate", model, "--prepared", prepared, "--device", "cpu", "-j", 1)
    assert code == 2
    assert "failed case toy_1" in " ".join(out.split())
    assert "3 predicted, 0 up to date, 1 failed" in out
    summary = json.loads((model / "cross_validation" / "summary.json").read_text())
    assert summary["organs"]["box_left"]["n_missing_prediction"] == 1
    assert json.loads((model / "postprocessing.json").read_text())["cases"] == 3
    shutil.copy(here / "prepared" / "cases" / "toy_1" / "image.b2nd", prepared / "cases" / "toy_1" / "image.b2nd")
    code, out, _ = run(capfd, "cross-validate", model, "--prepared", prepared, "--device", "cpu", "-j", 1)
    assert (code, "1 predicted, 3 up to date, 0 failed" in out) == (0, True)


def test_one_command_trains_and_cross_validates(here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = copied(here, tmp_path / "m")
    (tmp_path / "c.json").write_text(json.dumps(short().model_dump(mode="json")))
    words = ("train", here / "prepared", "-o", model, "-c", tmp_path / "c.json", "--device", "cpu", "--fold", "all")
    code, out, _ = run(capfd, *words)
    assert code == 0
    assert "fold 1: finished before" in out
    assert "| all organs |     4 |" in out
    assert (model / "postprocessing.md").is_file()
    code, _, err = run(capfd, *words[:-1], "five")
    assert (code, "expected a number or all, got 'five'" in err) == (1, True)


def test_refusals_say_what_to_do(here: Path, tmp_path: Path) -> None:
    model, prepared = copied(here, tmp_path / "m"), tmp_path / "p"
    shutil.copytree(here / "prepared", prepared)

    def refusal(folds: list[int] | None = None, data: Path = prepared) -> str:
        with pytest.raises(VolsegError) as caught:
            cross_validate(model, data, folds=folds, device="cpu", jobs=1)
        assert not (model / "cross_validation").exists()
        return str(caught.value)

    assert "folds: expected fold 2 to be trained, got 0, 1" in refusal([2])
    assert "prepared dataset: expected prepared cases, got none" in refusal(data=tmp_path)
    splits = json.loads((prepared / "splits.json").read_text())
    moved = [{**splits[0], "validation": splits[0]["validation"][:1]}, splits[1]]
    (prepared / "splits.json").write_text(json.dumps(moved))
    assert "splits.json: expected the validation cases of fold 0 as they were in training, got others" in refusal()
    (prepared / "splits.json").write_text(json.dumps([*splits, splits[0]]))
    assert "folds: expected fold 2 to be trained, got 0, 1" in refusal()
    (prepared / "splits.json").write_text(json.dumps(splits))
    for fold in (0, 1):
        (fold_folder(model, fold) / "model.safetensors").unlink()
    assert "expected fold 0, 1 to be trained, got none. Let `volseg train` finish" in refusal()
    (model / "model.json").unlink()
    assert "expected a model folder with model.json, got none" in refusal()
