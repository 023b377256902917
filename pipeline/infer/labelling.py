"""Labels on the grid of the output from planes of logits, without resampling more than the borders between organs.

Between voxels logits are interpolated linearly, so inside a cell of eight neighbouring voxels no class rises above its
highest corner. Where all corners agree on the winner it wins everywhere in the cell; elsewhere only classes can win
whose highest corner reaches the lowest corner of every other class. Most voxels are decided by the first rule, most
classes by the second, and the labels are exactly those of resampling all logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.core.regions import PaintingStep
from pipeline.infer.candidates import winners
from pipeline.infer.decode import decode
from pipeline.infer.taps import Taps, interpolated, linear_taps

__all__ = ["NOT_FINITE", "SlabLabels", "label_type"]

NOT_FINITE = "logits: expected finite numbers, got NaN or infinity. Predict in fp32, or train the network again."

_FEW = 8  # up to so many classes all are interpolated where voxels disagree: finding the possible ones costs more
_BITS = 62  # of an integer, one per region
_VOXELS = 2**22  # of the output, decided together


def label_type(classes: int) -> torch.dtype:
    """uint8 up to 256 classes, else uint16."""
    return torch.uint8 if classes <= 256 else torch.uint16


class SlabLabels:
    """Takes planes of logits in their order, gives rows of labels as soon as the planes they need are there.

    Args:
        shape: Voxels of the logits, the streaming axis first.
        target: Voxels of the labels over the same field of view.
        painting: How regions become classes; empty for a softmax.
    """

    def __init__(self, shape: Sequence[int], target: Sequence[int], painting: Sequence[PaintingStep] = ()) -> None:
        self.shape, self.target, self.painting = tuple(shape), tuple(target), tuple(painting)
        self.taps: list[Taps] = []
        self.seen = self.row = 0
        self.last: Tensor | None = None

    def add(self, planes: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Take the next planes.

        Args:
            planes: (n, a, b, L), finite, at least one.

        Yields:
            First row and labels (rows, a', b'), uint8 or uint16.

        Raises:
            ValueError: If logits are not finite.
        """
        if not bool(torch.isfinite(planes.sum(dtype=torch.float32))):
            raise ValueError(NOT_FINITE)
        first, self.seen = self.seen, self.seen + len(planes)
        if self.shape == self.target:
            yield first, self._typed(self._decided(planes), planes)
            return
        if not self.taps:
            self.taps = [linear_taps(n, m, planes.device) for n, m in zip(self.shape, self.target, strict=True)]
        if self.last is not None:  # the cells between the planes of before and these
            yield from self._rows(torch.stack([self.last, planes[0]]), first - 1)
        if len(planes) > 1 or self.shape[0] == 1:
            yield from self._rows(planes, first)
        self.last = planes[-1].clone()

    def _rows(self, planes: Tensor, first: int) -> Iterator[tuple[int, Tensor]]:
        """Rows of labels that lie in the cells between some planes, of which the first has a number."""
        cells = max(1, len(planes) - 1)
        stop = int(torch.searchsorted(self.taps[0].low, first + cells))
        if stop == self.row:
            return
        classes, kind = self._decided(planes), self._kind(planes)
        mixed = _mixed(classes if kind is None else kind)
        most = max(1, _VOXELS // (self.target[1] * self.target[2]))
        for row in range(self.row, stop, most):
            end = min(row + most, stop)
            taps = [self.taps[0].part(row, end, first), *self.taps[1:]]
            labels, unsure = classes, mixed
            for axis, one in enumerate(taps):
                labels, unsure = labels.index_select(axis, one.low), unsure.index_select(axis, one.low)
            places = unsure.nonzero(as_tuple=True)
            if len(places[0]):
                labels[places] = self._between(
                    planes, mixed, [one.at(at) for one, at in zip(taps, places, strict=True)]
                )
            yield row, self._typed(labels, planes)
        self.row = stop

    def _decided(self, planes: Tensor) -> Tensor:
        """Class (n, a, b) of every voxel, int16."""
        if self.painting:
            return decode(planes.movedim(-1, 0), self.painting).to(torch.int16)
        return planes.argmax(dim=-1).to(torch.int16)

    def _kind(self, planes: Tensor) -> Tensor | None:
        """What must agree at all corners of a cell for its inside to be decided; None if that is the class.

        Of regions it is which of them are found; of more than an integer has bits, nothing is decided.
        """
        if not self.painting:
            return None
        if planes.shape[-1] > _BITS:
            return torch.arange(planes[..., 0].numel(), device=planes.device).reshape(planes.shape[:3])
        bits = 2 ** torch.arange(planes.shape[-1], device=planes.device)
        return ((planes > 0) * bits).sum(dim=-1)

    def _between(self, planes: Tensor, mixed: Tensor, taps: Sequence[Taps]) -> Tensor:
        """Class (P,) of points in mixed cells."""
        if not self.painting and planes.shape[-1] > _FEW:
            return winners(planes, mixed, taps)
        found = torch.empty_like(taps[0].low, dtype=torch.int16)
        for part, logits in interpolated(planes, taps):
            found[part] = decode(logits.T, self.painting).to(torch.int16)
        return found

    def _typed(self, labels: Tensor, planes: Tensor) -> Tensor:
        classes = 1 + max(painted for _, painted in self.painting) if self.painting else planes.shape[-1]
        return labels.to(label_type(classes))


def _mixed(kind: Tensor) -> Tensor:
    """Cells whose corners are not all of one kind; along an axis of one voxel there is one cell."""
    mixed = torch.zeros([max(1, n - 1) for n in kind.shape], dtype=torch.bool, device=kind.device)
    for axis, size in enumerate(kind.shape):
        if size == 1:
            continue
        differ = kind.narrow(axis, 0, size - 1) != kind.narrow(axis, 1, size - 1)
        for other in range(axis + 1, 3):  # of the edges along this axis, those at either end of the later axes
            n = kind.shape[other]
            if n > 1:
                differ = differ.narrow(other, 0, n - 1) | differ.narrow(other, 1, n - 1)
        mixed |= differ[tuple(slice(0, n) for n in mixed.shape)]
    return mixed
