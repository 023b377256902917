"""Which spatial sizes a network takes, and how much smaller its logits are.

``volseg export`` copies this module into bundles: it may import nothing of this package but errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.errors import DataError, sentence


@dataclass(frozen=True)
class SizeRule:
    """The legal spatial sizes of a network: ``smallest + n * step`` along each axis, n = 0, 1, 2, ….

    Args:
        step: Distance of two legal sizes, per axis.
        smallest: The smallest legal size, per axis.
        lone_cell: False if the smallest size along all axes at once is illegal, because one value per channel remains
            at the lowest resolution and the network normalizes it over space.
        border: Voxels that the logits are smaller than the input on either side, per axis; None for 0 everywhere.
    """

    step: tuple[int, ...]
    smallest: tuple[int, ...]
    lone_cell: bool = True
    border: tuple[int, ...] | None = None

    @property
    def margin(self) -> tuple[int, ...]:
        """Voxels that the logits are smaller than the input on either side, per axis; 0 for padded networks."""
        return self.border or (0,) * len(self.step)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the logits of an input of a legal size; others are refused."""
        self._require_axes(size)
        self.require(size)
        return tuple(n - 2 * lost for n, lost in zip(size, self.margin, strict=True))

    def is_legal(self, size: Sequence[int]) -> bool:
        """Whether a spatial size, one number per axis, can go through the network."""
        axes = zip(size, self.step, self.smallest, strict=True)
        fits = all(n >= low and (n - low) % step == 0 for n, step, low in axes)
        return fits and (self.lone_cell or tuple(size) != self.smallest)

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The smallest legal size that is at least ``size`` along every axis.

        Raises:
            DataError: If the number of axes is wrong or a size is below 1.
        """
        self._require_axes(size)
        rule = zip(size, self.step, self.smallest, strict=True)
        legal = tuple(low + max(0, math.ceil((n - low) / step)) * step for n, step, low in rule)
        if not self.lone_cell and legal == self.smallest:
            return (*legal[:-1], legal[-1] + self.step[-1])
        return legal

    def require(self, size: Sequence[int]) -> None:
        """Refuse a size that is not legal, naming each offending axis with the legal sizes below and above it."""
        if self.is_legal(size):
            return
        above = self.legal_size(size)
        axes = [
            f"axis {axis} is {n}, nearest legal {_nearest(n, step, low)}"
            for axis, (n, step, low) in enumerate(zip(size, self.step, self.smallest, strict=True))
            if n < low or (n - low) % step != 0
        ]
        reason = "; ".join(axes) or "a single voxel would be left at the lowest resolution, nothing to normalize over"
        rule = ("" if self.smallest == self.step else f"{self.smallest} plus ") + f"multiples of {self.step}"
        raise DataError(sentence("input size", rule, f"{tuple(size)} ({reason})", f"Pad to {above}, or crop"))

    def _require_axes(self, size: Sequence[int]) -> None:
        if len(size) != len(self.step) or min(size) < 1:
            expected = f"{len(self.step)} numbers of at least 1"
            raise DataError(sentence("input size", expected, tuple(size), "Give one size per spatial axis"))


def size_rule(strides: Sequence[Sequence[int]], *, lone_cell: bool = True) -> SizeRule:
    """Size rule of a padded encoder-decoder: multiples of the product of its strides along every axis."""
    step = tuple(math.prod(per_axis) for per_axis in zip(*strides, strict=True))
    return SizeRule(step, step, lone_cell)


def _nearest(n: int, step: int, low: int) -> str:
    if n < low:
        return str(low)
    below = low + (n - low) // step * step
    return f"{below} and {below + step}"
