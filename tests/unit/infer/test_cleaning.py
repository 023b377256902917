"""Cleaning as a value: its order, its union with another, its file."""

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline.config.settings import InferSettings
from pipeline.core.errors import VolsegError
from pipeline.core.grid import Box
from pipeline.core.labels import LabelTable
from pipeline.infer.cleaning import (
    Cleaning,
    classes_with,
    connected_pieces,
    fill_holes,
    keep_largest,
    label_boxes,
    read_cleaning,
    remove_small,
)

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


CLEANED_TABLE = LabelTable({1: "a", 2: "b", 3: "c"})
TUMOUR = LabelTable({1: "necrosis", 2: "edema", 3: "enhancing"}, None, {"whole": (1, 2, 3), "core": (1, 3), "et": (3,)})


def _label():
    label = np.zeros((8, 8, 8), dtype=np.uint8)
    label[0:2, 0:2, 0:2] = 1  # 8 voxels
    label[5:8, 5:8, 5:8] = 1  # 27 voxels
    label[4, 0, 0:3] = 2
    label[6, 0, 0] = 2
    return label


def _row(*values):
    return np.array(values, dtype=np.int16).reshape(-1, 1, 1)


def test_smaller_components_of_the_named_organs_become_background():
    label = _label()
    cleaned = keep_largest(label, [CLEANED_TABLE.without("a")])
    assert (cleaned == 1).sum() == 27
    assert (cleaned[0:2, 0:2, 0:2] == 0).all()
    assert (cleaned == 2).sum() == 4
    assert label[0, 0, 0] == 1
    assert cleaned.dtype == np.uint8
    assert (keep_largest(label, [CLEANED_TABLE.without("a"), CLEANED_TABLE.without("b")]) == 2).sum() == 3


def test_a_connected_region_of_several_classes_stays_whole():
    chain = LabelTable({1: "x", 2: "y", 3: "z"}, None, {"A": (1, 2), "B": (2, 3), "C": (3,)})
    row = _row(1, 0, 2, 2, 2, 0, 1, 1, 1)
    assert keep_largest(row, [chain.without("A")]).ravel().tolist() == [0, 0, 2, 2, 2, 0, 0, 0, 0]
    joined = _row(1, 0, 2, 2, 1, 1, 1, 3)
    assert keep_largest(joined, [chain.without("A")]).ravel().tolist() == [0, 0, 2, 2, 1, 1, 1, 3]


def test_no_organs_and_absent_organs_change_nothing():
    label = _label()
    for without in ([], [CLEANED_TABLE.without("c"), (0, 1, 2, 3, 4, 0)]):
        cleaned = keep_largest(label, without)
        np.testing.assert_array_equal(cleaned, label)
        assert cleaned is not label


def test_another_class_inside_a_box_is_kept():
    assert keep_largest(_row(1, 1, 0, 2, 0, 1), [CLEANED_TABLE.without("a")]).ravel().tolist() == [1, 1, 0, 2, 0, 0]


def test_a_region_is_one_component_whatever_its_values():
    row = _row(2, 1, 3, 2, 0, 2, 3, 0, 1)
    cleaned = keep_largest(row, [TUMOUR.without("whole")])
    assert cleaned.ravel().tolist() == [2, 1, 3, 2, 0, 0, 0, 0, 0]


def test_a_region_leaves_the_one_around_it():
    row = _row(2, 1, 3, 2, 3, 1, 2, 3, 2, 0, 1)
    expected = [2, 1, 3, 2, 2, 2, 2, 2, 2, 0, 2]
    assert keep_largest(row, [TUMOUR.without("core")]).ravel().tolist() == expected
    both = keep_largest(row, [TUMOUR.without("core"), TUMOUR.without("whole")])
    assert both.ravel().tolist() == [*expected[:-1], 0]  # the edema that the core left is part of the whole


@pytest.mark.parametrize(("offset", "joined_from"), [((1, 0, 0), 6), ((1, 1, 0), 18), ((1, 1, 1), 26)])
def test_connectivity_decides_what_is_joined(offset, joined_from):
    label = np.zeros((3, 3, 3), dtype=np.uint8)
    label[0, 0, 0] = label[offset] = 1
    for connectivity in (6, 18, 26):
        kept = keep_largest(label, [CLEANED_TABLE.without("a")], connectivity)
        assert kept.sum() == (2 if connectivity >= joined_from else 1)


def test_of_equal_components_the_first_stays():
    assert keep_largest(_row(0, 3, 0, 3), [CLEANED_TABLE.without("c")]).ravel().tolist() == [0, 3, 0, 0]


def test_unknown_connectivity_is_refused():
    with pytest.raises(ValueError, match="connectivity: expected 6, 18 or 26, got 8"):
        keep_largest(_label(), [CLEANED_TABLE.without("a")], 8)


