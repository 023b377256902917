"""``regrid``: voxels that coincide keep their value on any grid; what lies between is voted on."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.grid import ORIENTATIONS, Grid
from pipeline.core.volume import LabelMap
from pipeline.data.regrid import covered_share, labelled_share_inside, regrid_image, regrid_labels
from pipeline.data.volumes import read_label_map


def turned(degrees: float, shape=(20, 20, 20), spacing=(1.0, 1.0, 1.0), centre=(10.0, 10.0, 10.0)) -> Grid:
    """A grid turned about the superior axis, its middle at a place in the world."""
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= spacing
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


@pytest.fixture
def blocks() -> LabelMap:
    """Values far apart, one of them at the volume's corner, on 1 x 2 x 3 mm."""
    array = np.zeros((7, 8, 9), np.uint16)
    array[1:4, 2:5, 3:7] = 1
    array[4:6, 2:5, 3:7] = 60000
    array[6, 7, 8] = 3
    return LabelMap(array, Grid.from_spacing(array.shape, (1, 2, 3)))


@pytest.mark.parametrize("orientation", ["LPS", "SAR", "PIR"])
def test_flipped_and_permuted_grids_give_every_value_back(blocks: LabelMap, orientation: str) -> None:
    stored = blocks.reoriented(orientation)
    result = regrid_labels(LabelMap(np.ascontiguousarray(stored.array), stored.grid), blocks.grid)
    assert result.array.dtype == np.uint16
    np.testing.assert_array_equal(result.array, blocks.array)
    assert result.grid is blocks.grid


def test_all_orientations_hold_for_a_turned_grid(blocks: LabelMap) -> None:
    label_map = LabelMap(blocks.array, turned(33, blocks.array.shape, (1, 2, 3)))
    for orientation in ORIENTATIONS:
        stored = label_map.reoriented(orientation)
        np.testing.assert_array_equal(regrid_labels(stored, label_map.grid).array, blocks.array)


def test_a_shift_by_whole_voxels_cuts_off_and_adds_background(blocks: LabelMap) -> None:
    grid = blocks.grid.cropped((2, 0, -2), (9, 8, 9))
    expected = np.zeros((7, 8, 11), np.uint16)
    expected[:5, :, 2:] = blocks.array[2:]
    np.testing.assert_array_equal(regrid_labels(blocks, grid).array, expected)


def test_the_largest_vote_wins_and_ties_go_to_the_lower_value() -> None:
    row = LabelMap(np.array([2, 2, 1, 0]).reshape(4, 1, 1).astype(np.uint8), Grid((4, 1, 1), np.eye(4)))
    grid = Grid((8, 1, 1), np.array([[0.5, 0, 0, -0.25], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    # at -0.25 (edge), 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25 (edge)
    assert regrid_labels(row, grid).array.ravel().tolist() == [2, 2, 2, 2, 1, 1, 0, 0]
    half = Grid((3, 1, 1), np.array([[1.0, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert regrid_labels(row, half).array.ravel().tolist() == [2, 1, 0]  # ties of 2 and 1, and of 1 and 0


def test_a_ball_keeps_place_and_volume_between_oblique_grids_of_other_spacing() -> None:
    fine, coarse = turned(20, (40, 40, 40), (0.6, 0.6, 0.6)), turned(-10, (30, 24, 26), (0.8, 1.0, 0.9))
    centres = [np.stack(np.indices(grid.shape), axis=-1) for grid in (fine, coarse)]
    balls = [
        (np.linalg.norm(grid.to_world(at) - 10, axis=-1) < 6).astype(np.uint8)
        for grid, at in zip((fine, coarse), centres, strict=True)
    ]
    result = regrid_labels(LabelMap(balls[0], fine), coarse).array
    overlap = 2 * np.count_nonzero(result & balls[1]) / (result.sum() + balls[1].sum())
    assert overlap > 0.97
    assert result.sum() * coarse.voxel_volume_ml == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)


def test_nothing_in_common_gives_background(blocks: LabelMap) -> None:
    assert not regrid_labels(blocks, blocks.grid.cropped((100, 0, 0), (104, 5, 5))).array.any()


def test_images_are_interpolated_linearly_and_padded_with_their_smallest_value() -> None:
    array = np.array([-7.0, 1, 5]).reshape(3, 1, 1)
    grid = Grid((4, 1, 1), np.array([[1.0, 0, 0, 0.25], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    result = regrid_image(array, Grid((3, 1, 1), np.eye(4)), grid)
    assert result.dtype == np.float32
    assert result.ravel().tolist() == [-5, 2, 5, -7]  # at 0.25, 1.25, 2.25 (the edge of the last voxel), 3.25 (outside)


def test_shares(blocks: LabelMap) -> None:
    assert labelled_share_inside(blocks, blocks.grid) == 1.0
    upper = blocks.grid.cropped((4, 0, 0), (7, 8, 9))
    assert labelled_share_inside(blocks, upper) == 25 / 61  # 60000: 24 voxels, 3: one voxel, of 36 + 24 + 1
    assert labelled_share_inside(LabelMap(blocks.array * 0, blocks.grid), upper) == 1.0
    assert covered_share(upper, blocks.grid) == 1.0
    assert covered_share(blocks.grid, blocks.grid.cropped((0, 4, 0), (7, 8, 9))) == 0.5


def test_agrees_with_the_reader_on_a_real_label_map(real_data) -> None:
    original = read_label_map(real_data / "ct_multiorgan" / "example_ct_sm_labels.nii.gz")
    turned_map = original.reoriented("SPL")
    result = regrid_labels(turned_map, original.grid)
    np.testing.assert_array_equal(result.array, original.array)
