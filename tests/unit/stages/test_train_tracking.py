"""A training that tells MLflow, with a stand-in for the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fake_mlflow import install
from toy import toy_settings, write_toy

from pipeline.config import Settings
from pipeline.core.errors import ConfigError
from pipeline.stages.prepare import preprocess
from pipeline.stages.train import train
from pipeline.train import tracking

URI = "http://localhost:5000"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    preprocess(write_toy(folder / "data", 3), folder / "prepared", toy_settings(), jobs=1)
    return folder / "prepared"


def settings(**changes: object) -> Settings:
    made = toy_settings()
    update = {"epochs": 2, "iterations_per_epoch": 1, "validate_every": 2, "mlflow": URI, **changes}
    return made.model_copy(update={"train": made.train.model_copy(update=update)})


def test_trainings_tell_mlflow(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = install(monkeypatch)
    train(prepared, tmp_path / "m", settings(), device="cpu")
    train(prepared, tmp_path / "m", settings(epochs=3), device="cpu")  # continued: the URI is no part of the identity
    run = server.runs["run0"]
    assert (run.name, run.status) == ("m fold 0", "FINISHED")
    assert run.steps("train/loss") == [1, 2, 3]
    assert run.steps("validation/box_left") == [2, 3]
    assert run.params["train.epochs"] == "2"
    assert run.params["model.options.features"] == "[8, 16]"
    assert "train.mlflow" not in run.params
    assert Path(run.artifacts[0]) == tmp_path / "m" / "fold_0" / "curves.png"
    train(prepared, tmp_path / "m", settings(mlflow=None), device="cpu", restart=True)
    assert not (tmp_path / "m" / "fold_0" / "mlflow.json").exists()
    assert len(server.runs) == 1


def test_a_broken_server_does_not_stop_a_training(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, said = install(monkeypatch), []
    server.calls_left = 4
    result = train(prepared, tmp_path / "m", settings(), device="cpu", say=said.append)
    assert len(result.progress.records) == 2
    assert sum("train.mlflow" in line for line in said) == 1


def test_a_missing_package_stops_before_anything_is_done(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.mlflow: expected MLflow to be installed"):
        train(prepared, tmp_path / "m", settings(), device="cpu")
    assert not (tmp_path / "m").exists()
