import math

import pytest
import torch

from pipeline.config.settings import AugmentSettings
from pipeline.sample.augment import PatchGeometry, augment, directions, draw_moves
from pipeline.sample.randomness import BatchRandom
from pipeline.sample.spatial import largest_rotation

OFF = {name: 0.0 for name in AugmentSettings.model_fields if name.endswith("_p")}
EVERYTHING = AugmentSettings(**dict.fromkeys(OFF, 1.0))
NOTHING = AugmentSettings(**OFF, flip_axes=())
SIZES = [(10, 12), (10, 12, 8)]


def only(**options: object) -> AugmentSettings:
    return AugmentSettings(**{**OFF, "flip_axes": (), **options})


def batch(size: tuple[int, ...], count: int = 6, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, channels, *size, generator=generator)
    return images, torch.randint(-1, 5, (count, *size), generator=generator)


def run(
    images: torch.Tensor, labels: torch.Tensor, settings: AugmentSettings, seed: int = 0, **options: object
) -> tuple[torch.Tensor, torch.Tensor]:
    dims = images.ndim - 2
    geometry = PatchGeometry(**{"directions": directions("RAS"[:dims]), "spacing_mm": (1.0,) * dims, **options})  # type: ignore[arg-type]
    return augment(images, labels, settings, BatchRandom(seed, 0, range(len(images))), geometry)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [("RAS", ("LR", "AP", "SI")), ("SPL", ("SI", "AP", "LR")), ("ai", ("AP", "SI"))],
)
def test_directions(orientation: str, expected: tuple[str, ...]) -> None:
    assert directions(orientation) == expected


@pytest.mark.parametrize("size", SIZES)
def test_probability_zero_changes_nothing(size: tuple[int, ...]) -> None:
    images, labels = batch(size)
    same, same_labels = run(images, labels, NOTHING)
    assert torch.equal(same, images)
    assert torch.equal(same_labels, labels)
    off, off_labels = run(images, labels, AugmentSettings(enabled=False))
    assert off is images
    assert off_labels is labels


@pytest.mark.parametrize("size", SIZES)
def test_everything_at_once_keeps_shapes_types_and_arguments(size: tuple[int, ...]) -> None:
    images, labels = batch(size)
    before, before_labels = images.clone(), labels.clone()
    changed, changed_labels = run(images, labels, EVERYTHING, side_pairs=[(1, 2)])
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert changed_labels.dtype == torch.int64
    assert changed.isfinite().all()
    assert ((changed - images).flatten(1).abs().amax(1) > 0).all()
    assert set(changed_labels.unique().tolist()) <= {-1, 0, 1, 2, 3, 4}
    assert torch.equal(images, before)
    assert torch.equal(labels, before_labels)


@pytest.mark.parametrize("size", SIZES)
def test_samples_of_a_shared_batch_change_as_in_the_whole_batch(size: tuple[int, ...]) -> None:
    images, labels = batch(size)
    whole, whole_labels = run(images, labels, EVERYTHING)
    parts = [
        augment(
            images[a:b],
            labels[a:b],
            EVERYTHING,
            BatchRandom(0, 0, range(a, b)),
            PatchGeometry(directions("RAS"[: len(size)]), (1.0,) * len(size)),
        )
        for a, b in ((0, 2), (2, 6))
    ]
    torch.testing.assert_close(torch.cat([part for part, _ in parts]), whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.cat([part for _, part in parts]), whole_labels)


@pytest.mark.parametrize("size", SIZES)
def test_the_generator_decides_everything(size: tuple[int, ...]) -> None:
    images, labels = batch(size)
    first, first_labels = run(images, labels, EVERYTHING, seed=3)
    torch.manual_seed(99)  # the global generator has no say
    again, again_labels = run(images, labels, EVERYTHING, seed=3)
    other, _ = run(images, labels, EVERYTHING, seed=4)
    assert torch.equal(first, again)
    assert torch.equal(first_labels, again_labels)
    assert not torch.equal(first, other)


def test_each_sample_is_drawn_on_its_own_and_the_others_are_not_touched() -> None:
    images, labels = batch((4, 4), count=400, channels=1)
    changed, same_labels = run(images, labels, only(brightness_p=0.25, brightness=(2.0, 2.0)))
    touched = (changed != images).flatten(1).any(1)
    assert 60 < int(touched.sum()) < 140  # 100 expected, SD 8.7
    assert torch.equal(changed[touched], images[touched] * 2)
    assert torch.equal(changed[~touched], images[~touched])
    assert torch.equal(same_labels, labels)


