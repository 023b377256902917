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

__all__ = ["restore_average", "restore_labels"]

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
    labels, turned = _empty(trace, classes)
    crop = turned[tuple(slice(a, b) for a, b in zip(trace.crop_start, trace.crop_stop, strict=True))]
    operators = resize_operators(trace.prepared.shape, crop.shape, order=1)
    plane_bytes = 4 * len(values) * crop.shape[1] * crop.shape[2]
    planes = max(1, slab_bytes // plane_bytes)
    for first in range(0, crop.shape[0], planes):
        slab = _slab(values, operators, first, min(first + planes, crop.shape[0]))
        crop[first : first + planes] = decode(slab, painting).cpu().numpy()
    return labels


def restore_average(
    parts: Sequence[tuple[torch.Tensor, Trace]],
    slab_bytes: int = _SLAB_BYTES,
    *,
    painting: Sequence[PaintingStep] = (),
) -> NDArray[np.unsignedinteger[Any]]:
    """Average the probabilities of several models on the input's grid and decide for the class of every voxel.

    The models may have prepared the input on different grids: it is on its own grid that their logits meet, slab by
    slab. They become probabilities before they are averaged, because logits of different networks differ in scale.

    Args:
        parts: For each model its logits (L, i, j, k) on ``trace.prepared``, finite, all on one device; and the trace.
        slab_bytes: Memory for full-size probabilities of one model; one plane of voxels is the least that is taken.
        painting: As for :func:`restore_labels`.

    Returns:
        As :func:`restore_labels`. A model that cropped a voxel away is sure that it is background.

    Raises:
        ValueError: If logits do not fit their trace or are not finite, or the traces are not of one source and
            orientation.
    """
    trace = parts[0][1]
    for values, other in parts:
        _check(values, other)
        if (other.source.shape, other.orientation, len(values)) != (
            trace.source.shape,
            trace.orientation,
            len(parts[0][0]),
        ):
            raise ValueError("models: expected one image, orientation and label table, got several. Choose others.")
    classes = 1 + max(painted for _, painted in painting) if painting else len(parts[0][0])
    labels, turned = _empty(trace, classes)
    shape = turned.shape
    planes = max(1, slab_bytes // (4 * len(parts[0][0]) * shape[1] * shape[2]))
    for first in range(0, shape[0], planes):
        last = min(first + planes, shape[0])
        mean = sum(_probabilities(values, other, (first, last), not painting) for values, other in parts)
        mean = torch.as_tensor(mean).div_(len(parts))
        turned[first:last] = decode(mean.sub_(0.5) if painting else mean, painting).cpu().numpy()
    return labels


def _probabilities(values: torch.Tensor, trace: Trace, planes: tuple[int, int], shared: bool) -> torch.Tensor:
    """Probabilities (L, last - first, J, K) of some planes of the turned source; ``shared``: by a softmax."""
    (first, last), shape = planes, trace.reoriented.shape
    result = values.new_zeros((len(values), last - first, *shape[1:]), dtype=torch.float32)
    if shared:
        result[0] = 1.0
    (start, *low), (stop, *high) = trace.crop_start, trace.crop_stop
    begin, end = max(first, start), min(last, stop)
    if begin < end:
        operators = resize_operators(trace.prepared.shape, trace.cropped.shape, order=1)
        slab = _slab(values, operators, begin - start, end - start)
        inside = (slice(begin - first, end - first), *(slice(a, b) for a, b in zip(low, high, strict=True)))
        result[(slice(None), *inside)] = torch.softmax(slab, dim=0) if shared else torch.sigmoid(slab)
    return result


def _empty(trace: Trace, classes: int) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.unsignedinteger[Any]]]:
    """Background on the source's grid, and a view of it in the orientation of the trace: writing there fills it."""
    labels = np.zeros(trace.source.shape, dtype=np.uint8 if classes <= 256 else np.uint16)
    return labels, reorient_array(labels, trace.source.orientation, trace.orientation)


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
