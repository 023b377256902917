import io

import numpy as np
import pytest
from matplotlib import image as pictures
from matplotlib.colors import to_rgb

from pipeline.core import ORIENTATIONS, DataError, Grid, Image, LabelMap, LabelTable
from pipeline.export.overlay import case_overlay
from pipeline.export.palette import FALSE_NEGATIVE, FALSE_POSITIVE, OTHER_ORGAN, organ_color

TABLE = LabelTable({1: "liver", 2: "spleen"}, ignore_label=9)
GRID = Grid.from_spacing((24, 20, 12), (2.0, 2.0, 5.0))


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("pipeline.export.overlay._DPI", 50)


def label_map(box, value=1, shape=GRID.shape):
    array = np.zeros(shape, dtype=np.uint8)
    array[tuple(slice(*part) for part in box)] = value
    return LabelMap(array, GRID)


REFERENCE = label_map([(4, 12), (4, 12), (3, 8)])


def pixels(overlay):
    return pictures.imread(io.BytesIO(overlay.png))[..., :3]


def share(overlay, color, opacity=1.0):
    """Share of the lower row, the errors, in a colour laid over black."""
    wanted = np.array(to_rgb(color)) * opacity
    picture = pixels(overlay)
    return float((np.abs(picture[picture.shape[0] // 2 :] - wanted).max(axis=-1) < 0.02).mean())


def test_errors_are_marked_by_kind():
    missed = case_overlay(REFERENCE, label_map([(0, 0)] * 3), TABLE, [1])
    assert share(missed, FALSE_NEGATIVE, 0.85) > 0.01
    assert share(missed, FALSE_POSITIVE, 0.85) == 0
    swapped = case_overlay(REFERENCE, label_map([(4, 12), (4, 12), (3, 8)], 2), TABLE, [1])
    assert share(swapped, OTHER_ORGAN, 0.85) > 0.01
    assert share(swapped, FALSE_NEGATIVE, 0.85) == 0
    assert swapped.organs == (("liver", organ_color(0)), ("spleen", organ_color(1)))
    perfect = case_overlay(REFERENCE, REFERENCE, TABLE, [1])
    assert max(share(perfect, color, 0.85) for color in (FALSE_NEGATIVE, FALSE_POSITIVE, OTHER_ORGAN)) == 0
    assert (perfect.planes, perfect.window) == (("Axial", "Coronal", "Sagittal"), "")


def test_ignored_voxels_are_no_errors():
    reference = LabelMap(np.where(REFERENCE.array == 1, 9, 0).astype(np.uint8), GRID)
    overlay = case_overlay(reference, REFERENCE, TABLE, [1])
    assert share(overlay, FALSE_POSITIVE, 0.85) == 0


def test_the_picture_does_not_depend_on_the_orientation():
    prediction = label_map([(6, 14), (4, 12), (3, 8)])
    expected = pixels(case_overlay(REFERENCE, prediction, TABLE, [1]))
    for orientation in ORIENTATIONS[5::20]:
        turned = (REFERENCE.reoriented(orientation), prediction.reoriented(orientation))
        np.testing.assert_allclose(pixels(case_overlay(*turned, TABLE, [1])), expected, atol=0.01)


def test_left_is_left_and_anterior_is_up():
    front_left = label_map([(0, 5), (15, 20), (0, 12)])
    everywhere = label_map([(0, 24), (0, 20), (0, 12)])
    picture = pixels(case_overlay(everywhere, front_left, TABLE, [1]))
    height, width = picture.shape[0] // 2, picture.shape[1] // 3
    fill = np.abs(picture[:height, : int(width * 0.95)] - np.array(to_rgb(organ_color(0))) * 0.42).max(axis=-1) < 0.02
    rows, columns = np.nonzero(fill)
    assert columns.mean() < 0.4 * width
    assert rows.mean() < 0.4 * height


def test_image_and_window():
    intensities = np.random.default_rng(0).normal(40, 30, (2, *GRID.shape)).astype(np.float32)
    intensities[0, 0] = -1000
    overlay = case_overlay(REFERENCE, REFERENCE, TABLE, [1], Image(intensities, GRID))
    assert overlay.window == "-160 to 240 HU"
    assert len(np.unique(pixels(overlay)[..., 0])) > 50


def test_a_single_slice_shows_one_plane():
    grid = Grid.from_spacing((24, 20, 1), (1.0, 1.0, 1.0))
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[5:9, 5:9] = 1
    assert case_overlay(LabelMap(array, grid), LabelMap(array, grid), TABLE, [1]).planes == ("Axial",)


def test_grids_that_differ_are_refused():
    other = LabelMap(REFERENCE.array, Grid.from_spacing(GRID.shape, (2.0, 2.0, 4.0)))
    with pytest.raises(DataError, match=r"prediction grid: .*a difference of"):
        case_overlay(REFERENCE, other, TABLE, [1])
