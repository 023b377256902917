"""The picture of training patches: what is where, true to scale."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import image as pictures
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pipeline.data.legend import organ_color
from pipeline.report.patch_picture import PatchRow, PatchScene, PatchView, draw_patches, patch_figure, telling_slices

SHAPE = (20, 16, 8)


def view(organ: int = 1, channels: int = 1) -> PatchView:
    label = np.zeros(SHAPE, int)
    label[3:9, 4:12, 2:6] = organ
    image = np.random.default_rng(0).normal(size=(channels, *SHAPE)).astype(np.float32) + label
    return PatchView(image, label)


def scene(rows: int = 2, versions: int = 3, changes: int = 4, **options: object) -> PatchScene:
    made = tuple(PatchRow(f"patch {n}", view(), (view(),) * versions) for n in range(rows))
    return PatchScene(
        **{
            "heading": ("dataset: patches", "facts"),
            "rows": made,
            "changes": tuple((f"change {n}\noften", view()) for n in range(changes)),
            "spacing_mm": (1.0, 1.0, 4.0),
            "axis": 2,
            "organs": tuple(f"organ_{n}" for n in range(120)),
            "channel": 0,
            **options,
        }  # type: ignore[arg-type]
    )


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_one_panel_per_view_and_plane() -> None:
    figure = patch_figure(scene())
    assert len(figure.axes) == 2 * (3 + 3) + 4
    assert "patch 1" in texts(figure)
    assert "change 3" in texts(figure)
    assert "organ_0" in texts(figure)


def test_panels_are_true_to_scale() -> None:
    figure = patch_figure(scene())
    width, height = figure.get_size_inches()
    boxes = [axes.get_position() for axes in figure.axes[:3]]
    inches = [(box.width * width, box.height * height) for box in boxes]
    scale = 1.8 / 32.0  # the longest side is 8 slices of 4 mm
    expected = [(20 * scale, 16 * scale), (20 * scale, 32 * scale), (16 * scale, 32 * scale)]
    np.testing.assert_allclose(inches, expected, rtol=1e-6)
    assert all(axes.get_aspect() == 1 for axes in figure.axes)
    assert figure.axes[1].get_xlim() == (0, 20)
    assert figure.axes[1].get_ylim() == (0, 32)


def test_no_panels_or_texts_overlap_or_leave_the_picture() -> None:
    figure = patch_figure(scene(rows=3, changes=19))
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    for n, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:n])
    places = [text.get_position() for text in figure.texts]
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in places)
    assert len(set(places)) == len(places)


def test_sides_are_named() -> None:
    figure = patch_figure(scene())
    found = ["".join(text.get_text() for text in axes.texts) for axes in figure.axes[:4]]
    assert found == ["RLPAAxial", "RLISCoronal", "APISSagittal", ""]


@pytest.mark.parametrize("neurological", [False, True])
def test_the_patients_left_is_on_the_right_or_left_and_front_is_up(neurological: bool) -> None:
    left_front = view()
    left_front.image[:] = 0.0
    left_front.image[0, :10, 8:] = 1.0  # RAS: low i is left, high j is front
    rows = (PatchRow("", left_front, ()),)
    figure = patch_figure(replace(scene(), rows=rows, neurological=neurological))
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert figure.axes[0].images[0].origin == "lower"
    assert shown.shape == (16, 20)  # rows from back to front, columns from left to right of the picture
    left, right = (shown[:, :10], shown[:, 10:])[:: 1 if neurological else -1]
    assert left[8:].min() == 1.0
    assert left[:8].max() == right.max() == 0.0


def test_pictures_of_one_scene_are_equal_and_not_blank() -> None:
    first = draw_patches(scene())
    assert first == draw_patches(scene())
    picture = pictures.imread(io.BytesIO(first))[..., :3]
    color = np.abs(picture - np.array(to_rgb(organ_color(0)))).max(axis=-1) < 0.02
    assert color.mean() > 0.002
    assert picture.std() > 0.1


def test_without_augmentation_only_the_cut_patches_are_drawn() -> None:
    figure = patch_figure(scene(versions=0, changes=0))
    assert len(figure.axes) == 2 * 3
    assert not any("augmented" in text or "alone" in text for text in texts(figure))


def test_slices_have_one_plane() -> None:
    label = np.zeros((12, 1, 20), int)
    flat = PatchView(label[None].astype(np.float32), label)
    figure = patch_figure(replace(scene(axis=1, changes=0), rows=(PatchRow("", flat, (flat, flat)),)))
    assert len(figure.axes) == 3
    assert figure.axes[0].texts[-1].get_text() == "Coronal"


def test_colours_are_shown_as_such() -> None:
    row = PatchRow("", view(channels=3), ())
    figure = patch_figure(replace(scene(changes=0), rows=(row,), channel=None))
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape == (16, 20, 3)
    assert 0.0 == shown.min() < shown.max() == 1.0


@pytest.mark.parametrize(("margin", "frames"), [((0, 0, 0), 0), ((2, 2, 1), 2)])
def test_what_the_network_gives_logits_for_is_framed(margin: tuple[int, int, int], frames: int) -> None:
    figure = patch_figure(scene(margin=margin))
    assert len(figure.axes[0].patches) == frames
    if frames:
        assert figure.axes[1].patches[0].get_bbox().bounds == (2.0, 4.0, 16.0, 24.0)  # mm


def test_voxels_without_a_label_are_striped() -> None:
    padded = view()
    padded.label[:, :8] = -1
    figure = patch_figure(replace(scene(changes=0), rows=(PatchRow("", padded, ()),)))
    stripes = np.asarray(figure.axes[0].images[1].get_array())
    assert stripes[:48, :, 3].mean() == pytest.approx(0.2, abs=0.01)  # half of it, with an opacity of 0.4
    assert stripes[48:].max() == 0.0


def test_many_organs_are_counted_in_the_legend() -> None:
    label = np.arange(20 * 16 * 8).reshape(SHAPE) % 101
    row = PatchRow("", PatchView(label[None].astype(np.float32), label), ())
    named = texts(patch_figure(replace(scene(changes=0), rows=(row,))))
    assert sum(text.startswith("organ_") for text in named) == 40
    assert "and 60 more" in named


def test_names_are_no_formulas() -> None:
    figure = patch_figure(scene(organs=("$x^", *("o",) * 9)))
    assert r"\$x^" in texts(figure)
    assert draw_patches(scene(organs=("$x^$", *("o",) * 9)))


# What a picture of patches shows.


def scene_view(label: np.ndarray, image: np.ndarray | None = None) -> PatchView:
    return PatchView(label[None].astype(np.float32) if image is None else image, label)


def patch_scene(*views: PatchView, **options: object) -> PatchScene:
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
    assert patch_scene(scene_view(first), scene_view(second)).seen() == (1, 3)


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
    found = patch_scene(scene_view(np.zeros(shape, int)))
    assert tuple(plane.name for plane in found.planes) == planes
    assert found.main.name == main


def test_the_axis_left_alone_is_cut() -> None:
    assert patch_scene(scene_view(np.zeros((4, 5, 6), int)), axis=1).main.name == "Coronal"


def test_planes_are_measured_in_mm() -> None:
    found = patch_scene(scene_view(np.zeros((10, 20, 4), int)), spacing_mm=(1.0, 0.5, 5.0))
    assert [found.extent_mm(plane) for plane in found.planes] == [(10.0, 10.0), (10.0, 20.0), (10.0, 20.0)]


def test_the_window_leaves_out_padding_and_holds_the_organs() -> None:
    label = np.zeros((20, 20, 20), int)
    label[:10] = -1
    label[15, 15, 15] = 1
    image = np.linspace(0, 1, 8000, dtype=np.float32).reshape(1, 20, 20, 20)
    image[0, :10] = -50.0
    image[0, 15, 15, 15] = 7.0
    low, high = patch_scene(scene_view(label, image)).window
    assert 0.49 < low < 0.53
    assert high == pytest.approx(7.0)


def test_a_patch_that_is_all_padding_has_a_window() -> None:
    low, high = patch_scene(scene_view(np.full((4, 4, 4), -1), np.zeros((1, 4, 4, 4), np.float32))).window
    assert low < high


def test_the_window_is_that_of_the_channel_shown() -> None:
    label = np.zeros((4, 4, 4), int)
    image = np.stack([np.zeros((4, 4, 4)), np.linspace(5, 6, 64).reshape(4, 4, 4)]).astype(np.float32)
    low, high = patch_scene(scene_view(label, image), channel=1).window
    assert 5.0 <= low < high <= 6.0
