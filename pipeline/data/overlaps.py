"""Which of some masks each voxel lies in: masks that may overlap, as one array of numbers of their combinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST = np.iinfo(np.uint16).max

Combination = tuple[int, ...]
"""Numbers of the masks that a voxel lies in, ascending; empty outside of all."""


class Overlaps:
    """Masks of one volume, as they are added one after the other.

    Args:
        shape: Of the volume.

    Attributes:
        index: Position in ``combinations`` of every voxel.
        combinations: The masks that are together in a voxel; the first is none.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.index: NDArray[np.uint16] = np.zeros(tuple(shape), np.uint16)
        self.combinations: list[Combination] = [()]
        self._places: dict[Combination, int] = {(): 0}

    def add(self, part: NDArray[np.uint16], found: NDArray[Any], combinations: Sequence[Combination]) -> None:
        """Add masks to a part of the volume.

        Args:
            part: A view of ``index``.
            found: Same shape, positions in ``combinations``; 0 adds nothing.
            combinations: The masks to add for each position.

        Raises:
            ValueError: If there are more combinations than 16 bits can number.
        """
        inside = found != 0
        new = found[inside].astype(np.int64)
        if not new.size:
            return
        if len(self.combinations) * 2 > _MOST:  # most of them are of masks that were added to since
            self._forget()
        # Of what is there and what is added every pair is looked up once.
        pairs, places = np.unique(part[inside] * np.int64(len(combinations)) + new, return_inverse=True)
        joined = [
            self._place({*self.combinations[old], *combinations[more]})
            for old, more in (divmod(int(pair), len(combinations)) for pair in pairs)
        ]
        part[inside] = np.array(joined, np.uint16)[places]

    def _forget(self) -> None:
        """Forget combinations that are nowhere any more."""
        present = np.union1d(self.index, [0])
        kept = [self.combinations[n] for n in present]
        lookup = np.zeros(len(self.combinations), np.uint16)
        lookup[present] = np.arange(len(present))
        self.index[:] = lookup[self.index]
        self.combinations, self._places = kept, {combination: n for n, combination in enumerate(kept)}

    def _place(self, together: set[int]) -> int:
        combination = tuple(sorted(together))
        place = self._places.setdefault(combination, len(self.combinations))
        if place == len(self.combinations):
            if place > _MOST:
                raise ValueError(f"masks: expected at most {_MOST} different overlaps, got more. Give fewer masks.")
            self.combinations.append(combination)
        return place
