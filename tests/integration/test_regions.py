"""The whole way with organs that overlap: a sigmoid each, painted into one label map, scored as unions of values."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from toy import toy_case, toy_settings, write_toy

from pipeline.config.settings import InferSettings
from pipeline.core.labels import LabelTable
from pipeline.data.check import check_dataset
from pipeline.data.layouts import open_dataset
from pipeline.data.volumes import read_label_map
from pipeline.infer.cleaning import Cleaning
from pipeline.model.folder import read_card
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import Predictor, predict
from pipeline.stages.prepare import preprocess
from pipeline.stages.report import report
from pipeline.stages.train import train

BOXES = LabelTable({1: "box_left", 2: "box_small"}, None, {"both": (1, 2), "small": (2,)})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_toy(tmp_path_factory.mktemp("regions"), 6)
    labels = {"1": "box_left", "2": "box_small", "regions": {"both": [1, 2], "small": [2]}}
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


@pytest.fixture(scope="module")
def model(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepared, out = tmp_path_factory.mktemp("prepared"), tmp_path_factory.mktemp("model")
    assert preprocess(dataset, prepared, toy_settings(), jobs=1).failed == ()
    result = train(prepared, out, toy_settings(), device="cpu")
    assert list(result.scores.dice) == ["both", "small"]
    assert (result.scores.mean_dice or 0) > 0.8
    return out


def test_the_check_counts_regions(dataset: Path) -> None:
    found = check_dataset(open_dataset(dataset))
    assert found.problems == ()
    assert found.summary["cases_with_organ"] == {"both": 6, "small": 6}


def test_the_network_has_a_channel_per_region(model: Path) -> None:
    card = read_card(model)
    assert card.network.out_channels == 2
    assert card.plan.label_table == BOXES


def test_predictions_are_scored_by_region(model: Path, tmp_path: Path) -> None:
    unseen, masks, scores = write_toy(tmp_path / "unseen", 3, first=6), tmp_path / "masks", tmp_path / "scores"
    assert predict(model, [unseen / "images"], masks, device="cpu").failed == ()
    assert LabelTable.from_json(json.loads((masks / "labels.json").read_text())) == BOXES
    summary = evaluate(masks, unseen, scores, jobs=1)  # finds the regions beside the masks
    assert {name: entry["label"] for name, entry in summary["organs"].items()} == {"both": "1+2", "small": 2}
    assert min(entry["dice"]["mean"] for entry in summary["organs"].values()) > 0.75
    with (scores / "scores.csv").open(newline="") as stream:
        rows = [(row["case"], row["label"], row["name"], row["status"]) for row in csv.DictReader(stream)]
    assert rows[:2] == [("toy_6", "1+2", "both", "scored"), ("toy_6", "2", "small", "scored")]
    first = read_label_map(masks / "toy_6.nii.gz").array
    reference = read_label_map(unseen / "labels" / "toy_6.nii.gz").array
    both = 2 * ((first > 0) & (reference > 0)).sum() / ((first > 0).sum() + (reference > 0).sum())
    with (scores / "scores.csv").open(newline="") as stream:
        assert float(next(csv.DictReader(stream))["dice"]) == pytest.approx(both, abs=1e-12)
    page = report(scores, tmp_path / "report.html", overlays=1).read_text()
    assert "both" in page
    assert "data:image/png;base64" in page


def test_a_region_is_cleaned_by_its_name(model: Path) -> None:
    predictor = Predictor.load(model, device="cpu", settings=InferSettings(keep_largest=("both",)))
    assert predictor.cleaning == Cleaning(keep_largest=("both",))
    image, _ = toy_case(7)
    cleaned, plain = predictor.predict(image).array, Predictor.load(model, device="cpu").predict(image).array
    assert 0 < (cleaned > 0).sum() <= (plain > 0).sum()
    np.testing.assert_array_equal(cleaned[cleaned > 0], plain[cleaned > 0])
