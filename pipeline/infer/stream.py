"""From windows to finished planes: the core of streaming inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.core.heap import keep_freed_memory, release_freed_memory
from pipeline.infer.slab import Slab, Weights
from pipeline.infer.tiling import Place, Tiling
from pipeline.model.device import out_of_memory
from pipeline.sample.cut import paste

__all__ = ["Network", "Outputs", "Padding", "Planes", "Skip", "Stream"]

Network = Callable[..., Any]
"""Takes (B, C, *window), returns logits (B, L, *window), smaller by the margin on either side if there is one, or
several of them in a sequence or mapping."""

Padding = Literal["constant", "reflect", "replicate", "circular"]
"""What windows see where a volume is smaller than they are."""

Skip = Literal["padding"] | Tensor | Callable[[Tensor], bool] | None
"""Which windows are left out: ``padding``: those where no channel changes; a mask (*spatial): those whose logits would
lie outside; a function of the window (C, *window): those for which it is true."""

Planes = tuple[int, list[Tensor]]
"""First plane along the streaming axis and, for every output of the network, finished mean logits (n, a, b, L); b is 1
in images of two axes."""

_MANY = 32  # classes; networks have about so many features at full resolution
_KEPT_BYTES = 64 << 20  # of a tensor, with more classes: their decision needs large ones, of other sizes every time


class Outputs:
    """A network whose outputs are a list, whatever it returns them in."""

    def __init__(self, network: Network, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.network, self.args, self.kwargs = network, args, kwargs
        self.packed: Callable[[list[Tensor]], Any] = tuple

    def __call__(self, windows: Tensor) -> list[Tensor]:
        """All outputs."""
        found = self.network(windows, *self.args, **self.kwargs)
        if isinstance(found, Mapping):
            names = list(found)
            self.packed = lambda totals: dict(zip(names, totals, strict=True))
            return list(found.values())
        if isinstance(found, tuple | list):
            return list(found)
        self.packed = lambda totals: totals[0]
        return [found]


@dataclass(frozen=True)
class Stream:
    """How a volume is covered with windows and finished plane by plane.

    Args:
        tiling: Where windows lie.
        importance: Weight of the voxels of a window that get logits, of the shape of ``tiling.tile``.
        batch: Windows per network call.
        axis: Along which windows are visited and planes finished.
        skip: Windows to leave out.
        sums: Type of the sums.
        padding: What windows see where the volume is smaller; the mirrored volume with a margin.
        fill: The constant of padding.
    """

    tiling: Tiling
    importance: Tensor
    batch: int
    axis: int
    skip: Skip
    sums: torch.dtype
    padding: Padding
    fill: float

    def planes(
        self,
        volume: Tensor,
        network: Callable[[Tensor], Sequence[Tensor]],
        told: Callable[[int, int], None],
        relative: bool = False,
    ) -> Iterator[Planes]:
        """Finished planes of a volume, in their order, a few at a time.

        Args:
            volume: (C, *spatial).
            network: Takes (n, C, *window), returns its outputs.
            told: Of the windows done and their number.
            relative: Whether it is enough to know logits relative to the highest of a voxel of a window.

        Yields:
            See :data:`Planes`; valid until the next ones are asked for.

        Raises:
            ValueError: If the network's outputs are not of the shape of the tile.
        """
        shape = volume.shape[1:]
        places = self.tiling.places(shape, self.axis)
        slabs: list[tuple[Slab, Weights]] = []
        with ExitStack() as stack:
            for place, outputs in self._outputs(volume, places, network, told):
                if not slabs:
                    slabs = [self._slab(shape, logits, relative) for logits in outputs]
                    stack.enter_context(keep_freed_memory(_not_kept(outputs)))
                yield from _finished(slabs, max(0, place[self.axis]))
                for (slab, weights), logits in zip(slabs, outputs, strict=True):
                    slab.add(self.turned(place, 0), self._lifted(logits), weights)
                del outputs, logits  # before the network makes the next ones
            yield from _finished(slabs, shape[self.axis])

    def _outputs(
        self,
        volume: Tensor,
        places: Sequence[Place],
        network: Callable[[Tensor], Sequence[Tensor]],
        told: Callable[[int, int], None],
    ) -> Iterator[tuple[Place, list[Tensor]]]:
        """Every window that is not skipped with the network's outputs (L, *tile); of none but skipped ones, zeros."""
        source, low = self._padded(volume)
        wanted = [place for place in places if not self._skipped(place, source, low)]
        none, wanted = not wanted, wanted or list(places[:1])
        done, batch = 0, self.batch
        while done < len(wanted):
            group = wanted[done : done + batch]
            windows = torch.stack([self._window(source, place, low) for place in group])
            outputs = self._called(network, windows)
            if outputs is None:
                batch = len(group) // 2
                continue
            for number, place in enumerate(group):
                found = [logits[number].to(volume.device) for logits in outputs]
                yield place, [torch.zeros_like(logits) for logits in found] if none else found
            del outputs, found
            done += len(group)
            told(done, len(wanted))

    def _called(self, network: Callable[[Tensor], Sequence[Tensor]], windows: Tensor) -> Sequence[Tensor] | None:
        """The network's outputs; None where the memory is too small for several windows at once."""
        try:
            outputs = network(windows)
        except (RuntimeError, MemoryError) as error:
            if len(windows) == 1 or not out_of_memory(error):
                raise
            outputs = None
        if outputs is None:
            if windows.device.type == "cuda":
                torch.cuda.empty_cache()
            return None
        for logits in outputs:
            self._require_fitting(logits, len(windows))
        return outputs

    def _window(self, source: Tensor, place: Place, low: Sequence[int]) -> Tensor:
        """What the network sees at a place, (C, *window): a copy."""
        lost = self.tiling.margin
        first = [start - margin + before for start, margin, before in zip(place, lost, low, strict=True)]
        window = source.new_empty((len(source), *self.tiling.window))
        paste(window, source, first, None if any(lost) else self.fill)
        return window

    def _padded(self, volume: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The volume, padded where it is smaller than the window and not with a constant; voxels added in front."""
        sizes = tuple(zip(volume.shape[1:], self.tiling.window, strict=True))
        if self.padding == "constant" or any(self.tiling.margin):
            return volume, (0,) * len(sizes)
        missing = [max(0, window - size) for size, window in sizes]
        low = tuple(n // 2 for n in missing)
        ends = [end for n, before in zip(missing[::-1], low[::-1], strict=True) for end in (before, n - before)]
        return F.pad(volume[None], ends, mode=self.padding)[0] if any(missing) else volume, low

    def _skipped(self, place: Place, source: Tensor, low: Sequence[int]) -> bool:
        if self.skip is None:
            return False
        if isinstance(self.skip, Tensor):
            return not self.tiling.reaches(place, self.skip)
        window = self._window(source, place, low)
        if callable(self.skip):
            return bool(self.skip(window))
        flat = window.flatten(1)
        return bool((flat == flat[:, :1]).all())

    def _slab(self, shape: Sequence[int], logits: Tensor, relative: bool) -> tuple[Slab, Weights]:
        """Sums for a volume, and weights of its windows, for an output (L, *tile)."""
        thickness, *across = self.turned(shape, 1)
        dtype = torch.promote_types(logits.dtype, self.sums) if self.sums == torch.float32 else self.sums
        thickness = min(thickness, self.tiling.tile[self.axis])
        slab = Slab(thickness, across, len(logits), dtype, logits.device, relative)
        importance = self._lifted(self.importance[None])[0].to(logits.device)
        return slab, Weights(importance, len(logits), torch.promote_types(dtype, torch.float32))

    def turned(self, numbers: Sequence[int], last: int) -> tuple[int, ...]:
        """Numbers per axis, that of the streaming axis first; ``last`` stands for a third axis that is not there."""
        others = [n for axis, n in enumerate(numbers) if axis != self.axis]
        return (numbers[self.axis], *others, *[last] * (2 - len(others)))

    def _lifted(self, logits: Tensor) -> Tensor:
        """(L, *spatial) as (L, t, a, b), the streaming axis first."""
        turned = logits.movedim(self.axis + 1, 1)
        return turned if turned.ndim == 4 else turned[..., None]

    def _require_fitting(self, logits: Tensor, count: int) -> None:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        tile = self.tiling.tile
        if not isinstance(logits, Tensor) or (*logits.shape[:1], *logits.shape[2:]) != (count, *tile):
            raise ValueError(
                f"network output: expected logits ({count}, L, {', '.join(map(str, tile))}), got {shape}. "
                "Put the network in eval mode and choose a window of legal size."
            )


def _not_kept(outputs: Sequence[Tensor]) -> int | None:
    """Bytes from which freed memory is not kept: with many classes those of a batch of logits, or less."""
    large = [logits.untyped_storage().nbytes() for logits in outputs if len(logits) > _MANY]
    return min(_KEPT_BYTES, *large) if large else None


def _finished(slabs: Sequence[tuple[Slab, Weights]], stop: int) -> Iterator[Planes]:
    """The next planes of all slabs, which move together.

    With many classes, what happens to the planes takes other memory than the windows before and after them: freed
    places that neither fits are given back, so that they do not add up.
    """
    if not slabs or slabs[0][0].first >= stop:
        return
    many = slabs[0][0].sums.shape[-1] > _MANY
    if many:
        release_freed_memory()
    while slabs[0][0].first < stop:
        first, end = slabs[0][0].first, min(stop, *(slab.piece_end(stop) for slab, _ in slabs))
        yield first, [slab.finish(end) for slab, _ in slabs]
        for slab, _ in slabs:
            slab.forget(end)
    if many:
        release_freed_memory()
