"""A UNet++ trained with deep supervision, its levels compared, the smallest good one written and used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_settings

from pipeline.__main__ import main
from pipeline.config.settings import Settings
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.data.volumes import read_image, read_label_map
from pipeline.model.cost import count_parameters
from pipeline.model.folder import fold_folder, load_network, load_weights, read_card, trained_folds, write_card
from pipeline.stages.predict import Predictor
from pipeline.stages.prune import prune
from pipeline.stages.train import train


@pytest.fixture(scope="module")
def nested(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a small UNet++ of three stages; fold 1 is the same network, as if trained on another fold."""
    out = tmp_path_factory.mktemp("nested") / "unetpp"
    options = {"features": (4, 8, 16), "norm": "batch", "dropout": 0.0}
    content = toy_settings(name="unetpp", deep_supervision=True, options=options).model_dump()
    content["train"].update(epochs=1, iterations_per_epoch=25)
    content["infer"].update(overlap=0.0)
    train(prepared, out, Settings.model_validate(content), device="cpu")
    (out / "fold_1").mkdir()
    shutil.copy(out / "fold_0" / "model.safetensors", out / "fold_1" / "model.safetensors")
    return out


def test_the_smallest_good_level_becomes_a_model(
    nested: Path, prepared: Path, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, images = tmp_path / "small", dataset / "images"
    words = ["prune", nested, "--prepared", prepared, "-o", out, "--fold", 0, "--tolerance", 100, "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert not stop.value.code
    assert "L1 is the smallest level within 100 Dice points of the best" in " ".join(capfd.readouterr().out.split())
    found = json.loads((out / "pruning.json").read_text())
    assert [row["level"] for row in found["rows"]] == [1, 2, None]
    first, second, average = found["rows"]
    trained = json.loads((nested / "fold_0" / "validation.json").read_text())
    assert second["mean_dice"] == pytest.approx(trained["mean_dice"], abs=1e-6)
    assert second["dice"] == pytest.approx(trained["organs"], abs=1e-6)
    assert first["parameters"] < second["parameters"] < average["parameters"]
    assert first["multiply_adds"] < second["multiply_adds"] < average["multiply_adds"]
    assert all(row["seconds_per_case"] > 0 and row["peak_bytes"] > 0 for row in found["rows"])
    assert (out / "pruning.png").read_bytes()[:4] == b"\x89PNG"
    assert len((out / "pruning.csv").read_text().splitlines()) == 4
    assert "| L1 " in (out / "pruning.md").read_text()

    card = read_card(out)
    assert (card.provenance["pruned_from"], card.provenance["pruned_level"]) == ("unetpp", "1")
    assert card.network.options["features"] == [4, 8]
    assert trained_folds(out) == (0, 1)
    assert count_parameters(load_network(out, card, 0)) == first["parameters"]
    full = load_weights(nested / "fold_0" / "model.safetensors")
    kept = load_weights(out / "fold_0" / "model.safetensors")
    assert kept.keys() < full.keys()
    assert all(torch.equal(value, full[name]) for name, value in kept.items())
    scores = json.loads((out / "fold_0" / "validation.json").read_text())
    assert scores["mean_dice"] == first["mean_dice"]
    assert scores["cases"].keys() == trained["cases"].keys()
    assert not (out / "fold_1" / "validation.json").exists()

    with pytest.raises(SystemExit) as stop:
        main(["predict", str(out), str(images / "toy_0.nii.gz"), "-o", str(tmp_path / "masks"), "--device", "cpu"])
    assert not stop.value.code
    whole = Predictor.load(nested, device="cpu")
    for network in whole.networks:
        network.head = 1
    expected = whole.predict(read_image(images / "toy_0.nii.gz"))
    mask = read_label_map(tmp_path / "masks" / "toy_0.nii.gz")
    assert np.array_equal(mask.array, expected.array)
    assert mask.array.any()


def test_an_earlier_pruning_of_the_same_model_is_replaced(nested: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    (out / "fold_2").mkdir(parents=True)
    shutil.copy(nested / "fold_0" / "model.safetensors", out / "fold_2" / "model.safetensors")
    with pytest.raises(VolsegError, match=r"output folder: expected a new folder, or an earlier pruning of this model"):
        prune(nested, prepared, out, device="cpu")
    shutil.move(out / "fold_2", tmp_path / "fold_2")
    told: list[tuple[int, int, str]] = []
    result = prune(nested, prepared, out, tolerance_points=0, device="cpu", progress=lambda *p: told.append(p))
    assert told == [(n, 12, "prune") for n in range(1, 13)]  # 2 folds of 2 cases, 2 levels and the average
    assert (result.folds, result.cases, result.level) == ((0, 1), 4, result.best.level)
    shutil.move(tmp_path / "fold_2", out / "fold_2")  # a fold that the model no longer has
    result = prune(nested, prepared, out, folds=[0], tolerance_points=100, device="cpu")
    assert result.level == 1
    assert trained_folds(out) == (0, 1)
    assert Predictor.load(out, device="cpu").networks[0].depth == 1


def test_damaged_and_unwritable_files_are_named_before_anything_is_measured(
    nested: Path, prepared: Path, tmp_path: Path
) -> None:
    def refused(model: Path, out: Path, match: str) -> None:
        with pytest.raises(VolsegError, match=match):
            prune(model, prepared, out, device="cpu", progress=lambda *_: pytest.fail("measured already"))

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pruning.json").write_text("[]")
    refused(nested, tmp_path / "out", "output folder: expected a new folder, or an earlier pruning of this model")
    refused(nested, tmp_path / "out" / "pruning.json" / "x", r"pruning.json/x.* could not be written")
    shutil.copytree(nested, tmp_path / "copy")
    (tmp_path / "copy" / "fold_0" / "validation.json").write_text("[]")
    refused(tmp_path / "copy", tmp_path / "new", "expected the validation cases of fold 0 as they were in training")


def test_refusals_say_what_to_do(nested: Path, prepared: Path, tmp_path: Path) -> None:
    def refusal(model: Path = nested, data: Path = prepared, out: Path = tmp_path / "out", **options: object) -> str:
        with pytest.raises(VolsegError) as caught:
            prune(model, data, out, device="cpu", **options)
        assert not (tmp_path / "out").exists()
        return str(caught.value).replace(str(model), "MODEL").replace(str(data), "DATA")

    card = read_card(nested)
    options = {"features": [4, 8], "deep_supervision": False}
    for name in ("unet", "unetpp"):
        write_card(
            tmp_path / name,
            card.model_copy(update={"network": card.network.model_copy(update={"name": name, "options": options})}),
        )
    assert refusal(tmp_path / "unet").startswith("MODEL: network: expected unetpp or unetplus, got UNet.")
    assert refusal(tmp_path / "unetpp").endswith(
        "network: expected one trained with deep supervision, got one with a single head. "
        "Train it with model.deep_supervision: true."
    )
    shutil.copy(nested / "model.json", tmp_path / "model.json")
    assert "folds: expected a trained fold, got none." in refusal(tmp_path)
    assert "folds: expected fold 2 to be trained, got 0, 1." in refusal(folds=[2])
    (tmp_path / "empty").mkdir()
    assert refusal(data=tmp_path / "empty").startswith("DATA: prepared dataset: expected prepared cases, got none.")
    assert "output folder: expected a new folder" in refusal(out=nested)
    assert "tolerance: expected 0 or more Dice points, got -1" in refusal(tolerance_points=-1)

    shutil.copytree(nested, tmp_path / "other")
    note = fold_folder(tmp_path / "other", 0) / "validation.json"
    note.write_text(json.dumps({"cases": {"toy_9": {}}}))
    problem = refusal(tmp_path / "other")
    assert "splits.json: expected the validation cases of fold 0 as they were in training, got others" in problem
    plan = card.plan.model_copy(update={"spacing_mm": (1.0, 1.0, 1.0)})
    write_card(tmp_path / "other", card.model_copy(update={"plan": plan}))
    assert "plan: expected that of the model, got another" in refusal(tmp_path / "other", folds=[1])


def test_a_negative_tolerance_is_a_wrong_setting(nested: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        prune(nested, prepared, tmp_path / "out", tolerance_points=float("nan"))
