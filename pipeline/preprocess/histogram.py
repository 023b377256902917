"""Histograms of intensities: few numbers whatever the number of cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["intensity_histogram"]

_BINS = 64
_SAME = 1e-6  # relative; float32 holds no finer differences
_BEYOND = 0.15  # of the distance between the limits, shown on either side of them


def intensity_histogram(parts: Sequence[NDArray[np.float32]], low: float, high: float) -> dict[str, Any] | None:
    """Count intensities in bins of equal width between two limits and somewhat beyond.

    Where all intensities are integers, a bin holds the same number of integers as any other: else the counts of CT and
    of 8-bit images would rise and fall for no reason of theirs.

    Args:
        parts: Intensities (N,) of each case; some may be empty.
        low: Lower limit, e.g. the 0.5 percentile of all.
        high: Upper limit.

    Returns:
        ``start`` of the first bin, ``width`` of each, at most 65 ``counts``, and how many lie ``below`` and ``above``;
        None without any intensity.
    """
    filled = [part for part in parts if part.size]
    if not filled:
        return None
    margin = _BEYOND * (high - low)
    start = max(low - margin, min(float(part.min()) for part in filled))
    stop = min(high + margin, max(float(part.max()) for part in filled))
    width = (stop - start) / _BINS
    if stop - start <= _SAME * abs(stop):
        start, stop, width = start - 0.5, stop + 0.5, 2.0  # one bin
    elif all(bool((part == np.rint(part)).all()) for part in filled):
        start, width = math.floor(start) - 0.5, float(max(1, math.ceil((stop - start) / _BINS)))
    bins = max(1, math.ceil((stop - start) / width - 1e-9))
    counts = np.zeros(bins + 2, np.int64)
    for part in filled:
        places = np.floor((part.astype(np.float64) - start) / width).clip(-1, bins)
        places[part == stop] = bins - 1  # the last bin holds its upper edge
        counts += np.bincount(places.astype(np.int64) + 1, minlength=bins + 2)
    found = counts.tolist()
    return {"start": start, "width": width, "counts": found[1:-1], "below": found[0], "above": found[-1]}
