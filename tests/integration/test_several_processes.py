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

from pipeline.model.folder import load_weights


def command(
    prepared: Path, out: Path, processes: int, batch_size: int, epochs: int = 2, **loss: object
) -> list[object]:
    """Epochs of two steps, alone or under torchrun."""
    settings = toy_settings(options={"features": [4, 8], "norm": "instance"}).model_dump(mode="json")
    settings["sample"] |= {"batch_size": batch_size}
    settings["loss"] |= loss
    settings["train"] |= {"epochs": epochs, "iterations_per_epoch": 2, "optimizer": "sgd", "precision": "fp32"}
    config = out.with_suffix(".json")
    config.write_text(json.dumps(settings))
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = ["-m", "pipeline", "train", prepared, "-o", out, "--config", config, "--device", "cpu"]
    return [sys.executable, *(start if processes > 1 else []), *words]


def train(prepared: Path, out: Path, processes: int, batch_size: int, **loss: object) -> str:
    """Train to the end; what was said."""
    run = [str(word) for word in command(prepared, out, processes, batch_size, **loss)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("loss", [{}, {"batch_dice": True, "class_weights": "balanced"}])
def test_two_processes_update_as_one_with_twice_the_batch(
    prepared: Path, tmp_path: Path, loss: dict[str, object]
) -> None:
    said = train(prepared, tmp_path / "two", 2, 2, **loss)
    train(prepared, tmp_path / "one", 1, 4, **loss)
    assert said.count("parameters, patch") == 1  # only the first one talks
    two, one = (load_weights(tmp_path / name / "fold_0" / "last.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        if name.startswith("network."):
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
    histories = [(tmp_path / name / "fold_0" / "history.csv").read_text().splitlines() for name in ("two", "one")]
    losses = [[float(line.split(",")[2]) for line in lines[1:]] for lines in histories]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    scores = [json.loads((tmp_path / name / "fold_0" / "validation.json").read_text()) for name in ("two", "one")]
    assert scores[0]["cases"].keys() == scores[1]["cases"].keys()
    assert scores[0]["mean_dice"] == pytest.approx(scores[1]["mean_dice"], abs=0.02)


def test_a_signal_to_torchrun_ends_all_with_one_checkpoint(prepared: Path, tmp_path: Path) -> None:
    run = [str(word) for word in command(prepared, tmp_path / "m", 2, 2, epochs=100_000)]
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
