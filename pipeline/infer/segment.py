"""From the prepared images of a case to its classes, by one model or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.infer.member import Member
from pipeline.infer.restore import restore_average, restore_labels
from pipeline.infer.soft_maps import SoftMaps, SoftWanted
from pipeline.preprocess.trace import Trace

__all__ = ["Prepared", "segment", "segment_softly"]

Prepared = tuple[NDArray[np.floating[Any]], Trace]
"""An image (C, I, J, K) on the grid of a model, and how it came there."""


def segment(members: Sequence[Member], prepared: Sequence[Prepared]) -> NDArray[np.unsignedinteger[Any]]:
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
    members: Sequence[Member], prepared: Sequence[Prepared], wanted: SoftWanted
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
    members: Sequence[Member], prepared: Sequence[Prepared]
) -> tuple[int, list[tuple[Iterator[tuple[int, Tensor]], Trace]]]:
    """The axis along which all members' logits come, and these."""
    axis = members[0].inference.streaming_axis(prepared[0][0].shape[1:])
    return axis, [
        (member.logit_rows(array, trace.cropped.shape, axis), trace)
        for member, (array, trace) in zip(members, prepared, strict=True)
    ]
