"""Label map and stage map as one map of joined numbers, and how the stage map is disturbed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.config.settings import AugmentSettings
from pipeline.sample.augment import PatchGeometry, augment
from pipeline.sample.cut import cut_batch
from pipeline.sample.patches import Patch
from pipeline.sample.randomness import BatchRandom
from pipeline.sample.stage_maps import (
    JoinedMaps,
    closed,
    dilated,
    disturbed,
    eroded,
    joined_pairs,
    opened,
    parted,
    remove_components,
    reshape_classes,
)


def ball(radius: int, dims: int = 3) -> NDArray[np.bool_]:
    """The structuring element that the operators stand for: every offset no longer than the radius."""
    axes = np.meshgrid(*[np.arange(-radius, radius + 1)] * dims, indexing="ij")
    return np.asarray(sum(axis**2 for axis in axes) <= radius**2)


def test_a_joined_number_holds_both_classes() -> None:
    labels = torch.tensor([-1, -1, 0, 2, 1])
    found = torch.tensor([0, 2, 1, 0, 2])
    joined = JoinedMaps(labels, found, classes=2)[...]
    assert joined.tolist() == [-1, 1, 3, 8, 7]  # (l + 1) * 3 + s - 1
    assert [part.tolist() for part in parted(joined, 2)] == [labels.tolist(), found.tolist()]


def test_what_is_cut_outside_the_volume_is_ignored_and_nothing_was_found_there() -> None:
    labels, found = torch.full((2, 2, 2), 1), torch.full((2, 2, 2), 2, dtype=torch.uint8)
    volumes = {"a": (torch.ones(1, 2, 2, 2), JoinedMaps(labels, found, 3))}
    _, cut = cut_batch(volumes, [Patch("a", (-1, 0, 0))], (3, 2, 2))
    inner, stage = parted(cut, 3)
    assert inner[0, :, 0, 0].tolist() == [-1, 1, 1]
    assert stage[0, :, 0, 0].tolist() == [0, 2, 2]


def test_sides_swap_in_both_maps() -> None:
    pairs = dict(joined_pairs(((1, 2),), 3))
    pairs |= {right: left for left, right in pairs.items()}

    def mirrored(label: int, found: int) -> tuple[int, int]:
        joined = JoinedMaps(torch.tensor([label]), torch.tensor([found]), 3)[...]
        swapped = torch.tensor([pairs.get(int(joined), int(joined))])
        one, other = parted(swapped, 3)
        return int(one), int(other)

    other = {1: 2, 2: 1}
    for label in range(-1, 4):
        for found in range(4):
            assert mirrored(label, found) == (other.get(label, label), other.get(found, found))


def test_augmentation_moves_both_maps_alike() -> None:
    rng = np.random.default_rng(3)
    labels = torch.from_numpy(rng.integers(-1, 4, (4, 12, 10, 8)))
    found = torch.from_numpy(rng.integers(0, 4, (4, 12, 10, 8)))
    images = torch.from_numpy(rng.normal(size=(4, 1, 12, 10, 8)).astype(np.float32))
    settings = AugmentSettings(rotate_p=1.0, scale_p=1.0, elastic_p=1.0)
    sides = ((1, 3),)

    def moved(maps: torch.Tensor, pairs: tuple[tuple[int, int], ...]) -> torch.Tensor:
        geometry = PatchGeometry(("LR", "AP", "SI"), (1.0, 1.0, 1.0), pairs)
        return augment(images, maps, settings, BatchRandom(1, 2, range(4)), geometry)[1]

    joined = JoinedMaps(labels, found, 3)[...].long()
    one, other = parted(moved(joined, joined_pairs(sides, 3)), 3)
    assert torch.equal(one, moved(labels, sides))
    assert torch.equal(other, moved(found, sides).clamp(min=0))  # 0 where it comes from outside


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_operators_are_those_of_a_ball(radius: int) -> None:
    mask = np.random.default_rng(radius).random((14, 13, 12)) < 0.1
    grown = ndimage.binary_dilation(mask, ball(radius))
    np.testing.assert_array_equal(dilated(mask, radius), grown)
    # Outside the patch counts as inside for an erosion, as where the complement is dilated.
    np.testing.assert_array_equal(eroded(mask, radius), ndimage.binary_erosion(mask, ball(radius), border_value=1))
    np.testing.assert_array_equal(closed(mask, radius), ndimage.binary_erosion(grown, ball(radius), border_value=1))
    inner = ndimage.binary_erosion(~mask, ball(radius), border_value=1)
    np.testing.assert_array_equal(opened(~mask, radius), ndimage.binary_dilation(inner, ball(radius)))


def test_operators_of_nothing_and_of_everything() -> None:
    nothing = np.zeros((4, 5, 6), bool)
    for operator in (dilated, eroded, closed, opened):
        assert not operator(nothing, 2).any()
        assert operator(~nothing, 2).all()


def test_a_class_is_reshaped_as_in_one_channel_per_class() -> None:
    """nnU-Net's rule, channel by channel: what a class gains, every other loses."""
    rng = np.random.default_rng(0)
    found = ndimage.zoom(rng.integers(0, 4, (5, 5, 4)), 6, order=0).astype(np.int64)
    ours = found.copy()
    reshape_classes(ours, np.random.default_rng(7))

    # The same draws, on whole channels and with structuring elements.
    draws = np.random.default_rng(7)
    channels = {value: found == value for value in (1, 2, 3)}
    for value in draws.permutation(np.array([1, 2, 3])).tolist():
        operator, radius = int(draws.integers(4)), int(draws.integers(1, 9))
        mask, element = channels[value], ball(radius)
        grown, shrunk = (
            ndimage.binary_dilation(mask, element),
            ndimage.binary_erosion(mask, element, border_value=1),
        )
        changed = (
            grown,
            shrunk,
            ndimage.binary_erosion(grown, element, border_value=1),
            ndimage.binary_dilation(shrunk, element),
        )[operator]
        for other in channels:
            if other != value:
                channels[other] = channels[other] & ~(changed & ~mask)
        channels[value] = changed
    expected = sum(value * channel for value, channel in channels.items())
    np.testing.assert_array_equal(ours, expected)
    assert not np.array_equal(ours, found)


