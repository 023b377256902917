import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from pipeline.preprocess.interpolation import (
    _cheapest_order,
    apply_operator,
    apply_operators,
    band,
    resize_operator,
    resize_operators,
)


def test_doubling_two_voxels_linearly_is_known_by_hand():
    # New centres lie at -1/4, 1/4, 3/4, 5/4 of the old ones; outside the first and last centre the edge value holds.
    expected = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    np.testing.assert_allclose(resize_operator(2, 4, 1), expected, atol=1e-7)


def test_halving_four_voxels_linearly_averages_neighbours():
    np.testing.assert_allclose(resize_operator(4, 2, 1), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], atol=1e-7)


def test_doubling_to_the_nearest_repeats_voxels():
    np.testing.assert_array_equal(resize_operator(2, 4, 0), [[1, 0], [1, 0], [0, 1], [0, 1]])


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 4), (7, 1), (9, 31), (40, 23), (130, 200), (200, 71)])
def test_operator_equals_zoom_and_rows_sum_to_one(n_in, n_out, order):
    values = np.random.default_rng(0).normal(size=n_in)
    operator = resize_operator(n_in, n_out, order)
    assert operator.shape == (n_out, n_in)
    expected = zoom(values, n_out / n_in, order=order, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(operator @ values, expected, atol=2e-6)
    np.testing.assert_allclose(operator.sum(axis=1), 1.0, atol=1e-6)


def test_equal_sizes_give_the_identity_and_no_operator():
    np.testing.assert_array_equal(resize_operator(3, 3, 3), np.eye(3))
    unchanged, changed = resize_operators((3, 4), (3, 8), 1)
    assert unchanged is None
    assert changed is not None
    assert changed.shape == (8, 4)


def test_operator_is_cached_and_cannot_be_written_to():
    operator = resize_operator(5, 8, 3)
    assert resize_operator(5, 8, 3) is operator
    with pytest.raises(ValueError, match="read-only"):
        operator[0, 0] = 1.0


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 3, 1), "at least 1 voxel"), ((3, 3, 2), "expected 0, 1 or 3, got 2")]
)
def test_operator_refuses_impossible_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        resize_operator(*arguments)


def test_band_is_where_the_weights_are():
    rows = np.array([[0, 0, 0.5, 0.5, 0], [0, 0, 0, 1, 0]], dtype=np.float32)
    assert band(rows) == (2, 4)
    assert band(np.zeros((2, 3), dtype=np.float32)) == (0, 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_apply_operator_in_blocks_equals_the_plain_product(axis):
    shape = [3, 4, 5]
    shape[axis] = 150
    values = torch.from_numpy(np.random.default_rng(1).normal(size=shape))
    operator = resize_operator(150, 170, 3)  # more rows than one block
    expected = np.moveaxis(np.tensordot(operator.astype(np.float64), values.numpy(), (1, axis)), 0, axis)
    result = apply_operator(values, operator, axis)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=3e-6)


def test_apply_operator_stays_in_float32_under_autocast():
    values = torch.from_numpy(np.random.default_rng(2).normal(size=(1, 6, 5, 4)).astype(np.float32))
    operators = resize_operators((6, 5, 4), (9, 11, 7), 1)
    expected = apply_operators(values, operators)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = apply_operators(values, operators)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_without_weights_give_zero(axis):
    result = apply_operator(torch.full((3, 3), 7.0), np.zeros((70, 3), dtype=np.float32), axis)
    assert result.shape[axis] == 70
    assert not result.any()


def test_axes_that_shrink_go_first_and_those_that_grow_last():
    # By hand: (10, 10, 10) to (20, 10, 5): k first 5000 + 10000 products, i first 20000 + 10000.
    assert _cheapest_order((10, 10, 10), {0: 20, 2: 5}) == (2, 0)
    assert _cheapest_order((10, 10, 10), {}) == ()
