import numpy as np
import pytest

from pipeline.core import Grid, Image, LabelMap, LabelTable
from pipeline.data.itk import write_picture
from pipeline.data.volume_file import is_picture
from pipeline.data.volumes import read_label_map
from pipeline.export.scene import build_scene, display_range, error_masks, error_position


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
