"""Statistics over the rows of an evaluation, with the conventions they follow written beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.rows import STATUSES, Row, label_entry

__all__ = ["BOOTSTRAP_SAMPLES", "CONVENTIONS", "TABLE_COLUMNS", "summarize", "table_rows"]

BOOTSTRAP_SAMPLES = 10_000
CONVENTIONS: tuple[str, ...] = (
    "Dice = 2 |R ∩ P| / (|R| + |P|) and IoU = |R ∩ P| / |R ∪ P|, from voxel counts, one organ at a time. A region, as "
    "organs that overlap are called, is an organ here: the union of its label values.",
    "An organ that is in the reference but not in the prediction (missed) scores 0.",
    "An organ that is in the prediction but not in the reference (hallucinated) scores 0.",
    "An organ that is in neither (true negative) has no score and enters no mean; such cases are counted.",
    "A case without a prediction file, or with one that cannot be used (failed), scores 0 for every organ in its "
    "reference.",
    "Voxels that carry the ignore label in the reference are left out of every count and volume.",
    "Mean foreground Dice is the mean over organs of each organ's mean over cases, so that every organ weighs the "
    "same. The mean over cases, of each case's mean over its organs, is given beside it.",
    f"Intervals are 95 % percentile bootstrap intervals: {BOOTSTRAP_SAMPLES} resamples of whole cases, seeded. One "
    "case alone has no interval.",
    "SD is the sample standard deviation (n - 1).",
)

TABLE_COLUMNS: tuple[str, ...] = (
    "Organ",
    "Cases",
    "Dice",
    "95 % interval",
    "Median",
    "SD",
    "Min",
    "IoU",
    "Missed",
    "Hallucinated",
)

_METRICS = ("dice", "iou")
_WORST = 10
_BATCH = 1_000  # resamples drawn at a time
_DASH = "–"


def summarize(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Statistics per organ and overall.

    Args:
        rows: One per case and target, any order.
        seed: Seed of the bootstrap.

    Returns:
        Plain values for JSON, None where a number is not defined: ``overall`` (``n`` scored rows, ``n_cases``,
        ``n_organs``, a count per status; ``dice`` and ``iou`` with ``mean``, the mean of the organs' means,
        ``interval_95``, and ``over_cases``, the distribution of the cases' means), ``organs`` (the same per organ name:
        ``mean``, ``median``, ``sd``, ``min``, ``interval_95``), ``cases`` (mean Dice and worst organ, worst case
        first), ``worst_cases`` (the first ten ids) and ``conventions``. No rows give counts of 0 and empty lists.
    """
    cases = sorted({row.case for row in rows})
    organs = {name: label for label, name in sorted({(row.label, row.name) for row in rows})}
    tables = {metric: _table(rows, cases, list(organs), metric) for metric in _METRICS}
    statistics = {metric: _statistics(table, seed) for metric, table in tables.items()}
    by_case = _cases(cases, list(organs), tables["dice"])
    return {
        "overall": {
            "n_cases": len(cases),
            "n_organs": len(organs),
            **_counts(rows),
            **{metric: found["overall"] for metric, found in statistics.items()},
        },
        "organs": {
            name: {
                "label": label_entry(label),
                **_counts([row for row in rows if row.name == name]),
                **{metric: found["organs"][index] for metric, found in statistics.items()},
            }
            for index, (name, label) in enumerate(organs.items())
        },
        "cases": by_case,
        "worst_cases": [entry["case"] for entry in by_case if entry["dice"] is not None][:_WORST],
        "bootstrap": {"samples": BOOTSTRAP_SAMPLES, "seed": seed, "unit": "case", "level": 0.95},
        "conventions": list(CONVENTIONS),
    }


