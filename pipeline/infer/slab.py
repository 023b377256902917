"""The planes of a volume that windows still touch: sums of weighted logits in a ring that moves through the volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Slab", "Weights"]

_EXPANDED_BYTES = 32 * 2**20  # weights of a window are repeated for every class up to here: faster for few classes
_PIECE_BYTES = 32 * 2**20  # planes of float32 logits given out at once; at least two planes


class Weights:
    """Weight of every voxel of a window, in the layout of a slab.

    Args:
        importance: (t, a, b), the axis along which the slab moves first.
        classes: Channels of the logits.
        dtype: Of the sums.
    """

    def __init__(self, importance: Tensor, classes: int, dtype: torch.dtype) -> None:
        self.plain = importance.to(dtype)
        wide = self.plain[..., None]
        fits = importance.numel() * classes * dtype.itemsize <= _EXPANDED_BYTES
        self.wide = wide.expand(*importance.shape, classes).contiguous() if fits else wide


class Slab:
    """Sums over windows of the planes ``[first, first + thickness)``, which are finished from the front.

    Classes lie side by side in memory, so that what is decided per voxel reads one stretch of memory.

    Args:
        thickness: Planes that windows touch at one time.
        across: Voxels of a plane, two sizes.
        classes: Channels of the logits.
        dtype: Of the sums.
        device: Where they are.
        relative: Whether logits are taken relative to the highest of a voxel, which decides alike and leaves those that
            can win the most digits.
    """

    def __init__(
        self,
        thickness: int,
        across: Sequence[int],
        classes: int,
        dtype: torch.dtype,
        device: torch.device,
        relative: bool = False,
    ) -> None:
        self.first, self.relative = 0, relative
        self.wide = torch.promote_types(dtype, torch.float32)
        self.sums = torch.zeros((thickness, *across, classes), dtype=dtype, device=device)
        self.weights = torch.zeros((thickness, *across), dtype=self.wide, device=device)

    def add(self, place: Sequence[int], logits: Tensor, weights: Weights) -> None:
        """Add the logits of a window.

        Args:
            place: First voxel of the window, plane first; what lies outside the volume is left out. No plane of it lies
                before :attr:`first` or a slab's thickness beyond.
            logits: (L, t, a, b), any floating type, any memory order.
            weights: Of the window.
        """
        limits = (self.first + len(self.sums), *self.sums.shape[1:3])
        low = [max(start, 0) for start in place]
        high = [min(start + size, limit) for start, size, limit in zip(place, logits.shape[1:], limits, strict=True)]
        rows, columns = (slice(a, b) for a, b in zip(low[1:], high[1:], strict=True))
        kept = tuple(slice(a - start, b - start) for a, b, start in zip(low, high, place, strict=True))
        values, wide = logits.permute(1, 2, 3, 0)[kept], weights.wide[kept]
        for number, plane in enumerate(range(low[0], high[0])):
            own = self.sums[plane % len(self.sums), rows, columns]
            found = values[number].to(self.wide)
            if self.relative:
                found = found - found.amax(dim=-1, keepdim=True)
            if own.dtype == self.wide:
                own.addcmul_(found, wide[number])
            else:
                own += found * wide[number]
            self.weights[plane % len(self.sums), rows, columns] += weights.plain[kept][number]

    def piece_end(self, stop: int) -> int:
        """One past the last plane that one call of :meth:`finish` may give out, at most ``stop``."""
        ring = self.first % len(self.sums)
        most = max(2, _PIECE_BYTES // (self.sums[0].numel() * 4))
        return min(stop, self.first + min(len(self.sums) - ring, most))

    def finish(self, stop: int) -> Tensor:
        """Mean logits of the planes from :attr:`first` to ``stop``, at most :meth:`piece_end`.

        Returns:
            (n, a, b, L) in float32 or wider, 0 where no window was; they may share memory with the sums.
        """
        ring = self.first % len(self.sums)
        part = slice(ring, ring + stop - self.first)
        totals = self.weights[part].masked_fill(self.weights[part] == 0, 1.0)
        return self.sums[part].to(self.wide).div_(totals[..., None])

    def forget(self, stop: int) -> None:
        """Move on from planes that were given out, which no further window touches."""
        ring = self.first % len(self.sums)
        part = slice(ring, ring + stop - self.first)
        self.sums[part].zero_()
        self.weights[part].zero_()
        self.first = stop
