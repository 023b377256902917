"""The parts of benchmarks/accuracy.py that need no training: how long nnU-Net trains, what is said of structures."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module("accuracy")


def test_nnunet_gets_the_same_minutes_or_steps_of_the_same_time(accuracy: Any, tmp_path: Path) -> None:
    measured, own = tmp_path / "steps.json", accuracy.arm_name(Path("configs/nuclei.yaml"))
    assert own == "volseg, nuclei.yaml"
    minutes = accuracy.Length(2.5, None, measured)
    assert (minutes.name, minutes.peer_clock(own)) == ("2.5_minutes", {"seconds": 150.0})
    steps = accuracy.Length(2.5, 600, measured)
    assert (steps.name, steps.peer_clock(own)) == ("600_steps", {"steps": 600})  # nobody measured
    measured.write_text(json.dumps({own: 0.5, accuracy.PEER: 2.0}))
    assert steps.peer_clock(own) == {"steps": 150}
    assert steps.peer_clock(accuracy.arm_name(None)) == {"steps": 600}


def test_the_structures_at_either_end_are_named(accuracy: Any) -> None:
    cases = {
        "a": {"dice x_left": 0.5, "dice x_right": 0.9, "exchanged x_left": 0.02, "exchanged x_right": 0.0},
        "b": {"dice x_left": 0.7, "dice x_right": float("nan"), "exchanged x_left": 0.04, "exchanged x_right": 0.0},
    }
    assert accuracy.extremes("volseg, seed 0", cases) == [
        "volseg, seed 0, dice: x_left 0.600, x_right 0.900",
        "volseg, seed 0, exchanged: x_left 0.030, x_right 0.000",
    ]
    assert accuracy.extremes("nnU-Net, seed 0", {"a": {"iou": 0.5}}) == []
