"""Weight map of narrow gaps: how much more a voxel between two objects counts in the cross-entropy.

Both distances come from one exact, bounded distance transform that runs on the device of the labels, so that a training
on a GPU waits for the connected components only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.ndimage import label as connected_components
from torch import Tensor

from pipeline.core.grid import Box
from pipeline.core.regions import Regions

_BLOCK = 2**17  # voxels a CPU works on at a time: they stay in its cache
_REACH_SD = 6.0  # beyond, the weight is below 2e-8 of its largest value and lost in float32


def border_map(labels: Tensor, largest: float, sigma_voxels: float, *, regions: Regions = ()) -> Tensor:
    """Weights w0·exp(-(d1 + d2)² / (2·sigma²)) to add to the class weights.

    d1 and d2 are the distances in voxels to the nearest and to the second nearest object, 0 inside it: a voxel in an
    object that touches another counts nearly w0 more, one far from all or from all but one object nothing.

    Args:
        labels: (B, *S) class indices, 2 or 3 axes S.
        largest: w0.
        sigma_voxels: sigma.
        regions: Class indices of each region; objects are then the components of the regions' union, else those of
            every foreground class.

    Returns:
        (B, *S) float32 on the device of the labels; 0 where there are fewer than two objects.

    Reference: Ronneberger et al. 2015 (arXiv 1505.04597), eq. 2, with w0 = 10 and sigma = 5.
    """
    weights = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
    reach = math.ceil(_REACH_SD * sigma_voxels)
    united = {n for region in regions for n in region}
    for weight, patch in zip(weights, labels.cpu().numpy(), strict=True):
        objects = np.isin(patch, list(united)).astype(np.int8) if united else patch
        colours, box = _coloured(instances(objects), reach)
        if box is None:
            continue
        inside = torch.from_numpy(colours[box.slices]).to(labels.device)
        first, second = _two_nearest(inside, int(colours.max()), reach)
        distance = first + second
        weight[box.slices] = torch.where(
            distance <= reach, largest * torch.exp(-distance.square() / (2 * sigma_voxels**2)), 0.0
        )
    return weights


def instances(labels: NDArray[np.integer]) -> NDArray[np.int32]:
    """Number the connected components (voxels that share a face) of every foreground class: 1, 2, …; 0 elsewhere."""
    numbered = np.zeros(labels.shape, np.int32)
    count = 0
    boxes: Sequence[tuple[slice, ...] | None] = find_objects(np.maximum(labels, 0).astype(np.int32))
    for value, box in enumerate(boxes, start=1):
        if box is None:
            continue
        mask = labels[box] == value
        found, components = connected_components(mask)
        numbered[box][mask] = found[mask] + count
        count += components
    return numbered


def squared_distances(masks: Tensor, reach: int) -> Tensor:
    """Squared distance of every voxel to the nearest one of a mask, exact up to a limit.

    Args:
        masks: (M, *S), bool.
        reach: Limit in voxels, at least 1.

    Returns:
        (M, *S) integers; ``reach**2 + 1`` wherever the distance is larger than ``reach``.
    """
    cap = reach**2 + 1
    dtype = torch.int16 if cap + reach**2 <= torch.iinfo(torch.int16).max else torch.int32
    squared = (~masks).contiguous().to(dtype) * cap
    block = _BLOCK if masks.device.type == "cpu" else squared.numel()
    # One axis after the other, each in place: the squared distance is the sum of those along the axes.
    for axis in range(1, masks.ndim):
        lines = squared.view(math.prod(masks.shape[:axis]), masks.shape[axis], -1)
        length, rest = lines.shape[1:]
        for rows in torch.split(lines, max(1, block // (length * rest))):
            for part in torch.split(rows, max(1, block // length), dim=2):
                part.copy_(_nearest_on_line(part.movedim(1, 0).contiguous(), reach).movedim(0, 1))
    return squared


def _nearest_on_line(squared: Tensor, reach: int) -> Tensor:
    """Least of ``squared[q] + (p - q)**2`` over all q within reach of p along the first axis."""
    best, length = squared.clone(), len(squared)
    for step in range(1, min(reach, length - 1) + 1):
        farther = squared + step**2
        torch.minimum(best[step:], farther[:-step], out=best[step:])
        torch.minimum(best[:-step], farther[step:], out=best[:-step])
    return best


def _coloured(objects: NDArray[np.int32], reach: int) -> tuple[NDArray[np.int32], Box | None]:
    """Colour objects such that those within reach of each other differ, and find the box their gaps lie in.

    Few colours mean few distance transforms. Objects with no other in reach get colour 0, the background's: they
    weigh nothing. Without any others the box is None.
    """
    boxes = [Box.of(slices) for slices in find_objects(objects)]
    first = np.array([box.start for box in boxes]).reshape(len(boxes), objects.ndim)
    last = np.array([box.stop for box in boxes]).reshape(len(boxes), objects.ndim) - 1
    # Greedy colouring in the order of the objects; boxes stand for them, which may find too many near, never too few.
    palette = np.ones(len(boxes) + 1, np.int32)
    paired = np.zeros(len(boxes) + 1, bool)
    for n in range(len(boxes)):
        apart = np.maximum(np.maximum(first[:n] - last[n], first[n] - last[:n]), 0)
        near = np.flatnonzero((apart**2).sum(1) <= reach**2) + 1
        if len(near):
            used = set(palette[near].tolist())
            palette[n + 1] = next(colour for colour in range(1, len(used) + 2) if colour not in used)
            paired[near] = paired[n + 1] = True
    palette[~paired] = 0
    if not paired.any():
        return palette[objects], None
    inner = Box.union(box for box, near in zip(boxes, paired[1:], strict=True) if near)
    margin = math.ceil(reach / 2)  # the nearer of two objects is at most half as far as both together
    return palette[objects], inner and inner.grown(margin, objects.shape)


def _two_nearest(colours: Tensor, count: int, reach: int) -> tuple[Tensor, Tensor]:
    """Distances to the nearest and to the nearest differently coloured object.

    Two colours differ in some bit of their number. For each bit, the farther of the nearest object with a 0 and the
    nearest one with a 1 is of another colour than the nearest of all; the least of these distances is the second.
    """
    bits = (count - 1).bit_length()
    masks = [(colours > 0) & (((colours - 1) >> bit) % 2 == value) for bit in range(bits) for value in (0, 1)]
    distance = squared_distances(torch.stack(masks), reach).sqrt().reshape(bits, 2, *colours.shape)
    return distance[0].amin(0), distance.amax(1).amin(0)
