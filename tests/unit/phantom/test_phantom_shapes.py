"""Signed distances of the shapes, by hand."""

import numpy as np
import pytest

from pipeline.phantom.shapes import Ball, Half, Rings, Trunk, Tube, bounds_mm, distance_mm, moved


def distance(shape, *point):
    return float(distance_mm(shape, np.array(point, dtype=np.float32).reshape(3, 1, 1, 1))[0, 0, 0])


@pytest.mark.parametrize(
    ("shape", "point", "expected"),
    [
        (Ball((1, 0, 0), (10, 10, 10)), (16, 0, 0), 5.0),
        (Ball((1, 0, 0), (10, 10, 10)), (1, 0, 7), -3.0),
        (Ball((0, 0, 0), (10, 20, 30)), (0, 20, 0), 0.0),
        (Ball((0, 0, 0), (10, 20, 30), (0, 0, 90)), (20, 0, 0), 0.0),  # turned about z: the 20 mm axis lies along x
        (Ball((0, 0, 0), (10, 10, 10)), (0, 0, 0), -10.0),
        (Tube(((0, 0, 0), (0, 0, 10)), (2, 4)), (5, 0, 5), 2.0),  # radius 3 half way
        (Tube(((0, 0, 0), (0, 0, 10)), (2, 4)), (0, 0, 17), 3.0),
        (Tube(((0, 0, 0), (0, 0, 10), (20, 0, 10)), (2, 2, 2)), (15, 3, 10), 1.0),
        (Trunk(((0, 100, 50), (10, 200, 50)), power=2), (160, 0, 5), 10.0),  # half width 150 between the stations
        (Trunk(((0, 100, 50), (10, 200, 50)), power=2), (0, -45, 0), -5.0),
        (Half(1, 4.0), (0, 10, 0), -6.0),
        (Rings(10, 4), (7, 7, 5), -2.0),  # slabs from 3 to 7 mm in every 10
        (Rings(10, 4), (0, 0, 19), 2.0),
        (Rings(10, 4, above_mm=20), (0, 0, 15), 5.0),
        (Rings(10, 4, slope=1.0), (0, 5, 10), -np.sqrt(2)),  # z + y = 15 is a middle; steeper slabs are thinner
    ],
)
def test_distance_equals_the_one_by_hand(shape, point, expected):
    assert distance(shape, *point) == pytest.approx(expected, abs=0.2 if isinstance(shape, Trunk) else 2e-2)


def test_bounds_hold_the_shape_tightly():
    low, high = bounds_mm(Ball((1, 2, 3), (10, 20, 30), (0, 0, 90)))
    np.testing.assert_allclose([low, high], [[-19, -8, -27], [21, 12, 33]], atol=1e-9)
    low, high = bounds_mm(Tube(((0, 0, 0), (5, 0, 10)), (2, 4)))
    np.testing.assert_allclose([low, high], [[-2, -4, -2], [9, 4, 14]])
    assert bounds_mm(Half(0, 0.0)) is None


def test_moved_turns_and_stretches_about_the_pivot():
    tube = moved(Tube(((2, 0, 0), (4, 0, 0)), (1, 1)), (2, 0, 0), (0, 0, 5), (2, 2, 2), (0, 0, 90))
    np.testing.assert_allclose(tube.points_mm, [(2, 0, 5), (2, 4, 5)], atol=1e-12)
    assert tube.radii_mm == (2, 2)
    ball = moved(Ball((0, 0, 0), (1, 2, 3)), (0, 0, 0), (7, 0, 0), (1, 1, 1), (0, 0, 90))
    assert distance(ball, 9, 0, 0) == pytest.approx(0, abs=1e-5)
    assert moved(Half(0, 1.0), (0, 0, 0), (9, 9, 9), (2, 2, 2), (0, 0, 0)) == Half(0, 1.0)
