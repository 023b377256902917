"""Exact distances between the surfaces of solids made of voxel boxes."""

import math
from dataclasses import asdict, astuple

import numpy as np
import pytest
from solids import ball, box, compared, faces_of

from pipeline.core.grid import Box
from pipeline.evaluate import surface
from pipeline.evaluate.surface import distance_distributions, label_faces, surface_scores

CUBE = box((48, 44, 44), (2, 2, 2), (40, 40, 40))
SPHERE = ball((54, 54, 80), (26.5, 26.5, 26.5), 25)
ROD = box(SPHERE.shape, (25, 25, 52), (4, 4, 28))


def test_t1_shifted_cubes():
    """By integration: 3200 mm² at 2, 4 strips of 80 mm² falling to 0, one face with min(2, distance to its edge)."""
    found = compared(CUBE, np.roll(CUBE, 2, axis=0))
    assert (found.hd_mm, found.hd95_mm) == pytest.approx((2.0, 2.0), abs=1e-6)
    assert (found.masd_mm, found.assd_mm) == pytest.approx((6410.667 / 9600,) * 2, abs=1e-3)
    assert found.nsd == pytest.approx(0.66625, abs=1e-4)


def test_t2_thick_slices():
    solid = box((18, 18, 12), (1, 1, 1), (16, 16, 8))
    found = compared(solid, np.roll(solid, 1, axis=2), (1.0, 1.0, 5.0), 2.0)
    assert (found.hd_mm, found.hd95_mm) == pytest.approx((5.0, 5.0), abs=1e-6)
    assert (found.masd_mm, found.nsd) == pytest.approx((0.887587, 0.807292), abs=1e-3)


def test_t3_rod_as_false_positive():
    """The rod reaches 50 voxels from 26 above the centre; the volume here holds a part of it, the next test all."""
    sphere = ball((54, 54, 106), (26.5, 26.5, 26.5), 25)
    rod = box(sphere.shape, (25, 25, 52), (4, 4, 50))
    assert compared(sphere, sphere | rod).hd95_mm == pytest.approx(11.5, abs=0.2)


def test_t4_two_spheres():
    """0.4223; on grids of 2, 3 and 5 times as many voxels for the same solids 0.4240, 0.4244 and 0.4245."""
    one, other = (ball((48, 44, 44), (x, 21.5, 21.5), 20) for x in (21.5, 24.5))
    assert compared(one, other).nsd == pytest.approx(0.439, abs=0.02)
    assert compared(one, other).nsd == pytest.approx(0.4223, abs=1e-3)


def test_t5_empty_masks():
    empty = np.zeros_like(CUBE)
    assert all(math.isnan(value) for value in astuple(compared(empty, empty)))
    for pair in ((CUBE, empty), (empty, CUBE)):
        assert astuple(compared(*pair)) == (math.inf, math.inf, math.inf, math.inf, 0.0)
    assert astuple(compared(CUBE, CUBE)) == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_t6_the_edge_of_the_field_of_view_is_a_surface():
    one, other = box((20, 18, 16), (0, 0, 4), (8, 9, 12)), box((20, 18, 16), (0, 2, 3), (9, 9, 13))
    padded = [np.pad(mask, 3) for mask in (one, other)]
    expected = astuple(compared(*padded, (1.0, 0.8, 2.5), 1.5))
    assert astuple(compared(one, other, (1.0, 0.8, 2.5), 1.5)) == pytest.approx(expected, abs=1e-9)


def test_finer_grids_of_the_same_solids_change_little():
    """Cutting every voxel into 27 leaves the solids as they are: what changes is the error of the quadrature."""
    generator = np.random.default_rng(5)
    one = np.pad(generator.random((6, 6, 6)) < 0.5, 1)
    other = np.pad(generator.random((6, 6, 6)) < 0.5, 1)
    fine = [np.repeat(np.repeat(np.repeat(mask, 3, 0), 3, 1), 3, 2) for mask in (one, other)]
    coarse, exact = compared(one, other, tolerance_mm=0.6), compared(*fine, (1 / 3,) * 3, 0.6)
    assert coarse.hd_mm == pytest.approx(exact.hd_mm, abs=0.02)
    assert coarse.hd95_mm == pytest.approx(exact.hd95_mm, abs=0.03)
    assert coarse.assd_mm == pytest.approx(exact.assd_mm, abs=0.01)
    assert coarse.nsd == pytest.approx(exact.nsd, abs=0.02)


