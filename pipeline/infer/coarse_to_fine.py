"""Coarse to fine: a model looks at a part of an image alone, and at all of it where that part may not do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.box import Box
from pipeline.core.grid import reorient_array
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.restore import restore_labels
from pipeline.infer.trained_model import TrainedModel
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.resample import resample

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
    return TrainedModel(model.card, model.networks[:1], model.device, model.settings.model_copy(update=changes))


def _organs(coarse: TrainedModel, prepared: NDArray[np.floating[Any]], history: GridHistory) -> Box | None:
    """The box of what the coarse pass finds and a margin around it, on the prepared grid."""
    image, shape = torch.from_numpy(prepared), prepared.shape[1:]
    small = resample(image, coarse_shape(shape), 1, anti_alias=True).to(coarse.device)
    inferer = coarse.inferer(small.shape[1:])
    labels = inferer.label_map(small[None], coarse.passes, painting=coarse.painting)[0].cpu()
    box, margin = organ_box(labels, shape), coarse.settings.roi_margin_mm
    return box and box.grown([math.ceil(margin / spacing) for spacing in history.prepared.spacing_mm], shape)


def _segmented(
    model: TrainedModel, inferer: StreamingInferer, prepared: NDArray[np.floating[Any]], history: GridHistory
) -> NDArray[np.unsignedinteger[Any]]:
    axis, planes = model.label_planes(prepared, history.cropped.shape, inferer)
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
