"""The planes of a volume that windows still touch: sums of weighted logits in a ring that moves through the volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["Slab", "Sums", "Weights"]

_EXPANDED_BYTES = 32 * 2**20  # weights of a window are repeated for every class up to here: faster for few classes
_PIECE_BYTES = 32 * 2**20  # planes of float32 logits given out at once; at least two planes
_ADDED_BYTES = 2 * 2**20  # planes of a window added at once, at least one: copies of them stay in the cache


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

    def add(
        self,
        place: Sequence[int],
        logits: Tensor,
        weights: Weights,
        flips: Sequence[int] = (),
        swapped: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Add the logits of a window.

        Args:
            place: First voxel of the window, plane first; what lies outside the volume is left out. No plane of it lies
                before :attr:`first` or a slab's thickness beyond.
            logits: (L, t, a, b), any floating type, any memory order, on any device.
            weights: Of the window.
            flips: Axes along which the logits lie reversed, 0 for planes.
            swapped: Pairs of channels that have changed places.
        """
        limits = (self.first + len(self.sums), *self.sums.shape[1:3])
        low = [max(start, 0) for start in place]
        high = [min(start + size, limit) for start, size, limit in zip(place, logits.shape[1:], limits, strict=True)]
        rows, columns = (slice(a, b) for a, b in zip(low[1:], high[1:], strict=True))
        kept = [slice(a - start, b - start) for a, b, start in zip(low, high, place, strict=True)]
        values = logits.to(self.sums.device).permute(1, 2, 3, 0)
        order = _order(len(logits), swapped, values.device)
        plane_bytes = (high[1] - low[1]) * (high[2] - low[2]) * len(logits) * self.wide.itemsize
        for start, stop in self._pieces(low[0], high[0], max(1, _ADDED_BYTES // plane_bytes)):
            kept[0] = slice(start - place[0], stop - place[0])
            found = _turned(values, kept, flips, order).to(self.wide)
            if self.relative:
                found = found - found.amax(dim=-1, keepdim=True)
            ring = slice(start % len(self.sums), start % len(self.sums) + stop - start)
            own, wide = self.sums[ring, rows, columns], weights.wide[tuple(kept)]
            if own.dtype == self.wide:
                own.addcmul_(found, wide)
            else:
                own += found * wide
            self.weights[ring, rows, columns] += weights.plain[tuple(kept)]

    def _pieces(self, start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
        """Planes in parts of at most so many that are one stretch of the ring."""
        size = len(self.sums)
        while start < stop:
            end = min(stop, start + most, start + size - start % size)
            yield start, end
            start = end

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


class Sums:
    """The sums of a volume over windows and over the passes that each of them takes.

    Every pass is added as it comes, which takes no more memory than one pass; or the mean over the passes of a window
    is made first, elsewhere and in float32.

    Args:
        slab: The sums.
        importance: Weight of the voxels of a window (t, a, b).
        passes: Of every window.
        elsewhere: Where to make the mean; None to add every pass.
    """

    def __init__(self, slab: Slab, importance: Tensor, passes: int, elsewhere: torch.device | None = None) -> None:
        classes, device = slab.sums.shape[-1], slab.sums.device
        self.slab, self.passes, self.elsewhere, self.window = slab, passes, elsewhere, importance.shape
        self.means: dict[tuple[int, ...], tuple[int, Slab]] = {}
        if elsewhere is not None:
            self.even = Weights(torch.full(self.window, 1 / passes, device=elsewhere), classes, torch.float32)
        share = 1 if elsewhere is not None else passes
        self.weights = Weights(importance.to(device) / share, classes, slab.wide)

    def add(
        self, place: Sequence[int], logits: Tensor, flips: Sequence[int], swapped: Sequence[tuple[int, int]]
    ) -> None:
        """Add the logits of a pass over a window; see :meth:`Slab.add`."""
        if self.elsewhere is None:
            self.slab.add(place, logits, self.weights, flips, swapped)
            return
        key = tuple(place)
        count, mean = self.means.pop(key) if key in self.means else (0, self._empty_mean(self.elsewhere))
        mean.add((0, 0, 0), logits, self.even, flips, swapped)
        if count + 1 < self.passes:
            self.means[key] = count + 1, mean
        else:
            self.slab.add(place, mean.sums.permute(3, 0, 1, 2), self.weights)

    def _empty_mean(self, device: torch.device) -> Slab:
        thickness, *across = self.window
        return Slab(thickness, across, self.slab.sums.shape[-1], torch.float32, device, self.slab.relative)


def _order(channels: int, swapped: Sequence[tuple[int, int]], device: torch.device) -> Tensor | None:
    """Which channel stands for every class; None where each stands for its own."""
    if not swapped:
        return None
    order = list(range(channels))
    for left, right in swapped:
        order[left], order[right] = right, left
    return torch.tensor(order, device=device)


def _turned(values: Tensor, kept: Sequence[slice], flips: Sequence[int], order: Tensor | None) -> Tensor:
    """A part of logits (t, a, b, L), turned back: a copy where there is something to turn."""
    sizes = values.shape
    part = values[
        tuple(slice(sizes[n] - one.stop, sizes[n] - one.start) if n in flips else one for n, one in enumerate(kept))
    ]
    part = torch.flip(part, tuple(flips)) if flips else part
    return part if order is None else part.index_select(-1, order)
