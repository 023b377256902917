"""Training that begins with the weights of another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy import toy_settings

from pipeline.core.errors import VolsegError
from pipeline.model.folder import load_weights
from pipeline.stages.train import train
from pipeline.train.state import Callbacks

ONE_STEP = {"epochs": 1, "iterations_per_epoch": 1, "learning_rate": 1e-6}


def test_it_begins_where_the_other_ended(prepared: Path, model: Path, tmp_path: Path) -> None:
    settings = toy_settings()
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=ONE_STEP)})
    told: list[str] = []
    train(prepared, tmp_path / "m", settings, start=model, callbacks=Callbacks(log=told.append))
    before, after = (
        load_weights(folder / "fold_0" / name)
        for folder, name in ((model, "model.safetensors"), (tmp_path / "m", "last.safetensors"))
    )
    kernel = next(name for name, tensor in before.items() if tensor.ndim == 5 and not name.startswith("heads"))
    torch.testing.assert_close(after[f"network.{kernel}"], before[kernel], rtol=0, atol=1e-4)
    assert any("parameters begin as in the other model; the outputs anew" in line for line in told)


def test_a_started_training_does_not_continue_with_other_weights(prepared: Path, model: Path, tmp_path: Path) -> None:
    settings = toy_settings()
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=ONE_STEP)})
    train(prepared, tmp_path / "m", settings, start=model / "fold_0")
    train(prepared, tmp_path / "m", settings, start=model)  # the same weights
    with pytest.raises(VolsegError, match="this training began with, got others"):
        train(prepared, tmp_path / "m", settings)


def test_what_is_no_model_or_does_not_fit_is_refused(prepared: Path, model: Path, tmp_path: Path) -> None:
    settings = toy_settings()
    with pytest.raises(VolsegError, match=r"expected a model folder with model.json, got none"):
        train(prepared, tmp_path / "m", settings, start=tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model.json").write_bytes((model / "model.json").read_bytes())
    with pytest.raises(VolsegError, match=r"empty: expected a trained fold, got none"):
        train(prepared, tmp_path / "m", settings, start=tmp_path / "empty")
    flat = settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"dims": 2}),
            "sample": settings.sample.model_copy(update={"patch_size": (16, 16)}),
        }
    )
    with pytest.raises(VolsegError, match=r"expected weights that fit the network, got those of unet"):
        train(prepared, tmp_path / "m", flat, start=model)
