"""The parts of benchmarks/seeds.py that need no training: equal times, tables of networks and of levels, the plot."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module("seeds")


def test_networks_get_steps_of_the_same_time(seeds: Any, tmp_path: Path) -> None:
    tasks = {name: seeds.Task.of(name, "nuclei", 3, tmp_path / "common.yaml") for name in seeds.NETWORKS}
    plain, nested, own = (tasks[name] for name in ("unet", "unetpp", "unet2015, its recipe"))
    # A padded network sees what it labels; one of valid convolutions sees 92 pixels more on every side.
    assert (plain.patch, plain.pixels, plain.batch) == (128, 8 * 128**2, 8)
    assert (tasks["unet2015"].patch, tasks["unet2015"].pixels) == (316, 8 * 132**2)
    assert own.parameters == 31_031_810  # the published width, three channels
    assert (own.patch, own.batch) == (316, 1)
    assert own.keys == ("augment.elastic_grid_voxels=157.5", "sample.patch_size=[316, 316]")
    steps = seeds.steps_of("unetpp", tasks, 600, tmp_path / "steps.json")
    assert steps == round(600 * plain.multiply_adds / nested.multiply_adds) == 244
    (tmp_path / "steps.json").write_text(json.dumps({"unet": 0.5, "unetpp": 1.5}))
    assert seeds.steps_of("unetpp", tasks, 600, tmp_path / "steps.json") == 200


def test_tables_and_plot_of_networks_and_of_levels(seeds: Any, tmp_path: Path) -> None:
    def part(iou: float, **more: Any) -> dict[str, Any]:
        cases = {case: {"iou": iou, "dice": iou + 0.05} for case in ("a", "b")}
        return {"parameters": 2000, "multiply_adds": 5e9, "steps": 7, "cases": cases, **more}

    levels = {"L1": part(0.6, seconds_per_case=0.1), "mean of the heads": part(0.7, seconds_per_case=0.4)}
    runs = {
        "unet": {0: {0: part(0.5)}, 1: {0: part(0.6)}},
        seeds.SUPERVISED: {0: {0: part(0.8, levels=levels)}},
    }
    costs = {"parameters": ("parameters", ",.0f", 1.0), "multiply_adds": ("G", ".1f", 1e9)}
    lines = seeds.table(runs, "images", costs, "IoU").splitlines()
    assert lines[0] == "| network | parameters | G | seeds | IoU | Dice |"
    assert lines[2:] == [
        f"| {seeds.SUPERVISED} | 2,000 | 5.0 | 1 | 0.8000 | 0.8500 |",
        "| unet | 2,000 | 5.0 | 2 | 0.5500 (0.0707) | 0.6000 (0.0707) |",
    ]
    cut = seeds.level_runs(runs)
    assert seeds.table(cut, "images", costs, None).splitlines()[2:] == [
        "| L1 | 2,000 | 5.0 | 1 | 0.6000 | 0.6500 |",
        "| mean of the heads | 2,000 | 5.0 | 1 | 0.7000 | 0.7500 |",
    ]
    seeds.plot(runs, "images", "IoU", tmp_path / "seeds.png")
    assert (tmp_path / "seeds.png").read_bytes().startswith(b"\x89PNG")
