from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.grid import Grid
from pipeline.core.volume import Case, Image, LabelMap, require_same_grid

GRID = Grid((2, 3, 4), np.diag([1.0, 2.0, 5.0, 1.0]))


def test_an_image_has_its_channels_first() -> None:
    assert Image(np.zeros((3, 2, 3, 4), dtype=np.float32), GRID).channels == 3


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 3, 5), (0, 2, 3, 4), (2, 3, 4, 1)])
def test_images_that_do_not_fit_their_grid_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image array: expected shape \(C, 2, 3, 4\), got ") as caught:
        Image(np.zeros(shape, dtype=np.float32), GRID)
    assert str(shape) in str(caught.value)


def test_images_of_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="image array: expected a floating type, got int16"):
        Image(np.zeros((1, 2, 3, 4), dtype=np.int16), GRID)


def test_label_maps_that_do_not_fit_their_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label map: expected shape \(2, 3, 4\), got \(1, 2, 3, 4\)"):
        LabelMap(np.zeros((1, 2, 3, 4), dtype=np.uint8), GRID)


@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_label_maps_that_are_not_integers_are_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match=r"label map: expected an integer type, got (float32|bool)"):
        LabelMap(np.zeros((2, 3, 4), dtype=dtype), GRID)


def test_values_and_volumes_by_hand() -> None:
    array = np.zeros((2, 3, 4), dtype=np.uint8)
    array[0, 0, :3] = 7
    array[1, 2, 3] = 2
    label_map = LabelMap(array, GRID)
    assert label_map.values() == (0, 2, 7)
    assert label_map.volumes_ml() == pytest.approx({2: 0.01, 7: 0.03})  # a voxel is 1 x 2 x 5 mm = 0.01 mL
    assert LabelMap(np.zeros((2, 3, 4), dtype=np.uint8), GRID).volumes_ml() == {}


def test_reorienting_moves_array_and_grid_together() -> None:
    array = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    image = Image(array, GRID).reoriented("SLA")
    assert (image.array.shape, image.grid.shape, image.grid.orientation) == ((1, 4, 2, 3), (4, 2, 3), "SLA")
    assert image.array[0, 3, 0, 1] == array[0, 1, 1, 3]  # k = 3, i from the other end, j = 1
    label_map = LabelMap(np.arange(24).reshape(2, 3, 4), GRID).reoriented("SLA")
    np.testing.assert_array_equal(label_map.array, image.array[0])
    assert label_map.grid == image.grid


def test_a_case_refuses_a_reference_on_another_grid() -> None:
    image = Image(np.zeros((1, 2, 3, 4), dtype=np.float32), GRID)
    other = LabelMap(np.zeros((2, 3, 5), dtype=np.uint8), Grid((2, 3, 5), GRID.affine))
    with pytest.raises(DataError) as caught:
        Case("liver_012", image, other)
    assert str(caught.value) == (
        "case liver_012: label map grid: expected the image grid within 0.001 mm, "
        "got shapes (2, 3, 4) and (2, 3, 5). Export it again on the image's grid, or drop the case."
    )


def test_a_case_takes_a_reference_on_its_grid_or_none() -> None:
    image = Image(np.zeros((1, 2, 3, 4), dtype=np.float32), GRID)
    reference = LabelMap(np.zeros((2, 3, 4), dtype=np.uint8), Grid((2, 3, 4), GRID.affine + 1e-5 * np.eye(4, k=3)))
    assert Case("a", image, reference).reference is reference
    assert Case("a", image).metadata == {}


def test_grids_that_differ_are_described_in_mm() -> None:
    moved = GRID.affine.copy()
    moved[0, 3] = 2.5
    with pytest.raises(DataError) as caught:
        require_same_grid(GRID, Grid((2, 3, 4), moved), "T2 grid", "the T1 grid", case="a", file="t2.nii")
    assert str(caught.value).startswith(
        "case a: t2.nii: T2 grid: expected the T1 grid within 0.001 mm, got a difference of 2.5 mm "
        "(spacing (1.0, 2.0, 5.0) and (1.0, 2.0, 5.0) mm, orientation RAS and RAS)."
    )
    require_same_grid(GRID, Grid((2, 3, 4), moved), "T2 grid", "the T1 grid", tolerance_mm=2.5)
