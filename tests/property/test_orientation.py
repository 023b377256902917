"""Turning a volume between orientations moves no voxel in the world."""

from __future__ import annotations

import nibabel
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipeline.core.grid import ORIENTATIONS, Grid, axis_codes, flip_world, reorient_array
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap

orientations = st.sampled_from(ORIENTATIONS)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
spacings = st.tuples(*[st.floats(0.2, 10.0)] * 3)


@st.composite
def grids(draw: st.DrawFn, largest_degrees: float = 40.0) -> Grid:
    """Grids of any orientation, tilted about any axis by less than the 45 degrees at which axis codes change."""
    base = Grid.from_spacing(draw(shapes), draw(spacings), draw(orientations))
    axis = np.array([draw(st.floats(-1, 1)), draw(st.floats(-1, 1)), draw(st.floats(0.1, 1))])
    angle = np.deg2rad(draw(st.floats(0, largest_degrees)))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix() @ base.affine[:3, :3]
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return Grid(base.shape, affine)


def positions(grid: Grid) -> np.ndarray:
    """World position of every voxel, (3, I, J, K)."""
    return np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)


@given(grids(), orientations)
def test_every_voxel_keeps_its_world_position(grid: Grid, target: str) -> None:
    turned = grid.reoriented(target)
    assert turned.orientation == target
    np.testing.assert_allclose(
        reorient_array(positions(grid), grid.orientation, target), positions(turned), atol=1e-9, rtol=0
    )


@given(grids(), orientations)
def test_there_and_back_is_the_identity(grid: Grid, target: str) -> None:
    label_map = LabelMap(np.arange(grid.voxels).reshape(grid.shape), grid)
    back = label_map.reoriented(target).reoriented(grid.orientation)
    np.testing.assert_array_equal(back.array, label_map.array)
    assert back.grid.difference_mm(grid) < 1e-9


@given(orientations, orientations, orientations, shapes)
def test_a_detour_leads_to_the_same_place(first: str, detour: str, last: str, shape: tuple[int, int, int]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    direct = reorient_array(array, first, last)
    np.testing.assert_array_equal(reorient_array(reorient_array(array, first, detour), detour, last), direct)


@given(grids())
def test_axis_codes_of_tilted_grids_agree_with_nibabel(grid: Grid) -> None:
    assert axis_codes(grid.affine) == "".join(nibabel.aff2axcodes(grid.affine))


@given(grids())
def test_lps_and_ras_name_opposite_directions(grid: Grid) -> None:
    swapped = axis_codes(grid.affine).translate(str.maketrans("LRPA", "RLAP"))
    assert axis_codes(flip_world(grid.affine)) == swapped


@given(grids(), st.data())
def test_world_and_voxel_coordinates_are_inverse(grid: Grid, data: st.DataObject) -> None:
    index = [data.draw(st.floats(-10, 10)) for _ in range(3)]
    np.testing.assert_allclose(grid.to_voxel(grid.to_world(index)), index, atol=1e-6)


@given(grids(), shapes)
def test_resizing_keeps_the_field_of_view(grid: Grid, shape: tuple[int, int, int]) -> None:
    resized = grid.resized(shape)
    for corner in (-0.5, 0.5):  # the outer edges of the first and of the last voxel
        old = [corner if corner < 0 else n - 0.5 for n in grid.shape]
        new = [corner if corner < 0 else n - 0.5 for n in shape]
        np.testing.assert_allclose(resized.to_world(new), grid.to_world(old), atol=1e-8)
    assert resized.resized(grid.shape).difference_mm(grid) < 1e-8


@given(
    st.dictionaries(st.integers(1, 300), st.just(""), min_size=1, max_size=40),
    st.one_of(st.none(), st.integers(301, 70_000)),
    st.integers(0, 2**32 - 1),
)
def test_label_values_come_back_from_class_indices(values: dict[int, str], ignore: int | None, seed: int) -> None:
    table = LabelTable({value: f"organ {value}" for value in values}, ignore)
    legal = [0, *table.values, *([] if ignore is None else [ignore])]
    array = np.random.default_rng(seed).choice(legal, size=(3, 4, 5))
    index = table.to_index(array)
    assert set(np.unique(index)) <= {-1, *range(table.classes)}
    np.testing.assert_array_equal(table.from_index(index), array)
