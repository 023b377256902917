"""What a person sees in the terminal: tables and closing lines. Printers print and return nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.console.bars import CONSOLE, PlainConsole, epoch_line, print_line
from pipeline.core.documents import read_json
from pipeline.core.errors import listed, visible
from pipeline.core.tables import DASH, compact_cell, interval_cell, number_cell, score_cell, text_table

if TYPE_CHECKING:
    from pipeline.data.check import CheckReport
    from pipeline.data.dicom import Scan
    from pipeline.data.dicom_series import LabelObject
    from pipeline.engine.local import Batch
    from pipeline.evaluate.organ_statistics import OrganStatistics
    from pipeline.model.zoo import ZooModel
    from pipeline.preprocess.plan_file import Plan
    from pipeline.stages.choose import Choice
    from pipeline.stages.compare import Comparison
    from pipeline.stages.cross_validate import CrossValidation
    from pipeline.stages.prune import PruningResult
    from pipeline.stages.repair import Repair
    from pipeline.stages.train_folds import FoldsResult
    from pipeline.stages.tune import Trial
    from pipeline.train.log import EpochRecord
    from pipeline.train.trainer import TrainResult


_WIDEST = 1000  # tables of scores show numbers whole, even where the terminal then breaks the line
_UNBROKEN = ("organ", "name", "parameters", "multiply-adds", "patch")
_LISTED = 20  # failures printed before the rest is only counted
_COMPARED = ("hd95_mm", "nsd")  # metrics printed for all organs together; Dice is printed organ by organ
_LEFT_OUT = ("Median", "SD", "Min", "IoU")  # would make the table too wide; they are in the CSV

# Evaluation: scores per organ and per group of cases.

TABLE_COLUMNS = (
    *("Organ", "Cases", "Dice", "95 % interval", "Median", "SD", "Min"),
    *("IoU", "HD95 mm", "NSD", "Bias %", "Missed", "Halluc."),
)


def print_evaluation(summary: Mapping[str, Any], out: Path) -> None:
    """Print the per-organ table, that of subgroups, and what could not be scored."""
    rows = table_rows(summary)
    measured = [any(cell != DASH for cell in column) for column in zip(*rows, strict=True)]
    shown = [n for n, name in enumerate(TABLE_COLUMNS) if measured[n] and name not in _LEFT_OUT]
    _print_wide([TABLE_COLUMNS[n] for n in shown], "Scores per organ", [[row[n] for n in shown] for row in rows])
    if summary.get("subgroups"):
        columns = ("Group", "Value", "Cases", "Dice", "95 % interval", "HD95 mm", "NSD")
        _print_wide(columns, "Scores by group", _subgroup_rows(summary["subgroups"]))
    _print_failures(failure["message"] for failure in summary["failures"])
    _print_notes(summary["notes"])
    print_line(f"Scores: {out / 'scores.csv'}, {out / 'summary.json'}")


def table_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells of the per-organ table, one tuple per scored organ and a last one for all; see :data:`TABLE_COLUMNS`.

    Returns:
        Text, ready to print. ``Cases`` counts those that enter the mean; misses include missing and failed predictions.
        Columns that were not measured have dashes.
    """
    lines = [_table_line(name, entry, entry["dice"]) for name, entry in summary["organs"].items() if entry["n"]]
    overall = summary["overall"]
    spread = {**overall["dice"]["over_cases"], **{key: overall["dice"][key] for key in ("mean", "interval_95")}}
    return [*lines, _table_line("all organs", {**overall, "n": overall["n_cases"]}, spread)]


def _table_line(name: str, entry: Mapping[str, Any], dice: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        str(entry["n"]),
        number_cell(dice["mean"]),
        interval_cell(dice["interval_95"]),
        *(number_cell(dice[key]) for key in ("median", "sd", "min")),
        number_cell(entry["iou"]["mean"]),
        number_cell(entry.get("hd95_mm", {}).get("mean"), 2),
        number_cell(entry.get("nsd", {}).get("mean")),
        number_cell(entry.get("volume", {}).get("bias_percent"), 1, sign="+"),
        str(entry["n_missed"] + entry["n_missing_prediction"] + entry["n_failed"]),
        str(entry["n_hallucinated"]),
    )


