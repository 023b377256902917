import numpy as np
import pytest

from pipeline.core.labels import LabelTable
from pipeline.infer.postprocess import keep_largest

TABLE = LabelTable({1: "a", 2: "b", 3: "c"})
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
    cleaned = keep_largest(label, [TABLE.without("a")])
    assert (cleaned == 1).sum() == 27
    assert (cleaned[0:2, 0:2, 0:2] == 0).all()
    assert (cleaned == 2).sum() == 4
    assert label[0, 0, 0] == 1
    assert cleaned.dtype == np.uint8
    assert (keep_largest(label, [TABLE.without("a"), TABLE.without("b")]) == 2).sum() == 3


def test_a_connected_region_of_several_classes_stays_whole():
    chain = LabelTable({1: "x", 2: "y", 3: "z"}, None, {"A": (1, 2), "B": (2, 3), "C": (3,)})
    row = _row(1, 0, 2, 2, 2, 0, 1, 1, 1)
    assert keep_largest(row, [chain.without("A")]).ravel().tolist() == [0, 0, 2, 2, 2, 0, 0, 0, 0]
    joined = _row(1, 0, 2, 2, 1, 1, 1, 3)
    assert keep_largest(joined, [chain.without("A")]).ravel().tolist() == [0, 0, 2, 2, 1, 1, 1, 3]


def test_no_organs_and_absent_organs_change_nothing():
    label = _label()
    for without in ([], [TABLE.without("c"), (0, 1, 2, 3, 4, 0)]):
        cleaned = keep_largest(label, without)
        np.testing.assert_array_equal(cleaned, label)
        assert cleaned is not label


def test_another_class_inside_a_box_is_kept():
    assert keep_largest(_row(1, 1, 0, 2, 0, 1), [TABLE.without("a")]).ravel().tolist() == [1, 1, 0, 2, 0, 0]


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
        kept = keep_largest(label, [TABLE.without("a")], connectivity)
        assert kept.sum() == (2 if connectivity >= joined_from else 1)


def test_of_equal_components_the_first_stays():
    assert keep_largest(_row(0, 3, 0, 3), [TABLE.without("c")]).ravel().tolist() == [0, 3, 0, 0]


def test_unknown_connectivity_is_refused():
    with pytest.raises(ValueError, match="connectivity: expected 6, 18 or 26, got 8"):
        keep_largest(_label(), [TABLE.without("a")], 8)
