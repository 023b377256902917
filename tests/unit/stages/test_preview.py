"""The picture of a training's patches: they are the training's own."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_settings, write_toy

from pipeline.config.settings import AugmentSettings, Settings
from pipeline.core.errors import VolsegError
from pipeline.data.itk import write_picture
from pipeline.preprocess.plan_file import read_plan
from pipeline.sample.augment import PatchGeometry, directions
from pipeline.sample.spatial import Move
from pipeline.stages.model_files import PreparedFolds
from pipeline.stages.prepare import preprocess
from pipeline.stages.preview import PatchMaker, Strongest, open_patches, preview, strongest_changes
from pipeline.stages.train import checked_card, patch_geometry, patch_source
from pipeline.train.loader import Pair, TrainingBatches


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    preprocess(write_toy(folder / "data", 6), folder / "prepared", toy_settings(), jobs=1)
    return folder / "prepared"


def settings(**sections: dict[str, object]) -> Settings:
    made = toy_settings()
    parts = {name: getattr(made, name).model_copy(update=values) for name, values in sections.items()}
    return made.model_copy(update=parts)


def maker(prepared: Path, made: Settings, seed: int = 0) -> PatchMaker:
    return open_patches(prepared, read_plan(prepared / "plan.yaml"), made, 0, seed)


def test_patches_are_those_of_the_training(prepared: Path) -> None:
    made = settings(augment={"rotate_p": 1.0, "flip_axes": ("LR",)})
    made_by = maker(prepared, made)
    drawn = made_by.first(3)
    plan = read_plan(prepared / "plan.yaml")
    split = PreparedFolds.read(prepared).fold(0, plan)
    source = patch_source(prepared, split, checked_card(plan, made)[0], (0, 0, 0), torch.device("cpu"))
    geometry = patch_geometry(made_by.spec, plan)
    found = []
    with TrainingBatches(source, geometry, made.augment) as batches:
        trained = [batches.step(number)[0][0] for number in range(2)]
    for number, (changed, moved) in enumerate(trained):
        images, labels, _ = source.batch(number)
        found += list(zip(images, labels, changed, moved, strict=True))
    for each, place in zip(drawn, (0, 1, 2), strict=True):
        expected = found[place]
        for part, other in zip((each.image, each.label, *each.augmented), expected, strict=True):
            assert torch.equal(part, other)
        assert each.patch.case in split.train
        assert each.patch.case in each.text


def test_of_large_batches_patches_are_spread(prepared: Path) -> None:
    drawn = maker(prepared, settings(sample={"batch_size": 11, "foreground_share": 0.1})).first(3)
    assert [each.text.split(" · ")[0] for each in drawn] == [f"batch 1, patch {n} of 11" for n in (1, 6, 11)]
    assert (drawn[-1].label > 0).any()  # the one forced onto foreground is shown


def test_the_line_says_what_is_in_a_patch(prepared: Path) -> None:
    drawn = maker(prepared, settings(sample={"patch_size": (48, 48, 48)})).first(1)[0]
    share = {n: float((drawn.label == n).float().mean()) for n in (-1, 1, 2)}
    assert f"box_left {share[1]:.1%}, box_small {share[2]:.1%} · {share[-1]:.0%} without a label" in drawn.text
    assert "i -14 to 33, j -15 to 32, k -14 to 33" in drawn.text  # 20 x 18 x 20 voxels in the middle of 48


@pytest.mark.parametrize(("dims", "patch"), [(3, (16, 16, 16)), (2, (16, 16))])
def test_a_picture_is_written_and_its_seed_decides(
    prepared: Path, tmp_path: Path, dims: int, patch: tuple[int, ...]
) -> None:
    made = settings(model={"dims": dims}, sample={"patch_size": patch}, augment={"flip_axes": ("LR", "AP", "SI")})
    names = ("a.png", "same.png", "other.png")
    for name, seed in zip(names, (None, 0, 5), strict=True):
        found = preview(prepared, tmp_path / name, made, patches=2, seed=seed)
        assert len(found.texts) == 2
        assert set(found.organs) <= {"box_left", "box_small"}
    first, same, other = ((tmp_path / name).read_bytes() for name in names)
    assert first.startswith(b"\x89PNG")
    assert first == same
    assert first != other


def test_augmentation_that_is_off_is_not_drawn(prepared: Path, tmp_path: Path) -> None:
    on = preview(prepared, tmp_path / "on.png", settings(), patches=1)
    off = preview(prepared, tmp_path / "off.png", settings(augment={"enabled": False}), patches=1)
    assert on.texts == off.texts
    assert (tmp_path / "off.png").stat().st_size < 0.5 * (tmp_path / "on.png").stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": "T2"}, r"channel: expected one of image, got T2\. Take one of these\."),
        ({"fold": 3}, r"fold: expected 0 to 2, got 3\."),
    ],
)
def test_wrong_options_are_refused(prepared: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(VolsegError, match=message):
        preview(prepared, tmp_path / "p.png", settings(), **options)  # type: ignore[arg-type]
    assert not (tmp_path / "p.png").exists()


def test_wrong_files_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(VolsegError, match=r"out: expected a file that ends in \.png or \.html, got .*p\.jpg\."):
        preview(prepared, tmp_path / "p.jpg", settings())
    with pytest.raises(VolsegError, match=r"plan\.yaml: expected a plan, got nothing there"):
        preview(tmp_path / "nothing", tmp_path / "p.png", settings())


def test_a_preview_can_be_a_page(prepared: Path, tmp_path: Path) -> None:
    drawn = preview(prepared, tmp_path / "p.html", settings(), patches=2)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert [text in page for text in drawn.texts] == [True, True]
    assert page.count("<img") == 1
    assert "data:image/png;base64," in page
    assert "<script" not in page


def test_pictures_look_as_they_are(tmp_path: Path) -> None:
    """A bright square at the lower left of a photograph is at the lower left of its patch."""
    pixels = np.full((32, 32, 3), 20, np.uint8)
    pixels[20:30, 2:12] = 200
    for n in range(6):
        for folder, part in (("images", pixels), ("labels", (pixels[..., 0] == 200).astype(np.uint8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_picture(part, tmp_path / folder / f"c{n}.png")
    (tmp_path / "labels.json").write_text('{"1": "square"}')
    made = settings(model={"dims": 2}, sample={"patch_size": (32, 32)}, preprocess={"spacing_mm": None})
    preprocess(tmp_path, tmp_path / "prepared", made, jobs=1)
    by = maker(tmp_path / "prepared", made)
    drawn = by.first(1)[0]
    view = by.view(drawn.image, drawn.label)
    i, j, _ = (axis.mean() for axis in np.nonzero(view.label == 1))
    assert by.pictures
    assert (i < 16, j < 16) == (True, True)  # j is drawn upwards
    preview(tmp_path / "prepared", tmp_path / "p.html", made, patches=1)
    page = (tmp_path / "p.html").read_text()
    assert ("as the pictures look" in page, "the patient's" in page) == (True, False)


# Every augmentation alone, at the ends of its range.


def changes(
    settings: AugmentSettings, *, dims: int = 3, seed: int = 0, axis: int = 2, **options: object
) -> dict[str, Strongest]:
    image, label = patch(dims)
    given = {"directions": directions("RAS"[:dims]), "spacing_mm": (1.0,) * dims, **options}
    geometry = PatchGeometry(**given)  # type: ignore[arg-type]

    def cut(moves: Mapping[int, Move]) -> Pair:
        shown = moves[0].show(image, label, label.shape) if moves else (image, label)
        return shown[0][None], shown[1][None]

    return {each.name: each for each in strongest_changes(cut, settings, seed, axis=axis, geometry=geometry)}


def patch(dims: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    size = (12, 10, 8)[:dims]
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(size, dtype=torch.int64)
    label[:4], label[8:] = 1, 2
    return torch.rand((2, *size), generator=generator), label


def test_every_change_is_there_with_its_probability() -> None:
    found = changes(AugmentSettings())
    assert {name: change.probability for name, change in found.items()} == {
        "rotation 30°": 0.2,
        "elastic, SD 4, grid 32": 0.0,
        "zoom 0.7": 0.2,
        "zoom 1.4": 0.2,
        "noise, variance 0.1": 0.1,
        "blur, SD 1": 0.2,
        "brightness 0.75": 0.15,
        "brightness 1.25": 0.15,
        "contrast 0.75": 0.15,
        "contrast 1.25": 0.15,
        "low resolution 0.5": 0.25,
        "gamma 0.7": 0.3,
        "gamma 1.5": 0.3,
        "inverted gamma 0.7": 0.1,
        "inverted gamma 1.5": 0.1,
        "mirror LR": 0.5,
        "mirror AP": 0.5,
        "mirror SI, across slices": 0.5,
    }
    image, _ = patch()
    assert all(not torch.equal(change.image, image) for change in found.values())


def test_strengths_are_the_ends_of_the_ranges() -> None:
    image, label = patch()
    found = changes(AugmentSettings(brightness=(0.5, 2.0), noise_variance=(0.0, 4.0), rotate_degrees=180.0))
    torch.testing.assert_close(found["brightness 0.5"].image, image * 0.5)
    torch.testing.assert_close(found["brightness 2"].image, image * 2.0)
    assert float((found["noise, variance 4"].image - image).std()) == pytest.approx(2.0, rel=0.1)
    turned = found["rotation 180°"]
    torch.testing.assert_close(turned.image, image.flip(1, 2), atol=1e-4, rtol=0)
    assert torch.equal(turned.label, label.flip(0, 1))


@pytest.mark.parametrize(("axis", "flipped"), [(0, (2, 3)), (1, (1, 3)), (2, (1, 2))])
def test_rotation_is_about_the_axis_asked_for(axis: int, flipped: tuple[int, int]) -> None:
    image, _ = patch()
    found = changes(AugmentSettings(rotate_degrees=180.0), axis=axis)
    torch.testing.assert_close(found["rotation 180°"].image, image.flip(flipped), atol=1e-4, rtol=0)


def test_mirrored_sides_swap_their_organs() -> None:
    image, label = patch()
    found = changes(AugmentSettings(), side_pairs=((1, 2),))
    assert torch.equal(found["mirror LR"].image, image.flip(1))
    assert torch.equal(found["mirror LR"].label, label)  # 1 and 2 lie opposite each other
    assert torch.equal(found["mirror AP"].label, label.flip(1))
    assert "mirror LR" not in changes(AugmentSettings(flip_axes=("AP",)))


def test_changes_of_intensity_leave_labels_alone() -> None:
    _, label = patch()
    moving = ("rotation", "elastic", "zoom", "mirror")
    assert all(
        torch.equal(change.label, label)
        for name, change in changes(AugmentSettings()).items()
        if not name.startswith(moving)
    )


def test_a_range_of_one_value_is_shown_once() -> None:
    found = changes(AugmentSettings(scale=(1.2, 1.2)))
    assert [name for name in found if name.startswith("zoom")] == ["zoom 1.2"]


def test_slices_are_changed_too_and_the_seed_decides() -> None:
    settings = AugmentSettings(elastic_sigma_voxels=1.0, elastic_grid_voxels=4.0)
    first, again, other = (changes(settings, dims=2, seed=seed) for seed in (1, 1, 2))
    assert "mirror AP" in first
    assert "mirror SI" not in first
    for name, change in first.items():
        assert torch.equal(change.image, again[name].image)
        drawn = name.startswith(("noise", "elastic"))
        assert torch.equal(change.image, other[name].image) != drawn
