import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.sample.intensity import blur, brightness, contrast, gamma, low_resolution, noise
from pipeline.sample.randomness import BatchRandom

SIZES = [(12, 14), (12, 14, 10)]


def batch(size: tuple[int, ...], count: int = 2, channels: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(0)) * 2 + 1


def strengths(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(2, 2)


@pytest.mark.parametrize("size", SIZES)
def test_brightness_multiplies_every_channel_by_its_factor(size: tuple[int, ...]) -> None:
    images = batch(size)
    changed = brightness(images, strengths(0.5, 1, 2, 3))
    torch.testing.assert_close(changed[0, 0], images[0, 0] * 0.5)
    torch.testing.assert_close(changed[1, 0], images[1, 0] * 2)
    torch.testing.assert_close(changed[1, 1], images[1, 1] * 3)


def test_noise_has_the_variance_asked_for() -> None:
    images = torch.full((2, 2, 40, 40, 40), 5.0)
    added = noise(images, strengths(0.0, 0.01, 0.1, 1.0), BatchRandom(0, 0, range(len(images)))) - images
    assert (added[0, 0] == 0).all()
    for channel, variance in ((added[0, 1], 0.01), (added[1, 0], 0.1), (added[1, 1], 1.0)):
        assert channel.var().item() == pytest.approx(variance, rel=0.03)
        assert abs(channel.mean().item()) < 0.02 * variance**0.5


@pytest.mark.parametrize("size", [(30, 34), (26, 24, 30)])
def test_blur_equals_scipy_away_from_the_border(size: tuple[int, ...]) -> None:
    images = batch(size)
    blurred = blur(images, strengths(0.5, 0.7, 1.0, 1.2))
    inside = tuple(slice(8, -8) for _ in size)
    for sample, channel, sigma in ((0, 0, 0.5), (0, 1, 0.7), (1, 0, 1.0), (1, 1, 1.2)):
        expected = torch.from_numpy(gaussian_filter(images[sample, channel].numpy(), sigma, truncate=6))
        torch.testing.assert_close(blurred[sample, channel][inside], expected[inside], atol=1e-5, rtol=0)


def test_blur_keeps_constants_up_to_the_border() -> None:
    images = torch.full((2, 2, 5, 6, 7), 3.0)
    torch.testing.assert_close(blur(images, strengths(0.5, 1, 2, 3)), images)


@pytest.mark.parametrize("size", SIZES)
def test_contrast_stretches_about_the_mean_within_the_range(size: tuple[int, ...]) -> None:
    images = batch(size)
    changed = contrast(images, strengths(1.25, 0.75, 1.0, 2.0))
    mean, low, high = images[0, 0].mean(), images[0, 0].min(), images[0, 0].max()
    torch.testing.assert_close(changed[0, 0], ((images[0, 0] - mean) * 1.25 + mean).clamp(low, high))
    assert changed[0, 0].min() == low
    assert changed[0, 0].max() == high
    torch.testing.assert_close(changed[0, 1].std(), images[0, 1].std() * 0.75)
    torch.testing.assert_close(changed[1, 0], images[1, 0])


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_gamma_keeps_mean_and_sd(size: tuple[int, ...], invert: bool) -> None:
    images = batch(size)
    changed = gamma(images, strengths(0.7, 1.5, 0.9, 1.0), invert=invert)
    torch.testing.assert_close(changed.flatten(2).mean(2), images.flatten(2).mean(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(changed.flatten(2).std(2), images.flatten(2).std(2), atol=1e-5, rtol=0)
    assert (changed[0] - images[0]).abs().max() > 0.1
    torch.testing.assert_close(changed[1, 1], images[1, 1], atol=1e-5, rtol=0)


def test_gamma_is_a_power_of_the_share_of_the_range() -> None:
    images = torch.tensor([0.0, 1.0, 2.0, 4.0]).reshape(1, 1, 2, 2)
    changed = gamma(images, torch.tensor([[2.0]])).flatten()
    bent = torch.tensor([0.0, 0.25, 1.0, 4.0])  # 4 * (x / 4)^2
    expected = (bent - bent.mean()) / bent.std() * images.std() + images.mean()
    torch.testing.assert_close(changed, expected)
    inverted = gamma(images, torch.tensor([[2.0]]), invert=True)
    torch.testing.assert_close(inverted, -gamma(-images, torch.tensor([[2.0]])))


def test_constant_channels_survive() -> None:
    images = torch.full((1, 1, 4, 4), 2.5)
    for change in (gamma, contrast):
        torch.testing.assert_close(change(images, torch.tensor([[1.4]])), images)


def test_low_resolution_halves_a_ramp() -> None:
    images = torch.arange(8.0).reshape(1, 1, 1, 8).repeat(1, 1, 4, 1)
    changed = low_resolution(images, torch.tensor([[0.5]]))
    # Voxels 1, 3, 5, 7 are kept at positions 0.5, 2.5, 4.5, 6.5.
    expected = torch.tensor([1.0, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.0])
    torch.testing.assert_close(changed[0, 0], expected.repeat(4, 1))


def test_low_resolution_leaves_other_axes_alone() -> None:
    images = batch((8, 8, 8), 1, 1)
    changed = low_resolution(images, torch.tensor([[0.5]]), axes=[0])
    alone = low_resolution(images[..., 3:4, 5:6], torch.tensor([[0.5]]), axes=[0])
    torch.testing.assert_close(changed[..., 3:4, 5:6], alone)
    torch.testing.assert_close(low_resolution(images, torch.tensor([[1.0]])), images)