def _subgroup_rows(subgroups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[tuple[str, ...]]:
    for column, groups in subgroups.items():
        for value, entry in groups.items():
            dice, hd95, nsd = (number_cell(entry.get(name, {}).get("mean")) for name in ("dice", "hd95_mm", "nsd"))
            yield column, value, str(entry["n_cases"]), dice, interval_cell(entry["dice"]["interval_95"]), hd95, nsd


def print_series(found: Scan) -> None:
    """Print the series of DICOM files: what they are, the verdict, and what is not plain about each."""
    columns = ["No.", "Study", "Modality", "Images", "Shape", "Spacing mm", "Orientation", "Verdict"]
    named = list(dict.fromkeys(name for series in found.series for name in series.names))
    rows = []
    for series in found.series:
        grid = None if series.stack is None else series.stack.grid
        shape = DASH if grid is None else " x ".join(map(str, grid.shape))
        spacing = DASH if grid is None else " x ".join(f"{mm:.4g}" for mm in grid.spacing_mm)
        place = [shape, spacing, DASH if grid is None else grid.orientation]
        about = [str(series.number), str(series.study), series.modality, str(series.images)]
        names = [visible(series.names.get(name, "")) for name in named]
        rows.append([*about, *place, series.verdict, *names])
    if rows:
        _print_wide([*columns, *named], "Series", rows)
    for series in found.series:
        for finding in series.findings:
            print_line(f"series {series.number}: expected {finding.expected}, got {finding.got}. {finding.advice}.")
        for item in series.labels:
            print_line(f"series {series.number}: {_labels_told(found, item)}.")
    for reason, count in found.damaged:
        print_line(f"{count} files cannot be read: {reason}.")
    if found.missing:
        print_line(f"{found.missing} files that the DICOMDIR names are not there.")
    if found.others:
        print_line(f"{found.others} files are not DICOM.")
    if not found.series:
        print_line("No DICOM series. Give the folder of a study, its zip archive, or its DICOMDIR.")


def _labels_told(found: Scan, item: LabelObject) -> str:
    """What a file of labels holds, and of which series."""
    numbers, others = found.numbers_of(item)
    of = [f"series {listed(numbers)}"] if numbers else []
    of += [f"{others} series that are not here"] if others else []
    what = "structures (RTSTRUCT)" if item.kind == "RTSTRUCT" else f"segments (SEG, {item.kind})"
    return f"{item.segments} {what} of {' and '.join(of) or 'no series that is named'}"


def print_comparison(comparison: Comparison) -> None:
    """Print paired tests and ranks."""
    from pipeline.evaluate.significance import ALL_ORGANS

    columns = ["Metric", "Organ", "Models", "Difference", "95 % interval", "Win/tie/loss", "p (Holm)", "No mask"]
    rows: list[list[str]] = []
    for test in comparison.tests:
        shown = test.metric == "dice" or (test.metric in _COMPARED and test.organ == ALL_ORGANS)
        if shown and test.difference is not None:
            low, high = test.interval_95 or (test.difference, test.difference)
            numbers = f"{test.difference:+.3f}", f"{low:+.3f} {DASH} {high:+.3f}"
            p = DASH if test.p_holm is None else f"{test.p_holm:.3g}"
            counts = f"{test.wins}/{test.ties}/{test.losses}"
            lacking = " / ".join(str(len(comparison.lacking[name])) for name in (test.one, test.other))
            rows.append([test.metric, test.organ, f"{test.one} {DASH} {test.other}", *numbers, counts, p, lacking])
    if not any(comparison.lacking.values()):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    _print_wide(columns, "Differences on the same cases", rows)
    for ranking in comparison.ranks:
        order = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(ranking.models, ranking.means, strict=True))
        print_line(f"{ranking.metric}: {order} (the same order in {ranking.same_order:.0%} of the resamples)")
    _print_failures(comparison.failures)
    _print_notes(comparison.notes)
    print_line(f"All metrics: {comparison.out / 'comparison.csv'}, comparison.json, difference_*.png, ranks.png")


