"""Networks spread over several devices; the CPU twice stands in for two of them."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from members import image, member

from pipeline.core.errors import ConfigError, VolsegError
from pipeline.core.labels import LabelTable
from pipeline.data.volumes import read_label_map, write_image
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.device import choose_devices
from pipeline.model.folder import ModelCard, fold_folder, read_card, save_weights, write_card
from pipeline.preprocess.plan_file import Plan
from pipeline.stages.predict import Predictor

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
    monkeypatch.setattr("pipeline.stages.predict.choose_devices", lambda names: places)
    monkeypatch.setattr("pipeline.infer.trained_model.to_device", lambda network, device: network)
    monkeypatch.setattr("pipeline.infer.trained_model.choose_dtype", lambda device, precision: torch.float32)
    members = Predictor.load(ensemble, device="cuda:all").models
    assert [[device.index for device in one.devices] for one in members] == [[0, 1, 0], [1, 0]]
    assert [one.device.index for one in members] == [0, 1]  # sums of a model are where its first fold is


@pytest.mark.parametrize(("device", "ahead"), [("cuda", True), ("cpu", False)])
def test_images_for_a_gpu_are_prepared_where_they_are_read(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, ahead: bool
) -> None:
    scans = [write_image(image(seed=seed), tmp_path / "scans" / f"{seed}.nii.gz") for seed in range(2)]
    predictor = Predictor.load(ensemble / "one", device="cpu")
    expected = predictor.predict(image(seed=1)).array
    for one in predictor.models:
        one.devices = [torch.device(device)] * 3  # only what is said of them: the networks stay
    threads, prepare = [], Predictor.prepared

    def prepared(self: Predictor, *args: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return prepare(self, *args)

    monkeypatch.setattr(Predictor, "prepared", prepared)
    assert len(predictor.predict_files(tmp_path / "scans", tmp_path / "masks").done) == len(scans)
    assert threads == [not ahead] * 2
    np.testing.assert_array_equal(read_label_map(tmp_path / "masks" / "1.nii.gz").array, expected)


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


def test_each_model_is_described_once_and_overrides_change_all(ensemble: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def read(folder: Path) -> ModelCard:
        seen.append(folder.name)
        return read_card(folder)

    monkeypatch.setattr("pipeline.stages.predict.read_card", read)
    predictor = Predictor.load(ensemble, device="cpu", settings=["infer.overlap=0.25"])
    assert seen == ["one", "two"]
    assert [model.settings.overlap for model in predictor.models] == [0.25, 0.25]
    with pytest.raises(ConfigError, match=r"--set train.epochs=3: expected infer.key=value, got another section\."):
        Predictor.load(ensemble, device="cpu", settings=["train.epochs=3"])


def test_a_case_takes_one_inferer_and_no_more_parsing(ensemble: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, calls = Predictor.load(ensemble / "one", device="cpu"), []
    whole, parse = TrainedModel.inferer, LabelTable.from_json

    def inferer(self: TrainedModel, *args: Any) -> StreamingInferer:
        calls.append("inferer")
        return whole(self, *args)

    def from_json(content: Any) -> LabelTable:
        calls.append("labels")
        return parse(content)

    monkeypatch.setattr(TrainedModel, "inferer", inferer)
    monkeypatch.setattr(LabelTable, "from_json", from_json)
    monkeypatch.setattr(Plan, "content_hash", property(lambda self: calls.append("content_hash")))
    predictor.predict(image())
    assert calls == ["inferer"]
    predictor.predict_soft(image(), ("liver",))
    assert calls == ["inferer"] * 2
