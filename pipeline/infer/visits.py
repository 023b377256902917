"""Windows of a volume as networks see them, in their order, and what all passes make of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.infer.passes import Pass
from pipeline.infer.tiling import Place, Tiling
from pipeline.model.device import out_of_memory
from pipeline.sample.cut import paste

__all__ = ["Padding", "Skip", "Visit", "Visits"]

Padding = Literal["constant", "reflect", "replicate", "circular"]
"""What windows see where a volume is smaller than they are."""

Skip = Literal["padding"] | Tensor | Callable[[Tensor], bool] | None
"""Which windows are left out: ``padding``: those where no channel changes; a mask (*spatial): those whose logits would
lie outside; a function of the window (C, *window): those for which it is true."""


@dataclass(frozen=True)
class Visit:
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
class Visits:
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

    def each(self, volume: Tensor, passes: Sequence[Pass], told: Callable[[int, int], None]) -> Iterator[Visit]:
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
                    yield Visit((place if len(passes) == 1 else group[0])[self.axis], place, one, found)
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
