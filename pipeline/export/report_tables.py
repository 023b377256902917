"""Tables of a report: what was measured beside overlap, what happened to every organ, the worst organs, the cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluate import Evaluation, Row
from pipeline.evaluate.metrics import METRICS, Metric
from pipeline.evaluate.subgroups import subgroup_rows
from pipeline.export.names import Names

__all__ = ["STATUS_TITLES", "case_status", "other_metrics", "table_context", "worst_rows"]

STATUS_TITLES: Mapping[str, str] = {
    "scored": "Scored",
    "missed": "Missed",
    "hallucinated": "Hallucinated",
    "missing_prediction": "Missing prediction",
    "failed": "Failed",
    "true_negative": "True negative",
}
"""Status of a row → its column, in the order of the table."""

_NAMED = 4  # organs named in a remark
_OVERLAP = ("dice", "iou")


def table_context(evaluation: Evaluation, summary: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """What the template of the tables uses.

    Args:
        evaluation: The rows.
        summary: Their statistics.
        names: What cases are called.
    """
    by_case: dict[str, list[Row]] = {case.id: [] for case in evaluation.cases}
    for row in evaluation.rows:
        by_case.setdefault(row.case, []).append(row)
    cases = [
        {**entry, "name": names.case(entry["case"]), "status": case_status(by_case.get(entry["case"], ()))}
        for entry in summary["cases"]
    ]
    metrics = other_metrics(summary)
    shown = [METRICS[column] for column in ("hd95_mm", "nsd") if METRICS[column] in metrics]
    return {
        "cases": cases,
        "statuses": STATUS_TITLES,
        "metrics": metrics,
        "worst_metrics": shown,
        "infinite": math.inf,
        "worst_rows": worst_rows(evaluation.rows),
        "groups": subgroup_rows(summary.get("subgroups", {})),
        "case_name": names.case,
    }


def other_metrics(summary: Mapping[str, Any]) -> list[Metric]:
    """Metrics beside Dice and IoU of which there are means."""
    return [metric for column, metric in METRICS.items() if column in summary["overall"] and column not in _OVERLAP]


def worst_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows with a score, lowest Dice first and among equal ones the largest HD95."""

    def badness(row: Row) -> tuple[float, float, str, str]:
        distance = row.penalised("hd95_mm")
        return row.dice, 0.0 if math.isnan(distance) else -distance, row.case, row.name

    return sorted((row for row in rows if row.counts), key=badness)


def case_status(rows: Sequence[Row]) -> str:
    """What went wrong in a case, in words; empty if nothing did."""
    found = [row for row in rows if row.counts or row.status == "failed"]
    statuses = {row.status for row in found}
    if "missing_prediction" in statuses:
        return "no prediction"
    if "failed" in statuses or not found:
        return "failed"
    parts = []
    for status in ("missed", "hallucinated"):
        organs = [row.name for row in found if row.status == status]
        if organs:
            parts.append(f"{status}: {', '.join(organs[:_NAMED])}{' …' if len(organs) > _NAMED else ''}")
    return "; ".join(parts)