def test_only_drawn_samples_are_interpolated() -> None:
    images, labels = batch((6, 6, 6), count=60, channels=1)
    changed, changed_labels = run(images, labels, only(rotate_p=0.5))
    touched = (changed != images).flatten(1).any(1)
    assert 10 < int(touched.sum()) < 50
    assert torch.equal(changed_labels[~touched], labels[~touched])


def test_what_a_sample_draws_does_not_depend_on_the_others() -> None:
    images, labels = batch((10, 12, 8), count=12)
    settings = only(elastic_p=0.3, rotate_p=0.5, brightness_p=1.0, noise_p=0.5)
    together, _ = run(images, labels, settings)
    geometry = PatchGeometry(directions("RAS"), (1.0, 1.0, 1.0))
    for n in range(12):
        alone, _ = augment(images[n : n + 1], labels[n : n + 1], settings, BatchRandom(0, 0, [n]), geometry)
        torch.testing.assert_close(alone[0], together[n])


def test_channels_get_their_own_factors_within_the_range() -> None:
    images = torch.ones(50, 2, 4, 4)
    changed, _ = run(images, torch.zeros(50, 4, 4, dtype=torch.int64), only(brightness_p=1.0))
    factors = changed[:, :, 0, 0]
    assert 0.75 <= factors.min() < 0.8
    assert 1.2 < factors.max() <= 1.25
    assert (factors[:, 0] != factors[:, 1]).all()


def test_noise_of_a_given_sd() -> None:
    images = torch.zeros(200, 2, 16, 16)
    changed, _ = run(images, torch.zeros(200, 16, 16, dtype=torch.int64), only(noise_p=1.0, noise_sd=(0.2, 0.6)))
    found = changed.std(dim=(2, 3))
    assert found.mean().item() == pytest.approx(0.4, rel=0.05)  # even in the SD; an even variance would give 0.43
    assert 0.17 < float(found.min()) < 0.25
    assert 0.55 < float(found.max()) < 0.68


@pytest.mark.parametrize("change", ["blur_p", "low_resolution_p"])
def test_a_share_of_the_channels_is_blurred_or_made_coarser(change: str) -> None:
    images, labels = batch((8, 8), count=200, channels=3)
    changed, _ = run(images, labels, only(channel_share=0.5, **{change: 0.4}, low_resolution=(0.5, 0.6)))
    touched = (changed != images).flatten(2).any(2)
    assert 80 < int(touched.sum()) < 160  # of 600 a fifth, 120 expected, SD 14
    assert 0.3 < touched[touched.any(1)].float().mean() < 0.8  # of 3 channels 1.5, a little more where at least one is
    assert torch.equal(changed[~touched], images[~touched])
    assert (changed[touched].flatten(1).std(1) < images[touched].flatten(1).std(1)).all()


@pytest.mark.parametrize(
    ("size", "spacing", "largest"),
    [((16, 12), 1.0, 180), ((16, 10), 1.0, 15), ((9, 9, 9), 1.0, 30), ((16, 16, 5), 1.0, 180), ((9, 9, 9), 4.0, 180)],
)
def test_rotations_as_nnunet_has_them(size: tuple[int, ...], spacing: float, largest: float) -> None:
    mm = [*(1.0,) * (len(size) - 1), spacing]
    assert largest_rotation("auto", size, mm) == largest
    assert largest_rotation(45.0, size, mm) == 45.0
    geometry = PatchGeometry(directions("RAS"[: len(size)]), tuple(mm))
    settings = only(rotate_p=1.0, rotate_degrees="auto")
    moves = draw_moves(settings, BatchRandom(0, 0, range(300)), size, geometry)
    smallest = min(float(move.matrix[1, 1]) for move in moves.values())
    if largest == 30:  # about three axes: cos² 30° - sin³ 30° = 0.625 at least
        assert 0.625 <= smallest < 0.8
    else:  # in a plane: the cosine of the angle, and its spacing is the same along both axes
        assert math.cos(math.radians(largest)) <= smallest < math.cos(math.radians(largest)) + 0.02


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("ALS", 1), ("SPR", 2), ("LA", 0), ("AR", 1)])
def test_mirroring_left_to_right_swaps_left_and_right_organs(orientation: str, axis: int) -> None:
    images, labels = batch((6, 6, 6)[: len(orientation)], count=20)
    changed, changed_labels = run(
        images, labels, only(flip_axes=("LR",)), side_pairs=[(1, 2)], directions=directions(orientation)
    )
    swapped = labels.clone()
    swapped[labels == 1], swapped[labels == 2] = 2, 1
    mirrored = 0
    for sample in range(20):
        if torch.equal(changed[sample], images[sample]):
            assert torch.equal(changed_labels[sample], labels[sample])
        else:
            mirrored += 1
            assert torch.equal(changed[sample], images[sample].flip(axis + 1))
            assert torch.equal(changed_labels[sample], swapped[sample].flip(axis))
    assert 3 <= mirrored <= 17


