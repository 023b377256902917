"""The picture of a training's patches: they are the training's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_settings, write_toy

from pipeline.config import Settings
from pipeline.core.errors import VolsegError
from pipeline.data.itk import write_picture
from pipeline.preprocess.plan_file import read_plan
from pipeline.stages.prepare import preprocess
from pipeline.stages.preview import preview
from pipeline.stages.preview_patches import PatchMaker, open_patches
from pipeline.stages.training_data import axes_frame, patch_source, training_split
from pipeline.train.batches import TrainingBatches


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
    split = training_split(prepared, 0, plan)
    source = patch_source(prepared, split, made_by.spec, plan, made, torch.device("cpu"))
    frame = axes_frame(made_by.spec, plan)
    found = []
    with TrainingBatches(source, frame, made.augment) as batches:
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
