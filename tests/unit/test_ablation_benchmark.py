"""The parts of benchmarks/ablation.py that need no training: steps of the same work, the table, the private variant."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.settings import AugmentSettings, SampleSettings
from pipeline.data.store import PreparedCase, class_voxels, write_prepared
from pipeline.sample.augment import PatchGeometry
from pipeline.train.loader import PatchSource

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module("ablation")


def test_variants_take_the_work_of_the_base(ablation: Any, tmp_path: Path) -> None:
    assert [ablation.steps_of(name, 600, tmp_path) for name in ("base", "batch_6")] == [600, 300]
    (tmp_path / "steps.json").write_text(json.dumps({"base": 0.3, "batch_6": 0.5, "nnunet_strengths": 0.4}))
    # As many as go into the same time; the clock of variants with the base's patches is noise.
    assert [ablation.steps_of(name, 600, tmp_path) for name in ("batch_6", "nnunet_strengths")] == [360, 600]


def test_the_table_has_means_and_differences_by_seed(
    ablation: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, means in {"base": (0.80, 0.90), "batch_6": (0.83, 0.91)}.items():
        for seed, mean in enumerate(means):
            (tmp_path / f"{name}_{seed}").mkdir()
            found = {"dice": {"Anterior": mean + 0.01, "Posterior": mean - 0.01, "mean": mean}, "steps": 100 + seed}
            (tmp_path / f"{name}_{seed}" / "result.json").write_text(json.dumps(found))
    ablation.table(tmp_path)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[0] == "| variant | seeds | steps | Anterior | Posterior | mean | mean against base |"
    assert rows[2].endswith("| 0, 1 | 100 | 0.8600 (0.0707) | 0.8400 (0.0707) | 0.8500 (0.0707) |  |")
    assert rows[3].endswith("| 0.8700 (0.0566) | +0.0200 (0.0141) |")
    assert len(rows) == 4


def test_without_surroundings_moved_patches_show_padding(
    ablation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = np.zeros((40, 40, 40), np.int8)
    label[20, 20, 20] = 1
    generator = np.random.default_rng(0)
    voxels = class_voxels(label, 5, generator)
    write_prepared(tmp_path, PreparedCase("a", np.ones((1, *label.shape), np.float32), label, voxels, {"group": None}))
    sample = SampleSettings(foreground_share=1.0)
    source = PatchSource(tmp_path, ["a"], (12, 12, 12), 4, sample, torch.device("cpu"))
    smaller = AugmentSettings(scale_p=1.0, scale=(0.6, 0.6), rotate_p=0.0, flip_axes=())
    geometry = PatchGeometry(("LR", "AP", "SI"), (1.0, 1.0, 1.0))
    padded: list[bool] = []

    def command(words: list[str]) -> None:
        assert words == ["train"]
        padded.append(bool((source.augmented(0, 0, smaller, geometry)[1] == -1).any()))

    monkeypatch.setattr(PatchSource, "changed", PatchSource.changed)  # put back as it is
    monkeypatch.setattr("pipeline.__main__.main", command)
    command(["train"])
    ablation.move_within_patches(["train"])
    assert padded == [False, True]
