"""Two models on the same cases: the differences case by case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.evaluate.summary import BOOTSTRAP_SAMPLES

__all__ = ["PairedDifference", "paired_difference"]

_BATCH = 1_000  # resamples drawn at a time
_EQUAL = 1e-9


@dataclass(frozen=True)
class PairedDifference:
    """Differences of one score between two models.

    Args:
        mean: Mean over cases of (one - other); None without a case that both have.
        interval_95: 95 % percentile bootstrap interval of it over cases; None with fewer than two.
        better: Cases in which the one is higher.
        equal: Cases in which they are equal.
        worse: Cases in which the one is lower.
    """

    mean: float | None
    interval_95: tuple[float, float] | None
    better: int
    equal: int
    worse: int


def paired_difference(
    one: Mapping[str, float | None], other: Mapping[str, float | None], seed: int = 0
) -> PairedDifference:
    """Compare two models on the cases that both have a score for.

    Args:
        one: Case id → score, None where there is none.
        other: The same of the other model.
        seed: Seed of the bootstrap.
    """
    both = [(a, b) for case, a in one.items() if a is not None and (b := other.get(case)) is not None]
    difference = np.array([a - b for a, b in both], dtype=np.float64)
    better, worse = int((difference > _EQUAL).sum()), int((difference < -_EQUAL).sum())
    interval = None
    if len(difference) > 1:
        generator = np.random.default_rng(seed)
        size = (_BATCH, len(difference))
        draws = (difference[generator.integers(len(difference), size=size)] for _ in range(BOOTSTRAP_SAMPLES // _BATCH))
        low, high = np.percentile(np.concatenate([drawn.mean(axis=1) for drawn in draws]), [2.5, 97.5])
        interval = (float(low), float(high))
    mean = float(difference.mean()) if len(difference) else None
    return PairedDifference(mean, interval, better, len(difference) - better - worse, worse)
