"""Colour pictures with overlapping regions and a split of their own, from the folder to the scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.yaml_file import load_settings
from pipeline.console.printing import plan_lines
from pipeline.core.errors import DataError
from pipeline.data.layouts import open_dataset
from pipeline.data.volumes import read_grid, read_label_map
from pipeline.model.folder import read_card
from pipeline.phantom.fundus import write_fundus
from pipeline.preprocess.plan_file import read_plan
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import predict
from pipeline.stages.prepare import check, preprocess
from pipeline.stages.preview import preview
from pipeline.stages.train import train
from pipeline.stages.tune import trial
from pipeline.train.state import Callbacks

RECIPE = Path(__file__).parents[2] / "configs" / "drishti.yaml"
SMALL = (
    "preprocess.shape=[32, 32, 1]",
    "sample.patch_size=[32, 32]",
    "model.options={features: [4, 8]}",
    "train.epochs=2",
    "train.validate_every=1",
)


def test_from_photographs_to_scores_of_disc_and_cup(tmp_path: Path) -> None:
    eyes = write_fundus(tmp_path / "eyes", cases=2, tests=2)
    assert check(eyes, jobs=1).exit_code == 0
    settings = load_settings(RECIPE, SMALL)
    prepared = tmp_path / "prepared"
    assert preprocess(eyes, prepared, settings, jobs=1).exit_code == 0
    assert json.loads((prepared / "splits.json").read_text()) == [
        {"train": ["fundus_000", "fundus_001"], "validation": ["fundus_500", "fundus_501"]}
    ]
    plan = read_plan(prepared / "plan.yaml")
    assert (plan.shape, plan.slice_axis, plan.channels) == ((32, 32, 1), 2, ("R", "G", "B"))

    result = train(prepared, tmp_path / "model", settings, device="cpu")
    assert set(result.scores.dice) == {"disc", "cup"}

    masks = tmp_path / "masks"
    images = eyes / "Test" / "Images"
    assert predict(tmp_path / "model", [images], masks, device="cpu").done == ("fundus_500", "fundus_501")
    mask = read_label_map(masks / "fundus_500.png")
    assert mask.grid == read_grid(masks / "fundus_500.png")
    assert mask.grid.shape == (512, 384, 1)
    assert set(mask.values()) <= {0, 1, 2}

    summary = evaluate(masks, eyes, tmp_path / "scores", jobs=1)
    assert set(summary["organs"]) == {"disc", "cup"}
    assert summary["overall"]["n_cases"] == 2  # the training cases were not predicted, and do not count
    (eyes / "Test" / "Images" / "fundus_501.png").rename(tmp_path / "away.png")
    maps = eyes / "Test" / "Test_GT" / "fundus_501"
    maps.rename(tmp_path / "fundus_501")  # what an earlier evaluation wrote does not count as missed
    assert evaluate(masks, eyes, tmp_path / "scores", jobs=1)["overall"]["n_cases"] == 1
    written = read_label_map(tmp_path / "scores" / "references" / "fundus_500.png")
    np.testing.assert_array_equal(np.unique(written.array), [0, 1, 2])


def test_pictures_train_a_2d_network_without_being_told(tmp_path: Path) -> None:
    eyes, prepared = write_fundus(tmp_path / "eyes", cases=2, tests=1), tmp_path / "prepared"
    keys = ("preprocess.shape=[32, 32, 1]", "model.options={features: [4, 8]}")
    settings = load_settings(None, [*keys, "train.epochs=1", "train.iterations_per_epoch=2"])
    preprocess(eyes, prepared, settings, jobs=1)
    assert [line for line in plan_lines(read_plan(prepared / "plan.yaml")) if "patch" in line] == [
        "2D patch 32 x 32, batch 2"
    ]
    lines: list[str] = []
    train(prepared, tmp_path / "model", settings, device="cpu", callbacks=Callbacks(log=lines.append))
    assert "auto: model.dims 2: the cases are single slices" in lines
    card = read_card(tmp_path / "model")
    assert (card.network.dims, card.network.patch_size, card.settings.model.dims) == (2, (32, 32), 2)
    assert predict(tmp_path / "model", [eyes / "Test" / "Images"], tmp_path / "masks", device="cpu").exit_code == 0
    assert preview(prepared, tmp_path / "patches.png", settings, patches=1).path.is_file()
    assert trial(prepared, settings, "cpu").network == "unet 2D"


def test_a_split_that_the_user_changed_is_kept_and_named(tmp_path: Path) -> None:
    eyes = write_fundus(tmp_path / "eyes", cases=2, tests=1)
    settings, out = load_settings(RECIPE, SMALL), tmp_path / "prepared"
    preprocess(eyes, out, settings, jobs=1)
    mine = [{"train": ["fundus_000", "fundus_500"], "validation": ["fundus_001"]}]
    (out / "splits.json").write_text(json.dumps(mine))
    batch = preprocess(eyes, out, settings, jobs=1)
    assert json.loads((out / "splits.json").read_text()) == mine
    assert batch.notes == (
        f"{out / 'splits.json'}: kept, although the dataset fixes another split. Delete it to take that one.",
    )
    case = open_dataset(eyes).cases[2]
    case.files[1].unlink()  # the only case that validates cannot be used
    (out / "splits.json").unlink()
    message = r"^split validation: expected at least one case, got none\. Move a case there\.$"
    with pytest.raises(DataError, match=message):
        preprocess(eyes, out, settings, jobs=1)
