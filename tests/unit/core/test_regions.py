from __future__ import annotations

import pickle

import pytest

from pipeline.core.labels import IGNORE_INDEX, LabelTable
from pipeline.core.regions import paint, painting_steps, side_and_words

NAMES = {1: "necrosis", 2: "edema", 4: "enhancing"}
BRAIN = LabelTable(NAMES, 9, {"whole": (4, 2, 1), "core": (1, 4), "enhancing": (4,)})


def test_a_table_with_regions_predicts_regions_and_stores_values() -> None:
    assert BRAIN.targets == ("whole", "core", "enhancing")
    assert (BRAIN.classes, BRAIN.outputs) == (4, 3)
    assert BRAIN.target_values == {"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}
    assert BRAIN.region_classes() == ((1, 2, 3), (1, 3), (3,))
    assert BRAIN.painted == (2, 1, 4)
    assert BRAIN.painting() == (((0,), 2), ((1,), 1), ((2,), 3))


def test_without_regions_the_organs_are_the_targets() -> None:
    table = LabelTable({3: "liver", 5: "spleen"})
    assert table.targets == ("liver", "spleen")
    assert (table.outputs, table.classes) == (3, 3)
    assert table.target_values == {"liver": (3,), "spleen": (5,)}
    assert table.region_classes() == table.painting() == ()
    assert table.to_json() == {"names": {"3": "liver", "5": "spleen"}, "ignore_label": None}


def test_json_pickle_and_hash_keep_regions_and_their_order() -> None:
    content = BRAIN.to_json()
    assert content["regions"] == {"whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]}
    assert content["regions_class_order"] == [2, 1, 4]
    assert LabelTable.from_json(content) == BRAIN
    assert pickle.loads(pickle.dumps(BRAIN)) == BRAIN
    assert hash(LabelTable.from_json(content)) == hash(BRAIN)
    assert LabelTable(NAMES, 9) != BRAIN
    apart = {"a": (1,), "b": (2,)}
    assert LabelTable({1: "x", 2: "y"}, None, apart) != LabelTable(
        {1: "x", 2: "y"}, None, dict(reversed(apart.items()))
    )


def test_class_indices_take_the_place_of_values() -> None:
    expected = LabelTable(
        {1: "necrosis", 2: "edema", 3: "enhancing"},
        IGNORE_INDEX,
        {"whole": (1, 2, 3), "core": (1, 3), "enhancing": (3,)},
        (2, 1, 3),
    )
    assert BRAIN.indexed() == expected


def test_organs_that_cross_keep_their_crossing() -> None:
    table = LabelTable({1: "a", 2: "b", 3: "both"}, None, {"A": (1, 3), "B": (2, 3)})
    assert table.painted == (1, 2)
    assert table.painting() == (((0,), 1), ((1,), 2), ((0, 1), 3))
    assert [paint(found, table.painting()) for found in ((), (0,), (1,), (0, 1))] == [0, 1, 2, 3]


def test_a_region_within_a_crossing_is_painted_after_it() -> None:
    regions = {"A": (1, 3, 5), "B": (2, 3, 5), "C": (5,)}
    steps = painting_steps(regions, (1, 2, 5))
    assert steps == (((0,), 1), ((1,), 2), ((0, 1), 3), ((2,), 5))
    assert [paint(found, steps) for found in ((0, 1), (0, 1, 2), (2,))] == [3, 5, 5]


@pytest.mark.parametrize(
    ("regions", "order"),
    [
        ({"whole infarct": (1, 2), "penumbra": (1,), "core": (2,)}, (1, 1, 2)),
        ({"whole infarct": (1, 2), "penumbra": (1,), "core": (2,)}, (2, 1, 2)),
        ({"body": (1, 2, 4), "upper": (1, 2), "lower": (4,), "left": (1,), "right": (2,)}, (4, 1, 4, 1, 2)),
        ({"lesion": (1, 2, 4), "tumour": (1, 2, 4)}, (1, 1)),
        ({"lesion": (1, 2), "tumour": (1, 2), "node": (4,)}, (1, 2, 4)),
    ],
)
def test_unions_and_equal_regions_are_painted_as_nnunet_does(
    regions: dict[str, tuple[int, ...]], order: tuple[int, ...]
) -> None:
    used = {value for held in regions.values() for value in held}
    table = LabelTable({value: name for value, name in NAMES.items() if value in used}, None, regions, order)
    assert table.painted == order
    assert LabelTable.from_json(table.to_json()) == table
    steps = painting_steps(table.regions, table.painted)
    for value in used:
        found = [n for n, held in enumerate(regions.values()) if value in held]
        painted = 0
        for n, painter in enumerate(order):  # what nnU-Net's loop over regions_class_order leaves
            painted = painter if n in found else painted
        assert paint(found, steps) == painted
        assert {name for name, held in regions.items() if painted in held} == {list(regions)[n] for n in found}


def test_a_union_of_others_leaves_a_choice_that_the_message_shows() -> None:
    with pytest.raises(ValueError, match="for example 1 for whole, 1 for edge, 2 for core\\."):
        LabelTable({1: "a", 2: "b"}, None, {"whole": (1, 2), "edge": (1,), "core": (2,)})


def test_without_a_part_of_a_union_its_voxels_are_no_whole() -> None:
    table = LabelTable({1: "a", 2: "b"}, None, {"whole": (1, 2), "edge": (1,), "core": (2,)}, (1, 1, 2))
    assert table.without("edge") == (0, 0, 2)
    assert table.without("whole") == (0, 0, 0)


def test_values_that_differ_in_no_region_are_painted_alike() -> None:
    table = LabelTable({1: "x", 2: "y", 3: "z"}, None, {"A": (1, 2), "B": (3,)}, (2, 3))
    assert table.painting() == (((0,), 2), ((1,), 3))


def test_what_is_left_without_a_region() -> None:
    assert BRAIN.without("enhancing") == (0, 1, 2, 1)
    assert BRAIN.without("core") == (0, 2, 2, 2)  # the enhancing part goes with the core it lies in
    assert BRAIN.without("whole") == (0, 0, 0, 0)
    assert LabelTable({3: "liver", 5: "spleen"}).without("spleen") == (0, 1, 0)
    crossing = LabelTable({1: "a", 2: "b", 3: "both"}, None, {"A": (1, 3), "B": (2, 3)})
    assert crossing.without("A") == (0, 0, 2, 2)
    chain = LabelTable({1: "x", 2: "y", 3: "z"}, None, {"A": (1, 2), "B": (2, 3), "C": (3,)})
    assert chain.without("A") == (0, 0, 0, 3)  # B alone has no value, and 2 would be in A again
    assert chain.without("B") == (0, 1, 1, 0)
    for table in (BRAIN, LabelTable({1: "liver"})):
        with pytest.raises(KeyError):
            table.without("livr")


def test_what_exists_on_one_side_only_is_named() -> None:
    lungs = {1: "left", 2: "right", 3: "left tumour"}
    regions = {"lung_left": (1, 3), "lung_right": (2,), "tumour": (3,)}
    assert LabelTable(lungs, None, regions).one_sided() == ("left tumour",)
    assert LabelTable({1: "kidney_left", 2: "kidney_right", 3: "Left Lung", 4: "vertebra L5"}).one_sided() == (
        "Left Lung",
    )
    assert BRAIN.one_sided() == ()


def test_regions_swap_sides_as_channels_and_as_classes() -> None:
    names = {1: "a", 2: "b", 3: "c", 4: "d", 5: "e"}
    regions = {"lung_left": (1, 2), "heart": (5,), "lung_right": (3, 4), "nodule": (2, 4)}
    table = LabelTable(names, None, regions, (1, 5, 3, 2))
    assert table.output_side_pairs() == ((0, 2),)
    assert table.side_pairs() == ((1, 3), (2, 4))  # lung with lung, nodule with nodule
    assert table.painting()[-1] == ((2, 3), 4)


def test_sides_with_unlike_numbers_of_values_swap_what_the_regions_tell_apart() -> None:
    table = LabelTable({1: "a", 2: "b", 3: "c"}, None, {"kidney left": (1, 2), "kidney right": (3,)}, (1, 3))
    assert table.side_pairs() == ((1, 3), (2, 3))


def test_a_class_without_twin_stays() -> None:
    regions = {"kidney left": (1, 3), "kidney right": (2,), "tumour": (3,)}
    assert LabelTable({1: "a", 2: "b", 3: "c"}, None, regions).side_pairs() == ((1, 2),)


@pytest.mark.parametrize(
    ("regions", "painted", "message"),
    [
        ({"a": ()}, (), "region 'a': expected at least one label value, got none. List its values."),
        ({"a": (1, 7)}, (), r"region 'a': expected values of the label table \(1, 2, 4\), got 7"),
        ({"a": (1, 0)}, (), r"region 'a': expected values of the label table \(1, 2, 4\), got 0"),
        ({"a": (1, 2, 4), "b": (4, 2, 1)}, (), "region 'b': expected other values than those of 'a', got the same"),
        ({"a": (1, 2, 4), "a ": (4,)}, (), "regions: expected a name of its own for each, got 'a'"),
        ({"a": (1, 2)}, (1,), "regions: expected every label value in one, got none with 4. Add a region."),
        ({"a": (1, 2), "b": (4,)}, (), "region 'a': expected one value to paint it with, .* got 1, 2. List regions"),
        ({"b": (4,), "a": (1, 2, 4)}, (), "region 'b': expected one value to paint it with, .* got none. List"),
        ({"a": (1, 2), "b": (4,)}, (1, 2), r"regions_class_order: expected one value of each region, all different \("),
        ({"a": (1, 2), "b": (4,)}, (1,), r"regions_class_order: expected one value of each .*\(a, b\), got 1\. Name"),
        ({"a": (1, 2, 4), "b": (4, 2)}, (4, 4), "regions_class_order: expected one value of each region, all diff"),
        (
            {"b": (4,), "a": (1, 2, 4)},
            (4, 1),
            r"leave earlier ones visible, got 4 \(b, a\) painted as 1\. List regions",
        ),
    ],
)
def test_regions_that_contradict_themselves_are_refused(
    regions: dict[str, tuple[int, ...]], painted: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LabelTable(NAMES, None, regions, painted)


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        ("kidney_left", "left", ("kidney",)),
        ("Right Lung", "right", ("lung",)),
        ("rib_l_1", "left", ("rib", "1")),
        ("rt femur", "right", ("femur",)),
        ("vertebrae_L1", "", ("vertebrae", "l1")),  # no word of its own
        ("left_to_right", "", ("left", "to", "right")),
        ("liver", "", ("liver",)),
        ("", "", ()),
    ],
)
def test_the_side_that_a_name_tells(name: str, side: str, words: tuple[str, ...]) -> None:
    assert side_and_words(name) == (side, words)
