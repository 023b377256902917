"""Networks whose logits are smaller than their input, from prepared cases to masks on the input's grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import toy_settings, write_toy

from pipeline.config.settings import Settings
from pipeline.core.errors import ConfigError
from pipeline.data.volumes import read_grid, read_label_map
from pipeline.model.folder import read_card
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import predict
from pipeline.stages.train import train


def valid_settings(name: str, dims: int, patch: tuple[int, ...] | None, **changes: dict[str, Any]) -> Settings:
    base = toy_settings(name=name, dims=dims).model_dump()
    base["model"]["options"], base["augment"]["enabled"] = {}, False
    base["sample"]["patch_size"] = patch
    for section, values in changes.items():
        base[section].update(values)
    return Settings.model_validate(base)


CASES = {
    "unet2015 in 3D": (
        valid_settings("unet2015", 3, (26, 26, 26), model={"options": {"features": (4, 8)}}),
        (26, 26, 26),
        0.7,
    ),
    "unet2015 in 2D, patch planned": (
        valid_settings("unet2015", 2, None, model={"options": {"features": (8, 16)}}, sample={"batch_size": 8}),
        (36, 36),
        0.6,
    ),
    "ciresan_n4": (
        valid_settings(
            "ciresan_n4",
            2,
            None,
            model={"options": {"features": (4, 4, 4, 4), "hidden": 16}},
            sample={"batch_size": 16},
            train={"iterations_per_epoch": 15},
        ),
        (95, 95),
        0.0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_with_a_margin_learns_and_segments(name: str, prepared: Path, tmp_path: Path) -> None:
    settings, patch, least = CASES[name]
    result = train(prepared, tmp_path / "m", settings, device="cpu")
    losses = [record.loss for record in result.progress.records]
    assert losses[-1] < 0.9 * losses[0]
    assert (result.scores.mean_dice or 0) >= least
    assert read_card(tmp_path / "m").network.patch_size == patch
    unseen = write_toy(tmp_path / "unseen", 2, first=6)
    batch = predict(tmp_path / "m", [unseen / "images"], tmp_path / "masks", device="cpu")
    assert (batch.done, batch.failed) == (("toy_6", "toy_7"), ())
    for case in batch.done:
        grid = read_grid(unseen / "images" / f"{case}.nii.gz")
        mask = read_label_map(tmp_path / "masks" / f"{case}.nii.gz")
        assert mask.grid.shape == grid.shape
        assert np.abs(mask.grid.affine - grid.affine).max() <= 1e-5
    summary = evaluate(tmp_path / "masks", unseen, tmp_path / "scores")
    assert summary["overall"]["dice"]["mean"] >= least


def test_a_patch_the_network_cannot_take_is_refused_before_training(prepared: Path, tmp_path: Path) -> None:
    settings = valid_settings("unet2015", 3, (64, 64, 64))
    message = r"sample.patch_size: expected a size unet2015 can take, got \(64, 64, 64\). The next legal one is \(188, "
    with pytest.raises(ConfigError, match=message):
        train(prepared, tmp_path / "m", settings, device="cpu")
