"""Cleaning as a value: its order, its union with another, its file."""

import json

import numpy as np
import pytest

from pipeline.config import InferSettings
from pipeline.core.errors import VolsegError
from pipeline.core.labels import LabelTable
from pipeline.infer.cleaning import Cleaning, read_cleaning

TABLE = LabelTable({10: "a", 20: "b"})


def test_volumes_are_turned_into_voxels():
    row = np.array([1, 1, 1, 0, 1, 1, 0, 1], np.uint8).reshape(-1, 1, 1)  # 3, 2 and 1 voxels
    for least_ml, left in ((0.2, 5), (0.3, 3), (0.30001, 0)):  # of voxels of 0.1 ml
        cleaned = Cleaning(remove_small_ml={"a": least_ml}).apply(row, TABLE, 0.1)
        assert cleaned.sum() == left
        assert cleaned.dtype == np.uint8


def test_steps_follow_one_another():
    label = np.zeros((9, 5, 1), np.uint8)
    label[0:3, 0:3, 0] = 2
    label[1, 1, 0] = 0
    label[5:9, 0, 0] = 2
    cleaned = Cleaning(("b",), {}, ("b",)).apply(label, TABLE, 1.0)
    assert cleaned[0:3, 0:3, 0].all()
    assert not cleaned[5:].any()
    nothing = Cleaning(("b",), {"b": 9.0}, ("b",)).apply(label, TABLE, 1.0)  # the ring has 8 voxels
    assert not nothing.any()
    assert Cleaning().apply(label, TABLE, 1.0) is label


def test_two_are_joined():
    one, other = Cleaning(("a",), {"a": 1.0, "b": 3.0}), Cleaning(("b", "a"), {"b": 2.0}, ("b",))
    assert one | other == Cleaning(("a", "b"), {"a": 1.0, "b": 3.0}, ("b",))
    assert (bool(Cleaning()), bool(one)) == (False, True)
    assert (one | other).names() == ("a", "b")


def test_settings_ask_for_it():
    settings = InferSettings(keep_largest=("a",), remove_small_ml={"b": 0.5}, fill_holes=("b",))
    assert Cleaning.of(settings) == Cleaning(("a",), {"b": 0.5}, ("b",))
    assert Cleaning.of(InferSettings()) == Cleaning()


def test_a_model_folder_may_hold_one(tmp_path):
    assert read_cleaning(tmp_path, TABLE) == Cleaning()
    found = Cleaning(("a",), {"b": 0.5}, ("b",))
    (tmp_path / "postprocessing.json").write_text(json.dumps({"kept": found.to_json()}))
    assert read_cleaning(tmp_path, TABLE) == found
    (tmp_path / "postprocessing.json").write_text(json.dumps({"kept": Cleaning(("liver",)).to_json()}))
    with pytest.raises(VolsegError, match=r"post-processing: expected organs of the model \(a, b\), got liver"):
        read_cleaning(tmp_path, TABLE)
    for damaged in ("[]", '{"kept": {}}', '{"kept": {"keep_largest": [], "fill_holes": [], "remove_small_ml": []}}'):
        (tmp_path / "postprocessing.json").write_text(damaged)
        with pytest.raises(VolsegError, match=r"or delete it"):
            read_cleaning(tmp_path, TABLE)