def test_distances_at_lattice_points_are_those_of_all_rectangles():
    """Every face of one solid against every face of the other, as rectangles, without any lattice."""
    generator = np.random.default_rng(2)
    spacing = np.array([1.0, 0.7, 1.9])
    one, other = (generator.random((4, 5, 4)) < 0.3 for _ in range(2))
    spread, _ = distance_distributions(faces_of(one), faces_of(other), one.shape, tuple(spacing))
    lows, highs = [], []
    for axis, faces in enumerate(faces_of(other)):
        extent = np.array([n != axis for n in range(3)])
        lows.append(faces.corner * spacing)
        highs.append((faces.corner + extent) * spacing)
    low, high = np.concatenate(lows), np.concatenate(highs)
    largest = 0.0
    for axis, faces in enumerate(faces_of(one)):
        extent = np.array([n != axis for n in range(3)])
        for share in np.ndindex(3, 3, 3):
            point = (faces.corner + extent * np.array(share) / 2) * spacing
            outside = np.maximum(0, np.maximum(low - point[:, None], point[:, None] - high))
            largest = max(largest, float(np.sqrt((outside**2).sum(axis=2)).min(axis=1).max()))
    assert spread.largest_mm == pytest.approx(largest, abs=1e-9)


def test_faces_that_touch_the_ignore_label_belong_to_no_surface():
    array = np.zeros((6, 6, 6), dtype=np.uint8)
    array[2:4, 2:4, 2:4] = 1
    array[4:, :, :] = 9
    surface = label_faces(array, ignore=9).of((1,))
    assert [len(part.above) for part in surface] == [4, 8, 8]
    assert label_faces(array, ignore=9).box((1,)) == Box((2, 2, 2), (4, 4, 4))
    assert label_faces(array, ignore=9).box((5,)) is None


def test_a_region_has_no_surface_between_its_organs():
    array = np.zeros((6, 4, 4), dtype=np.int32)
    array[1:3, 1:3, 1:3], array[3:5, 1:3, 1:3] = 1, 70_000
    whole = label_faces((array > 0).astype(np.uint8)).of((1,))
    region = label_faces(array).of((1, 70_000))
    for expected, found in zip(whole, region, strict=True):
        assert sorted(map(tuple, found.corner)) == sorted(map(tuple, expected.corner))
    assert sum(len(part.above) for part in label_faces(array).of((70_000,))) == 24


def test_large_volumes_are_read_in_pieces(monkeypatch):
    expected = asdict(compared(SPHERE, SPHERE | ROD))
    monkeypatch.setattr(surface, "_PIECE_VOXELS", 10_000)
    assert asdict(compared(SPHERE, SPHERE | ROD)) == expected


def test_percentile_of_a_step_and_of_a_ramp():
    surface, half = faces_of(box((1, 1, 1), (0, 0, 0), (1, 1, 1))), faces_of(box((1, 1, 1), (0, 0, 0), (1, 1, 1)))
    found = surface_scores(surface, half, (1, 1, 1), (1.0, 1.0, 1.0), 0.0)
    assert astuple(found) == (0.0, 0.0, 0.0, 0.0, 1.0)
    slab, moved = box((8, 8, 4), (0, 0, 0), (8, 8, 2)), box((8, 8, 4), (0, 0, 0), (8, 8, 3))
    spread = distance_distributions(faces_of(slab), faces_of(moved), slab.shape, (1.0, 1.0, 1.0))[0]
    assert spread.total_mm2 == pytest.approx(2 * 64 + 4 * 16)
    assert spread.percentile(100 * 128 / 192) == pytest.approx(0.0, abs=1e-6)  # all but the upper face coincides
    assert spread.percentile(100) == pytest.approx(1.0, abs=1e-6)
