"""Networks spread over several devices; the CPU twice stands in for two of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from members import image, member

from pipeline.core.errors import VolsegError
from pipeline.infer.predictor import Predictor
from pipeline.model.device import choose_devices
from pipeline.model.folder import fold_folder, save_weights, write_card

CPU = torch.device("cpu")


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    """Two models of three and of two folds."""
    for number, (name, folds) in enumerate((("one", 3), ("two", 2))):
        made = member(folds=folds, seed=10 * number)
        write_card(tmp_path / name, made.card)
        for fold, network in enumerate(made.networks):
            save_weights(fold_folder(tmp_path / name, fold) / "model.safetensors", dict(network.state_dict()))
    (tmp_path / "ensemble.json").write_text('{"members": ["one", "two"]}')
    return tmp_path


@pytest.mark.parametrize("name", ["one", "."])
def test_folds_on_two_devices_give_what_one_gives(ensemble: Path, name: str) -> None:
    alone, spread = (Predictor.load(ensemble / name, device=device) for device in ("cpu", "cpu,cpu"))
    given = image()
    first, second = (predictor.predict_soft(given, ("aorta",)) for predictor in (alone, spread))
    np.testing.assert_array_equal(first.label_map.array, second.label_map.array)
    np.testing.assert_array_equal(first.probabilities["aorta"], second.probabilities["aorta"])


def test_networks_go_to_the_devices_in_turn(ensemble: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = tuple(torch.device("cuda", n) for n in range(2))
    monkeypatch.setattr("pipeline.infer.predictor.choose_devices", lambda names: places)
    monkeypatch.setattr("pipeline.infer.trained_model.to_device", lambda network, device: network)
    monkeypatch.setattr("pipeline.infer.trained_model.choose_dtype", lambda device, precision: torch.float32)
    members = Predictor.load(ensemble, device="cuda:all").members
    assert [[device.index for device in one.devices] for one in members] == [[0, 1, 0], [1, 0]]
    assert [one.device.index for one in members] == [0, 1]  # sums of a model are where its first fold is


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_devices("cpu, cpu") == (CPU, CPU)
    assert choose_devices("cpu") == (CPU,)
    assert len(choose_devices(None)) == 1
    for wrong in ("cpu,", "cpu,gpu", ","):
        with pytest.raises(VolsegError, match="device: expected one of cpu"):
            choose_devices(wrong)
    kinds = {"cpu": CPU, "cuda:0": torch.device("cuda", 0), "cuda:1": torch.device("cuda", 1)}
    monkeypatch.setattr("pipeline.model.device.choose_device", kinds.__getitem__)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices("cuda:all") == (kinds["cuda:0"], kinds["cuda:1"])
    with pytest.raises(VolsegError, match=re.escape("device: expected devices of one kind, got cpu and cuda.")):
        choose_devices("cpu,cuda:1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_all_gpus_of_a_machine_without_any_are_refused() -> None:
    with pytest.raises(VolsegError, match=r"device: expected one of cpu, got 'cuda'"):
        choose_devices("cuda:all")
