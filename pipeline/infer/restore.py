"""The way back: from logits on the prepared grid to a label map on exactly the grid of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.orientation import reorient_array
from pipeline.core.regions import PaintingStep
from pipeline.infer.decode import decode
from pipeline.preprocess.operators import Operator, apply_operators, band, resize_operators
from pipeline.preprocess.trace import Trace

__all__ = ["restore_labels"]

_SLAB_BYTES = 16 * 2**20  # float32 logits at full size held at once; at least one plane


def restore_labels(
    logits: torch.Tensor | NDArray[np.floating[Any]],
    trace: Trace,
    slab_bytes: int = _SLAB_BYTES,
    *,
    painting: Sequence[PaintingStep] = (),
) -> NDArray[np.unsignedinteger[Any]]:
    """Resample logits to the input's grid and decide for the class of every voxel.

    The logits are resampled linearly, before the decision, so that borders stay smooth. This happens slab by slab: full
    size logits of all classes never exist at once. The result is that of doing it in one piece.

    Args:
        logits: (L, i, j, k) on ``trace.prepared``, finite; a tensor on any device, or an array.
        trace: How the case was prepared.
        slab_bytes: Memory for full-size logits; one plane of voxels is the least that is taken.
        painting: How regions become classes, see :func:`~pipeline.infer.decode.decode`; empty for a softmax.

    Returns:
        Class index on ``trace.source``: uint8 up to 256 classes, else uint16. 0 outside the crop; ties go to the lower
        class, and a region at exactly 0.5 is not there.

    Raises:
        ValueError: If the logits do not fit the trace or are not finite.
    """
    values = (
        torch.from_numpy(np.require(logits, requirements=["C_CONTIGUOUS", "WRITEABLE"]))
        if isinstance(logits, np.ndarray)
        else logits
    )
    _check(values, trace)
    classes = 1 + max(painted for _, painted in painting) if painting else len(values)
    labels = np.zeros(trace.source.shape, dtype=np.uint8 if classes <= 256 else np.uint16)
    turned = reorient_array(labels, trace.source.orientation, trace.orientation)  # views: writing here fills `labels`
    crop = turned[tuple(slice(a, b) for a, b in zip(trace.crop_start, trace.crop_stop, strict=True))]
    operators = resize_operators(trace.prepared.shape, crop.shape, order=1)
    plane_bytes = 4 * len(values) * crop.shape[1] * crop.shape[2]
    planes = max(1, slab_bytes // plane_bytes)
    for first in range(0, crop.shape[0], planes):
        slab = _slab(values, operators, first, min(first + planes, crop.shape[0]))
        crop[first : first + planes] = decode(slab, painting).cpu().numpy()
    return labels


def _slab(values: torch.Tensor, operators: list[Operator | None], first: int, last: int) -> torch.Tensor:
    """Planes ``first`` to ``last`` along the first axis of the resampled logits, (L, last - first, J, K)."""
    along, *across = operators
    if along is None:
        return apply_operators(values[:, first:last], [None, *across])
    rows = along[first:last]
    start, stop = band(rows)
    return apply_operators(values[:, start:stop], [rows[:, start:stop], *across])


def _check(values: torch.Tensor, trace: Trace) -> None:
    if values.ndim != 4 or len(values) < 1 or tuple(values.shape[1:]) != trace.prepared.shape:
        raise ValueError(
            f"logits: expected (L, {', '.join(map(str, trace.prepared.shape))}), the prepared grid, "
            f"got shape {tuple(values.shape)}. Pass the logits and the trace of the same case."
        )
    if not bool(torch.isfinite(values.sum(dtype=torch.float32))):
        raise ValueError(
            "logits: expected finite numbers, got NaN or infinity. Predict in fp32, or train the network again."
        )
