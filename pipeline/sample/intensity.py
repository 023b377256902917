"""Random changes of intensity, each a function of a batch and its drawn strengths (one per sample and channel).

Blur and loss of resolution are separable: one small dense matrix per axis, a batch of them, so that every sample may
have its own strength. They need no padding: borders are part of the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.sample.randomness import BatchRandom
from pipeline.sample.spatial import along_axis

_TINY = 1e-7  # a constant channel has range and SD 0, by which nothing can be divided


def noise(images: Tensor, variance: Tensor, random: BatchRandom) -> Tensor:
    """Add Gaussian noise of a variance (N, C) to images (N, C, *S)."""
    return images + random.normal(images.shape[1:], images.device) * _spread(variance.sqrt(), images)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Smooth images (N, C, *S) with a Gaussian of an SD (N, C) in voxels, the same along all axes."""
    # Channels count as samples here: each has a strength of its own.
    lines = images.flatten(0, 1)
    for axis in range(lines.ndim - 1):
        lines = along_axis(lines, blur_operator(lines.shape[axis + 1], sigma.flatten()), axis)
    return lines.reshape(images.shape)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply all intensities of a channel by its factor (N, C)."""
    return images * _spread(factor, images)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Stretch intensities (N, C, *S) about the mean of the channel by a factor (N, C), clipped to its old range."""
    space = _space(images)
    mean = images.mean(space, keepdim=True)
    stretched = (images - mean) * _spread(factor, images) + mean
    return torch.clamp(stretched, images.amin(space, keepdim=True), images.amax(space, keepdim=True))


def gamma(images: Tensor, exponent: Tensor, *, invert: bool = False) -> Tensor:
    """Bend intensities with a power curve over the range of the channel, then restore its mean and SD.

    Args:
        images: (N, C, *S). Constant channels stay as they are.
        exponent: (N, C), above 0.
        invert: Bend the negative image, so that the bright end is stretched instead of the dark one.
    """
    space = _space(images)
    source = -images if invert else images
    mean, sd = _mean_and_sd(source)
    low = source.amin(space, keepdim=True)
    extent = (source.amax(space, keepdim=True) - low).clamp(min=_TINY)
    bent = ((source - low) / extent).pow(_spread(exponent, images)) * extent
    bent_mean, bent_sd = _mean_and_sd(bent)
    bent = (bent - bent_mean) * (sd / bent_sd.clamp(min=_TINY)) + mean
    return -bent if invert else bent


def low_resolution(images: Tensor, zoom: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Simulate a coarser scan: keep every few voxels and interpolate linearly between them.

    Args:
        images: (N, C, *S).
        zoom: (N, C) share of voxels kept along each axis, in (0, 1].
        axes: Axes of S to coarsen; by default all.
    """
    lines = images.flatten(0, 1)
    for axis in range(lines.ndim - 1) if axes is None else axes:
        lines = along_axis(lines, low_resolution_operator(lines.shape[axis + 1], zoom.flatten()), axis)
    return lines.reshape(images.shape)


def blur_operator(length: int, sigma: Tensor) -> Tensor:
    """Gaussian smoothing with an SD (N,) in voxels, (N, n, n): beyond the border is nothing, and rows sum to 1."""
    places = torch.arange(length, device=sigma.device, dtype=sigma.dtype)
    distance = (places[:, None] - places[None, :]) / sigma.clamp(min=1e-3)[:, None, None]
    # Beyond 6 SD weights vanish in float32; as denormal numbers they would make the product many times slower.
    weights = torch.exp(-0.5 * distance.square()).masked_fill(distance.abs() > 6, 0.0)
    return weights / weights.sum(dim=2, keepdim=True)


def low_resolution_operator(length: int, zoom: Tensor) -> Tensor:
    """Keep the nearest of every few voxels, then interpolate linearly back to the old length.

    Equals ``interpolate(mode="nearest-exact")`` to ``round(n * zoom)`` voxels, then ``interpolate(mode="linear")``.

    Args:
        length: Voxels n along the axis.
        zoom: (N,) in (0, 1]; 1 is the identity.

    Returns:
        (N, n, n).
    """
    kept = (length * zoom).round().clamp(min=1, max=length)[:, None]
    places = torch.arange(length, device=zoom.device, dtype=zoom.dtype)
    coarse = ((places + 0.5) * kept / length - 0.5).clamp(min=0)
    lower = torch.minimum(coarse.floor(), kept - 1)
    upper = torch.minimum(lower + 1, kept - 1)
    fraction = (coarse - lower).clamp(max=1)
    operator = zoom.new_zeros((len(zoom), length, length))
    for place, weight in ((lower, 1 - fraction), (upper, fraction)):
        source = ((place + 0.5) * length / kept).floor().clamp(max=length - 1).long()
        operator.scatter_add_(2, source[..., None], weight[..., None])
    return operator


def _space(images: Tensor) -> tuple[int, ...]:
    return tuple(range(2, images.ndim))


def _spread(values: Tensor, images: Tensor) -> Tensor:
    return values.reshape(*values.shape, *(1,) * (images.ndim - 2))


def _mean_and_sd(images: Tensor) -> tuple[Tensor, Tensor]:
    mean = images.mean(_space(images), keepdim=True)
    return mean, (images - mean).square().mean(_space(images), keepdim=True).sqrt()
