"""Cutting patches out of volumes: constant padding where a patch overhangs, or the volume mirrored at its border.

Volumes may be tensors, arrays or anything that gives arrays when sliced, such as a chunked file: only the part inside
the patch is ever read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.core.grid import mirrored_index
from pipeline.core.labels import IGNORE_INDEX
from pipeline.sample.patches import Patch
from pipeline.sample.spatial import Move

IMAGE_PADDING = 0.0
"""Intensity outside the volume: the mean of normalized intensities. Labels there are ``IGNORE_INDEX``: no loss."""


class Sliceable(Protocol):
    """A tensor, an array, or a file that gives arrays when sliced."""

    @property
    def shape(self) -> Sequence[int]:
        """Length of every axis."""

    def __getitem__(self, key: tuple[slice, ...], /) -> Any:
        """Tensor or array of the region."""


def cut_batch(
    volumes: Mapping[str, tuple[Sliceable, Sliceable]],
    patches: Sequence[Patch],
    size: Sequence[int],
    *,
    margin: Sequence[int] = (0, 0, 0),
    padding: tuple[float, int] = (IMAGE_PADDING, IGNORE_INDEX),
    device: torch.device | str | None = None,
    moves: Mapping[int, Move] | None = None,
    axes: Sequence[int] = (0, 1, 2),
) -> tuple[Tensor, Tensor]:
    """Copy a batch of patches out of prepared cases.

    Patches that are rotated, zoomed or bent are sampled from as much of their surroundings as that takes, so that they
    show padding only where there is no volume.

    Args:
        volumes: Case id → image (C, I, J, K) and class indices (I, J, K), on any device and of any type.
        patches: Positions; at least one.
        size: Voxels of what is cut along i, j, k, the margin included.
        margin: Voxels around each patch that are cut as well. With any, images continue mirrored outside the volume.
        padding: Intensity outside the volume, where there is no margin, and class index, which the loss ignores.
        device: Device of the batch; by default the CPU.
        moves: Place in the batch → how that patch is moved.
        axes: Axes along which patches are moved: all but that across the slices of a 2D network.

    Returns:
        Images (B, C, *size), float32, and labels (B, *size), int64.

    Raises:
        ValueError: If there are no patches.
    """
    if not patches:
        raise ValueError("patches: expected at least one for a batch, got none. Check the sampling settings.")
    channels = volumes[patches[0].case][0].shape[0]
    images = torch.empty((len(patches), channels, *size), dtype=torch.float32, device=device)
    labels = torch.empty((len(patches), *size), dtype=torch.int64, device=device)
    # Networks with a margin see the image continued by its mirror image, as in the paper of the U-Net; its labels there
    # are ignored all the same.
    outside = None if any(margin) else padding[0]
    for place, patch in enumerate(patches):
        image, label = volumes[patch.case]
        start = [first - context for first, context in zip(patch.start, margin, strict=True)]
        if moves and place in moves:
            fill = outside, padding[1]
            _cut_moved((images[place], labels[place]), volumes[patch.case], moves[place], start, axes, fill)
            continue
        _paste_across(images[place], image, start, outside)
        _paste_across(labels[place], label, start, padding[1])
    return images, labels


def _paste_across(target: Tensor, volume: Sliceable, start: Sequence[int], fill: float | None) -> None:
    """What :func:`paste` does, but nobody waits while a part of a volume elsewhere goes to a GPU."""
    if target.device.type != "cuda" or getattr(volume, "device", None) == target.device:
        paste(target, volume, start, fill)
        return
    # From pinned memory, which PyTorch keeps for the next patch and gives out again only once it was copied.
    ready = torch.empty(target.shape, dtype=target.dtype, pin_memory=True)
    paste(ready, volume, start, fill)
    target.copy_(ready, non_blocking=True)


def paste(target: Tensor, volume: Sliceable, start: Sequence[int], fill: float | None) -> None:
    """Write the part of a volume that starts at a voxel over a tensor of its own.

    Args:
        target: (..., *size), its first axes those of the volume; of any type and device.
        volume: (..., *spatial).
        start: First voxel along each spatial axis; may be negative.
        fill: Value outside the volume; None mirrors the volume at its border.
    """
    lead = target.ndim - len(start)
    everything = (slice(None),) * lead
    source, place = list(everything), list(everything)
    for first, length, limit in zip(start, target.shape[lead:], volume.shape[lead:], strict=True):
        low = min(max(first, 0), limit)
        high = max(low, min(first + length, limit))
        source.append(slice(low, high))
        place.append(slice(low - first, high - first))
    # A view: what is copied into it lands in the target. The volume may be a file, so only this part is asked of it.
    region = target[tuple(place)]
    if region.shape != target.shape:
        if fill is None:
            target.copy_(_mirrored(volume, start, target.shape[lead:], lead))
            return
        target.fill_(fill)
    if region.numel():
        region.copy_(torch.as_tensor(volume[tuple(source)]))


def _cut_moved(
    target: tuple[Tensor, Tensor],
    volume: tuple[Sliceable, Sliceable],
    move: Move,
    start: Sequence[int],
    axes: Sequence[int],
    fill: tuple[float | None, int],
) -> None:
    """Write a moved patch that starts at a voxel over an image (C, *size) and its labels (*size)."""
    images, labels = target
    size, shape = labels.shape, volume[1].shape
    first, end = [*start], [low + length for low, length in zip(start, size, strict=True)]
    for axis, (low, high) in zip(axes, move.box([size[axis] for axis in axes]), strict=True):
        first[axis], end[axis] = start[axis] + low, start[axis] + high
        # Where nothing is mirrored, there is nothing to read outside the volume: sampling pads by itself.
        if fill[0] is not None:
            first[axis], end[axis] = max(first[axis], 0), min(end[axis], shape[axis])
    extent = [high - low for low, high in zip(first, end, strict=True)]
    around = torch.empty((len(images), *extent), dtype=torch.float32, device=images.device)
    classes = torch.empty(extent, dtype=torch.int32, device=images.device)  # joined numbers of a cascade are large
    _paste_across(around, volume[0], first, fill[0])
    _paste_across(classes, volume[1], first, fill[1])
    # A 2D network's patch lies in one slice, which moves know nothing of.
    seen = [extent[axis] for axis in axes], [size[axis] for axis in axes], [first[axis] - start[axis] for axis in axes]
    shown, nearest = move.show(around.reshape(-1, *seen[0]), classes.reshape(seen[0]), seen[1], seen[2])
    images.copy_(shown.reshape(images.shape))
    labels.copy_(nearest.reshape(labels.shape))


def _mirrored(volume: Sliceable, start: Sequence[int], size: Sequence[int], lead: int) -> Tensor:
    """A patch that overhangs; of the volume, only the box is read that the patch shows."""
    box = [slice(None)] * lead
    mirrored = []
    for axis, (first, length) in enumerate(zip(start, size, strict=True), start=lead):
        index = mirrored_index(first, length, volume.shape[axis])
        low, high = int(index.min()), int(index.max()) + 1
        box.append(slice(low, high))
        if first < 0 or first + length > volume.shape[axis]:
            mirrored.append((axis, torch.from_numpy(index - low)))
    # First one read of the smallest box that holds all voxels shown, then a reordering along the axes that overhang.
    patch = torch.as_tensor(volume[tuple(box)])
    for axis, places in mirrored:
        patch = patch.index_select(axis, places.to(patch.device))
    return patch
