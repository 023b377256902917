import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map

from pipeline.infer.windows import MIN_IMPORTANCE, axis_overlaps, importance_map, tile_starts, window_starts


@pytest.mark.parametrize(
    ("size", "window", "overlap", "expected"),
    [
        (20, 8, 0.5, [0, 4, 8, 12]),
        (21, 8, 0.5, [0, 3, 7, 10, 13]),  # 13 voxels in 4 steps of at most 4: 0, 3.25, 6.5, 9.75, 13
        (16, 8, 0.0, [0, 8]),
        (17, 8, 0.0, [0, 5, 9]),  # 4.5 rounds up
        (9, 8, 0.5, [0, 1]),
        (8, 8, 0.5, [0]),
        (3, 8, 0.5, [0]),
        (5, 1, 0.5, [0, 1, 2, 3, 4]),  # slices: the step is never below one voxel
        (30, 10, 0.9, list(range(21))),  # 10 * (1 - 0.9) is a rounding error below 1
    ],
)
def test_starts_are_evenly_spread(size, window, overlap, expected):
    assert window_starts(size, window, overlap) == expected


@pytest.mark.parametrize(
    ("size", "tile", "step", "overlap", "expected"),
    [
        (512, 388, 16, 0.0, [0, 384]),  # the U-Net of 2015: tiles of 388 pixels lie 384 apart
        (800, 388, 16, 0.5, [0, 192, 384, 576]),  # half of 388 is 194; the last tile reaches beyond the axis
        (388, 388, 16, 0.5, [0]),
        (3, 4, 16, 0.0, [0]),  # a single tile may be smaller than the step
        (20, 16, 16, 0.9, [0, 16]),  # never less than a step apart
        (4, 1, 1, 0.5, [0, 1, 2, 3]),
        (30, 10, 1, 0.9, list(range(21))),  # 10 * (1 - 0.9) is a rounding error below 1
    ],
)
def test_tiles_start_at_multiples_of_the_step(size, tile, step, overlap, expected):
    assert tile_starts(size, tile, step, overlap) == expected


def test_tiles_that_leave_gaps_are_refused():
    with pytest.raises(ValueError, match=r"tile: expected at least 16 voxels, the network's step, got 4\. Enlarge the"):
        tile_starts(5, 4, 16)
    with pytest.raises(ValueError, match="tile: expected at least 1 voxel, got 0 on an axis of 5 by 1"):
        tile_starts(5, 0, 1)


@pytest.mark.parametrize("overlap", [1.0, -0.1, (0.5, 0.5), float("nan")])
def test_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(ValueError, match=r"window overlap: expected a number in \[0, 1\) or 3 of them"):
        axis_overlaps(overlap, 3)


def test_empty_windows_and_axes_are_refused():
    with pytest.raises(ValueError, match="at least 1 voxel, got 0 on an axis of 5"):
        window_starts(5, 0, 0.5)
    with pytest.raises(ValueError, match="at least 1 voxel, got 4 on an axis of 0"):
        window_starts(0, 4, 0.5)


@pytest.mark.parametrize("window", [(16,), (7, 12), (96, 16, 1), (32, 24, 9)])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_importance_equals_that_of_monai(window, blend):
    expected = compute_importance_map(window, mode=blend, sigma_scale=0.125)
    weights = importance_map(window, blend)
    assert weights.dtype == torch.float32
    assert weights.shape == expected.shape
    np.testing.assert_allclose(weights.numpy(), expected.numpy(), rtol=1e-5)


def test_importance_is_gaussian_symmetric_and_never_zero():
    weights = importance_map((33, 33, 33)).double()
    assert weights[16, 16, 16] == 1.0
    assert weights[20, 16, 16].item() == pytest.approx(np.exp(-0.5 * (4 / (33 / 8)) ** 2), rel=1e-6)
    assert weights[0, 0, 0].item() == pytest.approx(MIN_IMPORTANCE)
    assert torch.equal(weights, weights.flip(0, 1, 2))


def test_unknown_blend_is_refused():
    with pytest.raises(ValueError, match="blend: expected one of gaussian, hann, constant, got 'cosine'"):
        importance_map((4, 4), "cosine")
