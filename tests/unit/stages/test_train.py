"""A training that tells MLflow, with a stand-in for the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fake_mlflow import install
from toy import toy_settings, write_toy

from pipeline.config.settings import Settings
from pipeline.core.errors import ConfigError
from pipeline.model.spec import build_network
from pipeline.stages.prepare import preprocess
from pipeline.stages.train import train, transfer_lines, transfer_weights
from pipeline.train import mlflow as tracking
from pipeline.train.state import Callbacks

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
    result = train(prepared, tmp_path / "m", settings(), device="cpu", callbacks=Callbacks(log=said.append))
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


# Beginning with another model's weights.


def test_everything_but_the_outputs_is_taken_over() -> None:
    donor = build_network("unet", 3, 1, 4, seed=1, features=(4, 8), deep_supervision=True)
    network = build_network("unet", 3, 1, 2, seed=2, features=(4, 8), deep_supervision=True)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = transfer_weights(network, donor.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, first[name] if name.startswith("heads") else donor.state_dict()[name])
    assert all(name.startswith("heads") for name in result.outputs)
    assert (result.missing, dict(result.reshaped)) == ((), {})
    heads = sum(parameter.numel() for name, parameter in network.named_parameters() if name.startswith("heads"))
    assert result.loaded == result.parameters - heads
    assert len(transfer_lines(result)) == 1


def test_what_does_not_fit_is_told() -> None:
    donor = build_network("unet", 3, 2, 2, seed=1, features=(4, 8))  # two channels
    network = build_network("unet", 3, 1, 2, seed=2, features=(4, 8, 16))  # one, and one more level
    result = transfer_weights(network, donor.state_dict())
    ((name, shapes),) = result.reshaped.items()
    assert shapes[0][1], shapes[1][1] == (1, 2)
    assert result.missing
    told = " ".join(transfer_lines(result))
    assert f"{name} begins anew: its shape is (4, 1, 3, 3, 3), in the other model (4, 2, 3, 3, 3)" in told
    assert "tensors are not in the other model" in told
