"""Which spatial sizes a network takes, and how to feed it any other size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.core import DataError, sentence
from pipeline.core.mirror import mirrored_index

__all__ = ["SizeRule", "pad_to_rule", "size_rule"]


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
        """Spatial size of the logits of an input of a legal size.

        Raises:
            DataError: If the size is not legal.
        """
        self._require_axes(size)
        self.require(size)
        return tuple(n - 2 * lost for n, lost in zip(size, self.margin, strict=True))

    def is_legal(self, size: Sequence[int]) -> bool:
        """Whether a spatial size, one number per axis, can go through the network."""
        for n, step, low in zip(size, self.step, self.smallest, strict=True):
            if n < low or (n - low) % step != 0:
                return False
        return self.lone_cell or tuple(size) != self.smallest

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
        """Raise unless a size is legal.

        Raises:
            DataError: Naming each offending axis with the legal sizes below and above it.
        """
        if self.is_legal(size):
            return
        above = self.legal_size(size)
        axes = [
            f"axis {axis} is {n}, nearest legal {_nearest(n, step, low)}"
            for axis, (n, step, low) in enumerate(zip(size, self.step, self.smallest, strict=True))
            if n < low or (n - low) % step != 0
        ]
        reason = "; ".join(axes) or "a single voxel would be left at the lowest resolution, nothing to normalize over"
        raise DataError(
            sentence(
                "input size",
                self.describe(),
                f"{tuple(size)} ({reason})",
                f"Pad to {above}, as forward_any_size does, or crop",
            )
        )

    def describe(self) -> str:
        """The rule in words, e.g. ``multiples of (16, 16)``."""
        if self.smallest == self.step:
            return f"multiples of {self.step}"
        return f"{self.smallest} plus multiples of {self.step}"

    def _require_axes(self, size: Sequence[int]) -> None:
        if len(size) != len(self.step) or min(size) < 1:
            expected = f"{len(self.step)} numbers of at least 1"
            raise DataError(sentence("input size", expected, tuple(size), "Give one size per spatial axis"))


def size_rule(strides: Sequence[Sequence[int]], *, lone_cell: bool = True) -> SizeRule:
    """Size rule of a padded encoder-decoder: multiples of the product of its strides.

    Args:
        strides: Stride of every stage along every axis.
        lone_cell: See :class:`SizeRule`.
    """
    step = tuple(math.prod(per_axis) for per_axis in zip(*strides, strict=True))
    return SizeRule(step, step, lone_cell)


def pad_to_rule(x: Tensor, rule: SizeRule) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad a batch to the next size whose logits cover it, half on either side.

    Without a margin, border voxels are repeated: unlike zeros they add no edge that an organ might be mistaken for.
    With one the image is mirrored at its border, as the overlap-tile strategy has it (Ronneberger et al. 2015).

    Args:
        x: (B, C, *spatial), each spatial size at least 1.
        rule: The sizes wanted.

    Returns:
        The batch, untouched where it is legal already, and the slices that cut the old extent from the spatial axes of
        the logits: ``logits[(..., *slices)]``.

    Raises:
        DataError: If the number of axes is wrong or a size is 0.
    """
    size = tuple(x.shape[2:])
    needed = tuple(n + 2 * lost for n, lost in zip(size, rule.margin, strict=False)) if min(size, default=0) else size
    target = rule.legal_size(needed)
    before = [(new - old) // 2 for new, old in zip(target, needed, strict=True)]
    crop = tuple(slice(start, start + old) for start, old in zip(before, size, strict=True))
    if target == size:
        return x, crop
    if any(rule.margin):
        for axis, (start, lost) in enumerate(zip(before, rule.margin, strict=True)):
            index = mirrored_index(-start - lost, target[axis], size[axis])
            x = x.index_select(axis + 2, torch.from_numpy(index).to(x.device))
        return x, crop
    widths: list[int] = []
    for start, new, old in reversed(list(zip(before, target, size, strict=True))):
        widths += [start, new - old - start]  # F.pad lists the last axis first
    return F.pad(x, widths, mode="replicate"), crop


def _nearest(n: int, step: int, low: int) -> str:
    if n < low:
        return str(low)
    below = low + (n - low) // step * step
    return f"{below} and {below + step}"
