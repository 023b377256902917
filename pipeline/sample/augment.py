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
    *,
    moved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Change a batch at random, every sample in its own way.

    Order: rotation, zoom and elastic deformation (one interpolation), noise, blur, brightness, contrast, low
    resolution, inverted gamma, gamma, mirroring. Strengths of intensity changes are drawn per channel. In strongly
    anisotropic patches geometry and low resolution leave the coarse axis alone
    (:func:`~pipeline.sample.spatial.coarse_axis`).

    Rotation, zoom and elastic deformation show what lies beyond the patch as padding. A training draws these first
    (:func:`draw_moves`), cuts what they show, and calls this for the rest.

    Args:
        images: (B, C, *S), float32, S of 2 or 3 axes. Not modified.
        labels: (B, *S), integer class indices, -1 where ignored. Not modified.
        settings: Probabilities and ranges.
        random: Source of all draws, one per sample.
        geometry: The axes of S.
        moved: Whether rotation, zoom and elastic deformation have been drawn, from this same source, and made.

    Returns:
        Images and labels of the same shapes, types and device; the arguments themselves if augmentation is off.

    Raises:
        ValueError: If shapes, directions and spacing do not fit each other.

    Reference: Isensee et al., nnU-Net, Nature Methods 2021, supplementary information (data augmentation).
    """
    size = images.shape[2:]
    _check(images, labels, geometry)
    if not settings.enabled or len(images) == 0:
        return images, labels
    images, labels = images.clone(), labels.clone()  # from here on changed in place
    fixed = spatial.coarse_axis(size, geometry.spacing_mm)
    # Half precision would move voxels by whole voxels in large patches and round intensities.
    with torch.autocast(images.device.type, enabled=False):
        for n, move in ({} if moved else draw_moves(settings, random, size, geometry)).items():
            images[n], labels[n] = move.show(images[n], labels[n], size)
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


def draw_moves(
    settings: AugmentSettings, random: BatchRandom, size: Sequence[int], geometry: PatchGeometry
) -> dict[int, spatial.Move]:
    """Draw which samples of a batch are rotated, zoomed or bent, and how.

    Args:
        settings: Probabilities and ranges.
        random: Source of all draws, one per sample; :func:`augment` goes on with it.
        size: Patch voxels along the axes that the network sees.
        geometry: These axes.

    Returns:
        Place in the batch → move, of the samples that do not stay as they are.
    """
    if not settings.enabled or len(random) == 0:
        return {}
    spacing = geometry.spacing_mm
    fixed = spatial.coarse_axis(size, spacing)
    # All samples draw, also those that stay as they are, so that the later draws of a sample are always the same.
    limit = math.radians(spatial.largest_rotation(settings.rotate_degrees, size, spacing))
    angles = random.uniform((3 if len(size) == 3 else 1,), (-limit, limit))
    zoom = random.uniform((), settings.scale)
    rotated, zoomed, bent = (random.chosen(p) for p in (settings.rotate_p, settings.scale_p, settings.elastic_p))
    angles, zoom = torch.where(rotated[:, None], angles, 0.0), torch.where(zoomed, zoom, 1.0)
    matrices = spatial.affine_matrices(angles, zoom, spacing, fixed)
    distances = spatial.control_distances(settings.elastic_grid_voxels, spacing)
    bends = bent.nonzero().flatten().tolist()
    controls: dict[int, Tensor] = {}
    if bends:  # only they draw, so that what a sample draws later does not depend on the others of its batch
        sigma = settings.elastic_sigma_voxels
        drawn = spatial.draw_control(sigma, size, distances, spacing, random.of(bends), fixed)
        controls = dict(zip(bends, drawn, strict=True))
    # Interpolation is the costly part: only samples that move are interpolated, and once for all three changes.
    touched = (rotated | zoomed | bent).nonzero().flatten().tolist()
    return {n: spatial.Move(matrices[n], controls.get(n), distances) for n in touched}


@dataclass(frozen=True)
class _Recolor:
    """A change of intensities: its probability, its range, and what makes it."""

    probability: float
    limits: tuple[float, float]
    change: Callable[[Tensor, Tensor, BatchRandom], Tensor]
    channel_share: float = 1.0


def _sent(drawn: Tensor, images: Tensor) -> Tensor:
    """A few numbers drawn on the CPU, on the device of the images; on their way to a GPU nobody waits for them."""
    return drawn.to(images.device, non_blocking=images.device.type == "cuda")


def _recolor(images: Tensor, settings: AugmentSettings, random: BatchRandom, axes: Sequence[int]) -> None:
    each = settings.channel_share
    noise = _Recolor(settings.noise_p, settings.noise_variance, intensity.noise)
    if settings.noise_sd is not None:
        noise = _Recolor(settings.noise_p, settings.noise_sd, lambda x, drawn, own: intensity.noise(x, drawn**2, own))
    for step in (
        noise,
        _Recolor(settings.blur_p, settings.blur_sigma_voxels, lambda x, drawn, _: intensity.blur(x, drawn), each),
        _Recolor(settings.brightness_p, settings.brightness, lambda x, drawn, _: intensity.brightness(x, drawn)),
        _Recolor(settings.contrast_p, settings.contrast, lambda x, drawn, _: intensity.contrast(x, drawn)),
        _Recolor(
            settings.low_resolution_p,
            settings.low_resolution,
            lambda x, drawn, _: intensity.low_resolution(x, drawn, axes),
            each,
        ),
        _Recolor(settings.gamma_invert_p, settings.gamma, lambda x, drawn, _: intensity.gamma(x, drawn, invert=True)),
        _Recolor(settings.gamma_p, settings.gamma, lambda x, drawn, _: intensity.gamma(x, drawn)),
    ):
        chosen = random.chosen(step.probability)
        strength = random.uniform((images.shape[1],), step.limits)
        if step.channel_share < 1:
            channels = random.uniform(strength.shape[1:]) < step.channel_share
            _recolor_channels(images, step, chosen[:, None] & channels, strength, random)
            continue
        places = chosen.nonzero().flatten()
        if len(places):
            index, drawn = _sent(places, images), _sent(strength[places], images)
            images[index] = step.change(images[index], drawn, random.of(places.tolist()))


def _recolor_channels(images: Tensor, step: _Recolor, chosen: Tensor, strength: Tensor, random: BatchRandom) -> None:
    """Change the chosen ones (N, C) of all channels, each as an image of one channel, by what draws nothing itself."""
    places = chosen.flatten().nonzero().flatten()
    if len(places):
        channels = images.flatten(0, 1)[:, None]  # a view: what is written to it lands in the images
        index, drawn = _sent(places, images), _sent(strength.flatten()[places, None], images)
        channels[index] = step.change(channels[index], drawn, random)


def _mirror(
    images: Tensor, labels: Tensor, axis: int, side_pairs: Sequence[tuple[int, int]], random: BatchRandom
) -> None:
    chosen = random.chosen(0.5).nonzero().flatten()
    if len(chosen):
        index = _sent(chosen, images)
        images[index] = images[index].flip(axis + 2)
        labels[index] = spatial.swap_sides(labels[index].flip(axis + 1), side_pairs)
