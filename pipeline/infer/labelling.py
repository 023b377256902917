"""Labels on the grid of the output from planes of logits, without resampling more than the borders between organs.

Between voxels logits are interpolated linearly, so inside a cell of eight neighbouring voxels no class rises above its
highest corner. Where all corners agree on the winner it wins everywhere in the cell; elsewhere only classes can win
whose highest corner reaches the lowest corner of every other class. Most voxels are decided by the first rule, most
classes by the second, and the labels are exactly those of resampling all logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pipeline.core.regions import PaintingStep
from pipeline.preprocess.interpolation import apply_operator, resize_operator, resize_operators

NOT_FINITE = "logits: expected finite numbers, got NaN or infinity. Predict in fp32, or train the network again."

_FEW_CLASSES = 8  # up to so many all are interpolated where voxels disagree: finding the possible ones costs more
_CANDIDATES = 8  # classes kept per cell; cells with more are interpolated in full
_REGION_BITS = 62  # of an integer, one per region

# Sizes of what is worked on at once, so that it stays in the cache or takes little memory.
_CELLS = 8192  # whose candidates are found
_POINTS = 65536  # interpolated
_VOXELS = 2**22  # of labels, decided
_LOGIT_BYTES = 32 * 2**20  # of full-size logits given out; at least one plane


def decode(logits: Tensor, painting: Sequence[PaintingStep] = ()) -> Tensor:
    """Class index of every voxel.

    A region is found where its logit is above 0, that is, its probability above 0.5; at exactly 0.5 it is not.

    Args:
        logits: (L, *S), one channel per class, or one per region.
        painting: For regions, :meth:`~pipeline.core.labels.LabelTable.painting`: (channels, class), each painted where
            all its channels were found, later ones over earlier ones; empty for classes.

    Returns:
        (*S) int64 on the same device. Without regions the class of the highest logit, of equal ones the lowest class.

    Raises:
        ValueError: If the painting needs channels that are not there.
    """
    if not painting:
        return logits.max(dim=0).indices
    needed = 1 + max(channel for channels, _ in painting for channel in channels)
    if len(logits) != needed:
        raise ValueError(
            f"logits: expected {needed} channels, one per region, got {len(logits)}. "
            "Check that the network belongs to this label table."
        )
    found = logits > 0
    index = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
    for channels, painted in painting:
        index[found[list(channels)].all(dim=0)] = painted
    return index


# Linear interpolation between planes of logits: where it reads, and with which weights.


@dataclass(frozen=True)
class LinearWeights:
    """Linear interpolation along an axis: ``(1 - share) * values[low] + share * values[low + 1]``.

    Args:
        low: (m,) int64, at most n - 2; 0 where there is one voxel alone.
        share: (m,) float32 in [0, 1].
    """

    low: Tensor
    share: Tensor

    def part(self, first: int, stop: int, before: int = 0) -> LinearWeights:
        """Some of the outputs, read from values that begin at ``before``."""
        return LinearWeights(self.low[first:stop] - before, self.share[first:stop])

    def at(self, places: Tensor) -> LinearWeights:
        """The outputs at some places."""
        return LinearWeights(self.low[places], self.share[places])


def linear_weights(n: int, m: int, device: torch.device) -> LinearWeights:
    """How linear resampling brings an axis from ``n`` to ``m`` voxels over the same field of view.

    The weights are those of :func:`~pipeline.preprocess.interpolation.resize_operator`.
    """
    if n == 1:
        return LinearWeights(torch.zeros(m, dtype=torch.int64, device=device), torch.zeros(m, device=device))
    matrix = torch.eye(n) if n == m else torch.tensor(resize_operator(n, m, 1))
    low = (matrix > 0).int().argmax(dim=1).clamp(max=n - 2)
    return LinearWeights(low.to(device), matrix.gather(1, low[:, None] + 1)[:, 0].to(device))


def corners(weights: Sequence[LinearWeights], shape: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The eight voxels around points, one after the other.

    Args:
        weights: For each of three axes, of P points.
        shape: Voxels along the axes.

    Yields:
        Flat index (P,) of the voxel and its weight (P,).
    """
    for steps in product((0, 1), repeat=3):
        index, weight = torch.zeros_like(weights[0].low), torch.ones_like(weights[0].share)
        for along, step, size in zip(weights, steps, shape, strict=True):
            index = index * size + (along.low + step).clamp(max=size - 1)
            weight = weight * (along.share if step else 1.0 - along.share)
        yield index, weight