def _box(organ, size=7, hole=None):
    """An organ of size³ voxels in the middle of a volume, a hole of hole³ voxels in its middle."""
    label = np.zeros((size + 4,) * 3, dtype=np.uint8)
    label[2:-2, 2:-2, 2:-2] = organ
    if hole:
        a = 2 + (size - hole) // 2
        label[a : a + hole, a : a + hole, a : a + hole] = 0
    return label


def _filling(table, *names):
    return [(table.without(name), classes_with(table, name)) for name in names]


def test_components_below_a_size_go_and_those_of_it_stay():
    label = _label()  # organ a: 8 and 27 voxels, organ b: 3 and 1
    assert (remove_small(label, [(CLEANED_TABLE.without("a"), 8)]) == 1).sum() == 35
    assert (remove_small(label, [(CLEANED_TABLE.without("a"), 9)]) == 1).sum() == 27
    both = remove_small(label, [(CLEANED_TABLE.without("a"), 28), (CLEANED_TABLE.without("b"), 2)])
    assert ((both == 1).sum(), (both == 2).sum()) == (0, 3)
    assert label[0, 0, 0] == 1
    assert both.dtype == np.uint8


def test_a_small_part_of_a_region_leaves_the_one_around_it():
    row = _row(2, 1, 3, 2, 3, 1, 2, 3, 2, 0, 1)  # cores of 2, 2, 1 and 1 voxels
    expected = [2, 1, 3, 2, 3, 1, 2, 2, 2, 0, 2]
    assert remove_small(row, [(TUMOUR.without("core"), 2)]).ravel().tolist() == expected
    assert remove_small(row, [(TUMOUR.without("whole"), 2)]).ravel().tolist() == [*row.ravel()[:-1].tolist(), 0]


def test_absent_and_taken_away_organs_are_skipped():
    row = _row(1, 0, 3)
    assert remove_small(row, [(CLEANED_TABLE.without("b"), 9)]).ravel().tolist() == [1, 0, 3]
    twice = remove_small(row, [(CLEANED_TABLE.without("a"), 9), (CLEANED_TABLE.without("a"), 9)])
    assert twice.ravel().tolist() == [0, 0, 3]
    assert keep_largest(twice, [CLEANED_TABLE.without("a")]).ravel().tolist() == [0, 0, 3]


def test_a_hole_is_filled_and_an_opening_is_not():
    closed, open_ = _box(1, hole=3), _box(1, hole=3)
    open_[5, 5, 0:5] = 0  # a way out, one voxel wide
    assert (fill_holes(closed, _filling(CLEANED_TABLE, "a")) == 1).sum() == 343
    np.testing.assert_array_equal(fill_holes(open_, _filling(CLEANED_TABLE, "a")), open_)
    assert (closed == 1).sum() == 343 - 27


def test_a_diagonal_gap_is_no_way_out():
    ring = np.zeros((5, 5, 1), np.uint8)
    ring[1, 2, 0] = ring[2, 1, 0] = ring[2, 3, 0] = ring[3, 2, 0] = 2
    assert fill_holes(ring, _filling(CLEANED_TABLE, "b"))[2, 2, 0] == 2


def test_other_organs_in_a_hole_stay():
    label = _box(1, hole=3)
    label[5, 5, 5] = 2
    filled = fill_holes(label, _filling(CLEANED_TABLE, "a"))
    assert ((filled == 1).sum(), (filled == 2).sum()) == (342, 1)


def test_a_volume_of_one_slice_is_filled_within_it():
    ring = np.zeros((6, 6, 1), np.uint8)
    ring[1:5, 1:5] = 1
    ring[2:4, 2:4] = 0
    assert (fill_holes(ring, _filling(CLEANED_TABLE, "a")) == 1).sum() == 16
    for order in ((2, 0, 1), (0, 2, 1)):
        turned = ring.transpose(order)
        np.testing.assert_array_equal(
            fill_holes(turned, _filling(CLEANED_TABLE, "a")), np.where(turned, turned, 0) | _square(turned)
        )
    thick = np.concatenate([np.zeros_like(ring), ring, np.zeros_like(ring)], axis=2)
    np.testing.assert_array_equal(fill_holes(thick, _filling(CLEANED_TABLE, "a")), thick)  # open above and below


def _square(turned):
    whole = np.zeros((6, 6, 1), np.uint8)
    whole[1:5, 1:5] = 1
    return np.moveaxis(whole, 2, turned.shape.index(1)) if turned.shape[2] != 1 else whole


def test_what_touches_the_border_is_no_hole():
    label = np.ones((3, 3, 3), np.uint8)
    label[0, 1, 1] = 0
    np.testing.assert_array_equal(fill_holes(label, _filling(CLEANED_TABLE, "a")), label)
    label[0, 1, 1], label[1, 1, 1] = 1, 0
    assert fill_holes(label, _filling(CLEANED_TABLE, "a")).all()


