"""What a picture of patches shows."""

import numpy as np
import pytest

from pipeline.export.patch_scene import PatchRow, PatchScene, PatchView, telling_slices


def view(label: np.ndarray, image: np.ndarray | None = None) -> PatchView:
    return PatchView(label[None].astype(np.float32) if image is None else image, label)


def scene(*views: PatchView, **options: object) -> PatchScene:
    rows = tuple(PatchRow("", each, ()) for each in views)
    given = {"spacing_mm": (1.0, 1.0, 1.0), "axis": 2, "organs": ("a", "b", "c"), "channel": 0, **options}
    return PatchScene((), rows, (), **given)  # type: ignore[arg-type]


def test_small_organs_count_as_much_as_large_ones() -> None:
    label = np.zeros((10, 10, 10), int)
    label[:, :, 2] = 1
    label[:, :, 3] = 1
    assert telling_slices(label)[2] == 2
    label[4, 6, 3] = 2  # one voxel of another organ against 100
    assert telling_slices(label)[2] == 3
    assert telling_slices(label)[:2] == (4, 6)


def test_without_foreground_the_middle_is_shown() -> None:
    assert telling_slices(np.zeros((4, 5, 7), int)) == (2, 2, 3)
    assert telling_slices(np.full((4, 5, 7), -1)) == (2, 2, 3)


def test_organs_seen_are_those_of_all_views() -> None:
    first, second = np.zeros((2, 4, 4, 4), int)
    first[0, 0, 0], second[0, 0, 0], second[1, 1, 1] = 3, 1, -1
    assert scene(view(first), view(second)).seen() == (1, 3)


@pytest.mark.parametrize(
    ("shape", "planes", "main"),
    [
        ((4, 5, 6), ("Axial", "Coronal", "Sagittal"), "Axial"),
        ((4, 5, 1), ("Axial",), "Axial"),
        ((4, 1, 6), ("Coronal",), "Coronal"),
        ((1, 5, 6), ("Sagittal",), "Sagittal"),
    ],
)
def test_planes_follow_from_the_shape(shape: tuple[int, ...], planes: tuple[str, ...], main: str) -> None:
    found = scene(view(np.zeros(shape, int)))
    assert tuple(plane.name for plane in found.planes) == planes
    assert found.main.name == main


def test_the_axis_left_alone_is_cut() -> None:
    assert scene(view(np.zeros((4, 5, 6), int)), axis=1).main.name == "Coronal"


def test_planes_are_measured_in_mm() -> None:
    found = scene(view(np.zeros((10, 20, 4), int)), spacing_mm=(1.0, 0.5, 5.0))
    assert [found.extent_mm(plane) for plane in found.planes] == [(10.0, 10.0), (10.0, 20.0), (10.0, 20.0)]


def test_the_window_leaves_out_padding_and_holds_the_organs() -> None:
    label = np.zeros((20, 20, 20), int)
    label[:10] = -1
    label[15, 15, 15] = 1
    image = np.linspace(0, 1, 8000, dtype=np.float32).reshape(1, 20, 20, 20)
    image[0, :10] = -50.0
    image[0, 15, 15, 15] = 7.0
    low, high = scene(view(label, image)).window
    assert 0.49 < low < 0.53
    assert high == pytest.approx(7.0)


def test_a_patch_that_is_all_padding_has_a_window() -> None:
    low, high = scene(view(np.full((4, 4, 4), -1), np.zeros((1, 4, 4, 4), np.float32))).window
    assert low < high


def test_the_window_is_that_of_the_channel_shown() -> None:
    label = np.zeros((4, 4, 4), int)
    image = np.stack([np.zeros((4, 4, 4)), np.linspace(5, 6, 64).reshape(4, 4, 4)]).astype(np.float32)
    low, high = scene(view(label, image), channel=1).window
    assert 5.0 <= low < high <= 6.0
