"""From windows to finished planes: the logits that inference holds, and the batches of windows that fill them.

A ring of planes moves through the volume along one axis. Windows go through the networks in the order in which they
begin along that axis. Planes that no later window touches are finished and given out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.core.machine import release_freed_memory
from pipeline.core.signals import Progress
from pipeline.infer.tta import Pass
from pipeline.infer.windows import Tiling, WindowStart
from pipeline.model.device import out_of_memory
from pipeline.sample.cut import paste

_EXPANDED_BYTES = 32 * 2**20  # weights of a window are repeated for every class up to here: faster for few classes
_PIECE_BYTES = 32 * 2**20  # planes of float32 logits given out at once; at least two planes
_ADDED_BYTES = 2 * 2**20  # planes of a window added at once, at least one: copies of them stay in the cache

MANY_CLASSES = 32
"""From here on, freed memory is not kept: networks have about so many features at full resolution."""


class WindowWeights:
    """Weight of every voxel of a window, in the layout of a buffer of planes.

    Args:
        importance: (t, a, b), the streaming axis first.
        classes: Channels of the logits.
        dtype: Of the sums.
    """

    def __init__(self, importance: Tensor, classes: int, dtype: torch.dtype) -> None:
        self.plain = importance.to(dtype)
        wide = self.plain[..., None]
        fits = importance.numel() * classes * dtype.itemsize <= _EXPANDED_BYTES
        self.wide = wide.expand(*importance.shape, classes).contiguous() if fits else wide


class PlaneBuffer:
    """Sums of weighted logits of the planes ``[first, first + thickness)``, which are finished from the front.

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
        start: Sequence[int],
        logits: Tensor,
        weights: WindowWeights,
        flips: Sequence[int] = (),
        swapped: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Add the logits of a window.

        Args:
            start: First voxel of the window, plane first; what lies outside the volume is left out. No plane of it lies
                before :attr:`first` or the buffer's thickness beyond.
            logits: (L, t, a, b), any floating type, any memory order, on any device.
            weights: Of the window.
            flips: Axes along which the logits lie reversed, 0 for planes.
            swapped: Pairs of channels that have changed places.
        """
        limits = (self.first + len(self.sums), *self.sums.shape[1:3])
        low = [max(voxel, 0) for voxel in start]
        high = [min(voxel + size, limit) for voxel, size, limit in zip(start, logits.shape[1:], limits, strict=True)]
        across = tuple(slice(a, b) for a, b in zip(low[1:], high[1:], strict=True))
        kept = [slice(a - voxel, b - voxel) for a, b, voxel in zip(low, high, start, strict=True)]
        values = logits.to(self.sums.device).permute(1, 2, 3, 0)
        order = _order(len(logits), swapped, values.device)
        plane_bytes = (high[1] - low[1]) * (high[2] - low[2]) * len(logits) * self.wide.itemsize
        # A few planes at a time: turned or converted logits are copies, which would otherwise be as large as a window.
        for first, end in self._pieces(low[0], high[0], max(1, _ADDED_BYTES // plane_bytes)):
            kept[0] = slice(first - start[0], end - start[0])
            found = _turned(values, kept, flips, order).to(self.wide)
            if self.relative:
                found = found - found.amax(dim=-1, keepdim=True)
            ring = slice(first % len(self.sums), first % len(self.sums) + end - first)
            own, wide = self.sums[(ring, *across)], weights.wide[tuple(kept)]
            # Fused where nothing is rounded; float16 sums multiply in float32 first and round once.
            if own.dtype == self.wide:
                own.addcmul_(found, wide)
            else:
                own += found * wide
            self.weights[(ring, *across)] += weights.plain[tuple(kept)]

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
        """Move on from planes that were given out, which no further window touches: their place in the ring is free."""
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
        buffer: The sums over windows.
        importance: Weight of the voxels of a window (t, a, b).
        passes: Of every window.
        elsewhere: Where to make the mean; None to add every pass.
    """

    def __init__(
        self, buffer: PlaneBuffer, importance: Tensor, passes: int, elsewhere: torch.device | None = None
    ) -> None:
        classes, device = buffer.sums.shape[-1], buffer.sums.device
        self.buffer, self.passes, self.elsewhere, self.window = buffer, passes, elsewhere, importance.shape
        self.means: dict[tuple[int, ...], tuple[int, PlaneBuffer]] = {}
        if elsewhere is not None:
            self.even = WindowWeights(torch.full(self.window, 1 / passes, device=elsewhere), classes, torch.float32)
        share = 1 if elsewhere is not None else passes
        self.weights = WindowWeights(importance.to(device) / share, classes, buffer.wide)

    def add(
        self, start: Sequence[int], logits: Tensor, flips: Sequence[int], swapped: Sequence[tuple[int, int]]
    ) -> None:
        """Add the logits of a pass over a window; see :meth:`PlaneBuffer.add`."""
        if self.elsewhere is None:
            self.buffer.add(start, logits, self.weights, flips, swapped)
            return
        key = tuple(start)
        count, mean = self.means.pop(key) if key in self.means else (0, self._empty_mean(self.elsewhere))
        mean.add((0, 0, 0), logits, self.even, flips, swapped)
        if count + 1 < self.passes:
            self.means[key] = count + 1, mean
        else:
            self.buffer.add(start, mean.sums.permute(3, 0, 1, 2), self.weights)

    def _empty_mean(self, device: torch.device) -> PlaneBuffer:
        thickness, *across = self.window
        return PlaneBuffer(thickness, across, self.buffer.sums.shape[-1], torch.float32, device, self.buffer.relative)


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
    index = list(kept)
    for axis in flips:
        index[axis] = slice(values.shape[axis] - kept[axis].stop, values.shape[axis] - kept[axis].start)
    part = values[tuple(index)]
    part = torch.flip(part, tuple(flips)) if flips else part
    return part if order is None else part.index_select(-1, order)


