"""The way back: from the prepared images of a case, by one model or several, to classes on the grid of the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.core.grid import Box, reorient_array
from pipeline.core.regions import PaintingStep
from pipeline.core.volume import Image, LabelMap
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.labelling import NOT_FINITE, decode, label_type
from pipeline.infer.probability_maps import SoftMaps, SoftWanted, probabilities
from pipeline.infer.trained_model import SliceNetwork, TrainedModel, with_room
from pipeline.model.device import in_mode
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.interpolation import resample
from pipeline.preprocess.plan_file import Plan
from pipeline.preprocess.prepare_case import prepare_image
from pipeline.preprocess.resample import resample_labels

Prepared = tuple[NDArray[np.floating[Any]], GridHistory]
"""An image (C, I, J, K) on the grid of a model, and how it came there."""


def prepare_for(model: TrainedModel, image: Image, *, case: str = "image", extra: Sequence[Any] = ()) -> Prepared:
    """An image as a model sees it; arguments and errors as for :func:`~pipeline.preprocess.prepare_case.prepare_image`.

    For a cascade, the last channel is the class index that the first stage finds in the image.
    """
    array, history = prepare_image(image, model.card.plan, case=case, extra=extra, most_bytes=model.most_bytes)
    first = model.first_stage
    if first is None:
        return array, history
    low, way = prepare_image(image, first.card.plan, case=case, extra=extra, most_bytes=first.most_bytes)
    if model.card.plan.conventions is None:
        return with_stage_map(array, labels_on(first, low, array.shape[1:])), history
    found = with_room([first], lambda models: segment(models, [(low, way)]))
    return with_stage_map(array, _resampled_labels(found, model.card.plan, history)), history


def _resampled_labels(
    found: NDArray[np.unsignedinteger[Any]], plan: Plan, history: GridHistory
) -> NDArray[np.unsignedinteger[Any]]:
    """Class indices of a first stage on the grid of the source, brought to the prepared grid of the second one.

    nnU-Net decides on the grid of the source and resamples labels, where ours resamples logits and decides once.
    """
    turned = reorient_array(found, history.source.orientation, history.orientation)[history.crop.slices]
    _, coarse = plan.resampling_of(history.cropped)
    orders: list[Literal[0, 1]] = [0 if axis == coarse else 1 for axis in range(3)]
    return resample_labels(np.ascontiguousarray(turned), history.prepared.shape, orders)


def labels_on(
    model: TrainedModel, prepared: NDArray[np.floating[Any]], shape: Sequence[int]
) -> NDArray[np.unsignedinteger[Any]]:
    """Class indices on another grid over the same field of view, as the second stage of a cascade sees the first.

    Args:
        model: The first stage.
        prepared: (C, I, J, K) on its grid.
        shape: Voxels of the other grid. Logits are resampled to it linearly before the decision, as nnU-Net does.
    """

    def found(models: Sequence[TrainedModel]) -> NDArray[np.unsignedinteger[Any]]:
        axis, planes = models[0].label_planes(prepared, shape)
        index: NDArray[np.unsignedinteger[Any]] = torch.cat([part.cpu() for _, part in planes]).movedim(0, axis).numpy()
        return index

    return with_room([model], found)


def with_stage_map(image: NDArray[np.floating[Any]], found: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """An image (C, I, J, K) with class indices (I, J, K) as its last channel.

    Raises:
        DataError: If they are of different shapes.
    """
    if image.shape[1:] != found.shape:
        rule, advice = f"the shape of the image, {image.shape[1:]}", "Leave out transforms that move the field of view"
        raise DataError(sentence("first stage", rule, found.shape, advice))
    return np.concatenate([image, found[None]], axis=0, dtype=np.float32)


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
        return _segmented(models[0], None, array, history)
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
        orders = model.card.plan.logit_orders(history.cropped)
        planes = inferer.labelled_planes(image, model.passes, target, painting=model.painting, orders=orders)
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
    image, orders = model.placed(array, inferer), model.card.plan.logit_orders(history.cropped)
    yield from inferer.logit_planes(image, model.passes, history.cropped.shape, orders=orders)


def predict_image(
    image: Image, network: nn.Module, plan: Plan, inferer: StreamingInferer | None = None, *, case: str = "image"
) -> LabelMap:
    """Segment an image with a network of your own, prepared as a plan says.

    Args:
        image: (C, I, J, K) on any grid, channels in the order of the plan.
        network: Takes (B, C, *window), returns logits (B, L, *window) for the classes or regions of the plan; a 2D
            network of ``build_network`` sees every slice. Its mode is put back.
        plan: How images are prepared, and what the outputs stand for.
        inferer: Windows along i, j, k of the prepared image, 1 across slices; by default those of the plan's patch.
        case: Name used in error messages.

    Returns:
        Label values on exactly the image's grid.

    Raises:
        DataError: If the number of channels is wrong or intensities are not finite.
        VolsegError: If the network, the windows or the plan do not suit.
    """
    _require_own_parts(image, plan)
    array, history = prepare_image(image, plan, case=case)
    dims: Literal[2, 3] = 2 if getattr(network, "dims", 3) == 2 else 3
    runner: Any = SliceNetwork(network, plan.slice_axis) if dims == 2 else network
    if inferer is None:
        patch = (plan.patch_3d if dims == 3 else plan.patch_2d).patch_size
        sizes, margin = dict(zip(plan.axes(dims), patch, strict=True)), getattr(runner, "margin", (0, 0, 0))
        # Windows of networks without padding see the margin around the logits as well.
        window = getattr(runner, "legal_size", tuple)([sizes.get(axis, 1) + 2 * margin[axis] for axis in range(3)])
        inferer = StreamingInferer(window, margin=margin, step=getattr(runner, "divisor", (1, 1, 1)))
    if len(inferer.tiling.window) != 3:
        got, advice = f"windows of {len(inferer.tiling.window)} axes", "For a 2D network give 1 across slices"
        raise VolsegError(sentence("inferer", "windows along i, j, k", got, advice))

    def checked(window: Tensor) -> Tensor:
        logits: Tensor = runner(window)
        if logits.shape[1] != (outputs := plan.label_table.outputs):
            rule = f"{outputs} output channels"
            raise VolsegError(sentence("network", rule, logits.shape[1], "Build the network for this plan"))
        return logits

    weights = next(network.parameters(), torch.empty(0))
    volume = torch.from_numpy(np.ascontiguousarray(array)).to(weights.device)
    with in_mode(network, training=False):
        target, orders = history.cropped.shape, plan.logit_orders(history.cropped)
        planes = inferer.label_planes(volume, checked, target, painting=plan.painting(), orders=orders)
        index = restore_labels(planes, inferer.streaming_axis(volume.shape[1:]), history)
    return LabelMap(plan.label_table.from_index(index), image.grid)


def _require_own_parts(image: object, plan: Plan) -> None:
    if not isinstance(image, Image):
        got, advice = f"an object of type {type(image).__name__}", "Read it with read_image, or give Image(array, grid)"
        raise VolsegError(sentence("image", "an Image", got, advice))
    if plan.cascade:
        advice = "Use Predictor.load, or give the low-resolution plan and a network for it"
        raise VolsegError(sentence("plan", "no cascade", "one", advice))
    if plan.extra:
        got, advice = ", ".join(plan.extra), "Use Predictor.load with extra=[…]"
        raise VolsegError(sentence("plan", "no further transforms of training", got, advice))


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
        self._next()

    def _next(self) -> None:
        self.first, self.known = next(self.planes)
        # One sum for some planes at once: a GPU is waited for with each.
        if not bool(torch.isfinite(self.known.sum())):
            raise ValueError(NOT_FINITE)

    def plane(self, number: int) -> Tensor:
        """Probabilities (a, b, L) of a plane; numbers ascend."""
        # What a model cropped away it holds for background: class 0 of a softmax, no region.
        result = self.known.new_zeros((*self.shape, self.known.shape[-1]))
        if self.shared:
            result[..., 0] = 1.0
        if not self.start <= number < self.stop:
            return result
        while number - self.start >= self.first + len(self.known):
            self._next()
        logits = self.known[number - self.start - self.first]
        result[self.box] = probabilities(logits, shared=self.shared)
        return result


# Coarse to fine: a model looks at a part of an image alone, and at all of it where that part may not do.

_COARSE = 2.0  # times the spacing: training draws scales from 0.7 to 1.4, so organs half as large are still known
_FEWEST = 8  # voxels of the coarse labels; fewer are noise
_WORTH = 4  # times as much must the fine pass over everything cost as the coarse pass, for auto to take that
_OVERLAP = 0.25  # of the coarse pass
_NOTHING = "the coarse pass found no organ"
_CUT = "an organ reaches the end of the margin around what the coarse pass found"


@dataclass(frozen=True)
class SearchRegion:
    """Where windows were, and why there.

    Args:
        kind: ``body``, ``organs`` or ``none`` for the whole image.
        windows: Windows that cover the prepared image.
        skipped: Those of them that were left out.
        box: Of the organs on the prepared grid, with its margin.
        why: Why the whole image was looked at although less was asked for.
    """

    kind: Literal["none", "body", "organs"]
    windows: int
    skipped: int = 0
    box: Box | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        share = round(self.skipped / self.windows, 4)
        box = None if self.box is None else [list(self.box.start), list(self.box.stop)]
        return {"looked_at": self.kind, "windows": self.windows, "skipped": share, "box": box, "why": self.why}


def segment_region(
    model: TrainedModel, prepared: NDArray[np.floating[Any]], history: GridHistory
) -> tuple[NDArray[np.unsignedinteger[Any]], SearchRegion]:
    """Class index of every voxel of a case, of which ``infer.roi`` says how much a model looks at.

    ``body``: windows that show nothing but background are left out, and are background. ``organs``: the first network
    finds the box of all organs at twice the spacing; windows cover the box and a margin (``infer.roi_margin_mm``)
    around it, and outside all is background. If the coarse pass finds no organ, or an organ reaches the end of the
    margin, the whole image is looked at. ``auto``: the organs where the coarse pass costs little beside the fine one,
    else the body.

    Args:
        model: The model.
        prepared: (C, I, J, K) on its grid.
        history: How the image came there.

    Returns:
        Class indices on the grid of the source, and where windows were.
    """
    shape, coarse, why = prepared.shape[1:], _coarse(model), None
    inferer, wanted = model.inferer(shape), model.settings.roi
    windows = inferer.window_count(shape)
    if wanted == "auto":
        small = coarse_shape(shape)
        worth = coarse.inferer(small).window_count(small) * _WORTH <= windows * model.pass_count(inferer)
        wanted = "organs" if worth else "body"
    if wanted == "organs":
        box = _organs(coarse, prepared, history)
        # What the coarse pass missed cannot be seen from inside its box, but an organ that goes on beyond it can.
        if box is not None:
            inside = model.inferer(shape, part=box)
            index = _segmented(model, inside, prepared, history)
            if _background_outside(index, history, box):
                return index, SearchRegion("organs", windows, windows - inside.window_count(shape), box)
        why = _NOTHING if box is None else _CUT
        wanted = "body" if model.settings.roi == "auto" else "none"
    if wanted == "body":
        inferer = model.inferer(shape, part=body_mask(torch.from_numpy(prepared)))
    index = _segmented(model, inferer, prepared, history)
    return index, SearchRegion(wanted, windows, windows - inferer.window_count(shape), why=why)


def _coarse(model: TrainedModel) -> TrainedModel:
    """The first network alone, not mirrored, its windows overlapping by a quarter at most."""
    # It only has to find where organs are: one look at each place, by one network, is enough.
    changes = {"overlap": min(_OVERLAP, model.settings.overlap), "mirror": False, "rotate": False}
    settings = model.settings.model_copy(update=changes)
    coarse = TrainedModel(model.card, model.networks[:1], model.device, settings, model.most_bytes)
    return coarse.with_sums_on_cpu() if model.sums_on_cpu else coarse


def _organs(coarse: TrainedModel, prepared: NDArray[np.floating[Any]], history: GridHistory) -> Box | None:
    """The box of what the coarse pass finds and a margin around it, on the prepared grid."""
    image, shape = torch.from_numpy(prepared), prepared.shape[1:]
    small = resample(image, coarse_shape(shape), 1, anti_alias=True).numpy()
    labels = with_room([coarse], lambda models: models[0].label_map(small))
    box, margin = organ_box(labels, shape), coarse.settings.roi_margin_mm
    return box and box.grown([math.ceil(margin / spacing) for spacing in history.prepared.spacing_mm], shape)


def _segmented(
    model: TrainedModel, inferer: StreamingInferer | None, prepared: NDArray[np.floating[Any]], history: GridHistory
) -> NDArray[np.unsignedinteger[Any]]:
    orders = model.card.plan.logit_orders(history.cropped)
    axis, planes = model.label_planes(prepared, history.cropped.shape, inferer, orders)
    return restore_labels(planes, axis, history)


def _background_outside(index: NDArray[np.unsignedinteger[Any]], history: GridHistory, box: Box) -> bool:
    """Make everything outside the box background; whether no organ lies on a face of it."""
    labels = reorient_array(index, history.source.orientation, history.orientation)[history.crop.slices]  # a view
    inside = box.resized(history.prepared.shape, history.cropped.shape)
    if inside.touches(labels):
        return False
    # Windows may reach beyond the box, as far as they are longer than it: what they find there does not count.
    kept = labels[inside.slices].copy()
    labels[...] = 0
    labels[inside.slices] = kept
    return True


def body_mask(image: Tensor) -> Tensor:
    """Where an image is not its background, the lowest intensity of each channel; (C, I, J, K) to (I, J, K) bool.

    Preparation makes the background constant where it can be told from the body without a threshold: intensities of a
    CT are clipped above those of air, and what is 0 around a head stays one value.
    """
    return (image != image.amin(dim=(1, 2, 3), keepdim=True)).any(dim=0)


def coarse_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The voxels of a grid at twice the spacing; along an axis at least one."""
    return tuple(max(1, round(size / _COARSE)) for size in shape)


def organ_box(labels: Tensor, shape: Sequence[int]) -> Box | None:
    """The box of all organs in coarse labels, on a finer grid over the same field of view.

    Args:
        labels: (I, J, K) on the CPU, 0 where there is none.
        shape: Voxels of the finer grid.

    Returns:
        The smallest box that holds every coarse voxel of an organ; None if there are next to none.
    """
    found = (labels != 0).numpy()
    box = Box.around(found)
    if box is None or found.sum() < _FEWEST:
        return None
    scale = [size / coarse for size, coarse in zip(shape, found.shape, strict=True)]
    start = tuple(math.floor(a * k) for a, k in zip(box.start, scale, strict=True))
    stop = tuple(min(size, math.ceil(b * k)) for b, k, size in zip(box.stop, scale, shape, strict=True))
    return Box(start, stop)