def interpolated(values: Tensor, weights: Sequence[LinearWeights]) -> Iterator[tuple[slice, Tensor]]:
    """Logits of all classes at points.

    Args:
        values: (n, a, b, L).
        weights: For each of the three axes, of P points.

    Yields:
        Which points, and their logits (p, L).
    """
    flat, count = values.reshape(-1, values.shape[-1]), len(weights[0].low)
    for first in range(0, count, _POINTS):
        part = slice(first, min(first + _POINTS, count))
        total: Tensor | None = None
        for index, weight in corners([along.part(part.start, part.stop) for along in weights], values.shape[:3]):
            found = flat.index_select(0, index)
            total = found.mul_(weight[:, None]) if total is None else total.addcmul_(found, weight[:, None])
        assert total is not None
        yield part, total


# The winner among many classes between voxels, from the few classes that can win there.


def best_labels(planes: Tensor, mixed: Tensor, weights: Sequence[LinearWeights]) -> Tensor:
    """Class of the highest logit at points between voxels.

    Args:
        planes: Logits (n, a, b, L).
        mixed: Cells (n - 1, a - 1, b - 1) in which all points lie.
        weights: For each of the three axes, of P points.

    Returns:
        (P,) int16; of equal logits the lowest class.
    """
    # Many points lie in one cell: its candidates are found once, and points know their cell by its number.
    cells = mixed.nonzero()
    rank = torch.zeros(mixed.shape, dtype=torch.int64, device=planes.device)
    rank[mixed] = torch.arange(len(cells), device=planes.device)
    number = rank[tuple(along.low for along in weights)]
    classes, values, narrow = _candidates(planes, cells)
    found = torch.empty_like(number, dtype=torch.int16)
    sure = narrow[number]
    inside = sure.nonzero()[:, 0]
    for first in range(0, len(inside), _POINTS):
        part = inside[first : first + _POINTS]
        own = number[part]
        total = torch.zeros((len(part), values.shape[-1]), device=planes.device)
        for corner, (_, weight) in enumerate(corners([along.at(part) for along in weights], planes.shape[:3])):
            total.addcmul_(values[corner].index_select(0, own), weight[:, None])
        found[part] = classes[own].gather(1, total.argmax(dim=1, keepdim=True))[:, 0]
    others = (~sure).nonzero()[:, 0]
    for some, logits in interpolated(planes, [along.at(others) for along in weights]):
        found[others[some]] = logits.argmax(dim=1).to(torch.int16)
    return found


