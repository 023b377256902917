"""The real hippocampus set: the model in the box, and a training of a quarter of the cases for a minute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.yaml_file import load_settings
from pipeline.data.volumes import read_grid, read_label_map
from pipeline.model.zoo import zoo_model
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import predict
from pipeline.stages.prepare import preprocess
from pipeline.stages.train import train

CONFIG = Path(__file__).parents[2] / "configs" / "hippocampus.yaml"
QUICK = (
    "model.options={features: [8, 16, 32], norm: batch, activation: leaky_relu, down: stride}",
    "sample.batch_size=2",
    "train.epochs=4",
    "train.iterations_per_epoch=90",
    "train.validate_every=4",
    "train.validation_cases=6",
)


def quarter(source: Path, target: Path) -> Path:
    """Copy 50 cases for training and 4 others to predict."""
    description = json.loads((source / "dataset.json").read_text())
    chosen, others = description["training"][:50], description["training"][50:54]
    for part in ("imagesTr", "labelsTr", "unseen", "references"):
        (target / part).mkdir(parents=True)
    for entry in chosen:
        for path in entry.values():
            shutil.copy(source / path, target / path)
    for entry in others:
        shutil.copy(source / entry["image"], target / "unseen")
        shutil.copy(source / entry["label"], target / "references")
    (target / "dataset.json").write_text(json.dumps({**description, "training": chosen, "numTraining": len(chosen)}))
    return target


def test_the_model_in_the_box_on_cases_that_it_never_saw(real_data: Path, tmp_path: Path) -> None:
    """Every third of the held-out cases, whose Dice is that of all 42 within its spread."""
    source, model = real_data / "Task04_Hippocampus", zoo_model("hippocampus")
    entries = json.loads((source / "dataset.json").read_text())["training"]
    held_out = sorted(Path(entry["image"]).name for entry in entries)[::5]
    numbers = ", ".join(name.removesuffix(".nii.gz").removeprefix("hippocampus_") for name in held_out)
    assert len(held_out) == model.head.cases
    assert numbers in " ".join(model.text.split())  # the card names the cases that this rule gives
    chosen = held_out[::3]
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
        for name in chosen:
            shutil.copy(source / part / name, tmp_path / part)
    before = {path: path.stat().st_mtime_ns for path in model.folder.rglob("*")}
    predict("hippocampus", tmp_path / "imagesTr", tmp_path / "masks", device="cpu")
    assert {path: path.stat().st_mtime_ns for path in model.folder.rglob("*")} == before
    summary = evaluate(tmp_path / "masks", tmp_path / "labelsTr", tmp_path / "scores")
    assert summary["overall"]["n_cases"] == len(chosen) == 14
    assert summary["overall"]["dice"]["mean"] == pytest.approx(model.head.dice, abs=0.01)
    assert min(organ["dice"]["min"] for organ in summary["organs"].values()) > 0.7


def test_the_model_in_the_box_takes_a_dicom_series(real_data: Path, tmp_path: Path) -> None:
    """A hippocampus has 1 to 5 mL, its anterior and posterior part lie side by side from front to back."""
    batch = predict("hippocampus", real_data / "dicom" / "mr_hippocampus_crop", tmp_path, device="cpu")
    found = read_label_map(tmp_path / "mr_hippocampus_crop.nii.gz").reoriented("RAS")
    assert batch.notes == ()
    assert found.grid.shape == (35, 51, 32)
    volumes = found.volumes_ml()
    assert all(0.7 < volumes[value] < 3.5 for value in (1, 2))
    front, back = (np.argwhere(found.array == value).mean(axis=0)[1] for value in (1, 2))
    assert front > back + 10


def test_hippocampus_end_to_end(real_data: Path, tmp_path: Path) -> None:
    dataset = quarter(real_data / "Task04_Hippocampus", tmp_path / "Task04_Hippocampus")
    settings = load_settings(CONFIG, QUICK)
    batch = preprocess(dataset, tmp_path / "prepared", settings, jobs=1)
    assert (len(batch.done), batch.failed) == (50, ())
    result = train(tmp_path / "prepared", tmp_path / "model", settings, device="cpu")
    assert (result.scores.mean_dice or 0) > 0.7
    predict(tmp_path / "model", [dataset / "unseen"], tmp_path / "masks", device="cpu")
    for path in (dataset / "unseen").iterdir():
        grid, found = read_grid(path), read_grid(tmp_path / "masks" / path.name)
        assert found.shape == grid.shape
        assert np.abs(found.affine - grid.affine).max() <= 1e-5
    summary = evaluate(tmp_path / "masks", dataset / "references", tmp_path / "scores")
    assert summary["overall"]["dice"]["mean"] > 0.7
    assert list(summary["organs"]) == ["Anterior", "Posterior"]
