"""Resampling of label maps: a vote between the values, one value in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.preprocess.operators import apply_operators, band, resize_operator

__all__ = ["resample_labels"]

_Integer = TypeVar("_Integer", bound=np.integer[Any])

_TIE = 1e-6  # votes closer than this count as equal, so that rounding never decides between classes


@overload
def resample_labels(
    label: NDArray[_Integer], shape: Sequence[int], orders: Sequence[Literal[0, 1]] = ...
) -> NDArray[_Integer]: ...
@overload
def resample_labels(
    label: torch.Tensor, shape: Sequence[int], orders: Sequence[Literal[0, 1]] = ...
) -> torch.Tensor: ...
def resample_labels(
    label: NDArray[_Integer] | torch.Tensor, shape: Sequence[int], orders: Sequence[Literal[0, 1]] = (1, 1, 1)
) -> NDArray[_Integer] | torch.Tensor:
    """Resample a label map over the same field of view: every value is interpolated linearly, the largest vote wins.

    Only one value is interpolated at a time, and only inside its bounding box.

    Args:
        label: (I, J, K), integers of any sign, NumPy or torch.
        shape: Voxels wanted along i, j, k.
        orders: Spline order along each axis; 0 takes the nearest slice.

    Returns:
        ``shape``, of the same kind and type, a tensor on its device; ties go to the lower value. The input itself if
        the shapes agree.

    Raises:
        ValueError: If a size is below 1.
    """
    target = (int(shape[0]), int(shape[1]), int(shape[2]))
    if tuple(label.shape) == target:
        return label
    if isinstance(label, np.ndarray):
        winner = _winners(torch.from_numpy(label.astype(np.int32)), target, orders)
        return winner.numpy().astype(label.dtype)
    return _winners(label.to(torch.int32), target, orders).to(label.dtype)


def _winners(label: torch.Tensor, target: tuple[int, int, int], orders: Sequence[Literal[0, 1]]) -> torch.Tensor:
    best = torch.zeros(target, device=label.device)
    winner = torch.full(target, int(label.min()), dtype=label.dtype, device=label.device)
    for value, box in _boxes(label):
        where, operators = [], []
        for part, n_in, n_out, order in zip(box, label.shape, target, orders, strict=True):
            columns = resize_operator(n_in, n_out, order)[:, part]
            start, stop = band(columns.T)
            where.append(slice(start, stop))
            operators.append(columns[start:stop])
        votes = apply_operators((label[box] == value)[None], operators)[0]
        there = tuple(where)
        better = votes > best[there] + _TIE
        best[there] = torch.where(better, votes, best[there])
        winner[there] = winner[there].masked_fill_(better, value)
    return winner


def _boxes(label: torch.Tensor) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """The values that occur, the lowest first, and the box that holds each."""
    if label.device.type != "cpu":
        yield from _boxes_on_device(label)
        return
    lowest = int(label.min())
    for value, box in enumerate(find_objects(label.numpy() - (lowest - 1)), start=lowest):
        if box is not None:
            yield value, box


def _boxes_on_device(label: torch.Tensor) -> Iterator[tuple[int, tuple[slice, ...]]]:
    for value in torch.unique(label).tolist():
        mask = label == value
        used = [torch.nonzero(mask.any(dim=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        yield value, tuple(slice(int(places[0]), int(places[-1]) + 1) for places in used)