def finished_planes(buffers: Sequence[PlaneBuffer], stop: int) -> Iterator[tuple[int, list[Tensor]]]:
    """The next planes of all buffers, which move together, a few at a time: the first one's number and mean logits.

    With many classes, what happens to the planes takes other memory than the windows before and after them: freed
    places that neither fits are given back, so that they do not add up.

    Args:
        buffers: One for every output of the network.
        stop: One past the last plane that no further window touches.

    Yields:
        First plane and, of every buffer, logits (n, a, b, L); valid until the next ones are asked for.
    """
    if not buffers or buffers[0].first >= stop:
        return
    many = buffers[0].sums.shape[-1] > MANY_CLASSES
    if many:
        release_freed_memory()
    while buffers[0].first < stop:
        first, end = buffers[0].first, min(stop, *(buffer.piece_end(stop) for buffer in buffers))
        yield first, [buffer.finish(end) for buffer in buffers]
        for buffer in buffers:
            buffer.forget(end)
    if many:
        release_freed_memory()


# Batches of windows through networks.

Padding = Literal["constant", "reflect", "replicate", "circular"]
"""What windows see where a volume is smaller than they are."""

Skip = Literal["padding"] | Tensor | Callable[[Tensor], bool] | None
"""Which windows are left out: ``padding``: those where no channel changes; a mask (*spatial): those whose logits would
lie outside; a function of the window (C, *window): those for which it is true."""


@dataclass(frozen=True)
class WindowLogits:
    """What one pass over a window gives.

    Args:
        first: No window begins before this plane from now on.
        start: First voxel of the window's logits.
        seen: The pass.
        outputs: All outputs (L, *tile), as the network sees them and on its device.
    """

    first: int
    start: WindowStart
    seen: Pass
    outputs: list[Tensor]


