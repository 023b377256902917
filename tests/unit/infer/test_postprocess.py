import numpy as np
import pytest

from pipeline.infer.postprocess import keep_largest


def _label():
    label = np.zeros((8, 8, 8), dtype=np.uint8)
    label[0:2, 0:2, 0:2] = 1  # 8 voxels
    label[5:8, 5:8, 5:8] = 1  # 27 voxels
    label[4, 0, 0:3] = 2
    label[6, 0, 0] = 2
    return label


def test_smaller_components_of_the_named_classes_become_background():
    label = _label()
    cleaned = keep_largest(label, [1])
    assert (cleaned == 1).sum() == 27
    assert (cleaned[0:2, 0:2, 0:2] == 0).all()
    assert (cleaned == 2).sum() == 4
    assert label[0, 0, 0] == 1
    assert cleaned.dtype == np.uint8
    assert (keep_largest(label, {1, 2}) == 2).sum() == 3


def test_no_classes_and_absent_classes_change_nothing():
    label = _label()
    for classes in ([], [3, 200]):
        cleaned = keep_largest(label, classes)
        np.testing.assert_array_equal(cleaned, label)
        assert cleaned is not label


def test_another_class_inside_a_box_is_kept():
    label = np.array([1, 1, 0, 2, 0, 1], dtype=np.int16).reshape(6, 1, 1)
    assert keep_largest(label, [1]).ravel().tolist() == [1, 1, 0, 2, 0, 0]


@pytest.mark.parametrize(("offset", "joined_from"), [((1, 0, 0), 6), ((1, 1, 0), 18), ((1, 1, 1), 26)])
def test_connectivity_decides_what_is_joined(offset, joined_from):
    label = np.zeros((3, 3, 3), dtype=np.uint8)
    label[0, 0, 0] = label[offset] = 1
    for connectivity in (6, 18, 26):
        assert keep_largest(label, [1], connectivity).sum() == (2 if connectivity >= joined_from else 1)


def test_of_equal_components_the_first_stays():
    label = np.array([0, 4, 0, 4], dtype=np.uint8).reshape(4, 1, 1)
    assert keep_largest(label, [4]).ravel().tolist() == [0, 4, 0, 0]


def test_background_and_unknown_connectivity_are_refused():
    with pytest.raises(ValueError, match="expected classes of at least 1, got 0"):
        keep_largest(_label(), [0])
    with pytest.raises(ValueError, match="connectivity: expected 6, 18 or 26, got 8"):
        keep_largest(_label(), [1], 8)
