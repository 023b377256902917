from __future__ import annotations

import nibabel
import numpy as np
import pytest

from pipeline.core.grid import Grid
from pipeline.core.orientation import (
    ORIENTATIONS,
    axis_codes,
    check_orientation,
    flip_world,
    reorient_affine,
    reorient_array,
    steps,
)


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
    assert steps("RAS", "RAS") == ((0, 1, 2), (False, False, False))
    assert steps("RAS", "LPS") == ((0, 1, 2), (True, True, False))
    assert steps("RAS", "SLA") == ((2, 0, 1), (False, True, False))


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
    affine, shape = reorient_affine(np.diag([2.0, 3.0, 4.0, 1.0]), (5, 6, 7), "SLA")
    assert shape == (7, 5, 6)
    # First voxel: the last along R, 4 x 2 = 8 mm to the right.
    np.testing.assert_array_equal(affine, [[0, -2, 0, 8], [0, 0, 3, 0], [4, 0, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("wrong", ["", "RA", "RAR", "RASS", "XYZ", "LRA"])
def test_orientations_that_do_not_exist_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"orientation: expected three axis codes, .*, got '" + wrong + "'"):
        check_orientation(wrong)


def test_lower_case_is_understood() -> None:
    assert check_orientation("lps") == "LPS"
    assert steps("ras", "lps") == steps("RAS", "LPS")
