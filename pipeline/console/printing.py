"""What a person sees in the terminal: progress bars, tables, closing lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.console.bars import CONSOLE, say
from pipeline.core.files import read_json

if TYPE_CHECKING:
    from pipeline.data.check import CheckReport
    from pipeline.engine.local import Batch
    from pipeline.evaluate.organ_statistics import OrganStatistics
    from pipeline.preprocess.plan_file import Plan
    from pipeline.stages.compare import Comparison
    from pipeline.stages.prune import PruningResult
    from pipeline.train.log import EpochRecord
    from pipeline.train.trainer import TrainResult


# Tables of scores, comparisons and measured label maps in the terminal.

_WIDEST = 1000  # tables are as wide as they need: numbers are shown whole even where the terminal breaks the line
_COMPARED = ("hd95_mm", "nsd")  # metrics printed for all organs together; Dice is printed organ by organ


def print_evaluation(summary: Mapping[str, Any], out: Path) -> int:
    """Print the per-organ table, that of subgroups, and what could not be scored.

    Returns:
        Exit code: 0, 2 if some cases failed, 3 if all did.
    """
    _print_scores(summary)
    if summary.get("subgroups"):
        from pipeline.evaluate.summary import subgroup_rows

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
    from pipeline.evaluate.significance import ALL_ORGANS

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
    from pipeline.evaluate.summary import TABLE_COLUMNS, table_rows

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


_UNBROKEN = ("organ", "name", "parameters", "multiply-adds", "patch")
_LISTED = 20  # failures printed before the rest is only counted


def say_validation(record: EpochRecord, epochs: int, fold: str) -> None:
    """Print a line for an epoch of a fold that ended with a validation."""
    if record.mean_dice is not None:
        say(
            f"{fold}  epoch {record.epoch}/{epochs}  loss {record.loss:.3f}  lr {record.learning_rate:.1e}  "
            f"{record.patches_per_s:.1f} patches/s  data wait {record.data_share:.0%}  "
            f"validation Dice {record.mean_dice:.3f} ({record.validation_s:.1f} s)"
        )


def print_check(report: CheckReport) -> None:
    """Print the problems as a table and a closing line."""
    if report.problems:
        table = _table("severity", "case", "problem", title="Problems")
        colors = {"error": "red", "warning": "yellow", "note": "dim"}
        for problem in report.problems:
            table.add_row(
                problem.severity, problem.case or "(dataset)", problem.message, style=colors[problem.severity]
            )
        CONSOLE.print(table)
    count = {
        kind: sum(problem.severity == kind for problem in report.problems) for kind in ("error", "warning", "note")
    }
    say(f"{len(report.cases)} cases: {count['error']} errors, {count['warning']} warnings, {count['note']} notes")


def print_batch(batch: Batch, verb: str, out: Path) -> None:
    """Print what became of a batch."""
    for case, error in batch.failed[:_LISTED]:
        text = error if error.startswith(f"case {case}") else f"case {case}: {error}"
        CONSOLE.print(f"failed  {text}", style="red")
    if len(batch.failed) > _LISTED:
        say(f"… and {len(batch.failed) - _LISTED} more")
    for note in batch.notes:
        say(f"note  {note}")
    say(f"{len(batch.done)} {verb}, {len(batch.kept)} up to date, {len(batch.failed)} failed: {out}")


def print_fingerprint(path: Path) -> None:
    """Print what a dataset is like: its grids, and how large and frequent its organs are."""
    found = read_json(path)
    for name in ("spacing_mm", "shape"):
        low, high = (" x ".join(f"{value:.3g}" for value in found[name][key]) for key in ("smallest", "largest"))
        say(f"{name.removesuffix('_mm')}  {low} to {high}{' mm' if name == 'spacing_mm' else ' voxels'}")
    table = _table("organ", "cases", "median ml", "smallest", "largest", title=f"Organs of {found['dataset']}")
    for organ, entry in found["organs"].items():
        volumes = (entry["volume_ml"][key] for key in ("median", "smallest", "largest"))
        shown = ("-" if ml is None else f"{ml:,.0f}" if ml >= 100 else f"{ml:.3g}" for ml in volumes)
        table.add_row(organ, str(entry["cases"]), *shown)
    CONSOLE.print(table)


def print_plan(prepared: Path) -> None:
    """Print the plan's choices and where to read why."""
    from pipeline.preprocess.plan_file import PLAN_FILE, read_plan

    for line in (*plan_lines(read_plan(prepared / PLAN_FILE)), f"the reasons: {prepared / PLAN_FILE}"):
        say(f"plan  {line}")


