from __future__ import annotations

import pickle

import nibabel
import numpy as np
import pytest

from pipeline.core.grid import (
    ORIENTATIONS,
    Box,
    Grid,
    axis_codes,
    check_orientation,
    corner_distance_mm,
    flip_world,
    mirrored_index,
    orientation_change,
    reorient_array,
    straightened,
)

LPS_AFFINE = np.array([[-2.0, 0, 0, 10], [0, -3.0, 0, 20], [0, 0, 4.0, -30], [0, 0, 0, 1]])


def test_spacing_orientation_volume_and_count_by_hand() -> None:
    grid = Grid((5, 6, 7), LPS_AFFINE)
    assert grid.spacing_mm == (2.0, 3.0, 4.0)
    assert grid.orientation == "LPS"
    assert grid.voxel_volume_ml == pytest.approx(0.024)
    assert grid.voxels == 210


def test_world_coordinates_by_hand() -> None:
    grid = Grid((5, 6, 7), LPS_AFFINE)
    np.testing.assert_array_equal(grid.to_world([0, 0, 0]), [10, 20, -30])
    np.testing.assert_array_equal(grid.to_world([[1, 2, 3], [4, 5, 6]]), [[8, 14, -18], [2, 5, -6]])
    np.testing.assert_allclose(grid.to_voxel([8, 14, -18]), [1, 2, 3])
    np.testing.assert_allclose(grid.to_voxel([[9, 20, -30]]), [[0.5, 0, 0]])


def test_an_oblique_grid_has_the_spacing_along_its_own_axes() -> None:
    # i points to 3-4-5 between right and anterior, j at a right angle to it, k up.
    affine = np.array([[3.0, -0.8, 0, 0], [4.0, 0.6, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    grid = Grid((2, 2, 2), affine)
    assert grid.spacing_mm == pytest.approx((5.0, 1.0, 2.0))
    assert grid.orientation == "ALS"
    assert grid.voxel_volume_ml == pytest.approx(0.01)
    np.testing.assert_allclose(grid.to_world([1, 1, 1]), [2.2, 4.6, 2.0])


def test_a_crop_starts_where_its_first_voxel_was() -> None:
    crop = Grid((5, 6, 7), LPS_AFFINE).cropped((1, 2, 3), (5, 4, 6))
    assert crop.shape == (4, 2, 3)
    np.testing.assert_array_equal(crop.to_world([0, 0, 0]), [8, 14, -18])
    assert crop.spacing_mm == (2.0, 3.0, 4.0)


def test_a_negative_start_grows_the_grid() -> None:
    grown = Grid((5, 6, 7), LPS_AFFINE).cropped((-1, 0, 0), (6, 6, 7))
    assert grown.shape == (7, 6, 7)
    np.testing.assert_array_equal(grown.to_world([0, 0, 0]), [12, 20, -30])


def test_an_empty_crop_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid shape: expected three positive integers, got \(0, 6, 7\)"):
        Grid((5, 6, 7), LPS_AFFINE).cropped((2, 0, 0), (2, 6, 7))


def test_resizing_keeps_the_edges_of_the_field_of_view() -> None:
    grid = Grid((4, 6, 8), LPS_AFFINE)
    half = grid.resized((2, 12, 8))
    assert half.spacing_mm == (4.0, 1.5, 4.0)
    # Centre of the first voxel: half an old voxel back to the edge, half a new one forward.
    np.testing.assert_allclose(half.to_world([0, 0, 0]), [10 - 1.0, 20 + 0.75, -30])
    for old, new in (((-0.5, -0.5, -0.5), (-0.5, -0.5, -0.5)), ((3.5, 5.5, 7.5), (1.5, 11.5, 7.5))):
        np.testing.assert_allclose(half.to_world(new), grid.to_world(old))


def test_resampling_rounds_the_voxel_count() -> None:
    grid = Grid((10, 10, 3), np.diag([1.0, 1.0, 5.0, 1.0]))
    finer = grid.resampled((2.0, 3.0, 2.0))  # 10/2 = 5, 10/3 = 3.33, 15/2 = 7.5 (to even: 8)
    assert finer.shape == (5, 3, 8)
    assert finer.spacing_mm == pytest.approx((2.0, 10 / 3, 15 / 8))
    assert grid.resampled((100.0, 100.0, 100.0)).shape == (1, 1, 1)


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (1.0, -2.0, 1.0), (1.0, 1.0, float("nan"))])
def test_resampling_refuses_spacings_that_are_not_above_zero(spacing: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="spacing: expected numbers above 0"):
        Grid((2, 2, 2), np.eye(4)).resampled(spacing)


def test_resizing_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected three positive integers, got \(2, 0, 2\)"):
        Grid((2, 2, 2), np.eye(4)).resized((2, 0, 2))


def test_difference_is_that_of_the_corner_that_moves_most() -> None:
    grid = Grid((11, 5, 3), np.eye(4))
    shifted = np.eye(4)
    shifted[:3, 3] = [3, 4, 0]
    assert grid.difference_mm(Grid((11, 5, 3), shifted)) == 5.0
    # 1.1 instead of 1 mm along i: voxel 10 lies at 11 instead of 10 mm.
    assert grid.difference_mm(Grid((11, 5, 3), np.diag([1.1, 1, 1, 1]))) == pytest.approx(1.0)
    # Flipped along j: voxel 0 lies at 0, its twin at 4 mm.
    flipped = np.diag([1.0, -1, 1, 1])
    flipped[1, 3] = 4
    assert grid.difference_mm(Grid((11, 5, 3), flipped)) == 4.0
    assert grid.difference_mm(grid) == 0.0
    assert grid.difference_mm(Grid((11, 5, 4), np.eye(4))) == float("inf")


def test_grids_match_within_a_tolerance_but_are_equal_only_exactly() -> None:
    grid, near = Grid((2, 2, 2), np.eye(4)), np.eye(4)
    near[0, 3] = 5e-4
    other = Grid((2, 2, 2), near)
    assert grid.matches(other)
    assert not grid.matches(other, tolerance_mm=1e-4)
    assert grid != other
    assert grid == Grid((2, 2, 2), np.eye(4))
    assert grid != "a grid"


def test_equal_grids_hash_alike_even_with_negative_zeros() -> None:
    grid = Grid((2, 3, 4), np.eye(4))
    turned = grid.reoriented("LPI").reoriented("RAS")
    assert turned == grid
    assert hash(turned) == hash(grid)
    assert hash(Grid((2, 3, 4), np.diag([2.0, 1, 1, 1]))) != hash(grid)


def test_the_affine_is_a_read_only_copy() -> None:
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 0] = 7
    assert grid.affine[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 7


def test_a_grid_survives_pickling() -> None:
    grid = Grid((5, 6, 7), LPS_AFFINE)
    assert pickle.loads(pickle.dumps(grid)) == grid


def test_from_spacing_starts_at_the_origin_in_ras_order() -> None:
    grid = Grid.from_spacing((4, 5, 6), (1.0, 2.0, 3.0), "SLA")
    assert (grid.shape, grid.spacing_mm, grid.orientation) == ((4, 5, 6), (1.0, 2.0, 3.0), "SLA")
    # j runs from right to left: its last voxel lies at 0, its first at 4 x 2 mm.
    np.testing.assert_array_equal(grid.to_world([0, 4, 0]), [0, 0, 0])
    np.testing.assert_array_equal(grid.to_world([0, 0, 0]), [8, 0, 0])
    assert Grid.from_spacing((4, 5, 6), (1, 2, 3)) == Grid((4, 5, 6), np.diag([1.0, 2.0, 3.0, 1.0]))
    with pytest.raises(ValueError, match="orientation: expected three axis codes"):
        Grid.from_spacing((4, 5, 6), (1, 2, 3), "RAR")


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 2), (2, 2, 2, 2), (2, -1, 2), (2, 2.5, 2)])
def test_shapes_that_are_no_volume_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="grid shape: expected three positive integers"):
        Grid(shape, np.eye(4))