def _candidates(planes: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Classes that can win in cells, ascending, their logits at the corners, and whether these classes are all.

    Args:
        planes: (n, a, b, L).
        cells: (C, 3).

    Returns:
        (C, M) int16, (8, C, M) and (C,) bool.
    """
    count, kept = len(cells), min(_CANDIDATES, planes.shape[-1])
    flat = planes.reshape(-1, planes.shape[-1])
    classes = torch.empty((count, kept), dtype=torch.int16, device=planes.device)
    values = torch.empty((8, count, kept), device=planes.device)
    narrow = torch.empty(count, dtype=torch.bool, device=planes.device)
    for first in range(0, count, _CELLS):
        part = slice(first, min(first + _CELLS, count))
        whole = [LinearWeights(low, torch.zeros_like(low, dtype=torch.float32)) for low in cells[part].T]
        logits = [flat.index_select(0, index) for index, _ in corners(whole, planes.shape[:3])]
        highest, lowest = logits[0].clone(), logits[0].clone()
        for corner in logits[1:]:
            torch.maximum(highest, corner, out=highest)
            torch.minimum(lowest, corner, out=lowest)
        # Between the corners a class is at most its highest corner; one that stays below the lowest corner of another
        # class loses to it everywhere in the cell.
        possible = highest >= lowest.amax(dim=1, keepdim=True)
        narrow[part] = possible.sum(dim=1) <= kept
        # Ascending, so that argmax takes the lowest of equal classes, as it does among all.
        best = highest.topk(kept, dim=1, sorted=False).indices.sort(dim=1).values
        classes[part] = best.to(torch.int16)
        for number, corner in enumerate(logits):
            values[number, part] = corner.gather(1, best)
    return classes, values, narrow


# Labels and logits on the grid of the output, as soon as the planes they need are there.


def label_type(channels: int, painting: Sequence[PaintingStep]) -> torch.dtype:
    """Type of class indices from logits of so many channels: uint8 up to 256 classes, else uint16."""
    classes = 1 + max(painted for _, painted in painting) if painting else channels
    return torch.uint8 if classes <= 256 else torch.uint16


class PlaneLabels:
    """Takes planes of logits in their order, gives planes of labels.

    Args:
        shape: Voxels of the logits, the streaming axis first.
        target: Voxels of the labels over the same field of view.
        painting: How regions become classes; empty for a softmax.
    """

    def __init__(self, shape: Sequence[int], target: Sequence[int], painting: Sequence[PaintingStep] = ()) -> None:
        self.shape, self.target, self.painting = tuple(shape), tuple(target), tuple(painting)
        self.weights: list[LinearWeights] = []
        self.seen = self.given = 0
        self.last: Tensor | None = None

    def add(self, planes: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Take the next planes.

        Args:
            planes: (n, a, b, L), finite, at least one.

        Yields:
            First plane of labels, and labels (m, a', b'), uint8 or uint16.

        Raises:
            ValueError: If logits are not finite.
        """
        # One sum is the cheapest test: any NaN or infinity makes it not finite.
        if not bool(torch.isfinite(planes.sum(dtype=torch.float32))):
            raise ValueError(NOT_FINITE)
        first, self.seen = self.seen, self.seen + len(planes)
        if self.shape == self.target:
            yield first, self._decided(planes).to(label_type(planes.shape[-1], self.painting))
            return
        if not self.weights:
            self.weights = [linear_weights(n, m, planes.device) for n, m in zip(self.shape, self.target, strict=True)]
        if self.last is not None:  # the cells between the planes of before and these
            yield from self._between_planes(torch.stack([self.last, planes[0]]), first - 1)
        if len(planes) > 1 or self.shape[0] == 1:
            yield from self._between_planes(planes, first)
        self.last = planes[-1].clone()  # the planes may be overwritten once the caller goes on

    def _between_planes(self, planes: Tensor, first: int) -> Iterator[tuple[int, Tensor]]:
        """Planes of labels that lie in the cells between some planes of logits, of which the first has a number."""
        cells = max(1, len(planes) - 1)
        stop = int(torch.searchsorted(self.weights[0].low, first + cells))
        if stop == self.given:
            return
        classes, kind = self._decided(planes), self._kind(planes)
        mixed = _mixed(classes if kind is None else kind)
        most = max(1, _VOXELS // (self.target[1] * self.target[2]))
        for begin in range(self.given, stop, most):
            weights = [self.weights[0].part(begin, min(begin + most, stop), first), *self.weights[1:]]
            # Every voxel takes the class of its cell's lowest corner, which is right wherever the corners agree.
            labels, unsure = classes, mixed
            for axis, along in enumerate(weights):
                labels, unsure = labels.index_select(axis, along.low), unsure.index_select(axis, along.low)
            places = unsure.nonzero(as_tuple=True)
            if len(places[0]):
                points = [along.at(place) for along, place in zip(weights, places, strict=True)]
                labels[places] = self._in_mixed_cells(planes, mixed, points)
            yield begin, labels.to(label_type(planes.shape[-1], self.painting))
        self.given = stop

    def _decided(self, planes: Tensor) -> Tensor:
        """Class (n, a, b) of every voxel, int16."""
        if self.painting:
            return decode(planes.movedim(-1, 0), self.painting).to(torch.int16)
        return planes.argmax(dim=-1).to(torch.int16)

    def _kind(self, planes: Tensor) -> Tensor | None:
        """What must agree at all corners of a cell for its inside to be decided; None if that is the class.

        Of regions it is which of them are found, a bit for each.
        """
        if not self.painting:
            return None
        # More regions than an integer has bits: all voxels count as different, and all cells are interpolated.
        if planes.shape[-1] > _REGION_BITS:
            return torch.arange(planes[..., 0].numel(), device=planes.device).reshape(planes.shape[:3])
        bits = 2 ** torch.arange(planes.shape[-1], device=planes.device)
        return ((planes > 0) * bits).sum(dim=-1)

    def _in_mixed_cells(self, planes: Tensor, mixed: Tensor, weights: Sequence[LinearWeights]) -> Tensor:
        """Class (P,) of points in mixed cells."""
        if not self.painting and planes.shape[-1] > _FEW_CLASSES:
            return best_labels(planes, mixed, weights)
        found = torch.empty_like(weights[0].low, dtype=torch.int16)
        for part, logits in interpolated(planes, weights):
            found[part] = decode(logits.T, self.painting).to(torch.int16)
        return found


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


class PlaneLogits:
    """Takes planes of logits in their order, gives planes of linearly resampled logits.

    It is for what needs more than the winner: averages over models, probabilities.

    Args:
        shape: Voxels of the logits, the streaming axis first.
        target: Voxels of the result over the same field of view.
    """

    def __init__(self, shape: Sequence[int], target: Sequence[int]) -> None:
        self.shape, self.target = tuple(shape), tuple(target)
        self.across = resize_operators(self.shape[1:], self.target[1:], 1)
        self.weights: LinearWeights | None = None
        self.seen = self.given = 0
        self.last: Tensor | None = None

    def add(self, planes: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Take the next planes.

        Args:
            planes: (n, a, b, L), at least one.

        Yields:
            First plane of the result, and logits (m, a', b', L), float32; valid until the next ones are asked for.
        """
        if self.weights is None:
            self.weights = linear_weights(self.shape[0], self.target[0], planes.device)
        known = planes if self.last is None else torch.cat([self.last[None], planes])
        first, self.seen = self.seen - (self.last is not None), self.seen + len(planes)
        self.last = planes[-1].clone()
        if len(known) == 1 and self.shape[0] > 1:
            return
        stop = int(torch.searchsorted(self.weights.low, first + max(1, len(known) - 1)))
        most = max(1, _LOGIT_BYTES // (4 * self.target[1] * self.target[2] * planes.shape[-1]))
        while self.given < stop:
            end = min(self.given + most, stop)
            part = self.weights.part(self.given, end, first)
            high = (part.low + 1).clamp(max=len(known) - 1)
            share = part.share[:, None, None, None]
            resampled = known[part.low].float().mul_(1.0 - share).addcmul_(known[high].float(), share)
            for axis, operator in enumerate(self.across, start=1):
                resampled = resampled if operator is None else apply_operator(resampled, operator, axis)
            yield self.given, resampled
            self.given = end


def labels_and_logits(
    planes: Iterable[Tensor], labels: PlaneLabels, logits: PlaneLogits
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Planes of labels and of the logits they come from, side by side.

    Args:
        planes: (n, a, b, L), one after the other.
        labels: Of the shapes of the logits, new.
        logits: New.

    Yields:
        First plane, labels (m, a', b') and logits (m, a', b', L), valid until the next ones are asked for.
    """
    waiting: list[Tensor] = []
    for part in planes:
        waiting += [found for _, found in labels.add(part)]
        for first, resampled in logits.add(part):
            # The labels of these planes are there already: they need no later planes of logits than these do.
            known = torch.cat(waiting)
            yield first, known[: len(resampled)], resampled
            waiting = [known[len(resampled) :]]
