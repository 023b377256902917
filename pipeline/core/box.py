"""A box of voxels: where something lies in a volume, and what part of it is worth computing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Box:
    """A box of voxels.

    Args:
        start: First voxel along each axis.
        stop: One past the last voxel.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def of(cls, slices: Sequence[slice]) -> Self:
        """The box that an index of slices with both ends stands for."""
        return cls(tuple(int(part.start) for part in slices), tuple(int(part.stop) for part in slices))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Self:
        """The box of a whole volume."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> Self | None:
        """The smallest box that holds every true voxel; None if there is none."""
        start, stop = [], []
        for axis in range(mask.ndim):
            places = np.flatnonzero(mask.any(axis=tuple(n for n in range(mask.ndim) if n != axis)))
            if not len(places):
                return None
            start.append(int(places[0]))
            stop.append(int(places[-1]) + 1)
        return cls(tuple(start), tuple(stop))

    @classmethod
    def union(cls, boxes: Iterable[Box]) -> Self | None:
        """The smallest box that holds all of some boxes; None if there is none."""
        found = list(boxes)
        if not found:
            return None
        start, stop = zip(*(box.start for box in found), strict=True), zip(*(box.stop for box in found), strict=True)
        return cls(tuple(map(min, start)), tuple(map(max, stop)))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    def grown(self, voxels: int | Sequence[int], shape: Sequence[int]) -> Box:
        """The box with a margin, along all axes or along each, as far as a volume of that shape goes."""
        margins = (voxels,) * len(shape) if isinstance(voxels, int) else voxels
        start = tuple(max(0, a - n) for a, n in zip(self.start, margins, strict=True))
        return Box(start, tuple(min(size, b + n) for b, n, size in zip(self.stop, margins, shape, strict=True)))

    def resized(self, shape: Sequence[int], target: Sequence[int]) -> Box:
        """The voxels of a grid of another shape, same field of view, that are interpolated from the box alone."""
        start, stop = [], []
        for a, b, n, m in zip(self.start, self.stop, shape, target, strict=True):
            first = 0 if a == 0 else -(-((2 * a + 1) * m - n) // (2 * n))  # centre not before that of voxel a
            # The centre of the other grid's voxel must not lie behind that of voxel b - 1. Integers, so that nothing is
            # rounded.
            last = m - 1 if b == n else ((2 * b - 1) * m - n) // (2 * n)
            start.append(first)
            stop.append(max(first, last + 1))
        return Box(tuple(start), tuple(stop))

    def touches(self, labels: Any) -> bool:
        """Whether labels in the box lie on a face of it beyond which the image goes on.

        Args:
            labels: (I, J, K), tensor or array.
        """
        # At the border of the image the organ may be cut off by the image itself: no larger box would show more of it.
        inside = labels[self.slices]
        for axis, (a, b, size) in enumerate(zip(self.start, self.stop, labels.shape, strict=True)):
            first, last = ((*[slice(None)] * axis, place) for place in (0, -1))
            if (a > 0 and inside[first].any()) or (b < size and inside[last].any()):
                return True
        return False
