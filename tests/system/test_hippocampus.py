"""The real hippocampus set in about a minute: a quarter of the cases and a few hundred small steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from pipeline.config.yaml_file import load_settings
from pipeline.data.volumes import read_grid
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
