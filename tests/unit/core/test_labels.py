from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.labels import IGNORE_INDEX, LabelTable, keep_values, select_organs

TORSO = LabelTable({7: "spleen", 2: "liver", 40: "aorta"}, ignore_label=255)


def test_classes_follow_the_label_values() -> None:
    assert TORSO.values == (2, 7, 40)
    assert TORSO.organs == ("liver", "spleen", "aorta")
    assert TORSO.classes == 4
    assert TORSO.value_of("spleen") == 7


def test_to_index_by_hand() -> None:
    values = np.array([[0, 2, 7], [40, 255, 2]], dtype=np.uint8)
    index = TORSO.to_index(values)
    np.testing.assert_array_equal(index, [[0, 1, 2], [3, IGNORE_INDEX, 1]])
    assert index.dtype == np.int8


def test_from_index_is_the_inverse_ignored_voxels_included() -> None:
    values = np.array([[0, 2, 7], [40, 255, 2]], dtype=np.int32)
    back = TORSO.from_index(TORSO.to_index(values))
    np.testing.assert_array_equal(back, values)
    assert back.dtype == np.uint8


def test_from_index_takes_the_smallest_unsigned_type() -> None:
    assert LabelTable({255: "a"}).from_index(np.array([1])).dtype == np.uint8
    assert LabelTable({256: "a"}).from_index(np.array([1])).dtype == np.uint16
    assert LabelTable({70_000: "a"}).from_index(np.array([1])).dtype == np.uint32


@pytest.mark.parametrize("wrong", [-1, 2, -2])
def test_from_index_refuses_classes_outside_the_table(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"class index: expected 0 to 1, got {min(wrong, 0)} to {max(wrong, 0)}"):
        LabelTable({1: "a"}).from_index(np.array([0, wrong]))


def test_values_far_apart_and_negative_ignore_labels_work() -> None:
    atlas = LabelTable({614_454_277: "nucleus", 3: "cortex"})
    values = np.array([[3, 0], [614_454_277, 3]])
    np.testing.assert_array_equal(atlas.to_index(values), [[1, 0], [2, 1]])
    np.testing.assert_array_equal(atlas.from_index(atlas.to_index(values)), values)
    partial = LabelTable({1: "a"}, ignore_label=-1)
    np.testing.assert_array_equal(partial.to_index(np.array([-1, 0, 1], dtype=np.int16)), [IGNORE_INDEX, 0, 1])
    np.testing.assert_array_equal(partial.to_index(np.array([0, 1], dtype=np.uint8)), [0, 1])


def test_empty_arrays_stay_empty() -> None:
    assert TORSO.to_index(np.zeros((0, 3), dtype=np.uint8)).shape == (0, 3)
    assert TORSO.from_index(np.zeros((0, 3), dtype=np.int8)).shape == (0, 3)


@pytest.mark.parametrize("unknown", [[3], [3, 300], [-4, 3]])
def test_unknown_values_are_named(unknown: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected only 0 and those of the label table \(2, 7, 40\), got ") as caught:
        TORSO.to_index(np.array([0, 2, *unknown, 255]))
    assert f"got {unknown}. Add them to the table or remap them." in str(caught.value)
    assert TORSO.unknown([0, 2, 255, *unknown]) == tuple(unknown)


def test_more_than_127_classes_need_int16() -> None:
    table = LabelTable({value: f"organ {value}" for value in range(1, 201)})
    values = np.arange(201, dtype=np.uint8)
    index = table.to_index(values)
    assert index.dtype == np.int16
    np.testing.assert_array_equal(index, np.arange(201))
    np.testing.assert_array_equal(table.from_index(index), values)
    assert LabelTable({value: f"organ {value}" for value in range(1, 127)}).to_index(values[:127]).dtype == np.int8
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …, 200\), got \[201\]"):
        table.to_index(np.array([201]))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("kidney_left", "kidney_right"),
        ("Left Lung", "Right Lung"),
        ("l_femur", "r_femur"),
        ("hip-L", "hip-R"),
        ("LeftKidney", "RightKidney"),
        ("rib_left_3", "rib_right_3"),
        ("Lt. optic nerve", "Rt. optic nerve"),
        ("Ren (sin)", "Ren (dex)"),
    ],
)
def test_sides_are_found_in_many_styles_of_names(left: str, right: str) -> None:
    assert LabelTable({1: right, 5: "liver", 9: left}).side_pairs() == ((3, 1),)


def test_only_true_twins_are_pairs() -> None:
    assert (
        LabelTable({1: "kidney_left", 2: "lung_right", 3: "left", 4: "vertebra_L1", 5: "leftover"}).side_pairs() == ()
    )
    assert LabelTable({1: "a_left", 2: "b_right", 3: "b_left", 4: "a_right"}).side_pairs() == ((1, 4), (3, 2))


