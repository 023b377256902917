"""The demo with a handful of steps: every file it promises, in the form it promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt

from pipeline.config.yaml_file import load_settings
from pipeline.stages.demo import DEMO_SETTINGS, run_demo
from pipeline.train.state import Callbacks

QUICK = (
    "preprocess.spacing_mm=[10, 10, 10]",
    "sample.patch_size=[24, 24, 24]",
    "sample.folds=2",
    "model.options={features: [4, 8, 16], norm: instance}",
    "train.budget=null",
    "train.epochs=1",
    "train.iterations_per_epoch=5",
)


def test_the_demo_leaves_scores_report_and_masks(tmp_path: Path) -> None:
    said: list[str] = []
    scores = run_demo(
        tmp_path,
        load_settings(DEMO_SETTINGS, QUICK),
        cases=3,
        tests=1,
        device="cpu",
        callbacks=Callbacks(log=said.append),
    )
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written == scores
    assert written["cases"] == 1
    assert {"liver", "kidney_left", "kidney_right", "gallbladder"} <= set(written["organs"])
    assert all(0 <= entry["dice"] <= 1 for entry in written["organs"].values() if entry["dice"] is not None)
    assert 0 <= written["mean_dice"] <= 1
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert [line[:3] for line in said if "/7" in line] == ["1/7", "2/7", "3/7", "4/7", "5/7", "6/7", "7/7"]
    picture = tmp_path / "hippocampus.png"
    # The picture comes before the first phantom.
    words = re.escape(f"Look at {picture}: outlines are the reference, mean Dice ")
    found = re.fullmatch(rf"{words}(0\.\d{{3}})", said[1])
    assert found is not None
    assert float(found[1]) > 0.85
    assert plt.imread(picture).shape[1] > 1000
    assert [path.name for path in (tmp_path / "hippocampus").glob("*.nii.gz")] == ["hippocampus_149.nii.gz"]
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 1
