import numpy as np
import pytest

from pipeline.core.mirror import mirrored_index


def test_the_border_is_not_repeated_at_any_distance() -> None:
    letters = np.array(list("abc"))
    assert "".join(letters[mirrored_index(-5, 13, 3)]) == "babcb" + "abc" + "babcb"


@pytest.mark.parametrize(("start", "length", "expected"), [(0, 4, [0, 1, 2, 3]), (2, 4, [2, 3, 2, 1]), (-1, 2, [1, 0])])
def test_indices(start: int, length: int, expected: list[int]) -> None:
    index = mirrored_index(start, length, 4)
    assert index.tolist() == expected
    assert index.dtype == np.int64


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("before", [0, 3, 11])
def test_equals_reflecting_padding(size: int, before: int) -> None:
    volume = np.random.default_rng(0).normal(size=size)
    expected = np.pad(volume, (before, 9), mode="reflect" if size > 1 else "edge")
    np.testing.assert_array_equal(volume[mirrored_index(-before, before + size + 9, size)], expected)


def test_nothing_and_no_voxel() -> None:
    assert mirrored_index(7, 0, 3).shape == (0,)
    with pytest.raises(ValueError, match=r"mirrored axis: expected at least 1 voxel, got 0\. Check the volume"):
        mirrored_index(0, 3, 0)
