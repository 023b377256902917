"""The overview: the patient's left on the right of the picture or the left, the head above, no text of the series."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_readers import segmented, series, write
from numpy.typing import NDArray
from scipy.ndimage import label

from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.dicom import open_series
from pipeline.export.overview import picture

CORNERS = LabelTable({1: "left", 2: "back", 3: "head", 4: "middle"})
COLORS = {"left": (255, 0, 0), "back": (0, 255, 0), "head": (0, 0, 255), "middle": (255, 255, 0)}
DIRECTIONS = [(np.eye(3)[a] * s, np.eye(3)[b]) for a, b in permutations(range(3), 2) for s in (1, -1)]


def centre(shown: NDArray[np.uint8], color: tuple[int, int, int], columns: slice) -> tuple[float, float]:
    """Row and column, in a panel, of the middle of what has a colour; the background is black."""
    part = shown[:480, columns].astype(int)
    bright = np.array(color) == 255
    seen = np.argwhere((part[..., bright] > 60).all(-1) & (part[..., ~bright] < 30).all(-1))
    row, column = seen.mean(axis=0)
    return float(row), float(column)


@pytest.mark.parametrize("neurological", [False, True])
@pytest.mark.parametrize(("row", "column"), DIRECTIONS)
def test_the_patients_left_is_on_the_right_or_left_and_the_head_above(
    row: NDArray[np.float64], column: NDArray[np.float64], neurological: bool, tmp_path: Path
) -> None:
    path = series(tmp_path / "s", (20, 20, 20), axes=(row, column), spacing_mm=(1.0, 1.0, 1.0))
    grid = open_series(path).grid
    place = grid.to_world(np.indices(grid.shape).reshape(3, -1).T)
    place -= place.mean(axis=0)  # RAS
    ways = {1: (-1, 0, 0), 2: (0, -1, 0), 3: (0, 0, 1), 4: (0, 0, 0)}
    labels = np.zeros(len(place), np.uint8)
    for value, way in ways.items():
        labels[np.linalg.norm(place - np.array(way) * 6.0, axis=1) < 2.5] = value
    case = segmented(path, LabelMap(labels.reshape(grid.shape), grid), CORNERS)
    colors = {name: f"#{bytes(color).hex()}" for name, color in COLORS.items()}
    black = type(case)(case.source, case.label_map, CORNERS, colors, None)
    shown = picture(black, neurological=neurological)
    way = -1 if neurological else 1
    assert shown.shape[1:] == (1500, 3)
    axial, coronal, sagittal = slice(0, 490), slice(504, 994), slice(1008, 1498)
    middle = {n: centre(shown, COLORS["middle"], panel) for n, panel in enumerate((axial, coronal, sagittal))}
    assert (centre(shown, COLORS["left"], axial)[1] - middle[0][1]) * way > 50
    assert centre(shown, COLORS["back"], axial)[0] > middle[0][0] + 50
    assert (centre(shown, COLORS["left"], coronal)[1] - middle[1][1]) * way > 50
    assert centre(shown, COLORS["head"], coronal)[0] < middle[1][0] - 50
    assert (centre(shown, COLORS["back"], sagittal)[1] - middle[2][1]) * way > 50
    assert centre(shown, COLORS["head"], sagittal)[0] < middle[2][0] - 50


def test_a_secondary_capture_holds_the_picture(tmp_path: Path) -> None:
    case = segmented(series(tmp_path / "s"))
    written = pydicom.dcmread(write(case, tmp_path, "sc")["sc"])
    np.testing.assert_array_equal(written.pixel_array, picture(case))
    # Another picture is another instance, so that an archive may have both.
    other = pydicom.dcmread(write(case, tmp_path / "n", "sc", neurological=True)["sc"])
    np.testing.assert_array_equal(other.pixel_array, picture(case, neurological=True))
    assert (other.pixel_array != written.pixel_array).any()
    assert other.SOPInstanceUID != written.SOPInstanceUID
    assert (written.Modality, written.ConversionType, written.BurnedInAnnotation) == ("OT", "WSD", "NO")
    assert len(written.SourceImageSequence) == 5


@pytest.mark.parametrize("shape", [(1, 300, 300), (300, 300, 1)])
def test_letters_of_planes_of_one_slice_stand_apart(shape: tuple[int, int, int], tmp_path: Path) -> None:
    path = series(tmp_path / "s", shape, spacing_mm=(1.0, 1.0, 1.0))
    grid = open_series(path).grid
    shown = picture(replace(segmented(path, LabelMap(np.zeros(grid.shape, np.uint8), grid)), image=None))
    # Each of the four letters, twelve in all, is a white shape of its own; the legend lies below.
    planes = shown.shape[0] - 12 - 24 * 2
    _, shapes = label((shown[:planes] > 100).all(axis=-1), np.ones((3, 3)))
    assert shapes == 12


@pytest.mark.parametrize("count", [0, 1, 32, 33, 117])
def test_what_was_found_is_listed_below_as_far_as_there_is_room(count: int, tmp_path: Path) -> None:
    path = series(tmp_path / "s", (4, 24, 24))
    grid = open_series(path).grid
    values = np.random.default_rng(0).integers(0, count + 1, grid.shape).astype(np.uint8)
    table = LabelTable({n: f"organ {n}" for n in range(1, 118)})
    shown = picture(segmented(path, LabelMap(values, grid), table))
    lines = -(-min(max(count, 1), 32) // 4)
    planes = shown.shape[0] - 12 - 24 * (lines + 1)
    assert 0 < planes <= 560
    assert shown[planes + 12 :].any()
