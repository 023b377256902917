"""What is written comes back exactly: labels, grid, orientation."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.grid import ORIENTATIONS, Grid
from pipeline.core.volume import LabelMap
from pipeline.data.volumes import read_grid, read_label_map, write_label_map

FORMATS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_orientations(tmp_path, orientation) -> None:
    shape = (3, 4, 5)
    labels = np.arange(60, dtype=np.uint8).reshape(shape)
    grid = Grid.from_spacing(shape, (0.75, 1.5, 3.0), orientation)
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        path = tmp_path / f"a{suffix}"
        write_label_map(LabelMap(labels, grid), path)
        back = read_label_map(path)
        np.testing.assert_array_equal(back.array, labels)
        np.testing.assert_allclose(back.grid.affine, grid.affine, atol=1e-5)
        assert back.grid.orientation == orientation


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (n for n in range(3) if n != axis)
        step = np.eye(3)
        step[first, first] = step[second, second] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turned = step @ turned
    return turned


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 7) for _ in range(3))),
    spacing=st.tuples(*(st.floats(0.1, 10) for _ in range(3))),
    angles=st.tuples(*(st.floats(-3.1, 3.1) for _ in range(3))),
    origin=st.tuples(*(st.floats(-250, 250) for _ in range(3))),
    flip=st.booleans(),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "uint32", "int64"]),
    suffix=st.sampled_from(FORMATS),
    seed=st.integers(0, 99),
)
def test_any_grid_and_type(shape, spacing, angles, origin, flip, dtype, suffix, seed) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) * np.array(spacing) * ([-1, 1, 1] if flip else [1, 1, 1])
    affine[:3, 3] = origin
    grid = Grid(shape, affine)
    highest = min(np.iinfo(dtype).max, 2**32 - 1)
    labels = np.random.default_rng(seed).integers(0, highest, shape, dtype=dtype, endpoint=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"case.1{suffix}"
        write_label_map(LabelMap(labels, grid), path)
        back = read_label_map(path)
        assert read_grid(path) == back.grid
    np.testing.assert_array_equal(back.array, labels)
    assert back.array.dtype == np.min_scalar_type(int(labels.max()))
    np.testing.assert_allclose(back.grid.affine, affine, atol=1e-5)