def test_a_small_component_is_removed_and_a_large_one_stays() -> None:
    found = np.zeros((10, 10, 10), np.int64)
    found[:2] = 1  # 200 of 1000 voxels: more than 15 %
    found[4, 4, 4] = found[5, 5, 5] = 2  # one component: corners touch
    found[8, 8, 8] = 2
    remove_components(found, np.random.default_rng(0))
    assert (found == 1).sum() == 200
    assert (found == 2).sum() in (1, 2)
    remove_components(found, np.random.default_rng(0))
    assert (found == 2).sum() == 0


def test_stage_maps_are_disturbed_as_often_as_in_nnunet() -> None:
    found = torch.zeros((1, 12, 12, 12), dtype=torch.int64)
    found[0, 3:9, 3:9, 3:9] = 1  # 216 of 1728 voxels: 12.5 %, so that it may be removed
    found = found.expand(2000, -1, -1, -1)
    changed = disturbed(found, BatchRandom(0, 0, range(2000)))
    gone = (changed == 0).flatten(1).all(dim=1).float().mean()
    other = (changed != found).flatten(1).any(dim=1).float().mean()
    # Gone: removed (0.2), or eroded or opened to nothing: radii of 3 and more of 8 leave nothing of a cube of 6.
    shrunk = 0.4 * 0.5 * 6 / 8
    grown_to_all = 0.4 * 0.25  # whatever is larger than 15 % after growing is not removed
    assert gone == pytest.approx(shrunk + 0.2 * (1 - shrunk - grown_to_all), abs=0.03)
    assert 0.4 < float(other) < 0.52
    assert torch.equal(changed[:3], disturbed(found[:3], BatchRandom(0, 0, range(3))))  # by place alone
    assert found.unique().tolist() == [0, 1]


def test_what_no_patch_drew_is_not_copied() -> None:
    found = torch.ones((1, 2, 2, 2), dtype=torch.int64)
    quiet = next(n for n in range(50) if disturbed(found, BatchRandom(0, n, [0])) is found)
    assert quiet >= 0