def print_stats(rows: Sequence[OrganStatistics]) -> None:
    """Print what was measured of label maps, by organ."""
    columns = ("Organ", "Cases", "Median mL", "Range mL", "Intensity", "At the edge")
    _print_wide(columns, "Organs", stats_table(rows))


def stats_table(rows: Sequence[OrganStatistics]) -> list[tuple[str, ...]]:
    """Cells of a table: organ, cases that have it, median and range of the volume, mean intensity, cases cut off."""
    lines: list[tuple[str, ...]] = []
    for name in dict.fromkeys(row.name for row in rows):
        there = [row for row in rows if row.name == name and row.voxels]
        if not there:
            continue
        volumes = sorted(row.volume_ml for row in there)
        intensities = [mean for row in there for mean in row.means if mean is not None]
        intensity = number_cell(sum(intensities) / len(intensities) if intensities else None, 1)
        between = f"{volumes[0]:.4g} {DASH} {volumes[-1]:.4g}"
        cut = sum(row.touches_edge for row in there)
        lines.append((name, str(len(there)), f"{median(volumes):.4g}", between, intensity, str(cut)))
    return lines


def _print_wide(columns: Sequence[str], title: str, rows: Iterable[Sequence[str]]) -> None:
    table = _table(*columns, title=title, unbroken=columns)
    for row in rows:
        table.add_row(*row)
    # A console of its own: the usual one would cut or wrap numbers at the width of the terminal.
    wide = PlainConsole(width=_WIDEST)
    wide.print(table, width=wide.measure(table).maximum)


# Everything else.


def print_validation(record: EpochRecord, epochs: int, fold: str) -> None:
    """Print a line for an epoch of a fold that ended with a validation."""
    if record.mean_dice is not None:
        print_line(f"{fold}  {epoch_line(record, epochs)}")


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
    print_line(
        f"{len(report.cases)} cases: {count['error']} errors, {count['warning']} warnings, {count['note']} notes"
    )


def print_repair(result: Repair) -> None:
    """Print what became of a dataset that was repaired."""
    for line in repair_lines(result):
        print_line(line)


def repair_lines(result: Repair) -> tuple[str, ...]:
    """What was repaired in how many cases, and what was left out and why."""
    from pipeline.stages.repair import LOG_FILE

    changes = {(change.case, change.problem, change.done) for change in result.changes}
    cases = Counter((problem, done) for _, problem, done in changes)
    fixed = [f"fixed  {problem}: {done} ({_cases(number)})" for (problem, done), number in sorted(cases.items())]
    texts = [text if text.startswith(f"case {case}") else f"case {case}: {text}" for case, text in result.left_out]
    left = [f"left out  {text}" for text in texts[:_LISTED]]
    more = [f"… and {len(texts) - _LISTED} more, see {result.out / LOG_FILE}"] if len(texts) > _LISTED else []
    count = f"{_cases(len(result.repaired))} repaired, {len(result.copied)} copied as they are, {len(texts)} left out"
    again = f" ({result.kept} up to date)" if result.kept else ""
    return (*fixed, *left, *more, f"{count}{again}: {result.out}. Every change: {result.out / 'fixes.csv'}")


def _cases(number: int) -> str:
    return "1 case" if number == 1 else f"{number} cases"


def print_batch(batch: Batch, verb: str, out: Path) -> None:
    """Print what became of a batch."""
    failed = batch.failed[:_LISTED]
    _print_failures(error if error.startswith(f"case {case}") else f"case {case}: {error}" for case, error in failed)
    if len(batch.failed) > _LISTED:
        print_line(f"… and {len(batch.failed) - _LISTED} more")
    _print_notes(batch.notes)
    print_line(f"{len(batch.done)} {verb}, {len(batch.kept)} up to date, {len(batch.failed)} failed: {out}")


