"""Scores by what is known about the cases: scanner, sex, site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.data.layout_tables import read_csv
from pipeline.evaluate.means import statistics
from pipeline.evaluate.rows import Row
from pipeline.evaluate.summary import measured_metrics, score_table

__all__ = ["UNKNOWN", "read_metadata", "subgroup_rows", "summarize_subgroups"]

UNKNOWN = "(unknown)"
"""Group of the cases that the metadata do not mention, or have nothing written for."""

_MOST = 12  # different values up to which a column is taken for one of groups
_SHOWN = ("dice", "hd95_mm", "nsd")

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
        case = row.pop("case")
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


def subgroup_rows(subgroups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    """Cells of a table of the subgroups: group, value, cases, Dice, its interval, HD95, NSD."""
    lines: list[tuple[str, ...]] = []
    for column, groups in subgroups.items():
        for value, entry in groups.items():
            means = [entry.get(metric, {}).get("mean") for metric in _SHOWN]
            interval = entry["dice"]["interval_95"]
            between = f"{interval[0]:.3f} – {interval[1]:.3f}" if interval else "–"
            dice, hd95, nsd = ("–" if mean is None else f"{mean:.3f}" for mean in means)
            lines.append((column, value, str(entry["n_cases"]), dice, between, hd95, nsd))
    return lines


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
