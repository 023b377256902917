"""The way back: from the prepared images of a case, by one model or several, to classes on the grid of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.grid import reorient_array
from pipeline.core.regions import PaintingStep
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.labelling import NOT_FINITE, decode, label_type
from pipeline.infer.probability_maps import SoftMaps, SoftWanted, probabilities
from pipeline.infer.trained_model import TrainedModel
from pipeline.preprocess.grid_history import GridHistory

Prepared = tuple[NDArray[np.floating[Any]], GridHistory]
"""An image (C, I, J, K) on the grid of a model, and how it came there."""


def segment(models: Sequence[TrainedModel], prepared: Sequence[Prepared]) -> NDArray[np.unsignedinteger[Any]]:
    """Class index of every voxel of a case.

    The logits of a model's folds are averaged, the probabilities of several models, which need not be on one grid.

    Args:
        models: At least one, all with the same label table.
        prepared: For each model the image on its grid.

    Returns:
        Class indices on the grid of the source, as :func:`restore_labels` gives them.
    """
    if len(models) == 1:
        array, history = prepared[0]
        axis, planes = models[0].label_planes(array, history.cropped.shape)
        return restore_labels(planes, axis, history)
    axis, parts = _parts(models, prepared)
    return restore_average(parts, axis, painting=models[0].painting)


def segment_softly(
    models: Sequence[TrainedModel], prepared: Sequence[Prepared], wanted: SoftWanted
) -> tuple[NDArray[np.unsignedinteger[Any]], SoftMaps]:
    """The same class indices, and how sure the networks are of them, in one pass.

    Args:
        models: As for :func:`segment`.
        prepared: As there.
        wanted: What to keep.

    Returns:
        What :func:`segment` returns, and what was kept.

    Raises:
        DataError: If the network finds no such organ or region.
        VolsegError: If there is no room for temporary files.
    """
    model, (array, history) = models[0], prepared[0]
    if len(models) == 1:
        inferer, target = model.inferer(array.shape[1:]), history.cropped.shape
        axis, image = inferer.streaming_axis(array.shape[1:]), model.placed(array, inferer)
        maps = SoftMaps(wanted, model.labels, history, axis, whole=False)
        planes = inferer.labelled_planes(image, model.passes, target, painting=model.painting)
        return restore_labels(maps.watched(planes), axis, history), maps
    axis, parts = _parts(models, prepared)
    maps = SoftMaps(wanted, model.labels, history, axis, whole=True)
    return restore_average(parts, axis, painting=model.painting, on_plane=maps.add), maps


def _parts(
    models: Sequence[TrainedModel], prepared: Sequence[Prepared]
) -> tuple[int, list[tuple[Iterator[tuple[int, Tensor]], GridHistory]]]:
    """The axis along which all models' logits come, and these."""
    shapes = [array.shape[1:] for array, _ in prepared]
    first = models[0].inferer(shapes[0])
    axis = first.streaming_axis(shapes[0])
    others = [model.inferer(shape, axis) for model, shape in zip(models[1:], shapes[1:], strict=True)]
    return axis, [
        (_logit_planes(model, inferer, array, history), history)
        for model, inferer, (array, history) in zip(models, (first, *others), prepared, strict=True)
    ]


def _logit_planes(
    model: TrainedModel, inferer: StreamingInferer, array: NDArray[np.floating[Any]], history: GridHistory
) -> Iterator[tuple[int, Tensor]]:
    # A generator from its first line on: a model asks for memory once the models before it have taken theirs.
    yield from inferer.logit_planes(model.placed(array, inferer), model.passes, history.cropped.shape)


def restore_labels(
    planes: Iterable[tuple[int, Tensor]], axis: int, history: GridHistory
) -> NDArray[np.unsignedinteger[Any]]:
    """Put labels that come plane by plane where they belong on the input's grid.

    Args:
        planes: First plane and class indices (n, a, b) on the grid ``history.cropped``, uint8 or uint16; they may still
            be in the making.
        axis: Axis of that grid across which the planes lie.
        history: How the case was prepared.

    Returns:
        Class index on ``history.source``, of the type of the planes. 0 outside the crop.
    """
    labels: NDArray[np.unsignedinteger[Any]] | None = None
    box = history.crop
    for first, found in planes:
        part = found.cpu().numpy()
        if labels is None:
            labels = np.zeros(history.source.shape, dtype=part.dtype)
            # Views of the result, turned and cropped: what is written into them lies on the input's grid at once.
            turned = reorient_array(labels, history.source.orientation, history.orientation)
            crop = np.moveaxis(turned[box.slices], axis, 0)
        crop[first : first + len(part)] = part
    assert labels is not None  # a crop is never empty
    return labels