def print_fingerprint(path: Path) -> None:
    """Print what a dataset is like: its grids, and how large and frequent its organs are."""
    found = read_json(path)
    for name in ("spacing_mm", "shape"):
        low, high = (" x ".join(f"{value:.3g}" for value in found[name][key]) for key in ("smallest", "largest"))
        print_line(f"{name.removesuffix('_mm')}  {low} to {high}{' mm' if name == 'spacing_mm' else ' voxels'}")
    table = _table("organ", "cases", "median ml", "smallest", "largest", title=f"Organs of {found['dataset']}")
    for organ, entry in found["organs"].items():
        volumes = (entry["volume_ml"][key] for key in ("median", "smallest", "largest"))
        shown = (compact_cell(ml, dash="-") for ml in volumes)
        table.add_row(organ, str(entry["cases"]), *shown)
    CONSOLE.print(table)


def print_plan(prepared: Path) -> None:
    """Print the plan's choices and where to read why."""
    from pipeline.preprocess.plan_file import PLAN_FILE, read_plan

    for line in (*plan_lines(read_plan(prepared / PLAN_FILE)), f"the reasons: {prepared / PLAN_FILE}"):
        print_line(f"plan  {line}")


def plan_lines(plan: Plan) -> list[str]:
    """A plan's spacing, normalization, patches and batches."""

    def times(numbers: Sequence[float]) -> str:
        return " x ".join(str(number) if isinstance(number, int) else f"{number:.3g}" for number in numbers)

    schemes = ", ".join(entry.scheme for entry in plan.normalization)
    lines = [f"spacing {times(plan.spacing_mm)} mm, normalization {schemes}"]
    patches = (("2D", plan.patch_2d),) if plan.single_slices else (("3D", plan.patch_3d), ("2D", plan.patch_2d))
    for name, patch in patches:
        lines.append(f"{name} patch {times(patch.patch_size)}, batch {patch.batch_size}")
    if plan.low_resolution is not None:
        low, spacing = plan.low_resolution, times(plan.low_resolution.spacing_mm)
        if plan.cascade:
            lines.append(f"first stage: {spacing} mm, patch {times(low.patch_size)}, batch {low.batch_size}")
        else:
            lines.append(f"low resolution for more context: {spacing} mm (--set preprocess.resolution=low or =cascade)")
    return lines


def print_training(result: TrainResult, out: Path, fold: int) -> None:
    """Print the validation scores of the model's weights."""
    table = _table("organ", "Dice", title=f"Validation, fold {fold}, {result.weights} weights, prepared grid")
    for organ, value in result.scores.dice.items():
        table.add_row(organ, score_cell(value))
    table.add_row("mean", score_cell(result.scores.mean_dice), style="bold")
    CONSOLE.print(table)
    if result.caution:
        print_line(result.caution)
    print_line(f"{len(result.progress.records)} epochs in {result.progress.elapsed_s:.0f} s: {out}")


def print_folds(result: FoldsResult) -> None:
    """Print a line per fold, and the mean over those that were scored."""
    from pipeline.stages.train_folds import outcome_line

    print_line("")
    for outcome in result.folds:
        print_line(outcome_line(outcome))
    dice = [outcome.mean_dice for outcome in result.folds if outcome.mean_dice is not None]
    if dice:
        print_line(f"mean of {len(dice)} folds: validation Dice {fmean(dice):.3f}")