def table_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Cells of the per-organ table, one tuple per scored organ and a last one for all; see :data:`TABLE_COLUMNS`.

    Args:
        summary: What :func:`summarize` returned.

    Returns:
        Text, ready to print. ``Cases`` counts those that enter the mean; misses include missing and failed predictions.
    """
    lines = [_table_line(name, entry, entry["dice"]) for name, entry in summary["organs"].items() if entry["n"]]
    overall = summary["overall"]
    spread = {**overall["dice"]["over_cases"], **{key: overall["dice"][key] for key in ("mean", "interval_95")}}
    return [*lines, _table_line("all organs", {**overall, "n": overall["n_cases"]}, spread)]


def _table_line(name: str, entry: dict[str, Any], dice: dict[str, Any]) -> tuple[str, ...]:
    interval = dice["interval_95"]
    return (
        name,
        str(entry["n"]),
        _number(dice["mean"]),
        f"{interval[0]:.3f} {_DASH} {interval[1]:.3f}" if interval else _DASH,
        *(_number(dice[key]) for key in ("median", "sd", "min")),
        _number(entry["iou"]["mean"]),
        str(entry["n_missed"] + entry["n_missing_prediction"] + entry["n_failed"]),
        str(entry["n_hallucinated"]),
    )


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3f}"


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    """Rows that enter the means, and rows of each status; unusable predictions count only where the organ exists."""
    counts = {f"n_{status}": 0 for status in STATUSES}
    for row in rows:
        if row.counts or row.status == "true_negative":
            counts[f"n_{row.status}"] += 1
    return {"n": sum(row.counts for row in rows), **counts}


def _table(rows: Sequence[Row], cases: Sequence[str], organs: Sequence[str], metric: str) -> NDArray[np.float64]:
    """(cases, organs), NaN where there is no score."""
    case_index = {case: index for index, case in enumerate(cases)}
    organ_index = {organ: index for index, organ in enumerate(organs)}
    table = np.full((len(cases), len(organs)), np.nan)
    for row in rows:
        table[case_index[row.case], organ_index[row.name]] = getattr(row, metric)
    return table


def _statistics(table: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """Statistics of one metric: a list over organs, and overall."""
    organ_means, case_means = _mean(table, axis=0), _mean(table, axis=1)
    by_organ, overall, over_cases = _bootstrap(table, case_means, seed)
    return {
        "organs": [{**_spread(table[:, n]), "interval_95": interval} for n, interval in enumerate(by_organ)],
        "overall": {
            "mean": _plain(_mean(organ_means, axis=0)),
            "interval_95": overall,
            "over_cases": {**_spread(case_means), "interval_95": over_cases},
        },
    }


def _spread(values: NDArray[np.float64]) -> dict[str, float | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {"mean": None, "median": None, "sd": None, "min": None}
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "min": float(values.min()),
    }


def _mean(table: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean over one axis of the values that are there; NaN where there are none."""
    there = np.isfinite(table)
    return _ratio(np.where(there, table, 0.0).sum(axis=axis), there.sum(axis=axis).astype(np.float64))


def _ratio(total: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def _plain(value: NDArray[np.float64] | float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _bootstrap(
    table: NDArray[np.float64], case_means: NDArray[np.float64], seed: int
) -> tuple[list[list[float] | None], list[float] | None, list[float] | None]:
    """95 % intervals of the organs' means, of their mean and of the mean over cases.

    A resample is a weight per case (how often it was drawn), so that all means of a batch are two matrix products.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    cases, organs = table.shape
    if cases == 0:
        return [None] * organs, None, None
    generator = np.random.default_rng(seed)
    columns = np.column_stack([table, case_means])
    values, there = np.nan_to_num(columns), np.isfinite(columns).astype(np.float64)
    means = np.empty((BOOTSTRAP_SAMPLES, organs + 2))
    for start in range(0, BOOTSTRAP_SAMPLES, _BATCH):
        drawn = generator.integers(cases, size=(_BATCH, cases)) + cases * np.arange(_BATCH)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=_BATCH * cases).reshape(_BATCH, cases).astype(np.float64)
        batch = _ratio(weights @ values, weights @ there)
        means[start : start + _BATCH] = np.column_stack([batch, _mean(batch[:, :organs], axis=1)])
    scored = [*there.sum(axis=0), float(there[:, -1].sum())]
    intervals = [_interval(means[:, n], int(scored[n])) for n in range(organs + 2)]
    return intervals[:organs], intervals[organs + 1], intervals[organs]


def _interval(means: NDArray[np.float64], cases: int) -> list[float] | None:
    if cases < 2:
        return None
    low, high = np.percentile(means[np.isfinite(means)], [2.5, 97.5])
    return [float(low), float(high)]


def _cases(cases: Sequence[str], organs: Sequence[str], table: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Mean Dice and worst organ of every case, worst case first, cases without a score last."""
    found = []
    for case, scores, mean in zip(cases, table, _mean(table, axis=1), strict=True):
        scored = np.isfinite(scores).any()
        worst = int(np.nanargmin(scores)) if scored else None
        found.append(
            {
                "case": case,
                "dice": _plain(mean),
                "worst_organ": None if worst is None else organs[worst],
                "worst_dice": None if worst is None else float(scores[worst]),
            }
        )
    return sorted(found, key=lambda entry: (entry["dice"] is None, entry["dice"] or 0.0, entry["case"]))
