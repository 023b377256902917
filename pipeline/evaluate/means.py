"""Means over cases and organs, and how sure they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BOOTSTRAP_SAMPLES", "interval_95", "mean_of", "plain", "resampled_means", "spread_of", "statistics"]

BOOTSTRAP_SAMPLES = 10_000

_BATCH = 1_000  # resamples drawn at a time


def statistics(table: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """Statistics of one metric.

    Args:
        table: (cases, organs), NaN where there is no score.
        seed: Seed of the bootstrap.

    Returns:
        ``organs``, a list of ``mean``, ``median``, ``sd``, ``min``, ``max`` and ``interval_95``, and ``overall``:
        ``mean``, the mean of the organs' means, its ``interval_95``, and ``over_cases``, the same as of an organ for
        the cases' means. None where a number is not defined.
    """
    organ_means, case_means = mean_of(table, axis=0), mean_of(table, axis=1)
    by_organ, overall, over_cases = _bootstrap(table, case_means, seed)
    return {
        "organs": [{**spread_of(table[:, n]), "interval_95": interval} for n, interval in enumerate(by_organ)],
        "overall": {
            "mean": plain(mean_of(organ_means, axis=0)),
            "interval_95": overall,
            "over_cases": {**spread_of(case_means), "interval_95": over_cases},
        },
    }


def spread_of(values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean, median, sample standard deviation and range of the finite values."""
    values = values[np.isfinite(values)]
    if not len(values):
        return dict.fromkeys(("mean", "median", "sd", "min", "max"))
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "min": float(values.min()),
        "max": float(values.max()),
    }


def mean_of(table: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean over one axis of the values that are there; NaN where there are none."""
    there = np.isfinite(table)
    return _ratio(np.where(there, table, 0.0).sum(axis=axis), there.sum(axis=axis).astype(np.float64))


def plain(value: NDArray[np.float64] | float) -> float | None:
    """A number for JSON; None if it is not defined."""
    return float(value) if np.isfinite(value) else None


def _case_weights(cases: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(batch, cases): how often each case was drawn in each of a batch of resamples."""
    drawn = generator.integers(cases, size=(_BATCH, cases)) + cases * np.arange(_BATCH)[:, None]
    return np.bincount(drawn.ravel(), minlength=_BATCH * cases).reshape(_BATCH, cases).astype(np.float64)


def interval_95(means: NDArray[np.float64], cases: int) -> list[float] | None:
    """95 % percentile interval of resampled means; None of fewer than two cases."""
    if cases < 2:
        return None
    low, high = np.percentile(means[np.isfinite(means)], [2.5, 97.5])
    return [float(low), float(high)]


def resampled_means(table: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of the columns of a table in every resample of its rows.

    A resample is a weight per case (how often it was drawn), so that all means of a batch are two matrix products.

    Args:
        table: (cases, columns), at least one case, NaN where there is no score.
        seed: Seed of the bootstrap.

    Returns:
        (resamples, columns), NaN where none of the drawn cases has a score.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    generator = np.random.default_rng(seed)
    values, there = np.nan_to_num(table), np.isfinite(table).astype(np.float64)
    batches = []
    for _ in range(BOOTSTRAP_SAMPLES // _BATCH):
        weights = _case_weights(len(table), generator)
        batches.append(_ratio(weights @ values, weights @ there))
    return np.concatenate(batches)


def _ratio(total: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def _bootstrap(
    table: NDArray[np.float64], case_means: NDArray[np.float64], seed: int
) -> tuple[list[list[float] | None], list[float] | None, list[float] | None]:
    """95 % intervals of the organs' means, of their mean and of the mean over cases."""
    cases, organs = table.shape
    if cases == 0:
        return [None] * organs, None, None
    columns = np.column_stack([table, case_means])
    means = resampled_means(columns, seed)
    scored = np.isfinite(columns).sum(axis=0)
    intervals = [interval_95(means[:, n], int(scored[n])) for n in range(organs + 1)]
    overall = interval_95(mean_of(means[:, :organs], axis=1), int(scored[-1]))
    return intervals[:organs], overall, intervals[organs]
