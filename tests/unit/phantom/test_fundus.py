"""Synthetic fundus photographs: reproducible, anatomically sound, and laid out as Drishti-GS1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import center_of_mass, label

from pipeline.core.errors import ConfigError, VolsegError
from pipeline.core.files import file_hash
from pipeline.core.grid import Box
from pipeline.data.layouts import open_dataset
from pipeline.data.organ_masks import read_reference
from pipeline.data.volumes import read_image
from pipeline.phantom.fundus import FUNDUS_SIZE, fundus_case, write_fundus
from pipeline.phantom.fundus_eye import Outline, draw_eye, signed_distance

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [fundus_case(index, seed=4) for index in range(2)]


def test_same_arguments_give_the_same_pixels_and_others_do_not(cases: list[Case]) -> None:
    again, other = fundus_case(1, seed=4), fundus_case(1, seed=5)
    for number in range(3):
        np.testing.assert_array_equal(again[number], cases[1][number])
        assert (other[number] != cases[1][number]).any()


def test_soft_maps_are_votes_of_four_and_the_cup_lies_in_the_disc(cases: list[Case]) -> None:
    for photo, disc, cup in cases:
        assert photo.shape == (FUNDUS_SIZE[1], FUNDUS_SIZE[0], 3)
        assert photo.dtype == disc.dtype == cup.dtype == np.uint8
        assert set(np.unique(disc)) == set(np.unique(cup)) == {0, 64, 128, 191, 255}
        assert (cup <= disc).all()  # every expert's cup lies in that expert's disc
        for soft in (disc, cup):
            assert label(soft >= 128)[1] == 1


def test_the_disc_is_bright_and_the_cup_brighter(cases: list[Case]) -> None:
    for photo, disc, cup in cases:
        green = photo[..., 1].astype(float)
        background = np.median(green[(disc == 0) & (green > 10)])
        rim = np.median(green[(disc == 255) & (cup == 0)])
        assert background + 15 < rim < np.median(green[cup == 255])


def test_the_corners_are_black_and_the_retina_is_red(cases: list[Case]) -> None:
    for photo, disc, _ in cases:
        assert photo[[0, 0, -1, -1], [0, -1, 0, -1]].max() <= 3
        red, green, blue = (np.median(photo[..., n][(disc == 0) & (photo[..., 0] > 40)]) for n in range(3))
        assert red > 1.3 * green > 1.3 * blue


def test_discs_and_cups_come_in_many_sizes_and_places() -> None:
    size = FUNDUS_SIZE
    eyes = [draw_eye(size, np.random.default_rng([0, index])) for index in range(24)]
    masks = [(signed_distance(eye.disc, size) < 0, signed_distance(eye.cup, size) < 0) for eye in eyes]
    assert not any((cup & ~disc).any() for disc, cup in masks)
    heights = np.array([[mask.any(axis=1).sum() for mask in pair] for pair in masks])
    ratios = heights[:, 1] / heights[:, 0]
    assert 0.4 < ratios.min() < 0.55
    assert 0.75 < ratios.max() < 0.9
    assert heights[:, 0].min() < 85 < 105 < heights[:, 0].max() < 130
    centres = np.array([center_of_mass(disc) for disc, _ in masks])
    assert np.ptp(centres[:, 1]) > 120
    assert np.ptp(centres[:, 0]) > 70
    assert {eye.temporal for eye in eyes} == {-1, 1}


def test_distance_to_a_circle() -> None:
    circle = Outline(np.array([20.0, 10.0]), np.array([5.0, 5.0]), 0.3, np.zeros((3, 2)))
    distance = signed_distance(circle, (40, 30))
    assert distance.shape == (30, 40)
    assert distance[10, 20] == pytest.approx(-5, abs=1e-4)
    assert distance[10, 29] == pytest.approx(4, abs=1e-4)
    part = signed_distance(circle, (40, 30), Box((8, 25), (12, 40)))
    np.testing.assert_array_equal(part, distance[8:12, 25:])


def test_the_folder_is_a_dataset(tmp_path: Path, cases: list[Case]) -> None:
    calls: list[tuple[int, int, str]] = []
    write_fundus(tmp_path / "eyes", cases=1, tests=1, seed=4, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2, "phantom"), (2, 2, "phantom")]
    dataset = open_dataset(tmp_path / "eyes")
    assert [(case.id, case.split) for case in dataset.cases] == [
        ("fundus_000", "train"),
        ("fundus_500", "validation"),
    ]
    photo, disc, cup = cases[0]
    np.testing.assert_array_equal(read_image(dataset.cases[0].images).array[..., 0].T, photo.astype(np.float32))
    reference = read_reference(dataset.cases[0]).array[..., 0].T
    np.testing.assert_array_equal(reference, np.where(cup >= 128, 2, (disc >= 128).astype(int)))
    files = {path: file_hash(path) for path in (tmp_path / "eyes").rglob("*.png")}
    assert len(files) == 6
    assert max(path.stat().st_size for path in files) < 300_000
    write_fundus(tmp_path / "eyes", cases=1, tests=1, seed=4)
    with pytest.raises(VolsegError, match="expected an empty folder or photographs of the same seed, got others"):
        write_fundus(tmp_path / "eyes", cases=1, tests=1, seed=5)
    assert {path: file_hash(path) for path in files} == files


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        write_fundus(tmp_path, cases=0, tests=501, seed=-1)
    assert error.value.problems == (
        "cases: expected 1 to 500, got 0. Change it.",
        "tests: expected 0 to 500, got 501. Change it.",
        "seed: expected at least 0, got -1. Change it.",
    )
    (tmp_path / "mine.png").touch()
    with pytest.raises(
        VolsegError, match=r"expected an empty folder or the same phantom dataset, got 1 other files such"
    ):
        write_fundus(tmp_path, cases=1, tests=0)
