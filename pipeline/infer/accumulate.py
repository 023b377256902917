"""Windows of a volume as networks see them, in their order, and what all passes make of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.core.machine import keep_freed_memory, release_freed_memory
from pipeline.infer.tta import Outputs, Pass, Passes
from pipeline.infer.windows import Place, Tiling
from pipeline.model.device import out_of_memory
from pipeline.sample.cut import paste

# The planes of a volume that windows still touch: sums of weighted logits in a ring that moves through the volume.

_EXPANDED_BYTES = 32 * 2**20  # weights of a window are repeated for every class up to here: faster for few classes
_PIECE_BYTES = 32 * 2**20  # planes of float32 logits given out at once; at least two planes
_ADDED_BYTES = 2 * 2**20  # planes of a window added at once, at least one: copies of them stay in the cache


class WindowWeights:
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


class PlaneBuffer:
    """Accumulator over windows of the planes ``[first, first + thickness)``, which are finished from the front.

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
        weights: WindowWeights,
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


class Accumulator:
    """The sums of a volume over windows and over the passes that each of them takes.

    Every pass is added as it comes, which takes no more memory than one pass; or the mean over the passes of a window
    is made first, elsewhere and in float32.

    Args:
        slab: The sums.
        importance: Weight of the voxels of a window (t, a, b).
        passes: Of every window.
        elsewhere: Where to make the mean; None to add every pass.
    """

    def __init__(
        self, slab: PlaneBuffer, importance: Tensor, passes: int, elsewhere: torch.device | None = None
    ) -> None:
        classes, device = slab.sums.shape[-1], slab.sums.device
        self.slab, self.passes, self.elsewhere, self.window = slab, passes, elsewhere, importance.shape
        self.means: dict[tuple[int, ...], tuple[int, PlaneBuffer]] = {}
        if elsewhere is not None:
            self.even = WindowWeights(torch.full(self.window, 1 / passes, device=elsewhere), classes, torch.float32)
        share = 1 if elsewhere is not None else passes
        self.weights = WindowWeights(importance.to(device) / share, classes, slab.wide)

    def add(
        self, place: Sequence[int], logits: Tensor, flips: Sequence[int], swapped: Sequence[tuple[int, int]]
    ) -> None:
        """Add the logits of a pass over a window; see :meth:`PlaneBuffer.add`."""
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

    def _empty_mean(self, device: torch.device) -> PlaneBuffer:
        thickness, *across = self.window
        return PlaneBuffer(thickness, across, self.slab.sums.shape[-1], torch.float32, device, self.slab.relative)


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


Padding = Literal["constant", "reflect", "replicate", "circular"]
"""What windows see where a volume is smaller than they are."""

Skip = Literal["padding"] | Tensor | Callable[[Tensor], bool] | None
"""Which windows are left out: ``padding``: those where no channel changes; a mask (*spatial): those whose logits would
lie outside; a function of the window (C, *window): those for which it is true."""


@dataclass(frozen=True)
class WindowBatch:
    """A window, and what one pass over it gives.

    Args:
        first: No window begins before this plane from now on.
        place: Of the window.
        one: The pass.
        outputs: All outputs (L, *tile), as the network sees them and on its device.
    """

    first: int
    place: Place
    one: Pass
    outputs: list[Tensor]


