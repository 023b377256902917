"""Structure sets: contours that hold just the pixels of the mask, for readers of both kinds."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_readers import contoured, on_slices, require_back_in, segmented, series, sided, valid, write
from generated_dicom import SECRET, enhanced, make_slices
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon

from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.contours import filled
from pipeline.data.dicom import open_series
from pipeline.export.structure_set import contours

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))
DIRECTIONS = [
    (np.eye(3)[a] * s, np.eye(3)[b] * t) for a, b in permutations(range(3), 2) for s, t in product((1, -1), repeat=2)
]


def pixels(drawn: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    found = np.zeros(like.shape, bool)
    box, inside = filled(drawn, (like.shape[0], like.shape[1]))
    found[box.slices] = inside
    return found


@given(MASKS, st.integers(0, 1000))
def test_contours_hold_the_pixel_centres_of_the_mask(mask: np.ndarray, seed: int) -> None:
    drawn = contours(mask)
    np.testing.assert_array_equal(pixels(drawn, mask), mask)
    # Numbers are rounded when they are written.
    noise = np.random.default_rng(seed)
    moved = [points + noise.normal(0, 1e-3, points.shape) for points in drawn]
    np.testing.assert_array_equal(pixels(moved, mask), mask)


@given(MASKS)
def test_readers_that_join_areas_see_the_holes_too(mask: np.ndarray) -> None:
    rows, columns = np.indices(mask.shape)
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    found = np.zeros(mask.size, bool)
    for points in contours(mask):  # matplotlib counts windings, and areas are joined
        found |= Polygon(np.concatenate([points, points[:1]])).contains_points(centres)
    np.testing.assert_array_equal(found.reshape(mask.shape), mask)


def test_a_square_with_a_hole_is_one_contour_of_known_corners() -> None:
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    (points,) = contours(mask)
    outline = {(-0.5, 0.0), (0.0, -0.5), (4.0, -0.5), (4.5, 0.0), (4.5, 4.0), (4.0, 4.5), (0.0, 4.5), (-0.5, 4.0)}
    hole = {(1.5, 2.0), (2.0, 1.5), (2.5, 2.0), (2.0, 2.5)}
    channel = {(2.25, 2.25), (4.5, 2.25)}  # between rows of pixel centres, there and back
    assert {tuple(point) for point in points.tolist()} == outline | hole | channel
    assert len(points) == 8 + 4 + 2 * 2


def test_no_pixel_is_no_contour() -> None:
    assert contours(np.zeros((3, 4), bool)) == []


@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
@pytest.mark.parametrize("number", range(24))
def test_all_48_signed_permutations_of_directions(number: int, backwards: bool, tmp_path: Path) -> None:
    row, column = DIRECTIONS[number]
    step = np.cross(row, column) * (-2.5 if backwards else 2.5)
    path = series(tmp_path / "s", axes=(row, column), spacing_mm=(0.7, 1.1, 2.5), step=step)
    case = segmented(path)
    file = write(case, tmp_path, "rtstruct")["rtstruct"]
    slices = [pydicom.dcmread(one) for one in path.iterdir()]
    expected = on_slices(case)
    for target in (1, 2):
        read = contoured(file, slices, target)
        assert set(read) == {place for place, mask in expected.items() if (mask == target).any()}
        for place, mask in read.items():
            np.testing.assert_array_equal(mask, expected[place] == target)
    require_back_in(case, file)


def test_tilted_and_oblique_slices_have_contours_in_their_planes(tmp_path: Path) -> None:
    axes = ((0.999679, 0.02533, 0.0), (-0.0244148, 0.963561, -0.26637))
    for name, options in (("o", {"axes": axes}), ("t", {"step": (0.0, 0.7, 2.0)})):
        path = series(tmp_path / name, (4, 9, 7), **options)
        case = segmented(path)
        file = write(case, tmp_path / f"{name} out", "rtstruct")["rtstruct"]
        slices = [pydicom.dcmread(one) for one in path.iterdir()]
        for place, mask in contoured(file, slices, 1).items():
            np.testing.assert_array_equal(mask, on_slices(case)[place] == 1)
        require_back_in(case, file)


def test_an_absent_organ_keeps_its_number_and_has_no_contour(tmp_path: Path) -> None:
    path = series(tmp_path / "s")
    one = sided(open_series(path).grid)
    right = LabelMap(np.where(one.array == 2, 2, 0).astype(np.uint8), one.grid)
    written = pydicom.dcmread(write(segmented(path, right), tmp_path, "rtstruct")["rtstruct"])
    assert [(r.ROINumber, r.ROIName) for r in written.StructureSetROISequence] == [
        (1, "kidney_left"),
        (2, "kidney_right"),
    ]
    assert [len(item.get("ContourSequence", ())) > 0 for item in written.ROIContourSequence] == [False, True]


def test_frames_are_referred_to_by_number(tmp_path: Path) -> None:
    one = enhanced(make_slices(np.zeros((3, 4, 5), np.int16), slopes=[1.0] * 3), (2, 0, 1))
    (tmp_path / "s").mkdir()
    one.save_as(tmp_path / "s" / "a.dcm", enforce_file_format=True)
    file = write(segmented(tmp_path / "s"), tmp_path, "rtstruct")["rtstruct"]
    contour = pydicom.dcmread(file).ROIContourSequence[0].ContourSequence[0]
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == 2  # the lowest slice


@pytest.mark.parametrize("kind", ["plain", "empty", "regions"])
def test_dciodvfy_finds_no_error(kind: str, tmp_path: Path) -> None:
    path = series(tmp_path / "s", (4, 9, 7))
    one = sided(open_series(path).grid)
    label_map = LabelMap(one.array * (kind != "empty"), one.grid)
    regions = LabelTable({1: "rim", 2: "core"}, regions={"whole": (1, 2), "core": (2,)})
    table = regions if kind == "regions" else LabelTable({1: "kidney_left", 2: SECRET})
    valid(write(segmented(path, label_map, table), tmp_path, "rtstruct")["rtstruct"])