def test_mirroring_along_other_directions_keeps_sides() -> None:
    images, labels = batch((6, 6, 6), count=20)
    changed, changed_labels = run(images, labels, only(flip_axes=("AP", "SI")), side_pairs=[(1, 2)])
    seen = set()
    for sample in range(20):
        for axes in ((), (1,), (2,), (1, 2)):
            if torch.equal(changed_labels[sample], labels[sample].flip(axes)):
                assert torch.equal(changed[sample], images[sample].flip([axis + 1 for axis in axes]))
                seen.add(axes)
                break
        else:
            pytest.fail("a sample was mirrored along LR or its labels were swapped")
    assert len(seen) == 4


def test_thick_slices_are_turned_in_their_plane() -> None:
    slices = torch.arange(6.0).expand(4, 1, 12, 12, 6).contiguous()
    labels = slices[:, 0].long()
    settings = only(rotate_p=1.0, scale_p=1.0, scale=(1.1, 1.4), elastic_p=1.0, elastic_sigma_voxels=1.0)
    thick, thick_labels = run(slices, labels, settings, spacing_mm=(1.0, 1.0, 5.0))
    torch.testing.assert_close(thick[:, :, 4:8, 4:8], slices[:, :, 4:8, 4:8], atol=1e-3, rtol=0)
    assert torch.equal(thick_labels[:, 4:8, 4:8], labels[:, 4:8, 4:8])
    coarser, _ = run(slices, labels, only(low_resolution_p=1.0), spacing_mm=(1.0, 1.0, 5.0))
    torch.testing.assert_close(coarser, slices)
    cubic, _ = run(slices, labels, settings, spacing_mm=(1.0, 1.0, 2.0))
    assert (cubic[:, :, 4:8, 4:8] - slices[:, :, 4:8, 4:8]).abs().max() > 0.05


def test_mixed_precision_around_it_has_no_effect() -> None:
    images, labels = batch((10, 12, 8))
    expected, _ = run(images, labels, EVERYTHING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed, _ = run(images, labels, EVERYTHING)
    assert torch.equal(changed, expected)


def test_an_empty_batch_stays_empty() -> None:
    images, labels = run(torch.zeros(0, 1, 4, 4), torch.zeros(0, 4, 4, dtype=torch.int64), EVERYTHING)
    assert images.shape == (0, 1, 4, 4)
    assert labels.shape == (0, 4, 4)


def test_arguments_that_do_not_fit_are_refused() -> None:
    images, labels = batch((4, 4, 4))
    with pytest.raises(ValueError, match=r"batch: expected images \(B, C, \*S\) and labels \(B, \*S\)"):
        run(images, labels[:, None], NOTHING)
    with pytest.raises(ValueError, match="expected 3 values for 3 spatial axes, got 2 and 3"):
        run(images, labels, NOTHING, directions=("LR", "AP"))
    with pytest.raises(ValueError, match="expected 3 values for 3 spatial axes, got 3 and 2"):
        run(images, labels, NOTHING, spacing_mm=(1.0, 1.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_changes() -> None:
    images, labels = batch((32, 28, 24))
    settings = EVERYTHING.model_copy(update={"noise_p": 0.0})  # noise itself is drawn on the device
    expected, expected_labels = run(images, labels, settings, side_pairs=[(1, 2)])
    changed, changed_labels = run(images.cuda(), labels.cuda(), settings, side_pairs=[(1, 2)])
    assert (changed.cpu() - expected).abs().mean() < 1e-3
    assert (changed_labels.cpu() == expected_labels).float().mean() > 0.999
    noisy, _ = run(images.cuda(), labels.cuda(), only(noise_p=1.0, noise_variance=(0.25, 0.25)))
    assert (noisy.cpu() - images).std().item() == pytest.approx(0.5, rel=0.02)
