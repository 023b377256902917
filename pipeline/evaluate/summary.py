"""Statistics over the rows of an evaluation: means over cases and organs, how sure they are, and those of subgroups.

All means are over organs of each organ's mean over cases, so that every organ weighs the same. How a missed organ
enters them is decided in :mod:`pipeline.evaluate.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.core.paths import composed
from pipeline.core.tables import read_csv
from pipeline.evaluate.metrics import METRICS, OVERLAP_ONLY, STATUSES, Measures, Metric, Row, label_entry

BOOTSTRAP_SAMPLES = 10_000

_BATCH = 1_000  # resamples drawn at a time
_WORST = 10
_LIMITS = 1.96  # standard deviations on either side of the bias that hold 95 % of the differences


def organ_means(cases: Iterable[Mapping[str, float | None]]) -> tuple[float | None, dict[str, float | None]]:
    """Mean over organs of each organ's mean over cases.

    Args:
        cases: Organ → score of each case, all with the same organs; None where a case has no score of an organ.

    Returns:
        The mean over organs, and that of each organ over its cases; None where there is nothing to average. Sums are
        exact, so that the order of the cases does not matter.
    """
    rows = list(cases)
    means = {organ: mean_there([row[organ] for row in rows]) for organ in (rows[0] if rows else ())}
    return mean_there(list(means.values())), means


def mean_there(values: Sequence[float | None]) -> float | None:
    """Exact mean of the values that are there; None if there are none."""
    there = [value for value in values if value is not None]
    return fsum(there) / len(there) if there else None


def summarize(rows: Sequence[Row], seed: int = 0, measures: Measures = OVERLAP_ONLY) -> dict[str, Any]:
    """Statistics per organ and overall.

    Args:
        rows: One per case and target, any order.
        seed: Seed of the bootstrap.
        measures: What was measured, for the conventions.

    Returns:
        Plain values for JSON, None where a number is not defined: ``overall`` (``n`` scored rows, ``n_cases``,
        ``n_organs``, a count per status; ``dice``, ``iou`` and every other metric with ``mean``, the mean of the
        organs' means, ``interval_95``, and ``over_cases``, the distribution of the cases' means), ``organs`` (the same
        per organ name: ``mean``, ``median``, ``sd``, ``min``, ``max``, ``interval_95``; ``volume`` with the bias and
        its limits of agreement), ``cases`` (mean Dice and worst organ, worst case first), ``worst_cases`` (the first
        ten ids) and ``conventions``. Of distances, the diagonal of the image stands for infinity; ``where_found`` has
        the number and mean of those that are finite. No rows give counts of 0 and empty lists.
    """
    cases = sorted({row.case for row in rows})
    organs = {name: label for label, name in sorted({(row.label, row.name) for row in rows})}
    metrics = measured_metrics(rows)
    tables = {metric.column: score_table(rows, cases, list(organs), metric.column) for metric in metrics}
    found = {column: statistics(table, seed) for column, table in tables.items()}
    by_organ = {name: [row for row in rows if row.name == name] for name in organs}
    by_case = _cases(cases, list(organs), tables["dice"])
    return {
        "overall": {
            "n_cases": len(cases),
            "n_organs": len(organs),
            **_counts(rows),
            **{metric.column: found[metric.column]["overall"] | _where_found(rows, metric) for metric in metrics},
        },
        "organs": {
            name: {
                "label": label_entry(label),
                **_counts(by_organ[name]),
                **{
                    metric.column: found[metric.column]["organs"][index] | _where_found(by_organ[name], metric)
                    for metric in metrics
                },
                "volume": _agreement([row for row in by_organ[name] if row.counts]),
            }
            for index, (name, label) in enumerate(organs.items())
        },
        "cases": by_case,
        "worst_cases": [entry["case"] for entry in by_case if entry["dice"] is not None][:_WORST],
        "bootstrap": {"samples": BOOTSTRAP_SAMPLES, "seed": seed, "unit": "case", "level": 0.95},
        "conventions": list(measures.conventions()),
    }


def measured_metrics(rows: Sequence[Row]) -> list[Metric]:
    """Dice, IoU and every other metric that some row has, in the order of the columns."""
    columns = {"dice", "iou"}.union(*(row.more for row in rows))
    return [metric for metric in METRICS.values() if metric.column in columns]


def score_table(rows: Sequence[Row], cases: Sequence[str], organs: Sequence[str], column: str) -> NDArray[np.float64]:
    """(cases, organs) of one column, the image's diagonal for infinite distances, NaN where there is no score."""
    case_index = {case: index for index, case in enumerate(cases)}
    organ_index = {organ: index for index, organ in enumerate(organs)}
    table = np.full((len(cases), len(organs)), np.nan)
    for row in rows:
        if row.case in case_index and row.name in organ_index:
            table[case_index[row.case], organ_index[row.name]] = row.entry(column)
    return table


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    """Rows that enter the means, and rows of each status; unusable predictions count only where the organ exists."""
    counts = {f"n_{status}": 0 for status in STATUSES}
    for row in rows:
        if not row.absent or row.status == "true_negative":
            counts[f"n_{row.status}"] += 1
    return {"n": sum(row.counts for row in rows), **counts}