def print_cross_validation(result: CrossValidation, model: Path) -> None:
    """Print what became of each case, Dice per organ over all cases and in each fold, and what cleaning is kept."""
    from pipeline.stages.postprocessing import postprocessing_lines

    print_batch(result.batch, "predicted", result.out / "predictions")
    summary, folds = result.summary, result.summary["cross_validation"]["folds"]
    for failure in summary["failures"]:
        print_line(f"failed  {failure['message']}")
    for note in summary["notes"]:
        print_line(f"note  {note}")
    rows = []
    for organ, entry in summary["organs"].items():
        spread = (score_cell(entry["dice"]["mean"]), score_cell(entry["dice"]["sd"]))
        rows.append((organ, str(entry["n"]), *spread, *(score_cell(fold["dice"].get(organ)) for fold in folds)))
    over_cases = score_cell(summary["overall"]["dice"]["over_cases"]["sd"])
    means = (score_cell(result.mean_dice), over_cases, *(score_cell(fold["mean_dice"]) for fold in folds))
    rows.append(("all organs", str(summary["overall"]["n_cases"]), *means))
    header = ("organ", "cases", "Dice", "SD", *(f"fold {entry['fold']}" for entry in folds))
    for line in ("", *text_table(header, rows), "", *postprocessing_lines(result.postprocessing)):
        print_line(line)
    files = f"{result.out / 'scores.csv'}, {result.out / 'summary.json'}"
    print_line(f"Scores: {files}; every step: {model / 'postprocessing.md'}")


def print_choice(choice: Choice, out: Path) -> None:
    """Print the candidates, which of them was taken, and where it is."""
    from pipeline.stages.choose import choice_lines

    for line in ("", *choice_lines(choice)):
        print_line(line)
    print_line(f"Its model: {out}, the comparison: {out / 'choice.md'}")


def print_trial(trial: Trial) -> None:
    """Print what a training step takes, and how many of them the time budget holds."""
    size = " x ".join(map(str, trial.patch_size))
    memory = "" if trial.peak_bytes is None else f", {trial.peak_bytes / 2**30:.2f} GiB"
    what = f"{trial.network}: {trial.parameters:,} parameters, {trial.batch_size} patches of {size}"
    print_line(f"trial  {what} on {trial.device}: {trial.step_s:.2f} s per step{memory}")
    if trial.budget_s is not None:
        print_line(f"trial  {trial.budget_s:.0f} s hold about {int(trial.budget_s / trial.step_s)} steps")


def print_demo(scores: Mapping[str, Any], out: Path) -> None:
    """Print the demo's table and where to look."""
    table = _table("organ", "Dice", "IoU", title=f"Dice on {scores['cases']} held-out phantoms")
    for organ, entry in scores["organs"].items():
        table.add_row(organ, score_cell(entry["dice"]), score_cell(entry["iou"]))
    table.add_row("mean", score_cell(scores["mean_dice"]), "", style="bold")
    CONSOLE.print(table)
    print_line(f"Look at {out / 'report.html'}; numbers in {out / 'scores.json'}, masks in {out / 'predictions'}.")


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
        print_line(f"  {name:<22}{source}")


def print_models(models: Sequence[ZooModel]) -> None:
    """Print the models that come with volseg."""
    columns = ("name", "segments", "modality", "spacing mm", "Dice", "licence", "MB")
    rows = []
    for model in models:
        spacing = " x ".join(f"{mm:.3g}" for mm in model.plan.spacing_mm)
        about = (model.head.segments, model.head.modality, spacing, score_cell(model.head.dice))
        rows.append((model.name, *about, model.head.license.upper(), f"{model.size_bytes / 1e6:.1f}"))
    _print_wide(columns, "Models that come with volseg", rows)
    print_line("Dice is the mean of cases that the model never saw. Its model card: volseg model show NAME")


def print_pruning(result: PruningResult, out: Path) -> None:
    """Print what every level costs and gains, and which one was written."""
    from pipeline.stages.prune import LEVEL_COLUMNS, level_cells, verdict

    table = _table(*LEVEL_COLUMNS, title=f"Levels of {result.source}, {result.cases} validation cases")
    for row in result.rows:
        table.add_row(*level_cells(row), style="bold" if row is result.chosen else None)
    CONSOLE.print(table)
    print_line(f"{verdict(result)} Its model: {out}, the comparison: {out / 'pruning.md'}")


def _print_failures(messages: Iterable[str]) -> None:
    for message in messages:
        CONSOLE.print(f"failed  {message}", style="red")


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print_line(f"note  {note}")


def _table(*columns: str, title: str, unbroken: Sequence[str] = _UNBROKEN) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column in unbroken, overflow="fold")  # a file's name is never cut off
    return table