def changed(row: int, column: int, value: float) -> np.ndarray:
    affine = np.eye(4)
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "rule"),
    [
        (np.eye(3), r"expected a \(4, 4\) matrix, got shape \(3, 3\)"),
        (changed(0, 3, np.nan), "expected finite numbers"),
        (changed(1, 1, np.inf), "expected finite numbers"),
        (changed(3, 0, 0.5), r"expected a last row of \(0, 0, 0, 1\), got \[0.5, 0.0, 0.0, 1.0\]"),
        (changed(2, 2, 0.0), "expected an invertible matrix"),
        (np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "expected an invertible matrix"),
        (changed(0, 1, 0.1), "expected right angles between the voxel axes, got a shear with cosine 0.0995"),
    ],
)
def test_affines_that_are_no_grid_are_refused(affine: np.ndarray, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Grid((2, 2, 2), affine)


def test_shear_below_the_rounding_of_headers_is_accepted() -> None:
    assert Grid((2, 2, 2), changed(0, 1, 5e-4)).orientation == "RAS"


def test_a_slight_shear_is_straightened_around_the_middle() -> None:
    sheared = np.diag([1.0, 2.0, 3.0, 1.0])
    sheared[0, 1] = 0.02  # cosine 0.01 between i and j
    straight = straightened(sheared, (11, 21, 31))
    Grid((11, 21, 31), straight)  # is a grid, which the sheared affine is not
    np.testing.assert_allclose(np.linalg.norm(straight[:3, :3], axis=0), np.linalg.norm(sheared[:3, :3], axis=0))
    np.testing.assert_allclose(straight @ [5, 10, 15, 1], sheared @ [5, 10, 15, 1])
    # both axes give way by half the angle, 0.005: at the corner 10 voxels of 2 mm or 5 of 1 mm away
    assert corner_distance_mm(straight, sheared, (11, 21, 31)) == pytest.approx(0.005 * np.hypot(20, 5), rel=1e-2)


@pytest.mark.parametrize("cosine", [0.0, 5e-4, 0.03, np.nan])
def test_right_angles_and_large_shears_stay(cosine: float) -> None:
    affine = np.eye(4)
    affine[0, 1] = cosine
    assert straightened(affine, (4, 4, 4)) is affine


def test_corner_distance() -> None:
    moved = np.diag([1.0, 1.0, 1.5, 1.0])
    moved[1, 3] = 3.0
    assert corner_distance_mm(np.eye(4), moved, (2, 2, 9)) == 5.0  # 4 mm along k, 3 mm along j


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


def test_there_are_48_orientations() -> None:
    assert len(ORIENTATIONS) == len(set(ORIENTATIONS)) == 48
    assert {"RAS", "LPS", "SLA", "IPR"} <= set(ORIENTATIONS)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_axis_codes_agree_with_nibabel(orientation: str) -> None:
    affine = Grid.from_spacing((3, 4, 5), (0.5, 1.0, 7.0), orientation).affine
    assert axis_codes(affine) == orientation == "".join(nibabel.aff2axcodes(affine))


def test_axis_codes_name_the_closest_axes_of_an_oblique_grid() -> None:
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]]
    assert axis_codes(affine) == "RAI"


