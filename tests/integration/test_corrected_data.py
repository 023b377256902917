"""A dataset that is corrected after a training: no old preparation and no old weights are taken for new ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy import toy_settings, write_toy

from pipeline.config.settings import Settings
from pipeline.core.errors import VolsegError
from pipeline.core.volume import LabelMap
from pipeline.data.prepared_cases import prepared_ids
from pipeline.data.volumes import read_label_map, write_label_map
from pipeline.stages.model_files import finished_as
from pipeline.stages.prepare import preprocess
from pipeline.stages.train import PlannedTraining, train
from pipeline.stages.train_folds import train_folds


def short() -> Settings:
    content = toy_settings().model_dump()
    content["sample"]["folds"] = 2
    content["train"].update(epochs=1, iterations_per_epoch=1, validate_every=1)
    return Settings.model_validate(content)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A dataset of three cases, prepared, with a model of fold 0."""
    write_toy(tmp_path / "data", 3)
    preprocess(tmp_path / "data", tmp_path / "p", short(), jobs=1)
    (tmp_path / "p" / "splits.json").write_text(
        json.dumps([{"train": ["toy_0"], "validation": ["toy_1"]}, {"train": ["toy_1"], "validation": ["toy_2"]}])
    )
    train(tmp_path / "p", tmp_path / "m", short(), device="cpu")
    return tmp_path


def test_corrected_labels_end_the_training_of_the_folds_that_have_them(trained: Path) -> None:
    weights = trained / "m" / "fold_0" / "model.safetensors"
    before = weights.read_bytes()
    for case in ("toy_2", "toy_1"):
        path = trained / "data" / "labels" / f"{case}.nii.gz"
        labels = read_label_map(path)
        swapped = np.array([0, 2, 1], np.uint8)[labels.array]
        write_label_map(LabelMap(swapped, labels.grid), path)
        batch = preprocess(trained / "data", trained / "p", short(), jobs=1)
        assert batch.done == (case,)
        if case == "toy_2":  # in no part of fold 0: the training goes on
            train(trained / "p", trained / "m", short(), device="cpu")
            assert weights.read_bytes() == before
    rule = r"fold_0/last\.safetensors: expected the cases this training began with, got some that were changed and "
    with pytest.raises(VolsegError, match=rule + r"prepared again since\. Choose another model folder, or begin anew"):
        train(trained / "p", trained / "m", short(), device="cpu")
    folds = train_folds(trained / "p", trained / "m", short(), devices=["cpu"]).folds
    assert [fold.status for fold in folds] == ["failed", "trained"]
    train(trained / "p", trained / "m", short(), device="cpu", restart=True)
    folds = train_folds(trained / "p", trained / "m", short(), devices=["cpu"]).folds
    assert [fold.status for fold in folds] == ["kept", "kept"]


def test_folds_of_older_versions_are_still_finished(trained: Path) -> None:
    note = trained / "m" / "fold_0" / "validation.json"
    content = json.loads(note.read_text())
    planned = PlannedTraining.of(trained / "p", trained / "m", short(), 0, None)
    assert content["training"] == planned.finished_hash
    note.write_text(json.dumps({**content, "training": content["training"].split("-")[0]}))
    assert finished_as(trained / "m", 0, planned.finished_hash)
    assert not finished_as(trained / "m", 0, f"{'0' * 16}-{'0' * 16}")


def test_a_case_that_left_the_dataset_is_no_longer_trained_on(trained: Path) -> None:
    for folder in ("images", "labels"):
        (trained / "data" / folder / "toy_1.nii.gz").unlink()
    batch = preprocess(trained / "data", trained / "p", short(), jobs=1)
    removed, splits = batch.notes[-2:]
    assert removed == f"{trained / 'p'}: removed 1 prepared case that the dataset no longer has, e.g. toy_1."
    assert "fold 0 validation: expected ids of cases in the dataset, got toy_1" in splits
    assert prepared_ids(trained / "p") == ("toy_0", "toy_2")
    assert not (trained / "p" / "cases" / "toy_1").exists()
    with pytest.raises(VolsegError, match="fold 0 validation: expected ids of cases in the dataset, got toy_1"):
        train(trained / "p", trained / "m", short(), device="cpu")


def test_only_cases_of_the_same_list_leave_with_it(tmp_path: Path) -> None:
    write_toy(tmp_path, 4)
    plan = tmp_path / "p" / "plan.yaml"

    def prepare(name: str, *numbers: int) -> tuple[str, ...]:
        rows = [{"image": f"images/toy_{n}.nii.gz", "label": f"labels/toy_{n}.nii.gz"} for n in numbers]
        labels = {"0": "background", "1": "box_left", "2": "box_small"}
        content = {"name": "toy", "labels": labels, "modality": {"0": "CT"}, "training": rows}
        (tmp_path / name).write_text(json.dumps(content))
        preprocess(tmp_path / name, tmp_path / "p", short(), jobs=1, plan=plan if plan.is_file() else None)
        return prepared_ids(tmp_path / "p")

    assert prepare("one.json", 0, 1) == ("toy_0", "toy_1")
    assert prepare("other.json", 2, 3) == ("toy_0", "toy_1", "toy_2", "toy_3")
    assert prepare("other.json", 1, 2) == ("toy_0", "toy_1", "toy_2")  # the first list still has toy_0
    (tmp_path / "images" / "toy_0.nii.gz").unlink()
    (tmp_path / "labels" / "toy_0.nii.gz").unlink()
    assert prepare("other.json", 1, 2) == ("toy_1", "toy_2")
