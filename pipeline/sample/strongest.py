"""Every augmentation alone and as strong as the settings allow, so that a person can judge the settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.settings import AugmentSettings
from pipeline.sample import spatial
from pipeline.sample.augment import Direction, augment
from pipeline.sample.randomness import BatchRandom

__all__ = ["Strongest", "strongest_changes"]

_STEPS: tuple[tuple[str, str, str], ...] = (
    ("zoom", "scale_p", "scale"),
    ("noise, variance", "noise_p", "noise_variance"),
    ("blur, SD", "blur_p", "blur_sigma_voxels"),
    ("brightness", "brightness_p", "brightness"),
    ("contrast", "contrast_p", "contrast"),
    ("low resolution", "low_resolution_p", "low_resolution"),
    ("gamma", "gamma_p", "gamma"),
    ("inverted gamma", "gamma_invert_p", "gamma"),
)
_LARGEST = ("noise_variance", "blur_sigma_voxels")  # of these ranges only one end is strong
_SMALLEST = ("low_resolution",)
_OFF = {name: 0.0 for name in AugmentSettings.model_fields if name.endswith("_p")}


@dataclass(frozen=True, eq=False)
class Strongest:
    """One change alone.

    Args:
        name: What is done and how much, e.g. ``zoom 0.7``.
        probability: With which a patch is changed so.
        image: (C, *S), changed.
        label: (*S).
    """

    name: str
    probability: float
    image: Tensor
    label: Tensor


def strongest_changes(
    image: Tensor,
    label: Tensor,
    settings: AugmentSettings,
    seed: int,
    *,
    axis: int,
    directions: Sequence[Direction],
    side_pairs: Sequence[tuple[int, int]],
    spacing_mm: Sequence[float],
) -> Iterator[Strongest]:
    """Make every change alone, at each end of its range; also those of probability 0.

    Args:
        image: (C, *S), float32.
        label: (*S), class indices.
        settings: Probabilities and ranges.
        seed: Of noise and elastic deformation.
        axis: Axis of S to rotate about; in 2D it has no say.
        directions: Anatomical direction of each axis of S.
        side_pairs: (left, right) class indices.
        spacing_mm: Spacing along the axes of S.

    Yields:
        Rotation, elastic deformation, the changes of intensity, mirroring.
    """
    images, labels, pairs = image[None], label[None], tuple(side_pairs)
    turned = _rotated(images, labels, settings.rotate_degrees, axis, spacing_mm)
    yield Strongest(f"rotation {settings.rotate_degrees:g}°", settings.rotate_p, turned[0][0], turned[1][0])
    for name, probability, limits in _drawn_changes(settings):
        alone = settings.model_copy(update={**_OFF, **limits, "flip_axes": (), "enabled": True, probability: 1.0})
        random = BatchRandom(seed, 0, [0])
        changed = augment(images, labels, alone, random, directions=directions, side_pairs=pairs, spacing_mm=spacing_mm)
        yield Strongest(name, getattr(settings, probability), changed[0][0], changed[1][0])
    for place, direction in enumerate(directions):
        if direction in settings.flip_axes:
            swapped = spatial.swap_sides(label.flip(place), pairs if direction == "LR" else ())
            across = ", across slices" if len(directions) == 3 and place == axis else ""
            yield Strongest(f"mirror {direction}{across}", 0.5, image.flip(place + 1), swapped)


def _drawn_changes(settings: AugmentSettings) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Name, key of the probability and range of a single value of what :func:`augment` draws."""
    yield f"elastic, SD {settings.elastic_sigma_voxels:g}, grid {settings.elastic_grid_voxels:g}", "elastic_p", {}
    for name, probability, limits in _STEPS:
        for end in _strong_ends(limits, getattr(settings, limits)):
            yield f"{name} {end:g}", probability, {limits: (end, end)}


def _strong_ends(name: str, limits: tuple[float, float]) -> tuple[float, ...]:
    low, high = limits
    if name in _LARGEST:
        return (high,)
    return (low,) if name in _SMALLEST or low == high else (low, high)


def _rotated(
    images: Tensor, labels: Tensor, degrees: float, axis: int, spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Turned about one axis by the largest angle, as :func:`augment` turns."""
    dims, size = len(spacing_mm), images.shape[2:]
    angles = torch.zeros((1, 3 if dims == 3 else 1))
    angles[0, axis if dims == 3 else 0] = math.radians(degrees)
    fixed = spatial.coarse_axis(size, spacing_mm)
    matrices = spatial.affine_matrices(angles, torch.ones(1), spacing_mm, fixed)
    return spatial.warp(images, labels, spatial.sampling_grid(matrices, size))
