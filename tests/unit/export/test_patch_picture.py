"""The picture of training patches: what is where, true to scale."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import image as pictures
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pipeline.export.palette import organ_color
from pipeline.export.patch_picture import draw_patches, patch_figure
from pipeline.export.patch_scene import PatchRow, PatchScene, PatchView

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
    assert found == ["LRPAAxial", "LRISCoronal", "PAISSagittal", ""]


def test_the_patients_left_is_on_the_left_and_front_is_up() -> None:
    left_front = view()
    left_front.image[:] = 0.0
    left_front.image[0, :10, 8:] = 1.0  # RAS: low i is left, high j is front
    figure = patch_figure(replace(scene(), rows=(PatchRow("", left_front, ()),)))
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert figure.axes[0].images[0].origin == "lower"
    assert shown.shape == (16, 20)  # rows from back to front, columns from left to right
    assert shown[8:, :10].min() == 1.0
    assert shown[:8].max() == shown[:, 10:].max() == 0.0


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
