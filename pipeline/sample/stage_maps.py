"""What the first stage of a cascade found, on its way into the batches of the second.

The stage map of a case holds class indices, 0 for background, as its label map does. Both go through cutting, warping
and mirroring as one map of joined numbers, so that whatever moves labels moves both alike. Then the stage map alone is
disturbed, as nnU-Net does: on training cases the first stage may be better than on new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from pipeline.core.grid import Box
from pipeline.sample.cut import Sliceable
from pipeline.sample.randomness import BatchRandom, seeded

# nnU-Net's figures: of patches, of the radius in voxels, of the patch that a component covers at most to be removed.
_RESHAPE_P, _RADIUS, _REMOVE_P, _LARGEST_SHARE = 0.4, (1, 8), 0.2, 0.15

_Map = NDArray[np.signedinteger[Any]]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class JoinedMaps:
    """The label map and the stage map of a case; a slice gives both as one map of joined numbers.

    A voxel of class l (-1: ignored) where the first stage found class s of K is (l + 1) (K + 1) + s - 1. So outside the
    volume, where labels are padded with -1, nothing is learnt and nothing was found.

    Args:
        labels: (I, J, K) class indices, -1 where ignored.
        found: (I, J, K) class indices of the first stage.
        classes: Foreground classes, K.
    """

    labels: Sliceable
    found: Sliceable
    classes: int

    @property
    def shape(self) -> Sequence[int]:
        """Length of every axis."""
        return self.labels.shape

    @property
    def device(self) -> torch.device | None:
        """Where both are; None for files."""
        return getattr(self.labels, "device", None)

    def __getitem__(self, box: Any) -> Tensor:
        """Joined numbers of a part, int32."""
        labels, found = (torch.as_tensor(part[box]).to(torch.int32) for part in (self.labels, self.found))
        return (labels + 1) * (self.classes + 1) + found - 1


def parted(joined: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Class indices of label map and stage map of joined numbers, any shape and integer type."""
    raised = joined + 1
    return raised.div(classes + 1, rounding_mode="floor") - 1, raised % (classes + 1)


@lru_cache(maxsize=4)
def joined_pairs(side_pairs: tuple[tuple[int, int], ...], classes: int) -> tuple[tuple[int, int], ...]:
    """Pairs of joined numbers that swap where left and right do, of pairs of class indices."""
    other = {**dict(side_pairs), **{right: left for left, right in side_pairs}}
    pairs = []
    for label in range(-1, classes + 1):
        for found in range(classes + 1):
            one = (label + 1) * (classes + 1) + found - 1
            two = (other.get(label, label) + 1) * (classes + 1) + other.get(found, found) - 1
            if one < two:
                pairs.append((one, two))
    return tuple(pairs)


def disturbed(found: Tensor, random: BatchRandom) -> Tensor:
    """Stage maps of a batch, changed at random: organs grown, shrunk, closed or opened, parts of them missing.

    With probability 0.4 per patch all classes are reshaped in random order, each by a dilation, erosion, closing or
    opening with a ball of 1 to 8 voxels; what a class gains the others lose. With probability 0.2 each class loses one
    of its connected components, if that has less than 15 % of the patch.

    Args:
        found: (B, *S) class indices.
        random: Source of all draws, one per patch.

    Returns:
        The same shape, type and device; a copy where anything changed.

    Reference: Isensee et al., nnU-Net, Nature Methods 2021, and its ``ApplyRandomBinaryOperatorTransform`` and
    ``RemoveRandomConnectedComponentFromOneHotEncodingTransform``, whose figures these are.
    """
    reshape, remove = random.chosen(_RESHAPE_P), random.chosen(_REMOVE_P)
    seeds = random.uniform((2,), (0, 2**24))  # whole numbers of float32
    if not bool((reshape | remove).any()):
        return found
    result = found.clone()
    for place in (reshape | remove).nonzero().flatten().tolist():
        rng = seeded(*map(int, seeds[place].tolist()))
        patch = found[place].cpu().numpy().copy()
        if reshape[place]:
            reshape_classes(patch, rng)
        if remove[place]:
            remove_components(patch, rng)
        result[place] = torch.from_numpy(patch).to(found.device)
    return result


def reshape_classes(found: _Map, rng: np.random.Generator) -> None:
    """Dilate, erode, close or open every class of a stage map, in random order and in place."""
    for value in rng.permutation(_classes(found)).tolist():
        operator = _OPERATORS[int(rng.integers(len(_OPERATORS)))]
        radius = int(rng.integers(_RADIUS[0], _RADIUS[1] + 1))
        box = Box.around(found == value)
        if box is None:  # another class has grown over it
            continue
        # One layer more than the class can grow: from a voxel inside, nothing outside is nearer than that layer.
        part = found[box.grown(radius + 1, found.shape).slices]
        mask = part == value
        changed = operator(mask, radius)
        part[mask] = 0
        part[changed] = value


def remove_components(found: _Map, rng: np.random.Generator) -> None:
    """Remove of every class one connected component, neighbours by corner included, in place; large ones stay."""
    for value in rng.permutation(_classes(found)).tolist():
        components, count = ndimage.label(found == value, np.ones((3,) * found.ndim))
        sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
        small = np.flatnonzero(sizes < _LARGEST_SHARE * found.size) + 1
        if len(small):
            found[components == rng.choice(small)] = 0


def _classes(found: _Map) -> NDArray[np.signedinteger[Any]]:
    values = np.unique(found)
    return values[values > 0]


def dilated(mask: _Mask, radius: int) -> _Mask:
    """Every voxel that lies within a radius, in voxels, of the mask."""
    if not mask.any():
        return mask
    # By distance: with a ball of radius 8 and its 2,000 voxels, each would have to be looked at for every voxel.
    near: _Mask = ndimage.distance_transform_edt(~mask) <= radius
    return near


def eroded(mask: _Mask, radius: int) -> _Mask:
    """Every voxel within a radius of which all lies in the mask or outside the patch."""
    return ~dilated(~mask, radius)


def closed(mask: _Mask, radius: int) -> _Mask:
    """Dilated, then eroded: gaps are filled."""
    return eroded(dilated(mask, radius), radius)


def opened(mask: _Mask, radius: int) -> _Mask:
    """Eroded, then dilated: thin parts are gone."""
    return dilated(eroded(mask, radius), radius)


_OPERATORS: tuple[Callable[[_Mask, int], _Mask], ...] = (dilated, eroded, closed, opened)
