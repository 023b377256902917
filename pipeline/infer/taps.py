"""Linear interpolation between planes of logits: where it reads, and with which weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pipeline.preprocess.operators import resize_operator

__all__ = ["Taps", "corners", "interpolated", "linear_taps"]

_POINTS = 65536  # interpolated together: what is gathered for them stays in the cache


@dataclass(frozen=True)
class Taps:
    """Linear interpolation along an axis: ``(1 - share) * values[low] + share * values[low + 1]``.

    Args:
        low: (m,) int64, at most n - 2; 0 where there is one voxel alone.
        share: (m,) float32 in [0, 1].
    """

    low: Tensor
    share: Tensor

    def part(self, first: int, stop: int, before: int = 0) -> Taps:
        """Some of the outputs, read from values that begin at ``before``."""
        return Taps(self.low[first:stop] - before, self.share[first:stop])

    def at(self, places: Tensor) -> Taps:
        """The outputs at some places."""
        return Taps(self.low[places], self.share[places])


def linear_taps(n: int, m: int, device: torch.device) -> Taps:
    """How linear resampling brings an axis from ``n`` to ``m`` voxels over the same field of view.

    The weights are those of :func:`~pipeline.preprocess.operators.resize_operator`.
    """
    if n == 1:
        return Taps(torch.zeros(m, dtype=torch.int64, device=device), torch.zeros(m, device=device))
    matrix = torch.eye(n) if n == m else torch.tensor(resize_operator(n, m, 1))
    low = (matrix > 0).int().argmax(dim=1).clamp(max=n - 2)
    return Taps(low.to(device), matrix.gather(1, low[:, None] + 1)[:, 0].to(device))


def corners(taps: Sequence[Taps], shape: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The eight voxels around points, one after the other.

    Args:
        taps: For each of three axes, of P points.
        shape: Voxels along the axes.

    Yields:
        Flat index (P,) of the voxel and its weight (P,).
    """
    for steps in product((0, 1), repeat=3):
        index, weight = torch.zeros_like(taps[0].low), torch.ones_like(taps[0].share)
        for one, step, size in zip(taps, steps, shape, strict=True):
            index = index * size + (one.low + step).clamp(max=size - 1)
            weight = weight * (one.share if step else 1.0 - one.share)
        yield index, weight


def interpolated(values: Tensor, taps: Sequence[Taps]) -> Iterator[tuple[slice, Tensor]]:
    """Logits of all classes at points.

    Args:
        values: (n, a, b, L).
        taps: For each of the three axes, of P points.

    Yields:
        Which points, and their logits (p, L).
    """
    flat, count = values.reshape(-1, values.shape[-1]), len(taps[0].low)
    for first in range(0, count, _POINTS):
        part = slice(first, min(first + _POINTS, count))
        total: Tensor | None = None
        for index, weight in corners([one.part(part.start, part.stop) for one in taps], values.shape[:3]):
            found = flat.index_select(0, index)
            total = found.mul_(weight[:, None]) if total is None else total.addcmul_(found, weight[:, None])
        assert total is not None
        yield part, total
