"""Coarse to fine: a model looks at a part of an image alone, and at all of it where that part may not do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.box import Box
from pipeline.core.grid import reorient_array
from pipeline.infer.restore import restore_labels
from pipeline.infer.roi import SearchRegion, body_mask, coarse_shape, organ_box
from pipeline.infer.trained_model import CaseInference, TrainedModel
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.resample import resample

_WORTH = 4  # times as much must the fine pass over everything cost as the coarse pass, for auto to take that
_OVERLAP = 0.25  # of the coarse pass
_NOTHING = "the coarse pass found no organ"
_CUT = "an organ reaches the end of the margin around what the coarse pass found"


def segment_region(
    member: TrainedModel, prepared: NDArray[np.floating[Any]], trace: GridHistory
) -> tuple[NDArray[np.unsignedinteger[Any]], SearchRegion]:
    """Class index of every voxel of a case, of which ``infer.roi`` says how much a model looks at.

    ``body``: windows that show nothing but background are left out, and are background. ``organs``: the first network
    finds the box of all organs at twice the spacing; windows cover the box and a margin (``infer.roi_margin_mm``)
    around it, and outside all is background. If the coarse pass finds no organ, or an organ reaches the end of the
    margin, the whole image is looked at. ``auto``: the organs where the coarse pass costs little beside the fine one,
    else the body.

    Args:
        member: The model.
        prepared: (C, I, J, K) on its grid.
        trace: How the image came there.

    Returns:
        Class indices on the grid of the source, and where windows were.
    """
    inference, shape, why = member.inference, prepared.shape[1:], None
    wanted, windows = member.settings.roi, inference.windows(shape)
    if wanted == "auto":
        cost = windows * inference.passes(shape)
        wanted = "organs" if _coarse(member).windows(coarse_shape(shape)) * _WORTH <= cost else "body"
    if wanted == "organs":
        box = _organs(member, prepared, trace)
        if box is not None:
            index = _restored(member, prepared, trace, box)
            if _background_outside(index, trace, box):
                return index, SearchRegion("organs", windows, windows - inference.windows(shape, box), box)
        why = _NOTHING if box is None else _CUT
        wanted = "body" if member.settings.roi == "auto" else "none"
    found = body_mask(torch.from_numpy(prepared)) if wanted == "body" else None
    index = _restored(member, prepared, trace, found)
    return index, SearchRegion(wanted, windows, windows - inference.windows(shape, found), why=why)


def _coarse(member: TrainedModel) -> CaseInference:
    """The first network alone, not mirrored, its windows overlapping by a quarter at most."""
    settings = member.settings.model_copy(update={"overlap": min(_OVERLAP, member.settings.overlap)})
    return CaseInference(member.networks[:1], member.card.network, member.card.plan, settings, member.dtype)


def _organs(member: TrainedModel, prepared: NDArray[np.floating[Any]], trace: GridHistory) -> Box | None:
    """The box of what the coarse pass finds and a margin around it, on the prepared grid."""
    image, shape = torch.from_numpy(prepared), prepared.shape[1:]
    small = resample(image, coarse_shape(shape), 1, anti_alias=True).to(member.device)
    axis, rows = _coarse(member).labels(small, small.shape[1:])
    labels = torch.cat([found.cpu() for _, found in rows]).movedim(0, axis)
    box, margin = organ_box(labels, shape), member.settings.roi_margin_mm
    return box and box.grown([math.ceil(margin / one) for one in trace.prepared.spacing_mm], shape)


def _restored(
    member: TrainedModel, prepared: NDArray[np.floating[Any]], trace: GridHistory, part: Tensor | Box | None
) -> NDArray[np.unsignedinteger[Any]]:
    axis, rows = member.labels(prepared, trace.cropped.shape, part)
    return restore_labels(rows, axis, trace)


def _background_outside(index: NDArray[np.unsignedinteger[Any]], trace: GridHistory, box: Box) -> bool:
    """Make everything outside the box background; whether no organ lies on a face of it."""
    crop = tuple(slice(a, b) for a, b in zip(trace.crop_start, trace.crop_stop, strict=True))
    labels = reorient_array(index, trace.source.orientation, trace.orientation)[crop]  # a view
    inside = box.resized(trace.prepared.shape, trace.cropped.shape)
    if inside.touches(labels):
        return False
    kept = labels[inside.slices].copy()
    labels[...] = 0
    labels[inside.slices] = kept
    return True
