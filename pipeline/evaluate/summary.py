"""Statistics over the rows of an evaluation, with the conventions they follow written beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.means import BOOTSTRAP_SAMPLES, mean_of, plain, spread_of, statistics
from pipeline.evaluate.measures import OVERLAP_ONLY, Measures
from pipeline.evaluate.metrics import METRICS, Metric
from pipeline.evaluate.rows import STATUSES, Row, label_entry

__all__ = ["CONVENTIONS", "measured_metrics", "score_table", "summarize"]

CONVENTIONS: tuple[str, ...] = OVERLAP_ONLY.conventions()
"""The conventions of overlap, volumes and statistics; what else is measured adds its own."""

_WORST = 10
_LIMITS = 1.96  # standard deviations on either side of the bias that hold 95 % of the differences


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
            table[case_index[row.case], organ_index[row.name]] = row.penalised(column)
    return table


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    """Rows that enter the means, and rows of each status; unusable predictions count only where the organ exists."""
    counts = {f"n_{status}": 0 for status in STATUSES}
    for row in rows:
        if row.counts or row.status == "true_negative":
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
    bias = spread_of(np.array([row.volume_bias_ml for row in rows]))
    percent = spread_of(np.array([row.volume_bias_percent for row in rows]))
    mean, sd = bias["mean"], bias["sd"]
    limits = None if mean is None or sd is None else [mean - _LIMITS * sd, mean + _LIMITS * sd]
    return {
        "n": len(rows),
        "reference_ml": spread_of(np.array([row.volume_reference_ml for row in rows]))["mean"],
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
