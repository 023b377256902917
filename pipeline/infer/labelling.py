"""Labels on the grid of the output from planes of logits, without resampling more than the borders between organs.

Between voxels logits are interpolated linearly, so where all corners of a cell of eight neighbouring voxels agree on
the winner, it wins everywhere in the cell. Elsewhere logits are interpolated in blocks that stay in the cache: along
one axis after the other where most voxels of a block need it, voxel by voxel where few do. The labels are those of
resampling all logits, but for ties at the seventh digit; of the logits there is never more than a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.preprocess.interpolation import apply_operator, resize_operator, resize_operators

if TYPE_CHECKING:  # bundles that `volseg export` writes have this module, and not that one
    from pipeline.core.regions import PaintingStep

NOT_FINITE = "logits: expected finite numbers, got NaN or infinity. Predict in fp32, or train the network again."

_FEW_CLASSES = 8  # up to so many, voxel by voxel is faster: a step along an axis is for one voxel's classes
_REGION_BITS = 62  # of an integer, one per region
_FEW_SINGLE = 0.5  # of a block's voxels; if fewer are unsure, they are interpolated one by one at twice the cost

# Sizes of what is worked on at once, so that it stays in the cache or takes little memory.
_BLOCK = 2**19  # logits of a block on a processor
_GPU_BLOCK = 2**24  # and on a GPU, where what counts is how many calls there are
_ALONE = 2**15  # logits compared by one thread
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


Orders = Sequence[int]
"""Spline order of logits along each of three axes: 1 linear; 0 takes those of the nearest voxel."""

LINEAR: Orders = (1, 1, 1)

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


def linear_weights(n: int, m: int, device: torch.device, order: int = 1) -> LinearWeights:
    """How linear resampling brings an axis from ``n`` to ``m`` voxels over the same field of view.

    The weights are those of :func:`~pipeline.preprocess.interpolation.resize_operator`; with order 0 the nearest voxel
    has all of it.
    """
    if n == 1:
        return LinearWeights(torch.zeros(m, dtype=torch.int64, device=device), torch.zeros(m, device=device))
    matrix = torch.eye(n) if n == m else torch.tensor(resize_operator(n, m, 0 if order == 0 else 1))
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
    most = max(1, _block_size(values) // values.shape[-1])
    for first in range(0, count, most):
        part = slice(first, min(first + most, count))
        total: Tensor | None = None
        for index, weight in corners([along.part(part.start, part.stop) for along in weights], values.shape[:3]):
            found = flat.index_select(0, index)
            total = found.mul_(weight[:, None]) if total is None else total.addcmul_(found, weight[:, None])
        assert total is not None
        yield part, total


# The winner among many classes: of voxels, and between them in blocks of a plane.


def winners(logits: Tensor, pool: Executor) -> Tensor:
    """Class (*S), int64, of the highest of logits (*S, L); of equal ones the lowest."""
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)
    # NumPy compares eight classes at once where torch, on a processor, takes one after the other.
    flat = logits.reshape(-1, logits.shape[-1]).numpy()
    found: NDArray[np.int64] = np.empty(len(flat), np.int64)
    each = math.ceil(len(flat) / min(torch.get_num_threads(), math.ceil(flat.size / _ALONE)))

    def decide(first: int) -> None:
        np.argmax(flat[first : first + each], axis=1, out=found[first : first + each])

    if each == len(flat):
        decide(0)
    else:
        list(pool.map(decide, range(0, len(flat), each)))
    return torch.from_numpy(found).reshape(logits.shape[:-1])


class BlockWinners:
    """Classes between voxels in blocks of a plane, by interpolation along one axis after the other.

    Args:
        planes: Logits (n, a, b, L).
        weights: Along the second and the third axis, for the whole plane of labels.
        pool: Its threads compare classes.
    """

    def __init__(self, planes: Tensor, weights: Sequence[LinearWeights], pool: Executor) -> None:
        self.planes, self.pool, self.lows = planes, pool, [along.low.tolist() for along in weights]
        self.weights = [LinearWeights(along.low, along.share.to(planes.dtype)) for along in weights]
        # As many voxels of logits as there is room for, along each axis; fewer labels where the plane gets smaller.
        room = math.isqrt(max(1, _block_size(planes) // planes.shape[-1]))
        sizes = [(n, len(along.low)) for n, along in zip(planes.shape[1:3], weights, strict=True)]
        self.block = [min(m, max(1, (room - 2) * m // max(n, m))) for n, m in sizes]
        most = [max(part, part * n // m + 2) for part, (n, m) in zip(self.block, sizes, strict=True)]
        # Places for a block, used again and again: memory from the system would be cleared for every block anew.
        self.places = [planes.new_empty(math.prod(most) * planes.shape[-1]) for _ in range(3)]

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of labels; together the plane."""
        (height, rows), (width, columns) = zip(self.block, map(len, self.lows), strict=True)
        for top, left in product(range(0, rows, height), range(0, columns, width)):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))

    def decided(self, low: int, share: float, block: tuple[slice, slice]) -> Tensor:
        """Class of every voxel of a block.

        Args:
            low: The plane of logits before the plane of labels.
            share: Of the next one.
            block: Rows and columns of the labels.

        Returns:
            (rows, columns) int64.
        """
        source, parts = [], []
        for part, along, lows, size in zip(block, self.weights, self.lows, self.planes.shape[1:3], strict=True):
            source.append(slice(lows[part.start], min(lows[part.stop - 1] + 2, size)))
            parts.append(along.part(part.start, part.stop, source[-1].start))
        values = self.planes[low][tuple(source)]
        if share:
            following = self.planes[low + 1][tuple(source)]
            values = torch.lerp(values, following, share, out=self._place(0, values.shape))
        for axis, place in ((1, 1), (0, 0)):
            values = self._along(values, axis, parts[axis], place)
        return winners(values, self.pool)

    def _along(self, values: Tensor, axis: int, weights: LinearWeights, place: int) -> Tensor:
        """Values (a, b, L) interpolated along an axis; they may lie in any place but these two."""
        if values.shape[axis] == 1:
            return values.index_select(axis, weights.low)
        shape = list(values.shape)
        shape[axis] = len(weights.low)
        found = torch.index_select(values, axis, weights.low, out=self._place(place, shape))
        following = torch.index_select(values, axis, weights.low + 1, out=self._place(2, shape))
        return found.lerp_(following, weights.share.reshape([-1, 1, 1][: 3 - axis]))

    def _place(self, number: int, shape: Sequence[int]) -> Tensor:
        return self.places[number][: math.prod(shape)].view(*shape)


