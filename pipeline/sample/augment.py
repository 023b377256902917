"""Augmentation of a training batch on its own device: geometry, then intensities, then mirroring.

Every sample draws for itself which changes it gets and how strong; samples that did not draw a change are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.config.settings import AugmentSettings
from pipeline.sample import intensity, spatial
from pipeline.sample.randomness import BatchRandom

Direction = Literal["LR", "AP", "SI"]

_DIRECTIONS: dict[str, Direction] = {"L": "LR", "R": "LR", "A": "AP", "P": "AP", "S": "SI", "I": "SI"}


@dataclass(frozen=True)
class PatchGeometry:
    """What augmentation and loss need to know of the axes that a network sees.

    Args:
        directions: Anatomical direction of each axis: ``LR``, ``AP`` or ``SI``.
        spacing_mm: Spacing of each axis.
        side_pairs: (left, right) class indices that swap when a patch is mirrored along ``"LR"``.
        regions: Class indices of each region, where regions are trained by a sigmoid each; empty for a softmax over
            classes.
    """

    directions: tuple[Direction, ...]
    spacing_mm: tuple[float, ...]
    side_pairs: tuple[tuple[int, int], ...] = ()
    regions: tuple[tuple[int, ...], ...] = ()


def directions(orientation: str) -> tuple[Direction, ...]:
    """Anatomical direction of every array axis.

    Args:
        orientation: Axis codes, e.g. ``"RAS"``; for slices the codes of the two in-plane axes.

    Returns:
        E.g. ``("LR", "AP", "SI")``.
    """
    return tuple(_DIRECTIONS[code] for code in orientation.upper())


@torch.no_grad()
def augment(
    images: Tensor,
    labels: Tensor,
    settings: AugmentSettings,
    random: BatchRandom,
    geometry: PatchGeometry,
) -> tuple[Tensor, Tensor]:
    """Change a batch at random, every sample in its own way.

    Order: rotation, zoom and elastic deformation (one interpolation), noise, blur, brightness, contrast, low
    resolution, inverted gamma, gamma, mirroring. Strengths of intensity changes are drawn per channel. In strongly
    anisotropic patches geometry and low resolution leave the coarse axis alone
    (:func:`~pipeline.sample.spatial.coarse_axis`).

    Args:
        images: (B, C, *S), float32, S of 2 or 3 axes. Not modified.
        labels: (B, *S), integer class indices, -1 where ignored. Not modified.
        settings: Probabilities and ranges.
        random: Source of all draws, one per sample.
        geometry: The axes of S.

    Returns:
        Images and labels of the same shapes, types and device; the arguments themselves if augmentation is off.

    Raises:
        ValueError: If shapes, directions and spacing do not fit each other.

    Reference: Isensee et al., nnU-Net, Nature Methods 2021, supplementary information (data augmentation).
    """
    size, spacing = images.shape[2:], geometry.spacing_mm
    _check(images, labels, geometry)
    if not settings.enabled or len(images) == 0:
        return images, labels
    images, labels = images.clone(), labels.clone()  # from here on changed in place
    fixed = spatial.coarse_axis(size, spacing)
    # Half precision would move voxels by whole voxels in large patches and round intensities.
    with torch.autocast(images.device.type, enabled=False):
        _move(images, labels, settings, random, spacing, fixed)
        _recolor(images, settings, random, [axis for axis in range(len(size)) if axis != fixed])
        for axis, direction in enumerate(geometry.directions):
            if direction in settings.flip_axes:
                _mirror(images, labels, axis, geometry.side_pairs if direction == "LR" else (), random)
    return images, labels


def _check(images: Tensor, labels: Tensor, geometry: PatchGeometry) -> None:
    dims = images.ndim - 2
    if dims not in (2, 3) or labels.shape != (images.shape[0], *images.shape[2:]):
        raise ValueError(
            f"batch: expected images (B, C, *S) and labels (B, *S) with 2 or 3 axes S, got {tuple(images.shape)} "
            f"and {tuple(labels.shape)}. Drop the channel axis of the labels."
        )
    if len(geometry.directions) != dims or len(geometry.spacing_mm) != dims:
        raise ValueError(
            f"directions, spacing_mm: expected {dims} values for {dims} spatial axes, got {len(geometry.directions)} "
            f"and {len(geometry.spacing_mm)}. Give one for each axis of the patch."
        )


def _move(
    images: Tensor,
    labels: Tensor,
    settings: AugmentSettings,
    random: BatchRandom,
    spacing: Sequence[float],
    fixed: int | None,
) -> None:
    """Rotation, zoom and elastic deformation of the samples that draw any of them, in one interpolation."""
    size = images.shape[2:]
    # All samples draw, also those that stay as they are, so that the later draws of a sample are always the same.
    limit = math.radians(settings.rotate_degrees)
    angles = random.uniform((3 if len(size) == 3 else 1,), (-limit, limit))
    zoom = random.uniform((), settings.scale)
    rotated, zoomed, bent = (random.chosen(p) for p in (settings.rotate_p, settings.scale_p, settings.elastic_p))
    # Interpolation is the costly part: only samples that move are interpolated, and once for all three changes.
    touched = (rotated | zoomed | bent).nonzero().flatten()
    if len(touched) == 0:
        return
    index = _sent(touched, images)
    angles, zoom = torch.where(rotated[:, None], angles, 0.0), torch.where(zoomed, zoom, 1.0)
    matrices = spatial.affine_matrices(angles[touched], zoom[touched], spacing, fixed)
    matrices = _sent(matrices, images)
    displacement = None
    if bool(bent.any()):
        sigma = _sent(settings.elastic_sigma_voxels * bent[touched].float(), images)
        moved = random.of(touched.tolist())
        displacement = spatial.elastic_displacement(sigma, size, settings.elastic_grid_voxels, spacing, moved, fixed)
    grid = spatial.sampling_grid(matrices, size, displacement)
    images[index], labels[index] = spatial.warp(images[index], labels[index], grid)


def _sent(drawn: Tensor, images: Tensor) -> Tensor:
    """A few numbers drawn on the CPU, on the device of the images; on their way to a GPU nobody waits for them."""
    return drawn.to(images.device, non_blocking=images.device.type == "cuda")


def _recolor(images: Tensor, settings: AugmentSettings, random: BatchRandom, axes: Sequence[int]) -> None:
    steps: tuple[tuple[float, tuple[float, float], Callable[[Tensor, Tensor, BatchRandom], Tensor]], ...] = (
        (settings.noise_p, settings.noise_variance, intensity.noise),
        (settings.blur_p, settings.blur_sigma_voxels, lambda x, drawn, _: intensity.blur(x, drawn)),
        (settings.brightness_p, settings.brightness, lambda x, drawn, _: intensity.brightness(x, drawn)),
        (settings.contrast_p, settings.contrast, lambda x, drawn, _: intensity.contrast(x, drawn)),
        (
            settings.low_resolution_p,
            settings.low_resolution,
            lambda x, drawn, _: intensity.low_resolution(x, drawn, axes),
        ),
        (settings.gamma_invert_p, settings.gamma, lambda x, drawn, _: intensity.gamma(x, drawn, invert=True)),
        (settings.gamma_p, settings.gamma, lambda x, drawn, _: intensity.gamma(x, drawn)),
    )
    for probability, limits, change in steps:
        chosen = random.chosen(probability).nonzero().flatten()
        strength = random.uniform((images.shape[1],), limits)
        if len(chosen):
            index, drawn = _sent(chosen, images), _sent(strength[chosen], images)
            images[index] = change(images[index], drawn, random.of(chosen.tolist()))


def _mirror(
    images: Tensor, labels: Tensor, axis: int, side_pairs: Sequence[tuple[int, int]], random: BatchRandom
) -> None:
    chosen = random.chosen(0.5).nonzero().flatten()
    if len(chosen):
        index = _sent(chosen, images)
        images[index] = images[index].flip(axis + 2)
        labels[index] = spatial.swap_sides(labels[index].flip(axis + 1), side_pairs)
