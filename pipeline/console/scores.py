"""Tables of scores, comparisons and measured label maps in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.console.terminal import CONSOLE, say

if TYPE_CHECKING:
    from pipeline.evaluate.statistics import OrganStatistics
    from pipeline.stages.compare import Comparison

__all__ = ["print_comparison", "print_evaluation", "print_stats"]

_WIDEST = 1000  # tables are as wide as they need: numbers are shown whole even where the terminal breaks the line
_COMPARED = ("hd95_mm", "nsd")  # metrics printed for all organs together; Dice is printed organ by organ


def print_evaluation(summary: Mapping[str, Any], out: Path) -> int:
    """Print the per-organ table, that of subgroups, and what could not be scored.

    Returns:
        Exit code: 0, 2 if some cases failed, 3 if all did.
    """
    _print_scores(summary)
    if summary.get("subgroups"):
        from pipeline.evaluate.subgroups import subgroup_rows

        columns = ("Group", "Value", "Cases", "Dice", "95 % interval", "HD95 mm", "NSD")
        _print(columns, "Scores by group", subgroup_rows(summary["subgroups"]))
    for failure in summary["failures"]:
        CONSOLE.print(f"failed  {failure['message']}", style="red")
    for note in summary["notes"]:
        say(f"note  {note}")
    missing = [entry["case"] for entry in summary["cases"] if entry.get("prediction") is None]
    if missing:
        count = f"{len(missing)} of {len(summary['cases'])}"
        say(f"note  {count} references have no prediction, e.g. {missing[0]}: their organs score 0.")
    say(f"Scores: {out / 'scores.csv'}, {out / 'summary.json'}")
    failed, cases = len(summary["failures"]), len(summary["cases"])
    return 0 if not failed else 2 if failed < cases else 3


def print_comparison(comparison: Comparison) -> int:
    """Print paired tests and ranks.

    Returns:
        Exit code: 0, or 2 if some files could not be scored.
    """
    from pipeline.evaluate.compare import ALL_ORGANS

    columns = ("Metric", "Organ", "Models", "Difference", "95 % interval", "Win/tie/loss", "p (Holm)")
    rows = []
    for test in comparison.tests:
        shown = test.metric == "dice" or (test.metric in _COMPARED and test.organ == ALL_ORGANS)
        if shown and test.difference is not None:
            low, high = test.interval_95 or (test.difference, test.difference)
            counts = f"{test.wins}/{test.ties}/{test.losses}"
            p = "–" if test.p_holm is None else f"{test.p_holm:.3g}"
            pair = f"{test.one} – {test.other}"
            rows.append(
                (test.metric, test.organ, pair, f"{test.difference:+.3f}", f"{low:+.3f} – {high:+.3f}", counts, p)
            )
    _print(columns, "Differences on the same cases", rows)
    for ranking in comparison.ranks:
        order = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(ranking.models, ranking.means, strict=True))
        say(f"{ranking.metric}: {order} (the same order in {ranking.same_order:.0%} of the resamples)")
    for text in comparison.failures:
        CONSOLE.print(f"failed  {text}", style="red")
    for note in comparison.notes:
        say(f"note  {note}")
    say(f"All metrics: {comparison.out / 'comparison.csv'}, comparison.json, difference_*.png, ranks.png")
    return 2 if comparison.failures else 0


def print_stats(rows: Sequence[OrganStatistics]) -> None:
    """Print what was measured of label maps, by organ."""
    from pipeline.stages.label_stats import stats_table

    columns = ("Organ", "Cases", "Median mL", "Range mL", "Intensity", "At the edge")
    _print(columns, "Organs", stats_table(rows))


def _print_scores(summary: Mapping[str, Any]) -> None:
    """The per-organ table without columns that were not measured or would make it too wide; all are in the CSV."""
    from pipeline.evaluate.table import TABLE_COLUMNS, table_rows

    rows = table_rows(dict(summary))
    measured = [any(cell != "–" for cell in column) for column in zip(*rows, strict=True)]
    wide = ("Median", "SD", "Min", "IoU")
    shown = [n for n, name in enumerate(TABLE_COLUMNS) if measured[n] and name not in wide]
    _print([TABLE_COLUMNS[n] for n in shown], "Scores per organ", [[row[n] for n in shown] for row in rows])


def _print(columns: Sequence[str], title: str, rows: Iterable[Sequence[str]]) -> None:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    wide = Console(width=_WIDEST, highlight=False, markup=False, emoji=False)
    wide.print(table, width=wide.measure(table).maximum)
