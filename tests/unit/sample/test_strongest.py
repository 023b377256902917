"""Every augmentation alone, at the ends of its range."""

import pytest
import torch

from pipeline.config import AugmentSettings
from pipeline.sample.augment import directions
from pipeline.sample.strongest import Strongest, strongest_changes


def changes(settings: AugmentSettings, *, dims: int = 3, seed: int = 0, **options: object) -> dict[str, Strongest]:
    image, label = patch(dims)
    given = {"axis": 2, "directions": directions("RAS"[:dims]), "side_pairs": (), "spacing_mm": (1.0,) * dims}
    return {each.name: each for each in strongest_changes(image, label, settings, seed, **{**given, **options})}  # type: ignore[arg-type]


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