@dataclass(frozen=True)
class WindowBatches:
    """How windows go through networks.

    Args:
        tiling: Where they lie.
        batch: Windows per network call.
        axis: Along which they are visited.
        skip: Windows to leave out.
        padding: What windows see where the volume is smaller; the mirrored volume with a margin.
        fill: The constant of padding.
    """

    tiling: Tiling
    batch: int
    axis: int
    skip: Skip
    padding: Padding
    fill: float

    def each(self, volume: Tensor, passes: Sequence[Pass], told: Callable[[int, int], None]) -> Iterator[WindowBatch]:
        """Every window that is not skipped, with every pass; of none but skipped ones, one window and zeros.

        Networks on several devices, each of which runs ahead of the processor, compute at the same time. Where a device
        has too little memory for several windows at once, it goes on from there with half as many.

        Args:
            volume: (C, *spatial).
            passes: At least one.
            told: Of the windows done and their number.

        Raises:
            ValueError: If the network's outputs are not of the shape of the tile.
        """
        source, low = self._padded(volume)
        places = self.tiling.places(volume.shape[1:], self.axis)
        wanted = [place for place in places if not self._skipped(place, source, low)]
        runner, done = _Runner(passes, self.batch), 0
        for group in self._groups(wanted or places[:1], len(passes)):
            windows = torch.stack([self._window(source, place, low) for place in group])
            for first, one, outputs in runner.outputs(windows, self.tiling.tile):
                for number, place in enumerate(group[first : first + len(outputs[0])]):
                    found = [logits[number] for logits in outputs]
                    found = found if wanted else [torch.zeros_like(logits) for logits in found]
                    yield WindowBatch((place if len(passes) == 1 else group[0])[self.axis], place, one, found)
                    del found
                del outputs  # before the network makes the next ones
            done += len(group)
            told(done, len(wanted) or 1)

    def thickness(self, shape: Sequence[int], passes: int) -> int:
        """Planes of a volume that are not finished at one time.

        Args:
            shape: Voxels of the volume.
            passes: Over every window.
        """
        return min(self.tiling.tile[self.axis] + self._span(passes), shape[self.axis])

    def _groups(self, places: Sequence[Place], passes: int) -> Iterator[Sequence[Place]]:
        """Windows that go through the networks together."""
        start = 0
        for stop in range(1, len(places) + 1):
            full = stop - start == self.batch or stop == len(places)
            if full or (passes > 1 and places[stop][self.axis] - places[start][self.axis] > self._span(passes)):
                yield places[start:stop]
                start = stop

    def _span(self, passes: int) -> int:
        """By how many planes the windows of a group may begin apart at most before they are complete.

        With one pass each window is complete at once. With several, none is before all are: the windows begin on the
        same plane or, where they are one plane thick, within as many planes as there are windows in a batch.
        """
        return self.batch - 1 if passes > 1 and self.tiling.tile[self.axis] == 1 else 0

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


class _Runner:
    """All passes over windows, as many at once as the memory of the devices has shown to hold.

    Args:
        passes: At least one.
        batch: Windows per network call, to begin with.
    """

    def __init__(self, passes: Sequence[Pass], batch: int) -> None:
        self.passes, self.batch = passes, batch
        self.together = len({one.device for one in passes})

    def outputs(self, windows: Tensor, tile: Sequence[int]) -> Iterator[tuple[int, Pass, list[Tensor]]]:
        """For every pass the outputs (n, L, *tile) of all windows, of a few at a time, and the first one's number."""
        started: deque[tuple[int, Pass, list[Tensor]]] = deque()
        for one in self.passes:
            first = 0
            while first < len(windows):
                part = windows[first : first + self.batch]
                given = _called(one, part, tile, hopeless=len(part) == 1 and not started)
                full = given is None
                if given is not None:
                    started.append((first, one, given))
                    first += len(part)
                elif not started:
                    self.batch = len(part) // 2
                del given
                if started and (full or len(started) == self.together):
                    yield started.popleft()
        while started:
            yield started.popleft()


def _called(one: Pass, windows: Tensor, tile: Sequence[int], hopeless: bool) -> list[Tensor] | None:
    """The outputs of a pass; None where the memory is too small, unless nothing can be done about that."""
    try:
        outputs = one(windows)
    except (RuntimeError, MemoryError) as error:
        if hopeless or not out_of_memory(error):
            raise
        outputs = None
    if outputs is None:
        if (one.device or windows.device).type == "cuda":
            torch.cuda.empty_cache()
        return None
    for logits in outputs:
        _require_fitting(logits, len(windows), tile)
    return outputs


def _require_fitting(logits: Tensor, count: int, tile: Sequence[int]) -> None:
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or (*logits.shape[:1], *logits.shape[2:]) != (count, *tile):
        raise ValueError(
            f"network output: expected logits ({count}, L, {', '.join(map(str, tile))}), got {shape}. "
            "Put the network in eval mode and choose a window of legal size."
        )


# From windows to finished planes: the core of streaming inference.

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

    visits: WindowBatches
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
        sums: list[Accumulator] = []
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

    def _sums(self, volume: Tensor, logits: Tensor, passes: int, relative: bool) -> Accumulator:
        """Accumulator for a volume of an output (L, *tile) of so many passes.

        The few digits of float16 would lose many small numbers added to a large one, and logits that a GPU computes for
        sums on the CPU had better go there once: then, the mean over the passes of a window is made first.
        """
        shape, half = volume.shape[1:], self.sums == torch.float16
        dtype = self.sums if half else torch.promote_types(logits.dtype, self.sums)
        thickness, across = self.visits.thickness(shape, passes), self.turned(shape, 1)[1:]
        slab = PlaneBuffer(thickness, across, len(logits), dtype, volume.device, relative)
        apart = passes > 1 and (half or logits.device != volume.device)
        importance = self._lifted(self.importance[None])[0]
        return Accumulator(slab, importance, passes, logits.device if apart else None)

    def _add(self, sums: Sequence[Accumulator], visit: WindowBatch) -> None:
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


def _finished(slabs: Sequence[PlaneBuffer], stop: int) -> Iterator[Planes]:
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
