"""Logits on the grid of the output, row by row, for what needs more than the winner: averages, probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pipeline.infer.labelling import SlabLabels
from pipeline.infer.taps import Taps, linear_taps
from pipeline.preprocess.operators import apply_operator, resize_operators

__all__ = ["SlabLogits", "both"]

_BYTES = 32 * 2**20  # of full-size logits given out at once; at least one row


class SlabLogits:
    """Takes planes of logits in their order, gives rows of linearly resampled logits as soon as they can be.

    Args:
        shape: Voxels of the logits, the streaming axis first.
        target: Voxels of the result over the same field of view.
    """

    def __init__(self, shape: Sequence[int], target: Sequence[int]) -> None:
        self.shape, self.target = tuple(shape), tuple(target)
        self.across = resize_operators(self.shape[1:], self.target[1:], 1)
        self.taps: Taps | None = None
        self.seen = self.row = 0
        self.last: Tensor | None = None

    def add(self, planes: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Take the next planes.

        Args:
            planes: (n, a, b, L), at least one.

        Yields:
            First row and logits (rows, a', b', L), float32; valid until the next ones are asked for.
        """
        if self.taps is None:
            self.taps = linear_taps(self.shape[0], self.target[0], planes.device)
        known = planes if self.last is None else torch.cat([self.last[None], planes])
        first, self.seen = self.seen - (self.last is not None), self.seen + len(planes)
        self.last = planes[-1].clone()
        if len(known) == 1 and self.shape[0] > 1:
            return
        stop = int(torch.searchsorted(self.taps.low, first + max(1, len(known) - 1)))
        most = max(1, _BYTES // (4 * self.target[1] * self.target[2] * planes.shape[-1]))
        while self.row < stop:
            end = min(self.row + most, stop)
            part = self.taps.part(self.row, end, first)
            high = (part.low + 1).clamp(max=len(known) - 1)
            share = part.share[:, None, None, None]
            rows = known[part.low].float().mul_(1.0 - share).addcmul_(known[high].float(), share)
            for axis, operator in enumerate(self.across, start=1):
                rows = rows if operator is None else apply_operator(rows, operator, axis)
            yield self.row, rows
            self.row = end


def both(planes: Iterable[Tensor], labels: SlabLabels, logits: SlabLogits) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Rows of labels and of the logits they come from, side by side.

    Args:
        planes: (n, a, b, L), one after the other.
        labels: Of the shapes of the logits, new.
        logits: New.

    Yields:
        First row, labels (rows, a', b') and logits (rows, a', b', L), valid until the next ones are asked for.
    """
    waiting: list[Tensor] = []
    for part in planes:
        waiting += [rows for _, rows in labels.add(part)]
        for first, rows in logits.add(part):
            known = torch.cat(waiting)  # those of these rows are there: they need no later planes
            yield first, known[: len(rows)], rows
            waiting = [known[len(rows) :]]