def restore_average(
    parts: Sequence[tuple[Iterator[tuple[int, Tensor]], GridHistory]],
    axis: int,
    *,
    painting: Sequence[PaintingStep] = (),
    on_plane: Callable[[int, Tensor, Tensor], None] = lambda plane, probabilities, labels: None,
) -> NDArray[np.unsignedinteger[Any]]:
    """Average the probabilities of several models on the input's grid and decide for the class of every voxel.

    The models may have prepared the input on different grids: it is on its own grid that their logits meet, plane by
    plane. They become probabilities before they are averaged, because logits of different networks differ in scale.

    Args:
        parts: For each model its resampled logits on ``history.cropped``, first plane and (n, a, b, L), as they are
            finished; and the history.
        axis: Across which the planes lie.
        painting: How regions become classes, see :func:`~pipeline.infer.labelling.decode`; empty for a softmax.
        on_plane: Called with every plane of the turned source: its number, mean probabilities (1, a, b, L) and classes
            (1, a, b).

    Returns:
        Class index on ``history.source``: uint8 up to 256 classes, else uint16. Ties go to the lower class, and a
        region at exactly 0.5 is not there. A model that cropped a voxel away is sure that it is background.

    Raises:
        ValueError: If logits are not finite, or the histories are not of one source and orientation.
    """
    history = parts[0][1]
    if len({(other.source.shape, other.orientation) for _, other in parts}) > 1:
        raise ValueError("models: expected one image, orientation and label table, got several. Choose others.")
    models = [_Probabilities(planes, other, axis, shared=not painting) for planes, other in parts]
    labels: NDArray[np.unsignedinteger[Any]] | None = None
    for plane in range(history.reoriented.shape[axis]):
        found = [model.plane(plane) for model in models]
        mean = torch.stack([values.to(found[0].device) for values in found]).mean(dim=0)
        # A region is found above 0 (of logits), so above a probability of 0.5.
        decided = decode((mean - 0.5 if painting else mean).movedim(-1, 0), painting)
        part = decided.to(label_type(mean.shape[-1], painting)).cpu().numpy()
        if labels is None:
            labels = np.zeros(history.source.shape, dtype=part.dtype)
            turned = np.moveaxis(reorient_array(labels, history.source.orientation, history.orientation), axis, 0)
        turned[plane] = part
        on_plane(plane, mean[None], decided[None])
    assert labels is not None  # an image is never empty
    return labels


class _Probabilities:
    """Planes of a model's probabilities, in their order, on the turned grid of the source; ``shared``: by a softmax."""

    def __init__(self, planes: Iterator[tuple[int, Tensor]], history: GridHistory, axis: int, *, shared: bool) -> None:
        self.planes, self.shared = planes, shared
        self.start, self.stop = history.crop_start[axis], history.crop_stop[axis]
        others = [n for n in range(3) if n != axis]
        self.shape = [history.reoriented.shape[n] for n in others]
        self.box = tuple(slice(history.crop_start[n], history.crop_stop[n]) for n in others)
        self.first, self.known = next(planes)

    def plane(self, number: int) -> Tensor:
        """Probabilities (a, b, L) of a plane; numbers ascend."""
        # What a model cropped away it holds for background: class 0 of a softmax, no region.
        result = self.known.new_zeros((*self.shape, self.known.shape[-1]))
        if self.shared:
            result[..., 0] = 1.0
        if not self.start <= number < self.stop:
            return result
        while number - self.start >= self.first + len(self.known):
            self.first, self.known = next(self.planes)
        logits = self.known[number - self.start - self.first]
        if not bool(torch.isfinite(logits.sum())):
            raise ValueError(NOT_FINITE)
        result[self.box] = probabilities(logits, shared=self.shared)
        return result