def _block_size(values: Tensor) -> int:
    return _BLOCK if values.device.type == "cpu" else _GPU_BLOCK


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
        orders: How logits are resampled along each axis.
    """

    def __init__(
        self,
        shape: Sequence[int],
        target: Sequence[int],
        painting: Sequence[PaintingStep] = (),
        orders: Orders = LINEAR,
    ) -> None:
        self.shape, self.target, self.painting = tuple(shape), tuple(target), tuple(painting)
        self.orders = tuple(orders)
        self.weights: list[LinearWeights] = []
        self.seen = self.given = 0
        self.last: tuple[Tensor, Tensor] | None = None

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
        if not self.weights and self.shape != self.target:
            axes = zip(self.shape, self.target, self.orders, strict=True)
            self.weights = [linear_weights(n, m, planes.device, order) for n, m, order in axes]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            classes = self._decided(planes, pool)
            if self.shape == self.target:
                yield first, classes.to(label_type(planes.shape[-1], self.painting))
                return
            if self.last is not None:  # the cells between the planes of before and these
                both, decided = (torch.stack([a, b[0]]) for a, b in zip(self.last, (planes, classes), strict=True))
                yield from self._between_planes(both, decided, first - 1, pool)
            if len(planes) > 1 or self.shape[0] == 1:
                yield from self._between_planes(planes, classes, first, pool)
        self.last = planes[-1].clone(), classes[-1]  # the planes may be overwritten once the caller goes on

    def _between_planes(
        self, planes: Tensor, classes: Tensor, first: int, pool: Executor
    ) -> Iterator[tuple[int, Tensor]]:
        """Planes of labels that lie in the cells between some planes of logits, of which the first has a number.

        Args:
            planes: (n, a, b, L).
            classes: Of their voxels (n, a, b).
            first: Number of the first one.
            pool: For what threads do.
        """
        cells = max(1, len(planes) - 1)
        stop = int(torch.searchsorted(self.weights[0].low, first + cells))
        if stop == self.given:
            return
        kind = self._kind(planes)
        mixed = _mixed(classes if kind is None else kind)
        most = max(1, _VOXELS // (self.target[1] * self.target[2]))
        for begin in range(self.given, stop, most):
            weights = [self.weights[0].part(begin, min(begin + most, stop), first), *self.weights[1:]]
            # Every voxel takes the class of its cell's lowest corner, which is right wherever the corners agree.
            labels, unsure = classes, mixed
            for axis, along in enumerate(weights):
                labels, unsure = labels.index_select(axis, along.low), unsure.index_select(axis, along.low)
            if not self.painting and planes.shape[-1] > _FEW_CLASSES:
                self._decide_blocks(planes, weights, labels, unsure, pool)
            self._decide_single(planes, weights, labels, unsure, pool)
            yield begin, labels.to(label_type(planes.shape[-1], self.painting))
        self.given = stop

    def _decided(self, planes: Tensor, pool: Executor) -> Tensor:
        """Class of every voxel (n, a, b) or point (P,) from logits with the channels last, int16."""
        found = decode(planes.movedim(-1, 0), self.painting) if self.painting else winners(planes, pool)
        return found.to(torch.int16)

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

    def _decide_blocks(
        self, planes: Tensor, weights: Sequence[LinearWeights], labels: Tensor, unsure: Tensor, pool: Executor
    ) -> None:
        """Where many voxels are unsure (m, a', b'), write their classes into the labels; they are sure then."""
        counts = unsure.flatten(1).sum(dim=1).tolist()
        if not any(counts):
            return
        winning = BlockWinners(planes, weights[1:], pool)
        levels = zip(weights[0].low.tolist(), weights[0].share.tolist(), counts, strict=True)
        for number, (low, share, count) in enumerate(levels):
            for block in winning.blocks() if count else ():
                wanted, own = unsure[number][block], labels[number][block]
                if int(wanted.sum()) >= _FEW_SINGLE * wanted.numel():
                    own.copy_(torch.where(wanted, winning.decided(low, share, block).to(own.dtype), own))
                    wanted.zero_()

    def _decide_single(
        self, planes: Tensor, weights: Sequence[LinearWeights], labels: Tensor, unsure: Tensor, pool: Executor
    ) -> None:
        """Write the classes of unsure voxels (m, a', b') into the labels, one by one."""
        places = unsure.nonzero(as_tuple=True)
        points = [along.at(place) for along, place in zip(weights, places, strict=True)]
        for part, logits in interpolated(planes, points):
            labels[tuple(place[part] for place in places)] = self._decided(logits, pool)


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
        orders: As for :class:`PlaneLabels`.
    """

    def __init__(self, shape: Sequence[int], target: Sequence[int], orders: Orders = LINEAR) -> None:
        self.shape, self.target, self.order = tuple(shape), tuple(target), orders[0]
        self.across = resize_operators(self.shape[1:], self.target[1:], [0 if n == 0 else 1 for n in orders[1:]])
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
            self.weights = linear_weights(self.shape[0], self.target[0], planes.device, self.order)
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