def test_axis_codes_always_name_three_different_world_axes() -> None:
    # Both i and j lean most to the right; the one that leans more gets it.
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.8, 0.9, 0.1], [0.6, -0.43, 0.0], [0.0, 0.0, 1.0]])
    assert axis_codes(affine) == "ARS"


def test_flip_world_negates_right_and_anterior() -> None:
    affine = np.arange(16, dtype=np.float64).reshape(4, 4)
    flipped = flip_world(affine)
    np.testing.assert_array_equal(flipped[:2], -affine[:2])
    np.testing.assert_array_equal(flipped[2:], affine[2:])
    np.testing.assert_array_equal(flip_world(flipped), affine)


def test_steps_by_hand() -> None:
    assert orientation_change("RAS", "RAS") == ((0, 1, 2), (False, False, False))
    assert orientation_change("RAS", "LPS") == ((0, 1, 2), (True, True, False))
    assert orientation_change("RAS", "SLA") == ((2, 0, 1), (False, True, False))


def test_reorienting_an_array_by_hand() -> None:
    array = np.arange(6).reshape(1, 2, 3)  # i Right, j Anterior, k Superior
    np.testing.assert_array_equal(reorient_array(array, "RAS", "RPS"), [[[3, 4, 5], [0, 1, 2]]])
    np.testing.assert_array_equal(reorient_array(array, "RAS", "IAR"), [[[2], [5]], [[1], [4]], [[0], [3]]])


def test_reorienting_is_a_view_and_leaves_leading_axes_alone() -> None:
    array = np.zeros((2, 3, 4, 5))
    turned = reorient_array(array, "LPS", "SAL")
    assert turned.shape == (2, 5, 4, 3)
    assert np.shares_memory(turned, array)


def test_reorienting_an_affine_by_hand() -> None:
    turned = Grid((5, 6, 7), np.diag([2.0, 3.0, 4.0, 1.0])).reoriented("SLA")
    assert turned.shape == (7, 5, 6)
    # First voxel: the last along R, 4 x 2 = 8 mm to the right.
    np.testing.assert_array_equal(turned.affine, [[0, -2, 0, 8], [0, 0, 3, 0], [4, 0, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("wrong", ["", "RA", "RAR", "RASS", "XYZ", "LRA"])
def test_orientations_that_do_not_exist_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"orientation: expected three axis codes, .*, got '" + wrong + "'"):
        check_orientation(wrong)


def test_lower_case_is_understood() -> None:
    assert check_orientation("lps") == "LPS"
    assert orientation_change("ras", "lps") == orientation_change("RAS", "LPS")


# Boxes of voxels.


def test_the_smallest_box_around_a_mask() -> None:
    mask = np.zeros((4, 5, 6), dtype=bool)
    assert Box.around(mask) is None
    mask[1, 2:4, 5] = True
    found = Box.around(mask)
    assert found == Box((1, 2, 5), (2, 4, 6))
    assert found.shape == (1, 2, 1)
    assert mask[found.slices].all()


def test_a_union_holds_all_boxes() -> None:
    assert Box.union([]) is None
    assert Box.union([Box((1, 2), (3, 4)), Box((0, 3), (2, 9))]) == Box((0, 2), (3, 9))


def test_a_margin_ends_where_the_volume_ends() -> None:
    assert Box((1, 4), (2, 6)).grown(2, (8, 7)) == Box((0, 2), (4, 7))
    assert Box((1, 4), (2, 6)).grown((0, 1), (8, 7)) == Box((1, 3), (2, 7))


def test_an_index_and_a_box_say_the_same() -> None:
    box = Box((1, 4), (2, 6))
    assert Box.of(box.slices) == box
    assert Box.whole((3, 4)) == Box((0, 0), (3, 4))
