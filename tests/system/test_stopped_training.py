"""A training that is told to stop from outside, as a scheduler or a terminal does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy import toy_settings, write_toy

from pipeline.model.folder import load_weights
from pipeline.stages.prepare import preprocess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_training_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    settings = toy_settings()
    preprocess(write_toy(tmp_path / "data", 4), tmp_path / "prepared", settings, jobs=1)
    config = tmp_path / "config.yaml"
    config.write_text(settings.model_dump_json())  # YAML holds JSON
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "train",
        tmp_path / "prepared",
        "-o",
        tmp_path / "m",
        "--config",
        config,
    ]
    many = ["--set", "train.epochs=1000", "--set", "train.iterations_per_epoch=100000"]
    running = subprocess.Popen([*command, *many], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = tmp_path / "m" / "fold_0"
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("events/*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        running.send_signal(number)
        began = time.monotonic()
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert time.monotonic() - began < 30  # seconds; machines that run tests are busy
    assert running.returncode == 128 + number, out + err
    assert err.strip().endswith("Interrupted. What was finished is kept: the same command goes on from there.")
    assert "Traceback" not in err
    assert load_weights(folder / "last.safetensors")
