"""Contours → pixels, by the even-odd rule: a contour within another one is a hole, one within that an island."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import Box

_SNAP = 1e-3  # of a pixel: coordinates are rounded, and programs draw through the centres of pixels
_ROUNDING = 1e-6


def filled(contours: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> tuple[Box, NDArray[np.bool_]]:
    """Pixels whose centres lie within an odd number of contours, or on the line of one.

    Args:
        contours: Corners (points, 2) of each, as x (along columns) and y (along rows) in pixels; the last one is joined
            with the first.
        shape: Rows and columns.

    Returns:
        A box of the picture, and the pixels of that box; outside there are none.

    Raises:
        ValueError: If the contours cross the rows more often than there are pixels.
    """
    rounded = [np.where(np.abs(c - np.rint(c)) < _SNAP, np.rint(c), c) for c in contours if len(c)]
    empty = Box((0, 0), (0, 0)), np.zeros((0, 0), np.bool_)
    if not rounded:
        return empty
    every = np.concatenate(rounded)
    low, high = np.ceil(every.min(axis=0)), np.floor(every.max(axis=0)) + 1
    x0, y0 = (int(np.clip(n, 0, size)) for n, size in zip(low, shape[::-1], strict=True))
    x1, y1 = (int(np.clip(n, 0, size)) for n, size in zip(high, shape[::-1], strict=True))
    if x0 >= x1 or y0 >= y1:
        return empty
    start = np.concatenate([c - (x0, y0) for c in rounded])
    end = np.concatenate([np.roll(c, -1, axis=0) - (x0, y0) for c in rounded])
    return Box((y0, x0), (y1, x1)), _inside(start, end, y1 - y0, x1 - x0)


def _inside(start: NDArray[np.float64], end: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.bool_]:
    """Pixels (rows, columns) within closed lines of edges from ``start`` to ``end``, both (edges, 2)."""
    (xa, ya), (xb, yb) = start.T, end.T
    low, high = np.minimum(ya, yb), np.maximum(ya, yb)
    # An edge crosses the rows from its lower end on, and not that of its upper end: at a corner one of the two counts.
    first = np.clip(np.ceil(low), 0, rows).astype(np.int64)
    count = np.maximum(np.clip(np.ceil(high), 0, rows).astype(np.int64) - first, 0)
    total = int(count.sum())
    if total > 2 * rows * (columns + 1):
        raise ValueError("contours: expected fewer crossings than pixels, got more. Export the structures again.")
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(total) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    x = xa[edge] + (row - ya[edge]) * (xb[edge] - xa[edge]) / (yb[edge] - ya[edge])
    # From a crossing on, all pixels of the row change sides.
    column = np.clip(np.ceil(x - _ROUNDING), 0, columns).astype(np.int64)
    crossings = np.bincount(row * (columns + 1) + column, minlength=rows * (columns + 1))
    inside = (np.cumsum(crossings.reshape(rows, columns + 1), axis=1)[:, :columns] % 2).astype(np.bool_)
    nearest = np.rint(x).astype(np.int64)
    on_line = (np.abs(x - nearest) <= _ROUNDING) & (nearest >= 0) & (nearest < columns)
    inside[row[on_line], nearest[on_line]] = True
    _mark_level(inside, start, end)
    return inside


def _mark_level(inside: NDArray[np.bool_], start: NDArray[np.float64], end: NDArray[np.float64]) -> None:
    """Add the pixels on edges along a row, and on the upper ends of others, which cross no row there."""
    rows, columns = inside.shape
    level = (start[:, 1] == end[:, 1]) & (start[:, 1] == np.rint(start[:, 1]))
    level &= (start[:, 1] >= 0) & (start[:, 1] < rows)
    for (xa, y), (xb, _) in zip(start[level], end[level], strict=True):
        left, right = int(np.ceil(min(xa, xb) - _ROUNDING)), int(np.floor(max(xa, xb) + _ROUNDING))
        inside[int(y), max(left, 0) : max(right + 1, 0)] = True
    corner = (start == np.rint(start)).all(axis=1) & (start >= 0).all(axis=1) & (start < (columns, rows)).all(axis=1)
    x, y = start[corner].astype(np.int64).T
    inside[y, x] = True
