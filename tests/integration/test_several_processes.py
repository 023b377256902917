"""Two processes that train together under torchrun, on the CPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy import toy_settings

from pipeline.__main__ import main
from pipeline.model.folder import load_weights

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HELPER = Path(__file__).parents[1] / "helpers" / "trainings.py"
LOSSES: dict[str, dict[str, object]] = {"plain": {}, "of the batch": {"batch_dice": True, "class_weights": "balanced"}}


def words_of(prepared: Path, out: Path, batch_size: int, epochs: int = 2, **loss: object) -> list[str]:
    """A command that trains epochs of two steps."""
    settings = toy_settings(options={"features": [4, 8], "norm": "instance"}).model_dump(mode="json")
    settings["sample"] |= {"batch_size": batch_size}
    settings["loss"] |= loss
    settings["train"] |= {"epochs": epochs, "iterations_per_epoch": 2, "optimizer": "sgd", "precision": "fp32"}
    config = out.with_suffix(".json")
    config.write_text(json.dumps(settings))
    return ["train", str(prepared), "-o", str(out), "--config", str(config), "--device", "cpu"]


@pytest.fixture(scope="module")
def two(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model for each loss, which two processes trained."""
    home = tmp_path_factory.mktemp("two")
    commands = [words_of(prepared, home / name, 2, **loss) for name, loss in LOSSES.items()]
    words = [*TORCHRUN, str(HELPER), json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters, patch") == len(LOSSES)  # only the first process talks
    return home


@pytest.mark.parametrize("name", list(LOSSES))
def test_two_processes_update_as_one_with_twice_the_batch(two: Path, prepared: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(words_of(prepared, tmp_path / name, 4, **LOSSES[name]))
    assert not end.value.code
    folders = [home / name / "fold_0" for home in (two, tmp_path)]
    both, one = (load_weights(folder / "last.safetensors") for folder in folders)
    assert both.keys() == one.keys()
    for key, tensor in one.items():
        if key.startswith("network."):
            torch.testing.assert_close(both[key], tensor, rtol=1e-4, atol=1e-6)
    histories = [(folder / "history.csv").read_text().splitlines() for folder in folders]
    losses = [[float(line.split(",")[2]) for line in lines[1:]] for lines in histories]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    scores = [json.loads((folder / "validation.json").read_text()) for folder in folders]
    assert scores[0]["cases"].keys() == scores[1]["cases"].keys()
    assert scores[0]["mean_dice"] == pytest.approx(scores[1]["mean_dice"], abs=0.02)


def test_a_signal_to_torchrun_ends_all_with_one_checkpoint(prepared: Path, tmp_path: Path) -> None:
    run = [*TORCHRUN, "-m", "pipeline", *words_of(prepared, tmp_path / "m", 2, epochs=100_000)]
    running = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "m" / "fold_0"
    try:
        deadline = time.monotonic() + 120
        while not (folder / "last.safetensors").exists() and time.monotonic() < deadline:  # before it none is ready
            time.sleep(0.1)
        asked = time.time()
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode != 0
    assert (folder / "last.safetensors").stat().st_mtime > asked, err
    assert load_weights(folder / "last.safetensors")
