import io

import numpy as np
import pytest
from matplotlib import image as pictures
from matplotlib.colors import to_rgb

from pipeline.core.errors import DataError
from pipeline.core.grid import ORIENTATIONS, Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.data.itk import write_picture
from pipeline.data.legend import organ_color
from pipeline.data.volume_file import is_picture
from pipeline.data.volumes import read_label_map
from pipeline.report import overlay
from pipeline.report.overlay import build_scene, case_overlay, display_range, error_masks, error_position
from pipeline.report.plots import FALSE_NEGATIVE, FALSE_POSITIVE, OTHER_ORGAN

TABLE = LabelTable({1: "liver", 2: "spleen"}, ignore_label=9)
GRID = Grid.from_spacing((24, 20, 12), (2.0, 2.0, 5.0))


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr(overlay, "_DPI", 50)


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


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SLA"])
@pytest.mark.parametrize("neurological", [False, True])
def test_the_patients_left_is_on_the_right_or_left_and_anterior_is_up(neurological, orientation):
    front_left = label_map([(0, 5), (15, 20), (0, 12)]).reoriented(orientation)
    everywhere = label_map([(0, 24), (0, 20), (0, 12)]).reoriented(orientation)
    picture = pixels(case_overlay(everywhere, front_left, TABLE, [1], neurological=neurological))
    height, width = picture.shape[0] // 2, picture.shape[1] // 3
    fill = np.abs(picture[:height, : int(width * 0.95)] - np.array(to_rgb(organ_color(0))) * 0.42).max(axis=-1) < 0.02
    rows, columns = np.nonzero(fill)
    assert columns.mean() < 0.4 * width if neurological else columns.mean() > 0.6 * width
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


def test_scene_is_turned_to_ras_and_cropped_to_the_labels():
    """The label covers i 30 to 34 of 100 at 2 mm; the margin of 15 mm is 8 voxels (7.5, to even)."""
    grid = Grid.from_spacing((100, 8, 6), (2.0, 30.0, 5.0))
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[30:35, 2:4, 2:4] = 1
    array[33:35, 2:4, 2:4] = 9
    image = Image(np.arange(grid.voxels, dtype=np.float32).reshape(1, *grid.shape), grid).reoriented("SPL")
    reference = LabelMap(array, grid).reoriented("SPL")
    scene = build_scene(reference, reference, LabelTable({1: "liver"}, 9), image)
    assert scene.spacing_mm == pytest.approx((2.0, 30.0, 5.0))
    assert scene.reference.shape == (35 + 8 - (30 - 8), 2, 6)
    assert scene.ignored.sum() == 2 * 2 * 2
    assert scene.reference.sum() == 3 * 2 * 2
    assert scene.image is not None
    assert scene.image[0, 0, 0] == 22 * 48 + 2 * 6


def test_a_picture_looks_as_it_is(tmp_path):
    """Rows of the scene go up; its world has the left of the picture on the left, as viewers draw the patient's."""
    pixels = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    write_picture(pixels, tmp_path / "a.png")
    assert is_picture(tmp_path / "a.png#channel=2of3")
    labels = read_label_map(tmp_path / "a.png")
    table = LabelTable({value: f"organ {value}" for value in range(1, 13)})
    scene = build_scene(labels, labels, table, picture=True)
    np.testing.assert_array_equal(scene.reference[:, ::-1, 0].T, pixels)
    assert (scene.grid.orientation, scene.picture) == ("RAS", True)
    mirrored = build_scene(labels, labels, table)
    np.testing.assert_array_equal(mirrored.reference[:, ::-1, 0].T, pixels[:, ::-1])


def test_errors_under_the_ignore_label_are_none():
    """Slice 1 along i holds the one error that counts; what is predicted under the ignore label is a larger one."""
    reference, prediction = np.zeros((2, 6, 6, 6), dtype=np.uint8)
    reference[1, 1:3, 1:3] = prediction[1, 1:3, 1] = 1
    reference[4], prediction[4] = 9, 1
    grid = Grid.from_spacing((6, 6, 6), (1.0, 1.0, 1.0))
    scene = build_scene(LabelMap(reference, grid), LabelMap(prediction, grid), LabelTable({1: "liver", 2: "spleen"}, 9))
    assert scene.largest_error((1,)) == (1, 1, 2)
    masks = error_masks(scene.reference, scene.prediction, scene.ignored)
    assert {kind: int(mask.sum()) for kind, mask in masks.items()} == {
        "false negative": 2,
        "false positive": 0,
        "taken for another organ": 0,
    }


def test_scene_without_labels_is_the_whole_volume():
    empty = LabelMap(np.zeros((4, 5, 6), dtype=np.uint8), Grid.from_spacing((4, 5, 6), (1.0, 1.0, 1.0)))
    scene = build_scene(empty, empty, LabelTable({1: "liver"}))
    assert (scene.reference.shape, scene.image) == ((4, 5, 6), None)


def test_error_position_is_the_slice_with_most_errors():
    reference, prediction = np.zeros((2, 5, 6, 7), dtype=bool)
    reference[1:4, 2:5, 3:6] = True
    prediction[1:4, 2:5, 3:6] = True
    assert error_position(reference, prediction) == (1, 2, 3)
    prediction[3, 2:5, 3:5] = False
    prediction[0, 2, 4] = True
    assert error_position(reference, prediction) == (3, 2, 4)
    assert error_position(np.zeros_like(reference), np.zeros_like(reference)) == (2, 3, 3)


def test_display_range():
    ct = np.array([-1000.0, 0.0, 500.0])
    assert display_range(ct) == (-160.0, 240.0)
    mr = np.arange(101, dtype=np.float32)
    assert display_range(mr) == pytest.approx((1.0, 99.0))
    low, high = display_range(np.zeros((2, 2)))
    assert low < high
    assert display_range(np.array([np.nan, np.inf])) == (0.0, 1.0)