@pytest.mark.parametrize(
    ("names", "ignore", "rule"),
    [
        ({0: "background"}, None, r"expected foreground values of at least 1, got \[0\]"),
        ({-3: "liver"}, None, r"expected foreground values of at least 1, got \[-3\]"),
        ({1: " "}, None, "expected a name for every value, got none for 1"),
        ({1: "liver", 4: "liver "}, None, "expected unique names, got 'liver' for 1 and 4"),
        ({1: "liver"}, 1, "expected an ignore label that is no organ and not 0, got 1"),
        ({1: "liver"}, 0, "expected an ignore label that is no organ and not 0, got 0"),
    ],
)
def test_ambiguous_tables_are_refused(names: dict[int, str], ignore: int | None, rule: str) -> None:
    with pytest.raises(ValueError, match=f"label table: {rule}"):
        LabelTable(names, ignore)


def test_an_unknown_organ_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="expected one of liver, spleen, aorta, got 'livr'"):
        TORSO.value_of("livr")


def test_tables_are_values() -> None:
    same = LabelTable({2: "liver", 40: "aorta", 7: "spleen"}, 255)
    assert same == TORSO
    assert hash(same) == hash(TORSO)
    assert LabelTable({2: "liver"}) != TORSO
    assert pickle.loads(pickle.dumps(TORSO)) == TORSO


def test_json_round_trip() -> None:
    content = TORSO.to_json()
    assert content == {"names": {"2": "liver", "7": "spleen", "40": "aorta"}, "ignore_label": 255}
    assert LabelTable.from_json(content) == TORSO
    assert LabelTable.from_json({"names": {"1": "a"}}) == LabelTable({1: "a"})


ORGANS = LabelTable({1: "liver", 2: "spleen", 7: "aorta"}, ignore_label=255)
EYE = LabelTable({1: "rim", 2: "cup_value", 5: "vessel"}, regions={"disc": (1, 2), "cup": (2,), "vessels": (5,)})


def test_organs_keep_their_values() -> None:
    assert select_organs(ORGANS, ["aorta", "liver"]) == LabelTable({1: "liver", 7: "aorta"})


def test_a_region_stands_for_its_values_and_those_within_it() -> None:
    assert select_organs(EYE, ["disc"]) == LabelTable({1: "rim", 2: "cup_value"}, regions={"disc": (1, 2), "cup": (2,)})
    assert select_organs(EYE, ["cup"]) == LabelTable({2: "cup_value"}, regions={"cup": (2,)})


def test_an_organ_that_is_left_in_no_region_becomes_one() -> None:
    assert select_organs(EYE, ["rim", "vessels"]) == LabelTable(
        {1: "rim", 5: "vessel"}, regions={"vessels": (5,), "rim": (1,)}
    )


def test_crossing_regions_keep_the_values_they_are_painted_with() -> None:
    table = LabelTable({1: "a_only", 2: "b_only", 3: "both"}, regions={"a": (1, 3), "b": (2, 3)})
    chosen = select_organs(table, ["a"])
    assert (chosen.regions, chosen.painted) == ({"a": (1, 3)}, (1,))


def test_an_unknown_name_lists_the_known_ones() -> None:
    message = r"^organs: expected some of liver, spleen, aorta, got livr, Spleen\. Correct the names\.$"
    with pytest.raises(DataError, match=message):
        select_organs(ORGANS, ["livr", "aorta", "Spleen"])
    with pytest.raises(DataError, match="expected some of rim, cup_value, vessel, disc, cup, vessels, got none"):
        select_organs(EYE, [])


def test_other_values_become_background() -> None:
    labels = np.array([0, 1, 2, 7, 255], np.uint8)
    found = keep_values(labels, (1, 7))
    assert found.dtype == np.uint8
    assert found.tolist() == [0, 1, 0, 7, 0]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"names": None, "regions": []},
        {"names": ["a"]},
        {"names": {"1": 2}},
        {"names": {"1": "a"}, "regions": {"r": 1}},
        {"names": {"1": "a"}, "regions": {"r": ["1.5"]}},
        {"names": {"²": "a"}},
        {"names": {"1" * 5000: "a"}},
        {"names": {1.5: "a"}},
        {"names": {"1": "a"}, "ignore_label": True},
        {"names": {"1": "a"}, "ignore_label": 2**70},
        {"names": {str(n): f"organ {n}" for n in range(1, 40_000)}},
    ],
)
def test_tables_of_files_are_checked(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(label table|regions|region 'r'): expected") as caught:
        LabelTable.from_json(content)
    assert len(str(caught.value)) < 250
