"""What proves the place of a label map: every way in which tools bring it about, and no accident of a header."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.core.grid import ORIENTATIONS, Grid
from pipeline.data.regrid import doubt

SEEDS = st.integers(0, 2**32 - 1)


def drawn_grid(rng: np.random.Generator) -> Grid:
    """A grid somewhere in the world, every other one oblique."""
    angle = rng.uniform(-0.7, 0.7) * rng.integers(2)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * rng.uniform(0.5, 3, 3), rng.uniform(-100, 100, 3)
    shape = tuple(int(n) for n in rng.integers(6, 40, 3))
    return Grid(shape, affine).reoriented(ORIENTATIONS[rng.integers(48)])


def cut_out(grid: Grid, rng: np.random.Generator) -> Grid:
    start = rng.integers(1, 3, 3)
    return grid.cropped(start, [int(rng.integers(a + 2, n + 1)) for a, n in zip(start, grid.shape, strict=True)])


def padded(grid: Grid, rng: np.random.Generator) -> Grid:
    return grid.cropped(-rng.integers(1, 4, 3), np.array(grid.shape) + rng.integers(0, 4, 3))


def resized(grid: Grid, rng: np.random.Generator) -> Grid:
    return grid.resized([max(2, round(n * float(rng.choice([0.5, 0.7, 1, 1.5, 2])))) for n in grid.shape])


def every_other(grid: Grid, rng: np.random.Generator) -> Grid:
    """As tools that keep the first voxel write half the resolution, the shape rounded up or down."""
    affine = grid.affine.copy()
    affine[:3, :3] *= 2
    i, j, k = ((n + int(rng.integers(2))) // 2 for n in grid.shape)
    return Grid((i, j, k), affine)


@pytest.mark.parametrize("change", [lambda grid, rng: grid, cut_out, padded, resized, every_other])
@given(seed=SEEDS)
def test_a_header_of_its_own_proves_the_place(change, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = drawn_grid(rng)
    label = change(image, rng).reoriented(ORIENTATIONS[rng.integers(48)])
    assert doubt(label, image, drawn=True) == ""


@given(seed=SEEDS)
def test_a_copied_header_proves_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = drawn_grid(rng)
    order = list(permutations(range(3)))[rng.integers(1, 6)]
    fewer = tuple(-(-n // int(rng.integers(1, 4))) for n in image.shape)
    for shape in (tuple(image.shape[axis] for axis in order), fewer):
        if shape != image.shape:
            assert doubt(Grid(shape, image.affine), image, drawn=True)
            assert doubt(Grid(shape, image.affine), image, drawn=False)


@given(seed=SEEDS)
def test_the_same_shape_elsewhere_proves_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = drawn_grid(rng)
    moved = image.affine.copy()
    moved[:3, 3] += image.affine[:3, :3] @ (rng.choice([-1, 1], 3) * rng.uniform(0.5, 3, 3))
    spaced = image.affine @ np.diag([*rng.choice([0.5, 0.8, 1, 1.3], 3), 1.0])
    assume(not np.array_equal(spaced, image.affine))
    for affine in (moved, spaced):
        assert doubt(Grid(image.shape, affine), image, drawn=True) == "the image's shape at another place or spacing"
