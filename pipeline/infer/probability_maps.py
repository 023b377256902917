"""Probabilities, uncertainty and confidence, from planes of probabilities that are forgotten at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import DataError, sentence
from pipeline.core.grid import reorient_array
from pipeline.core.labels import LabelTable
from pipeline.core.machine import RowFile, RowMemory
from pipeline.core.volume import LabelMap
from pipeline.preprocess.grid_history import GridHistory

_VALUES = 2**22  # probabilities looked at together: a few copies of them are all that is held beside the planes


@dataclass(frozen=True, eq=False)
class SoftPrediction:
    """A label map and how sure the network is of it; all arrays lie on the grid of the label map.

    Args:
        label_map: Label values.
        probabilities: Organ or region → its probability (I, J, K), float32; of those that were asked for.
        entropy: (I, J, K) float32 from 0, sure, to 1, all alike, see :func:`entropy`; None if not asked for.
        confidence: Organ or region → mean of its probability over the voxels that the network gave to it, before the
            label map was cleaned; None where it gave none.
    """

    label_map: LabelMap
    probabilities: Mapping[str, NDArray[np.float32]]
    entropy: NDArray[np.float32] | None
    confidence: Mapping[str, float | None]


@dataclass(frozen=True)
class SoftWanted:
    """What is wanted beside the confidence.

    Args:
        organs: Organs or regions whose probabilities are wanted.
        entropy: Whether the entropy is.
        scratch: Folder for temporary files that hold what is wanted; None to hold it in memory.
    """

    organs: tuple[str, ...] = ()
    entropy: bool = False
    scratch: Path | None = None

    def channels(self, table: LabelTable) -> tuple[int, ...]:
        """Channels of the logits that the organs are.

        Raises:
            DataError: If the network finds no such organ or region.
        """
        unknown = [name for name in self.organs if name not in table.targets]
        if unknown:
            rule, got = f"some of {', '.join(table.targets)}", ", ".join(unknown)
            raise DataError(sentence("probabilities", rule, got, "Correct the names"))
        first = 0 if table.regions else 1  # channel 0 of a softmax is the background
        return tuple(table.targets.index(name) + first for name in self.organs)


class SoftMaps:
    """Takes the planes of one image in any pieces, keeps what is wanted of them.

    Args:
        wanted: What is wanted.
        table: The network's labels.
        history: How the image was prepared.
        axis: Axis of the turned grid across which the planes lie.
        whole: Whether planes are those of the turned grid, not of the crop. What is outside the crop is background.

    Raises:
        DataError: If the network finds no such organ or region.
        VolsegError: If there is no room for temporary files.
    """

    def __init__(self, wanted: SoftWanted, table: LabelTable, history: GridHistory, axis: int, *, whole: bool) -> None:
        self.table, self.history, self.axis, self.wanted = table, history, axis, wanted
        self.channels = list(wanted.channels(table))
        shape, order = history.reoriented.shape, (axis, *(other for other in range(3) if other != axis))
        self.shape = tuple(shape[n] for n in order)
        self.start = (0, 0, 0) if whole else tuple(history.crop_start[n] for n in order)
        count = len(self.channels) + wanted.entropy
        self.stores = [
            RowMemory(self.shape) if wanted.scratch is None else RowFile(self.shape, wanted.scratch)
            for _ in range(count)
        ]
        # Which channels a class belongs to, as a matrix: sums over the voxels of every organ at once, on the device.
        held = table.region_classes() or [(n,) for n in range(table.classes)]
        self.inside = torch.zeros(table.classes, len(held))
        for channel, classes in enumerate(held):
            self.inside[list(classes), channel] = 1.0
        self.totals, self.counts = torch.zeros(2, len(held), dtype=torch.float64)

    def add(self, first: int, found: Tensor, labels: Tensor) -> None:
        """Take planes.

        Args:
            first: Number of the first.
            found: Probabilities (n, a, b, L).
            labels: Class indices (n, a, b).
        """
        # A few voxels at a time: softmax, entropy and masks are copies of all classes.
        maps = torch.empty((len(self.stores), *labels.shape), device=found.device)
        flat, classes, parts = found.flatten(0, 2), labels.flatten().int(), maps.flatten(1)
        self.inside = self.inside.to(found.device)
        step = max(1, _VALUES // found.shape[-1])
        for begin in range(0, len(flat), step):
            part = slice(begin, begin + step)
            some, own = flat[part], self.inside.index_select(0, classes[part])
            self.counts += own.sum(dim=0).cpu()  # exact: fewer than 2**24
            self.totals += own.mul_(some).sum(dim=0).cpu()
            if self.channels:
                parts[: len(self.channels), part] = some[:, self.channels].T
            if self.wanted.entropy:
                parts[-1, part] = entropy(some, shared=not self.table.regions)
        self._store(first, maps.cpu().numpy())

    def watched(self, planes: Iterable[tuple[int, Tensor, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """Take planes of labels and logits, and hand the labels on: first plane, (n, a, b), (n, a, b, L)."""
        for first, labels, logits in planes:
            self.add(first, probabilities(logits, shared=not self.table.regions), labels)
            yield first, labels

    def finished(self, label_map: LabelMap) -> SoftPrediction:
        """All there is once the last plane was taken.

        Raises:
            VolsegError: If there is no room for temporary files.
        """
        maps = [self._turned_back(store.array()) for store in self.stores]
        known = dict(zip(self.wanted.organs, maps, strict=False))
        pairs = list(zip(self.totals.tolist(), self.counts.tolist(), strict=True))[-len(self.table.targets) :]
        confidence = {
            name: total / count if count else None
            for name, (total, count) in zip(self.table.targets, pairs, strict=True)
        }
        return SoftPrediction(label_map, known, maps[-1] if self.wanted.entropy else None, confidence)

    def _store(self, first: int, maps: NDArray[np.float32]) -> None:
        """Put planes (M, n, a, b) where they belong on the turned grid."""
        inside = [slice(begin, begin + size) for begin, size in zip(self.start[1:], maps.shape[2:], strict=True)]
        for store, values in zip(self.stores, maps, strict=True):
            # A file takes whole planes: what was cropped away is written as 0.
            planes = values
            if values.shape[1:] != self.shape[1:]:
                planes = np.zeros((len(values), *self.shape[1:]), np.float32)
                planes[:, inside[0], inside[1]] = values
            store.write(first + self.start[0], planes)

    def _turned_back(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Planes of the turned grid as an array on the source's; of a temporary file a view, so that it is not read."""
        turned = np.moveaxis(planes, 0, self.axis)
        array = reorient_array(turned, self.history.orientation, self.history.source.orientation)
        return array if self.wanted.scratch is not None else np.ascontiguousarray(array)


def probabilities(logits: Tensor, *, shared: bool) -> Tensor:
    """Probabilities (…, L) of logits: by a softmax if ``shared``, else by a sigmoid each."""
    return torch.softmax(logits, dim=-1) if shared else torch.sigmoid(logits)


def entropy(found: Tensor, *, shared: bool) -> Tensor:
    """How unsure probabilities are, from 0, where one class has all, to 1, where all are alike.

    Args:
        found: (…, L).
        shared: Whether they are one distribution: its entropy divided by log L. Otherwise each channel is a matter of
            its own, p against 1 - p: the mean of their entropies divided by log 2.

    Returns:
        (…).

    Reference: Shannon, A Mathematical Theory of Communication, 1948.
    """
    own: Tensor = torch.special.entr(found)
    if shared:
        return own.sum(dim=-1).div_(math.log(found.shape[-1]))
    return own.add_(torch.special.entr(1.0 - found)).mean(dim=-1).div_(math.log(2.0))
