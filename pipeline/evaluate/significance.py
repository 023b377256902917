"""Models on the same cases: the differences case by case, and how sure their order is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics import Metric, Row
from pipeline.evaluate.summary import (
    interval_95,
    mean_of,
    mean_over_organs,
    measured_metrics,
    resampled_means,
    score_table,
)

ALL_ORGANS = "all organs"
"""Name of the comparison of the cases' means over their organs."""

Interval = tuple[float, float] | None
"""95 % percentile bootstrap interval over cases; None of fewer than two."""

_EQUAL = 1e-9  # differences below this are rounding

Scores = Mapping[str, Sequence[Row]]
"""Model → its rows; all models have the same cases and organs."""


@dataclass(frozen=True)
class PairedDifference:
    """Differences (one - other) of one score between two models: mean, interval, cases in which the one is higher.

    The mean is None without a case that both have.
    """

    mean: float | None
    interval_95: Interval
    better: int
    equal: int
    worse: int


@dataclass(frozen=True)
class PairedTest:
    """One score of one organ (or :data:`ALL_ORGANS`), between two models.

    Args:
        metric: Column of the score.
        organ: Name of the organ.
        one: First model.
        other: Second model.
        cases: Cases that both have a score for.
        difference: Mean of (one - other); better means higher for shares and lower for distances and errors.
        interval_95: Its interval.
        wins: Cases in which the one is better; likewise ties and losses.
        p: Two-sided p of Wilcoxon's signed-rank test; 1 if all are equal, None without two cases.
        p_holm: The same, corrected for all tests of the metric.
    """

    metric: str
    organ: str
    one: str
    other: str
    cases: int
    difference: float | None
    interval_95: Interval
    wins: int
    ties: int
    losses: int
    p: float | None
    p_holm: float | None = None


@dataclass(frozen=True)
class Ranking:
    """How models rank by one metric, and how often the order would be another with other cases.

    Args:
        metric: Column of the score.
        models: Names, best first.
        means: Mean over organs of the means over cases.
        shares: Of each model, in how many of the resamples it takes each place, best place first.
        same_order: In how many of the resamples the whole order is the same.
    """

    metric: str
    models: tuple[str, ...]
    means: tuple[float, ...]
    shares: tuple[tuple[float, ...], ...]
    same_order: float


def paired_difference(
    one: Mapping[str, float | None], other: Mapping[str, float | None], seed: int = 0
) -> PairedDifference:
    """Compare two models, each case id → score or None, on the cases that both have a score for."""
    both = [(a, b) for case, a in one.items() if a is not None and (b := other.get(case)) is not None]
    apart = np.array([a - b for a, b in both], dtype=np.float64)
    return _difference(apart, _intervals(apart[:, None], seed)[0])


def paired_tests(scores: Scores, seed: int = 0) -> tuple[PairedTest, ...]:
    """Compare every pair of models by every metric, organ by organ and over the cases' means.

    Reference: Wilcoxon, Individual comparisons by ranking methods, 1945; Holm, A simple sequentially rejective
    multiple test procedure, 1979.
    """
    cases, organs = _cases_and_organs(scores)
    models = list(scores)
    tests: list[PairedTest] = []
    for metric in measured_metrics([row for rows in scores.values() for row in rows]):
        tables = {model: score_table(rows, cases, organs, metric.column) for model, rows in scores.items()}
        columns = {model: np.column_stack([table, mean_of(table, axis=1)]) for model, table in tables.items()}
        found: list[PairedTest] = []
        for one, other in combinations(models, 2):
            apart = columns[one] - columns[other]
            intervals = _intervals(apart, seed)
            for n, organ in enumerate([*organs, ALL_ORGANS]):
                found.append(_test(metric, organ, (one, other), apart[:, n], intervals[n]))
        # The tests of one metric are one family: organs and pairs of models together.
        corrected = holm([test.p for test in found])
        tests += [replace(test, p_holm=p) for test, p in zip(found, corrected, strict=True)]
    return tuple(tests)


def rankings(scores: Scores, seed: int = 0) -> tuple[Ranking, ...]:
    """Rank models by the overall mean of every metric, and again in every resample, the same for all models."""
    cases, organs = _cases_and_organs(scores)
    found = []
    for metric in measured_metrics([row for rows in scores.values() for row in rows]):
        # Ranks are those of ascending numbers, so that the best has to be the smallest.
        sign = -1.0 if metric.higher else 1.0
        tables = [score_table(rows, cases, organs, metric.column) for rows in scores.values()]
        means = np.array([mean_over_organs(table) for table in tables])
        # A model without a number for this metric cannot be ranked by it.
        if not np.isfinite(means).all():
            continue
        resampled = np.stack([mean_of(resampled_means(table, seed), axis=1) for table in tables], axis=1)
        order = np.argsort(sign * means, kind="stable")
        places = np.argsort(np.argsort(sign * resampled, axis=1, kind="stable"), axis=1)[:, order]
        shares = [[float((places[:, n] == place).mean()) for place in range(len(order))] for n in range(len(order))]
        names = tuple(list(scores)[n] for n in order)
        same = float((places == np.arange(len(order))).all(axis=1).mean())
        found.append(Ranking(metric.column, names, tuple(means[order].tolist()), tuple(map(tuple, shares)), same))
    return tuple(found)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Correct p values for their number, step by step from the smallest; None stays None and does not count."""
    known = sorted((value, place) for place, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - rank)))
        corrected[place] = largest
    return corrected


def _test(
    metric: Metric, organ: str, models: tuple[str, str], apart: NDArray[np.float64], interval: Interval
) -> PairedTest:
    apart = apart[np.isfinite(apart)]
    found = _difference(apart, interval)
    wins, losses = (found.better, found.worse) if metric.higher else (found.worse, found.better)
    p = None
    if len(apart) > 1:
        from scipy.stats import wilcoxon  # here: it takes a second to load, and no other command needs it

        # Differences that are rounding become none: the test would rank them.
        settled = np.where(np.abs(apart) > _EQUAL, apart, 0.0)
        p = float(wilcoxon(settled).pvalue) if settled.any() else 1.0
    return PairedTest(metric.column, organ, *models, len(apart), found.mean, interval, wins, found.equal, losses, p)


def _difference(apart: NDArray[np.float64], interval: Interval) -> PairedDifference:
    better, worse = int((apart > _EQUAL).sum()), int((apart < -_EQUAL).sum())
    mean = float(apart.mean()) if len(apart) else None
    return PairedDifference(mean, interval, better, len(apart) - better - worse, worse)


def _intervals(apart: NDArray[np.float64], seed: int) -> list[Interval]:
    """Bootstrap intervals of the means of the columns of a table of differences."""
    if not len(apart):
        return [None] * apart.shape[1]
    means, scored = resampled_means(apart, seed), np.isfinite(apart).sum(axis=0)
    found = [interval_95(means[:, n], int(count)) for n, count in enumerate(scored)]
    return [None if interval is None else (interval[0], interval[1]) for interval in found]


def _cases_and_organs(scores: Scores) -> tuple[list[str], list[str]]:
    rows = [row for found in scores.values() for row in found]
    return sorted({row.case for row in rows}), list(dict.fromkeys(row.name for row in rows))
