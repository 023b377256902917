"""How sure a mean is: 95 % intervals over cases and over seeds, and the difference between two tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy.stats import t

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """A mean with its SD and 95 % interval; SD and interval are NaN for a single value."""

    mean: float
    sd: float
    low: float
    high: float


def over_cases(values: Sequence[float]) -> Spread:
    """Mean over cases; the interval holds the means of 10,000 samples drawn from them with replacement.

    NaN, a structure that is in neither mask, counts nowhere.
    """
    known = np.array([value for value in values if not np.isnan(value)])
    if len(known) < 2:
        return Spread(float(known[0]) if len(known) else float("nan"), *[float("nan")] * 3)
    chosen = np.random.default_rng(0).integers(len(known), size=(RESAMPLES, len(known)))
    low, high = np.quantile(known[chosen].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Spread(float(known.mean()), float(known.std(ddof=1)), float(low), float(high))


def over_seeds(values: Sequence[float]) -> Spread:
    """Mean over trainings that differ in their seed alone; the interval is Student's, wide for few of them."""
    if len(values) < 2:
        return Spread(values[0] if values else float("nan"), *[float("nan")] * 3)
    mean, sd = fmean(values), stdev(values)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * sd / len(values) ** 0.5
    return Spread(mean, sd, mean - half, mean + half)