@dataclass(frozen=True)
class WindowBatches:
    """How windows go through networks, in batches.

    Args:
        tiling: Where they lie.
        batch: Windows per network call.
        axis: The streaming axis.
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

    def each(self, volume: Tensor, passes: Sequence[Pass], progress: Progress) -> Iterator[WindowLogits | int]:
        """Every window that is not skipped, with every pass; of none but skipped ones, one window and zeros.

        Before every batch, when no logits are held, comes the plane before which no window begins from now on. What is
        done with the planes before it may take the memory that the networks take next.

        Networks on several devices, each of which runs ahead of the processor, compute at the same time. Where a device
        has too little memory for several windows at once, it goes on from there with half as many.

        Args:
            volume: (C, *spatial).
            passes: At least one.
            progress: Called after every batch.

        Raises:
            ValueError: If the network's outputs are not of the shape of the tile.
        """
        padded, low = self._padded(volume)
        starts = self.tiling.starts(volume.shape[1:], self.axis)
        wanted = [start for start in starts if not self._skipped(start, padded, low)]
        runner, done = _Runner(passes, self.batch), 0
        # Where all windows are skipped, one is computed all the same: only the network knows how many outputs and
        # channels it has.
        for group in self._groups(wanted or starts[:1], len(passes)):
            yield group[0][self.axis]
            windows = torch.stack([self._window(padded, start, low) for start in group])
            for first, seen, outputs in runner.outputs(windows, self.tiling.tile):
                for number, start in enumerate(group[first : first + len(outputs[0])]):
                    found = [logits[number] for logits in outputs]
                    found = found if wanted else [torch.zeros_like(logits) for logits in found]
                    yield WindowLogits((start if len(passes) == 1 else group[0])[self.axis], start, seen, found)
                    del found
                del outputs  # before the network makes the next ones
            done += len(group)
            progress(done, len(wanted) or 1, "windows")

    def thickness(self, shape: Sequence[int], passes: int) -> int:
        """Planes of a volume that are not finished at one time.

        Args:
            shape: Voxels of the volume.
            passes: Over every window.
        """
        return min(self.tiling.tile[self.axis] + self._span(passes), shape[self.axis])

    def _groups(self, starts: Sequence[WindowStart], passes: int) -> Iterator[Sequence[WindowStart]]:
        """Windows that go through the networks together."""
        first = 0
        for stop in range(1, len(starts) + 1):
            full = stop - first == self.batch or stop == len(starts)
            if full or (passes > 1 and starts[stop][self.axis] - starts[first][self.axis] > self._span(passes)):
                yield starts[first:stop]
                first = stop

    def _span(self, passes: int) -> int:
        """By how many planes the windows of a group may begin apart at most before they are complete.

        With one pass each window is complete at once. With several, none is before all are: the windows begin on the
        same plane or, where they are one plane thick, within as many planes as there are windows in a batch.
        """
        return self.batch - 1 if passes > 1 and self.tiling.tile[self.axis] == 1 else 0

    def _window(self, padded: Tensor, start: WindowStart, low: Sequence[int]) -> Tensor:
        """What the network sees of a window, (C, *window): a copy, so that networks may write into it."""
        lost = self.tiling.margin
        first = [voxel - margin + before for voxel, margin, before in zip(start, lost, low, strict=True)]
        window = padded.new_empty((len(padded), *self.tiling.window))
        paste(window, padded, first, None if any(lost) else self.fill)
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

    def _skipped(self, start: WindowStart, padded: Tensor, low: Sequence[int]) -> bool:
        if self.skip is None:
            return False
        if isinstance(self.skip, Tensor):
            return not self.tiling.reaches(start, self.skip)
        window = self._window(padded, start, low)
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
        self.together = len({each.device for each in passes})

    def outputs(self, windows: Tensor, tile: Sequence[int]) -> Iterator[tuple[int, Pass, list[Tensor]]]:
        """For every pass the outputs (n, L, *tile) of all windows, of a few at a time, and the first one's number."""
        # One call per device is under way before the first result is fetched: GPUs run ahead of the processor, so all
        # of them compute at the same time, and no more outputs are held than there are devices.
        started: deque[tuple[int, Pass, list[Tensor]]] = deque()
        for each in self.passes:
            first = 0
            while first < len(windows):
                part = windows[first : first + self.batch]
                outputs = _called(each, part, tile, hopeless=len(part) == 1 and not started)
                full = outputs is None
                if outputs is not None:
                    started.append((first, each, outputs))
                    first += len(part)
                elif not started:  # else giving out what is held may be enough: try once more with the same batch
                    self.batch = len(part) // 2
                del outputs
                if started and (full or len(started) == self.together):
                    yield started.popleft()
        while started:
            yield started.popleft()


def _called(seen: Pass, windows: Tensor, tile: Sequence[int], hopeless: bool) -> list[Tensor] | None:
    """The outputs of a pass; None where the memory is too small, unless nothing can be done about that."""
    try:
        outputs = seen(windows)
    except (RuntimeError, MemoryError) as error:
        if hopeless or not out_of_memory(error):
            raise
        outputs = None
    # After the except block: while the error lives, its traceback holds the tensors of the failed call.
    if outputs is None:
        if (seen.device or windows.device).type == "cuda":
            torch.cuda.empty_cache()
        return None
    count = len(windows)
    for logits in outputs:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or (*logits.shape[:1], *logits.shape[2:]) != (count, *tile):
            raise ValueError(
                f"network output: expected logits ({count}, L, {', '.join(map(str, tile))}), got {shape}. "
                "Put the network in eval mode and choose a window of legal size."
            )
    return outputs