def _where_found(rows: Sequence[Row], metric: Metric) -> dict[str, Any]:
    """How many distances are finite, and their mean: no score, since an organ that is missed leaves it."""
    if not metric.is_distance:
        return {}
    values = np.array([row.value(metric.column) for row in rows])
    finite = values[np.isfinite(values)]
    return {"where_found": {"n": len(finite), "mean": float(finite.mean()) if len(finite) else None}}


def _agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """Bias of the volume and the limits within which 95 % of the differences lie.

    Reference: Bland and Altman, Statistical methods for assessing agreement, Lancet 1986.
    """
    bias = distribution_of(np.array([row.volume_bias_ml for row in rows]))
    percent = distribution_of(np.array([row.volume_bias_percent for row in rows]))
    mean, sd = bias["mean"], bias["sd"]
    limits = None if mean is None or sd is None else [mean - _LIMITS * sd, mean + _LIMITS * sd]
    return {
        "n": len(rows),
        "reference_ml": distribution_of(np.array([row.volume_reference_ml for row in rows]))["mean"],
        "bias_ml": mean,
        "sd_ml": sd,
        "limits_of_agreement_ml": limits,
        "bias_percent": percent["mean"],
    }


def _cases(cases: Sequence[str], organs: Sequence[str], table: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Mean Dice and worst organ of every case, worst case first, cases without a score last."""
    found = []
    for case, scores, mean in zip(cases, table, mean_of(table, axis=1), strict=True):
        scored = np.isfinite(scores).any()
        worst = int(np.nanargmin(scores)) if scored else None
        found.append(
            {
                "case": case,
                "dice": plain(mean),
                "worst_organ": None if worst is None else organs[worst],
                "worst_dice": None if worst is None else float(scores[worst]),
            }
        )
    return sorted(found, key=lambda entry: (entry["dice"] is None, entry["dice"] or 0.0, entry["case"]))


# How sure the means are. The bootstrap draws whole cases, since the scores of the organs of one case hang together.


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
    case_means = mean_of(table, axis=1)
    by_organ, overall, over_cases = _bootstrap(table, case_means, seed)
    return {
        "organs": [{**distribution_of(table[:, n]), "interval_95": interval} for n, interval in enumerate(by_organ)],
        "overall": {
            "mean": plain(mean_over_organs(table)),
            "interval_95": overall,
            "over_cases": {**distribution_of(case_means), "interval_95": over_cases},
        },
    }


def distribution_of(values: NDArray[np.float64]) -> dict[str, float | None]:
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


def mean_over_organs(table: NDArray[np.float64]) -> float:
    """What :func:`organ_means` gives, of a table (cases, organs) with NaN where there is no score."""
    return float(mean_of(mean_of(table, axis=0), axis=0))


def plain(value: NDArray[np.float64] | float) -> float | None:
    """A number for JSON; None if it is not defined."""
    return float(value) if np.isfinite(value) else None


def _case_weights(cases: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(batch, cases): how often each case was drawn in each of a batch of resamples."""
    # A row of drawn cases becomes counts per case; shifting each row lets one bincount do a whole batch.
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
    # The means over cases are drawn with the organs, as one column more: all intervals come from the same resamples.
    columns = np.column_stack([table, case_means])
    means = resampled_means(columns, seed)
    scored = np.isfinite(columns).sum(axis=0)
    intervals = [interval_95(means[:, n], int(scored[n])) for n in range(organs + 1)]
    overall = interval_95(mean_of(means[:, :organs], axis=1), int(scored[-1]))
    return intervals[:organs], overall, intervals[organs]


# Subgroups: scores by what is known about the cases, such as scanner, sex or site.

UNKNOWN = "(unknown)"
"""Group of the cases that the metadata do not mention, or have nothing written for."""

_MOST = 12  # different values up to which a column is taken for one of groups

Metadata = Mapping[str, Mapping[str, str]]


def read_metadata(path: Path) -> dict[str, dict[str, str]]:
    """Read what is known about cases.

    Args:
        path: CSV file with the column ``case``; names of columns are taken in lower case.

    Returns:
        Case id → column → value.

    Raises:
        DataError: If it is no such file, or has two lines of one case.
    """
    found: dict[str, dict[str, str]] = {}
    for row in read_csv(path, required=("case",)):
        case = composed(row.pop("case"))
        if case in found:
            raise DataError(sentence("metadata", "one line per case", "two", "Remove one", case=case, file=path))
        found[case] = row
    return found


def summarize_subgroups(
    rows: Sequence[Row], metadata: Metadata, by: Sequence[str] = (), seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Overall means of every group of cases.

    Args:
        rows: One per case and target.
        metadata: Case id → column → value.
        by: Columns; by default those of 2 to 12 different values.
        seed: Seed of the bootstrap.

    Returns:
        Column → value → ``n_cases`` and every metric's ``mean`` (of the organs' means) and ``interval_95``.

    Raises:
        VolsegError: If there is no such column, or none of the metadata's cases was scored.
    """
    cases = sorted({row.case for row in rows})
    if not any(case in metadata for case in cases):
        rule, got = f"case ids of the scores ({', '.join(cases[:3])})", ", ".join(list(metadata)[:3]) or "none"
        raise VolsegError(sentence("metadata", rule, got, "Correct the column case"))
    known = list(dict.fromkeys(column for entry in metadata.values() for column in entry))
    wrong = [column for column in by if column.lower() not in known]
    if wrong:
        raise VolsegError(
            sentence("--by", f"columns of the metadata ({', '.join(known)})", ", ".join(wrong), "Check the spelling")
        )
    groups = {column: _groups(cases, metadata, column) for column in ([name.lower() for name in by] or known)}
    chosen = {column: found for column, found in groups.items() if by or 2 <= len(found) <= _MOST}
    return {
        column: {value: _group(rows, members, seed) for value, members in sorted(found.items())}
        for column, found in chosen.items()
    }


def _groups(cases: Sequence[str], metadata: Metadata, column: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(metadata.get(case, {}).get(column, "") or UNKNOWN, []).append(case)
    return groups


def _group(rows: Sequence[Row], members: Sequence[str], seed: int) -> dict[str, Any]:
    inside = [row for row in rows if row.case in set(members)]
    organs = list(dict.fromkeys(row.name for row in inside))
    found: dict[str, Any] = {"n_cases": len(members)}
    for metric in measured_metrics(inside):
        table = score_table(inside, members, organs, metric.column)
        scored = statistics(table[:, np.isfinite(table).any(axis=0)], seed)["overall"]
        found[metric.column] = {"mean": scored["mean"], "interval_95": scored["interval_95"]}
    return found
