"""The way back: from logits on the prepared grid to a label map on exactly the grid of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.grid import reorient_array
from pipeline.core.regions import PaintingStep
from pipeline.infer.labelling import NOT_FINITE, decode
from pipeline.infer.probability_maps import SoftMaps, SoftWanted, probabilities
from pipeline.infer.trained_model import TrainedModel
from pipeline.preprocess.grid_history import GridHistory


def restore_labels(
    rows: Iterable[tuple[int, Tensor]], axis: int, trace: GridHistory
) -> NDArray[np.unsignedinteger[Any]]:
    """Put labels that come row by row where they belong on the input's grid.

    Args:
        rows: First row and class indices (n, a, b) on the grid ``trace.cropped``, uint8 or uint16; they may still be in
            the making.
        axis: Axis of that grid along which the rows lie.
        trace: How the case was prepared.

    Returns:
        Class index on ``trace.source``, of the type of the rows. 0 outside the crop.
    """
    labels: NDArray[np.unsignedinteger[Any]] | None = None
    box = tuple(slice(a, b) for a, b in zip(trace.crop_start, trace.crop_stop, strict=True))
    for first, found in rows:
        part = found.cpu().numpy()
        if labels is None:
            labels = np.zeros(trace.source.shape, dtype=part.dtype)
            crop = np.moveaxis(reorient_array(labels, trace.source.orientation, trace.orientation)[box], axis, 0)
        crop[first : first + len(part)] = part
    assert labels is not None  # a crop is never empty
    return labels


def restore_average(
    parts: Sequence[tuple[Iterator[tuple[int, Tensor]], GridHistory]],
    axis: int,
    *,
    painting: Sequence[PaintingStep] = (),
    told: Callable[[int, Tensor, Tensor], None] = lambda row, probabilities, labels: None,
) -> NDArray[np.unsignedinteger[Any]]:
    """Average the probabilities of several models on the input's grid and decide for the class of every voxel.

    The models may have prepared the input on different grids: it is on its own grid that their logits meet, row by row.
    They become probabilities before they are averaged, because logits of different networks differ in scale.

    Args:
        parts: For each model its resampled logits on ``trace.cropped``, first row and (n, a, b, L), as they are
            finished; and the trace.
        axis: Along which the rows lie.
        painting: How regions become classes, see :func:`~pipeline.infer.labelling.decode`; empty for a softmax.
        told: Of every row of the turned source: its number, mean probabilities (1, a, b, L) and classes (1, a, b).

    Returns:
        Class index on ``trace.source``: uint8 up to 256 classes, else uint16. Ties go to the lower class, and a region
        at exactly 0.5 is not there. A model that cropped a voxel away is sure that it is background.

    Raises:
        ValueError: If logits are not finite, or the traces are not of one source and orientation.
    """
    trace = parts[0][1]
    if any((other.source.shape, other.orientation) != (trace.source.shape, trace.orientation) for _, other in parts):
        raise ValueError("models: expected one image, orientation and label table, got several. Choose others.")
    models = [_Probabilities(rows, other, axis, shared=not painting) for rows, other in parts]
    labels: NDArray[np.unsignedinteger[Any]] | None = None
    for row in range(trace.reoriented.shape[axis]):
        found = [model.row(row) for model in models]
        mean = torch.stack([one.to(found[0].device) for one in found]).mean(dim=0)
        if labels is None:
            classes = 1 + max(painted for _, painted in painting) if painting else mean.shape[-1]
            labels = np.zeros(trace.source.shape, dtype=np.uint8 if classes <= 256 else np.uint16)
            turned = np.moveaxis(reorient_array(labels, trace.source.orientation, trace.orientation), axis, 0)
        decided = decode((mean - 0.5 if painting else mean).movedim(-1, 0), painting)
        turned[row] = decided.cpu().numpy()
        told(row, mean[None], decided[None])
    assert labels is not None  # an image is never empty
    return labels


class _Probabilities:
    """Rows of a model's probabilities, in their order, on the turned grid of the source."""

    def __init__(self, rows: Iterator[tuple[int, Tensor]], trace: GridHistory, axis: int, *, shared: bool) -> None:
        self.rows, self.axis, self.shared = rows, axis, shared
        self.start, self.stop = trace.crop_start[axis], trace.crop_stop[axis]
        others = [n for n in range(3) if n != axis]
        self.shape = [trace.reoriented.shape[n] for n in others]
        self.box = tuple(slice(trace.crop_start[n], trace.crop_stop[n]) for n in others)
        self.first, self.known = next(rows)

    def row(self, number: int) -> Tensor:
        """Probabilities (a, b, L) of a row; ``shared``: by a softmax."""
        result = self.known.new_zeros((*self.shape, self.known.shape[-1]))
        if self.shared:
            result[..., 0] = 1.0
        if not self.start <= number < self.stop:
            return result
        while number - self.start >= self.first + len(self.known):
            self.first, self.known = next(self.rows)
        logits = self.known[number - self.start - self.first]
        if not bool(torch.isfinite(logits.sum())):
            raise ValueError(NOT_FINITE)
        result[self.box] = probabilities(logits, shared=self.shared)
        return result


# From the prepared images of a case to its classes, by one model or several.

Prepared = tuple[NDArray[np.floating[Any]], GridHistory]
"""An image (C, I, J, K) on the grid of a model, and how it came there."""


def segment(members: Sequence[TrainedModel], prepared: Sequence[Prepared]) -> NDArray[np.unsignedinteger[Any]]:
    """Class index of every voxel of a case.

    The logits of a member's folds are averaged, the probabilities of several members, which need not be on one grid.

    Args:
        members: At least one, all with the same label table.
        prepared: For each member the image on its grid.

    Returns:
        Class indices on the grid of the source, as :func:`~pipeline.infer.restore.restore_labels` gives them.
    """
    if len(members) == 1:
        array, trace = prepared[0]
        axis, rows = members[0].labels(array, trace.cropped.shape)
        return restore_labels(rows, axis, trace)
    axis, parts = _parts(members, prepared)
    return restore_average(parts, axis, painting=members[0].card.plan.label_table.painting())


def segment_softly(
    members: Sequence[TrainedModel], prepared: Sequence[Prepared], wanted: SoftWanted
) -> tuple[NDArray[np.unsignedinteger[Any]], SoftMaps]:
    """The same class indices, and how sure the networks are of them, in one pass.

    Args:
        members: As for :func:`segment`.
        prepared: As there.
        wanted: What to keep.

    Returns:
        What :func:`segment` returns, and all rows.

    Raises:
        DataError: If the network finds no such organ or region.
        VolsegError: If there is no room for temporary files.
    """
    table, (array, trace) = members[0].card.plan.label_table, prepared[0]
    if len(members) == 1:
        axis, rows = members[0].labelled_rows(array, trace.cropped.shape)
        maps = SoftMaps(wanted, table, trace, axis, whole=False)
        return restore_labels(maps.watched(rows), axis, trace), maps
    axis, parts = _parts(members, prepared)
    maps = SoftMaps(wanted, table, trace, axis, whole=True)
    return restore_average(parts, axis, painting=table.painting(), told=maps.add), maps


def _parts(
    members: Sequence[TrainedModel], prepared: Sequence[Prepared]
) -> tuple[int, list[tuple[Iterator[tuple[int, Tensor]], GridHistory]]]:
    """The axis along which all members' logits come, and these."""
    axis = members[0].inference.streaming_axis(prepared[0][0].shape[1:])
    return axis, [
        (member.logit_rows(array, trace.cropped.shape, axis), trace)
        for member, (array, trace) in zip(members, prepared, strict=True)
    ]
