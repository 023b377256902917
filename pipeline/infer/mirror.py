"""Test-time augmentation by mirroring and by rotations of right angles, aware of left and right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

__all__ = ["Rotation", "View", "views"]


@dataclass(frozen=True)
class Rotation:
    """Rotations in a plane, by right angles, which need no interpolation.

    Args:
        axes: The two spatial axes of the plane, 0 for the first.
        quarter: Whether also by 90 and 270 degrees, where a window is as long along both axes; else by 180 only.
    """

    axes: tuple[int, int]
    quarter: bool = True

    def within(self, *sizes: Sequence[int]) -> Rotation:
        """The rotations that leave sizes as they are.

        Args:
            sizes: Voxels along each axis, of all that is rotated.
        """
        one, other = self.axes
        return replace(self, quarter=self.quarter and all(size[one] == size[other] for size in sizes))


@dataclass(frozen=True)
class View:
    """One way for the network to see a window.

    Args:
        swapped: Two axes that change places, first; none in a view that leaves all where they are.
        flips: Axes that are reversed then.
        mirrored: Axes over which it was mirrored; what a rotation reverses is not among them.
    """

    swapped: tuple[int, ...] = ()
    flips: tuple[int, ...] = ()
    mirrored: tuple[int, ...] = ()

    def of(self, windows: Tensor) -> Tensor:
        """Windows (n, C, *window) as the network sees them: a copy."""
        return torch.flip(self._exchanged(windows), [axis + 2 for axis in self.flips])

    def back(self, logits: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Logits (n, L, *tile) of such windows with their axes in place, without a copy, and the axes to reverse."""
        places = dict(zip(self.swapped, reversed(self.swapped), strict=True))
        return self._exchanged(logits), tuple(places.get(axis, axis) for axis in self.flips)

    def _exchanged(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(*(axis + 2 for axis in self.swapped)) if self.swapped else tensor


def views(axes: Sequence[int], rotation: Rotation | None = None) -> tuple[View, ...]:
    """All that a window can be turned to by mirroring along axes and by rotations, each once, the plain one first.

    Args:
        axes: Spatial axes to mirror.
        rotation: In which plane to rotate; None for no rotation.

    Returns:
        8 for mirroring along three axes; 8 of a plane with rotations and mirroring along any axis of it.
    """
    distinct = sorted(set(axes))
    turns: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    if rotation is not None:
        turns.append(((), rotation.axes))
        if rotation.quarter:
            turns += [(rotation.axes, (axis,)) for axis in rotation.axes]
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], View] = {}
    for count in range(len(distinct) + 1):
        for mirrors in combinations(distinct, count):
            for swapped, reverses in turns:
                flips = tuple(sorted(set(mirrors) ^ set(reverses)))
                found.setdefault((swapped, flips), View(swapped, flips, mirrors))
    return tuple(found.values())
