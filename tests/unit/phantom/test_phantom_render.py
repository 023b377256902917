"""Painting with partial volume, on bodies simple enough to know the answer."""

from math import pi

import numpy as np
import pytest

from pipeline.core.grid import Grid
from pipeline.phantom import render as render_module
from pipeline.phantom.body import Body
from pipeline.phantom.render import render
from pipeline.phantom.shapes import Ball, Half, Part, Tube, Waves, both_sides, draw_waves, wave_sum
from pipeline.phantom.tissue import Scanner, add_noise, draw_scanner

VALUES = {"air": 0.0, "fat": 50.0, "liver": 100.0, "bile": 200.0}


def still(*parts):
    """A body at the world's origin, in average size and without displacement."""
    none = Waves(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros(0, np.float32))
    return Body(parts, np.eye(3), np.ones(3), np.zeros(3), 10.0, none)


def centred_grid(spacing, extent=120.0):
    counts = [round(extent / s) for s in spacing]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) * s / 2 for n, s in zip(counts, spacing, strict=True)]
    return Grid(tuple(counts), affine)


def paint(body, grid, noise=0.0):
    return render(body, Scanner("ct", VALUES, noise, 0.5), grid, np.random.default_rng(0))


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 1.5, 5.0), (4.0, 3.0, 0.8)])
def test_partial_volume_keeps_the_volume_of_a_ball_on_any_spacing(spacing):
    grid = centred_grid(spacing)
    image, labels = paint(still(Part("liver", "liver", (Ball((3, -2, 1), (30, 25, 20)),), "organ")), grid)
    volume_ml = 4 / 3 * pi * 30 * 25 * 20 / 1000
    assert image.sum() / 100 * grid.voxel_volume_ml == pytest.approx(volume_ml, rel=0.02)
    assert (labels == 1).sum() * grid.voxel_volume_ml == pytest.approx(volume_ml, rel=0.03)
    centre = grid.to_world(np.argwhere(labels == 1)).mean(axis=0)
    np.testing.assert_allclose(centre, (3, -2, 1), atol=0.2)


def test_a_voxel_cut_by_a_face_is_filled_in_proportion():
    grid = Grid((40, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0]))
    image, labels = paint(still(Part("liver", "liver", (Half(0, 30.5),), "organ")), grid)
    # Voxel 15 reaches from 29 to 31 mm: a quarter of it is above 30.5 mm.
    np.testing.assert_allclose(image[14:17, 20, 20], [0, 25, 100], atol=1)
    assert labels[14:17, 20, 20].tolist() == [0, 0, 1]


def test_the_label_is_what_fills_most_and_details_and_halos_keep_their_roles():
    ball = (Ball((0, 0, 0), (30, 30, 30)),)
    body = still(
        Part("liver", "liver", ball, "organ"),
        Part("core", "bile", role="detail", inside="liver", inset_mm=10.0),
        Part("gallbladder", "bile", (Ball((25, 0, 0), (8, 8, 8)),), "organ", halo_mm=6.0),
        Part("ghost", "bile", role="detail", inside="nothing_painted"),
    )
    grid = centred_grid((1.0, 1.0, 1.0), 101)
    image, labels = paint(body, grid)

    def at(x):
        return image[50 + x, 50, 50], labels[50 + x, 50, 50]

    assert at(0) == (200, 1)  # detail: other intensity, same label
    assert at(-25) == (100, 1)
    assert at(14) == (50, 0)  # halo: 8 to 14 mm from the centre at x = 25
    assert at(25) == (200, 5)
    assert at(45) == (0, 0)


def test_noise_and_slabs_do_not_depend_on_how_the_volume_is_cut(monkeypatch):
    body = still(Part("liver", "liver", (Ball((3, -2, 1), (30, 25, 20)),), "organ"))
    grid = centred_grid((3.0, 3.0, 3.0))
    whole = paint(body, grid, noise=10.0)
    monkeypatch.setattr(render_module, "_SLAB_VOXELS", 3 * 40 * 40)
    parts = paint(body, grid, noise=10.0)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_ct_noise_has_the_stated_level_and_is_correlated_within_slices_only():
    noise = add_noise(np.zeros((80, 80, 40), np.float32), Scanner("ct", VALUES, 20.0, 0.7), np.random.default_rng(0))
    assert noise.std() == pytest.approx(20, rel=0.02)
    assert abs(noise.mean()) < 0.5
    in_plane = np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]
    across = np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]
    assert in_plane > 0.3
    assert abs(across) < 0.02


def test_mr_noise_is_rician():
    scanner = Scanner("mr", VALUES, 0.05, 0.4, gain=1000.0)
    noise = add_noise(np.zeros((80, 80, 40), np.float32), scanner, np.random.default_rng(0))
    assert noise.min() >= 0
    assert noise.mean() == pytest.approx(50 * np.sqrt(pi / 2), rel=0.02)  # Rayleigh where there is no signal


def test_scanners_differ_from_case_to_case_within_plausible_limits():
    scanners = [draw_scanner("ct", np.random.default_rng(n)) for n in range(30)]
    liver = [scanner.values["liver"] for scanner in scanners]
    assert 60 < min(liver) < max(liver) < 120
    assert np.std([scanner.noise for scanner in scanners]) > 2
    gains = [draw_scanner("mr", np.random.default_rng(n)).gain for n in range(30)]
    assert max(gains) / min(gains) > 4


def test_waves_are_the_sum_of_their_sines():
    waves = Waves(np.array([[0.1, 0, 0]], np.float32), np.array([[2.0, 0, -1.0]], np.float32), np.zeros(1, np.float32))
    field = wave_sum(waves, np.array([5 * pi, 7.0, 9.0], np.float32).reshape(3, 1, 1, 1))
    np.testing.assert_allclose(field.ravel(), [2, 0, -1], atol=1e-5)
    drawn = draw_waves(np.random.default_rng(0), 50, (40.0, 80.0), 1.0, 3)
    lengths = 2 * pi / np.linalg.norm(drawn.vectors, axis=1)
    assert 40 <= lengths.min() < lengths.max() <= 80


def test_both_sides_mirror_at_the_midplane():
    ball = Ball((10, 2, 3), (1, 2, 3), (5, 6, 7))
    tube = Tube(((10, 0, 0), (20, 0, 0)), (1, 1))
    right, left = both_sides(Part("hip", "bone", (ball, tube), inside="leg"))
    assert (right.name, right.inside, left.name, left.inside) == ("hip_right", "leg_right", "hip_left", "leg_left")
    assert right.shapes == (ball, tube)
    assert left.shapes == (Ball((-10, 2, 3), (1, 2, 3), (5, -6, -7)), Tube(((-10, 0, 0), (-20, 0, 0)), (1, 1)))