def test_a_hole_in_a_region_becomes_what_lies_in_it_too():
    label = _box(1, hole=3)  # a shell of necrosis, which is core and whole
    label[4, 4, 4] = 2  # edema: whole, not core
    label[5, 5, 5] = 3
    core = fill_holes(label, _filling(TUMOUR, "core"))
    assert ((core == 1).sum(), (core == 2).sum(), (core == 3).sum()) == (342, 0, 1)
    whole = fill_holes(label, _filling(TUMOUR, "whole"))
    assert ((whole == 1).sum(), (whole == 2).sum(), (whole == 3).sum()) == (316, 26, 1)


def test_a_filled_region_is_seen_by_the_next_one():
    table = LabelTable({1: "x", 2: "y"}, None, {"outer": (1, 2), "inner": (2,)})
    label = _box(2, size=3, hole=1)
    filled = fill_holes(label, _filling(table, "inner", "outer"))
    assert (filled == 2).sum() == 27
    small = _row(1, 1, 0)
    assert fill_holes(small, _filling(table, "outer")).ravel().tolist() == [1, 1, 0]


def test_what_is_added_to_a_class():
    assert classes_with(CLEANED_TABLE, "b") == (2, 1, 2, 3)
    assert classes_with(TUMOUR, "whole") == (2, 1, 2, 3)
    assert classes_with(TUMOUR, "core") == (1, 1, 1, 3)
    assert classes_with(TUMOUR, "et") == (3, 3, 3, 3)
    crossing = LabelTable({1: "l", 2: "r", 3: "both"}, None, {"left": (1, 3), "right": (2, 3)})
    assert classes_with(crossing, "left") == (1, 1, 3, 3)
    apart = LabelTable({1: "l", 2: "r"}, None, {"left": (1,), "right": (2,)})
    assert classes_with(apart, "left") == (1, 1, 2)  # no value is both
    with pytest.raises(KeyError):
        classes_with(CLEANED_TABLE, "z")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_large_volumes_in_pieces_give_what_one_piece_gives(seed, connectivity, monkeypatch):
    generator = np.random.default_rng(seed)
    smooth = gaussian_filter(generator.normal(size=(40, 33, 50)), 2.0)
    label = np.digitize(smooth, np.quantile(smooth, [0.8, 0.93])).astype(np.uint8)  # blobs, many with holes
    label[generator.random(label.shape) < 0.02] = 0
    label[generator.random(label.shape) < 0.0005] = 2
    rules = [CLEANED_TABLE.without("a"), CLEANED_TABLE.without("b")]
    calls = (
        lambda: keep_largest(label, rules, connectivity),
        lambda: remove_small(label, [(rule, 7) for rule in rules], connectivity),
        lambda: fill_holes(label, _filling(CLEANED_TABLE, "b", "a")),
    )
    whole = [call() for call in calls]
    monkeypatch.setattr("pipeline.infer.cleaning._SMALL", 0)
    monkeypatch.setattr("pipeline.infer.cleaning._BLOCK", 4)
    assert len(connected_pieces(label == 2)) > 1
    for call, expected in zip(calls, whole, strict=True):
        assert (expected != label).any()
        np.testing.assert_array_equal(call(), expected)


def test_of_equal_components_in_different_pieces_the_first_stays(monkeypatch):
    monkeypatch.setattr("pipeline.infer.cleaning._SMALL", 0)
    label = np.zeros((20, 60, 60), np.uint8)
    label[3, 50, 5] = label[2, 55, 50] = label[5, 5, 5] = 1  # blocks are numbered otherwise than voxels
    kept = keep_largest(label, [CLEANED_TABLE.without("a")])
    assert np.argwhere(kept).tolist() == [[2, 55, 50]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_lines_of_voxels_are_cleaned_like_any_organ(axis):
    generator = np.random.default_rng(axis)
    for length in range(1, 12):  # cc3d refuses some of these with 26 neighbours
        line = generator.random(length) < 0.7
        label = np.moveaxis(line.astype(np.uint8).reshape(-1, 1, 1), 0, axis)
        runs = "".join("x" if voxel else " " for voxel in line).split()
        kept = keep_largest(label, [CLEANED_TABLE.without("a")])
        assert kept.sum() == max(map(len, runs), default=0)
        assert sum(len(piece.sizes) for piece in connected_pieces(label == 1)) == len(runs)


def test_boxes_of_labels():
    label = np.zeros((3, 1, 2), np.uint16)
    label[0, 0, 1] = label[2, 0, 0] = 300
    label[1, 0, 1] = 2
    assert label_boxes(label) == {2: Box((1, 0, 1), (2, 1, 2)), 300: Box((0, 0, 0), (3, 1, 2))}
    assert label_boxes(np.zeros((2, 2, 2), np.uint8)) == {}
