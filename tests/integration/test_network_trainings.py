"""Every network trains on the phantom through the command line: one word changes, and the loss falls."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from networks import MEMBERS, TINY

from pipeline.__main__ import main

RECIPE = """
preprocess: {spacing_mm: [8, 8, 8], patch_size: [24, 16, 24], patch_size_2d: [24, 24]}
sample: {folds: 2, batch_size: 2, foreground_share: 0.5}
augment: {enabled: false}
train:
  {optimizer: adamw, learning_rate: 5.0e-3, schedule: constant, epochs: 3, iterations_per_epoch: 8, validate_every: 3}
infer: {overlap: 0.0}
"""


def volseg(*words: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared phantoms and the recipe beside them."""
    home = tmp_path_factory.mktemp("phantom")
    (home / "recipe.yaml").write_text(RECIPE)
    volseg("phantom", home / "dataset", "--cases", 2, "--tests", 1)
    volseg("preprocess", home / "dataset", "-o", home / "prepared", "-c", home / "recipe.yaml", "--jobs", 1)
    return home


@pytest.mark.parametrize(("name", "dims"), MEMBERS)
def test_the_loss_falls(name: str, dims: int, phantom: Path, tmp_path: Path) -> None:
    options = json.dumps(TINY[name])
    overrides = [f"model.name={name}", f"model.dims={dims}", f"model.options={options}"]
    words = [word for text in overrides for word in ("--set", text)]
    volseg("train", phantom / "prepared", "-o", tmp_path, "-c", phantom / "recipe.yaml", "--device", "cpu", *words)
    with (tmp_path / "fold_0" / "history.csv").open(newline="") as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert json.loads((tmp_path / "fold_0" / "validation.json").read_text())["mean_dice"] is not None
