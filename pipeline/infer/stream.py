"""From windows to finished planes: the core of streaming inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.heap import keep_freed_memory, release_freed_memory
from pipeline.infer.passes import Outputs, Passes
from pipeline.infer.slab import Slab, Sums
from pipeline.infer.visits import Visit, Visits

__all__ = ["Planes", "Stream"]

Planes = tuple[int, list[Tensor]]
"""First plane along the streaming axis and, for every output of the network, finished mean logits (n, a, b, L); b is 1
in images of two axes."""

_MANY = 32  # classes; networks have about so many features at full resolution
_KEPT_BYTES = 64 << 20  # of a tensor, with more classes: their decision needs large ones, of other sizes every time


@dataclass(frozen=True)
class Stream:
    """How a volume is covered with windows and finished plane by plane.

    Args:
        visits: How windows go through networks.
        importance: Weight of the voxels of a window that get logits, of the shape of the tile.
        sums: Type of the sums.
    """

    visits: Visits
    importance: Tensor
    sums: torch.dtype

    @property
    def axis(self) -> int:
        """Along which planes are finished."""
        return self.visits.axis

    def planes(
        self,
        volume: Tensor,
        network: Outputs | Passes,
        told: Callable[[int, int], None],
        relative: bool = False,
    ) -> Iterator[Planes]:
        """Finished planes of a volume, in their order, a few at a time.

        Args:
            volume: (C, *spatial).
            network: The logits of all its passes are averaged.
            told: Of the windows done and their number.
            relative: Whether it is enough to know logits relative to the highest of a voxel of a window.

        Yields:
            See :data:`Planes`; valid until the next ones are asked for.

        Raises:
            ValueError: If the network's outputs are not of the shape of the tile.
        """
        shape, tiling = volume.shape[1:], self.visits.tiling
        passes = network.each(tiling.window, tiling.tile)
        sums: list[Sums] = []
        with ExitStack() as stack:
            for visit in self.visits.each(volume, passes, told):
                if not sums:
                    sums = [self._sums(volume, logits, len(passes), relative) for logits in visit.outputs]
                    stack.enter_context(keep_freed_memory(_not_kept(visit.outputs)))
                yield from _finished([one.slab for one in sums], max(0, visit.first))
                self._add(sums, visit)
                del visit  # before the network makes the next ones
            yield from _finished([one.slab for one in sums], shape[self.axis])

    def turned(self, numbers: Sequence[int], last: int) -> tuple[int, ...]:
        """Numbers per axis, that of the streaming axis first; ``last`` stands for a third axis that is not there."""
        others = [n for axis, n in enumerate(numbers) if axis != self.axis]
        return (numbers[self.axis], *others, *[last] * (2 - len(others)))

    def _sums(self, volume: Tensor, logits: Tensor, passes: int, relative: bool) -> Sums:
        """Sums for a volume of an output (L, *tile) of so many passes.

        The few digits of float16 would lose many small numbers added to a large one, and logits that a GPU computes for
        sums on the CPU had better go there once: then, the mean over the passes of a window is made first.
        """
        shape, half = volume.shape[1:], self.sums == torch.float16
        dtype = self.sums if half else torch.promote_types(logits.dtype, self.sums)
        thickness, across = self.visits.thickness(shape, passes), self.turned(shape, 1)[1:]
        slab = Slab(thickness, across, len(logits), dtype, volume.device, relative)
        apart = passes > 1 and (half or logits.device != volume.device)
        importance = self._lifted(self.importance[None])[0]
        return Sums(slab, importance, passes, logits.device if apart else None)

    def _add(self, sums: Sequence[Sums], visit: Visit) -> None:
        order, place = self.turned(range(len(visit.place)), 2), self.turned(visit.place, 0)
        for one, logits in zip(sums, visit.outputs, strict=True):
            back, reversed_axes = visit.one.view.back(logits[None])
            flips = tuple(order.index(axis) for axis in reversed_axes)
            one.add(place, self._lifted(back[0]), flips, visit.one.swapped)

    def _lifted(self, logits: Tensor) -> Tensor:
        """(L, *spatial) as (L, t, a, b), the streaming axis first."""
        turned = logits.movedim(self.axis + 1, 1)
        return turned if turned.ndim == 4 else turned[..., None]


def _not_kept(outputs: Sequence[Tensor]) -> int | None:
    """Bytes from which freed memory is not kept: with many classes those of a batch of logits, or less."""
    large = [logits.untyped_storage().nbytes() for logits in outputs if len(logits) > _MANY]
    return min(_KEPT_BYTES, *large) if large else None


def _finished(slabs: Sequence[Slab], stop: int) -> Iterator[Planes]:
    """The next planes of all slabs, which move together.

    With many classes, what happens to the planes takes other memory than the windows before and after them: freed
    places that neither fits are given back, so that they do not add up.
    """
    if not slabs or slabs[0].first >= stop:
        return
    many = slabs[0].sums.shape[-1] > _MANY
    if many:
        release_freed_memory()
    while slabs[0].first < stop:
        first, end = slabs[0].first, min(stop, *(slab.piece_end(stop) for slab in slabs))
        yield first, [slab.finish(end) for slab in slabs]
        for slab in slabs:
            slab.forget(end)
    if many:
        release_freed_memory()
