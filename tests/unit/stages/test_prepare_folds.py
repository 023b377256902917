"""What ``volseg preprocess`` writes to ``splits.json`` where a dataset fixes its folds, and what it says of organs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy import write_toy

from pipeline.config.settings import PreprocessSettings, Settings
from pipeline.core.errors import DataError
from pipeline.core.volume import LabelMap
from pipeline.data.volumes import read_label_map, write_label_map
from pipeline.stages.prepare import preprocess

LABELS = {"labels": {"1": "box_left", "2": "box_small"}}


def describe(folder: Path, folds: list[int | None], **more: object) -> Path:
    rows = [
        {"image": f"images/toy_{n}.nii.gz", "label": f"labels/toy_{n}.nii.gz", "fold": fold, "group": f"p{n // 2}"}
        for n, fold in enumerate(folds)
    ]
    (folder / "dataset.json").write_text(json.dumps({**LABELS, "training": rows, **more}))
    return folder


def test_folds_of_the_dataset_become_the_splits(tmp_path: Path) -> None:
    data, out = describe(write_toy(tmp_path / "data", 5), [0, 0, 1, 1, None], numTraining=9), tmp_path / "prepared"
    (note, second) = preprocess(data, out, Settings(), jobs=1).notes
    assert note.startswith(f"{data / 'labels.json'}: not read, because dataset.json has labels.")
    assert second.startswith(f"{data / 'dataset.json'}: numTraining: expected the number of cases, 5, got 9.")
    written = json.loads((out / "splits.json").read_text())
    assert written == [
        {"train": ["toy_2", "toy_3", "toy_4"], "validation": ["toy_0", "toy_1"]},
        {"train": ["toy_0", "toy_1", "toy_4"], "validation": ["toy_2", "toy_3"]},
    ]
    (out / "splits.json").write_text(json.dumps(written[:1]))
    kept = preprocess(data, out, Settings(), jobs=1).notes[-1]
    assert kept == f"{out / 'splits.json'}: kept with its 1 folds. Delete it to draw 2 new ones."
    (out / "splits.json").write_text(json.dumps([{"train": ["toy_1"], "validation": ["toy_0"]}]))
    kept = preprocess(data, out, Settings(), jobs=1).notes[-1]
    assert kept == f"{out / 'splits.json'}: kept, although the dataset fixes another split. Delete it to take that one."


def test_folds_that_part_a_patient_are_refused_before_any_work(tmp_path: Path) -> None:
    data = describe(write_toy(tmp_path / "data", 4), [0, 1, 0, 1])
    with pytest.raises(DataError) as caught:
        preprocess(data, tmp_path / "prepared", Settings(), jobs=1)
    rule = "expected no group (patient) in both train and validation, got p0, p1. Move all of its cases to one side."
    assert str(caught.value).splitlines() == [f"fold 0: {rule}", f"fold 1: {rule}"]
    assert not (tmp_path / "prepared").exists()


def test_an_organ_without_a_voxel_at_the_target_spacing_is_told(tmp_path: Path) -> None:
    data, out = write_toy(tmp_path / "data", 3), tmp_path / "prepared"
    labels = read_label_map(data / "labels" / "toy_1.nii.gz")
    array = np.where(labels.array == 2, 0, labels.array)
    array[(0,) * 3] = 2  # one voxel of 2 x 1.5 x 2.5 mm in a corner
    write_label_map(LabelMap(array, labels.grid), data / "labels" / "toy_1.nii.gz")
    settings = Settings(preprocess=PreprocessSettings(spacing_mm=(5, 5, 5)))
    told = "box_small: expected voxels at 5 x 5 x 5 mm, got none in 1 of its cases, e.g. toy_1."
    for _ in ("prepared", "kept"):
        (note,) = preprocess(data, out, settings, jobs=1).notes
        assert note.startswith(told)
    settings = Settings(preprocess=PreprocessSettings(spacing_mm=(2, 1.5, 2.5)))
    assert not preprocess(data, out, settings, jobs=1).notes