def plan_lines(plan: Plan) -> list[str]:
    """A plan's spacing, normalization, patches and batches."""

    def times(numbers: Sequence[float]) -> str:
        return " x ".join(str(number) if isinstance(number, int) else f"{number:.3g}" for number in numbers)

    schemes = ", ".join(entry.scheme for entry in plan.normalization)
    lines = [f"spacing {times(plan.spacing_mm)} mm, normalization {schemes}"]
    for name, patch in (("3D", plan.patch_3d), ("2D", plan.patch_2d)):
        lines.append(f"{name} patch {times(patch.patch_size)}, batch {patch.batch_size}")
    if plan.low_resolution is not None:
        spacing = times(plan.low_resolution.spacing_mm)
        lines.append(f"low resolution for more context: {spacing} mm (--set preprocess.resolution=low)")
    return lines


def print_training(result: TrainResult, out: Path, fold: int) -> None:
    """Print the validation scores of the best weights."""
    table = _table("organ", "Dice", title=f"Validation, fold {fold}, best weights, prepared grid")
    for organ, value in result.scores.dice.items():
        table.add_row(organ, _score(value))
    table.add_row("mean", _score(result.scores.mean_dice), style="bold")
    CONSOLE.print(table)
    say(f"{len(result.progress.records)} epochs in {result.progress.elapsed_s:.0f} s: {out}")


def print_demo(scores: Mapping[str, Any], out: Path) -> None:
    """Print the demo's table and where to look."""
    table = _table("organ", "Dice", "IoU", title=f"Dice on {scores['cases']} held-out phantoms")
    for organ, entry in scores["organs"].items():
        table.add_row(organ, _score(entry["dice"]), _score(entry["iou"]))
    table.add_row("mean", _score(scores["mean_dice"]), "", style="bold")
    CONSOLE.print(table)
    say(f"Look at {out / 'report.html'}; numbers in {out / 'scores.json'}, masks in {out / 'predictions'}.")


def print_networks(edge: int, in_channels: int, out_channels: int) -> None:
    """Print the networks with default options and a patch of this edge."""
    from pipeline.model.cost import survey_networks

    rows = survey_networks(edge, in_channels, out_channels)
    title = f"Networks, {in_channels} image channels, {out_channels} classes, patch edge {edge}"
    table = _table("name", "parameters", "multiply-adds", "patch", title=title)
    for row in rows:
        patch, output = ("x".join(map(str, size)) for size in (row.patch_size, row.output_size))
        sizes = patch if output == patch else f"{patch} to {output}"
        adds = f"{row.multiply_adds / 1e9:,.1f} G"
        table.add_row(f"{row.name} {row.dims}D", f"{row.parameters:,}", adds, sizes)
    CONSOLE.print(table)
    for name, source in {row.name: row.source for row in rows}.items():  # whole lines: a column would break them
        say(f"  {name:<22}{source}")


def print_pruning(result: PruningResult, out: Path) -> None:
    """Print what every level costs and gains, and which one was written."""
    table = _table(*result.columns, title=f"Levels of {result.source}, {result.cases} validation cases")
    for row in result.rows:
        table.add_row(*row.cells(), style="bold" if row is result.chosen else None)
    CONSOLE.print(table)
    say(f"{result.verdict} Its model: {out}, the comparison: {out / 'pruning.md'}")


def _score(value: float | None) -> str:
    """Three digits, or a dash where nothing could be scored."""
    return "-" if value is None else f"{value:.3f}"


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column in _UNBROKEN)
    return table
