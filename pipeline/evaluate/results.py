"""What an evaluation found, and its folder: ``scores.csv`` with every row, ``summary.json`` with the rest."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pipeline.core.documents import conform, read_json, read_text, short
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import write_json
from pipeline.core.labels import LabelTable
from pipeline.core.paths import real
from pipeline.core.tables import read_cell, write_csv
from pipeline.evaluate.metrics import (
    CALIBRATION_COLUMNS,
    COMPAT_TOOLS,
    LESION_COLUMNS,
    OVERLAP_ONLY,
    STATUSES,
    SURFACE_COLUMNS,
    Measures,
    Row,
    compat_columns,
    label_entry,
)
from pipeline.evaluate.summary import summarize


@dataclass(frozen=True)
class ScoredFiles:
    """The files behind the rows of one case; ``images`` has one per channel, none if they are not known."""

    id: str
    reference: Path
    prediction: Path | None = None
    images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Everything one run of the evaluation found.

    Args:
        labels: The label table the rows follow.
        rows: One per case and target, ordered by case, then as in the label table.
        cases: One per case of the reference, sorted by id.
        failures: (case, message) of cases with a file that could not be used.
        notes: Sentences a reader of the scores should know.
        measures: What was measured.
    """

    labels: LabelTable
    rows: tuple[Row, ...]
    cases: tuple[ScoredFiles, ...]
    failures: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    measures: Measures = OVERLAP_ONLY

    @property
    def columns(self) -> list[str]:
        """Columns of ``scores.csv`` that were measured, in their order."""
        measured = _ALWAYS.union(*(row.more for row in self.rows))
        return [column for column in COLUMNS if column in measured]

    def to_dataframe(self) -> Any:
        """The rows as a pandas ``DataFrame`` with the columns of ``scores.csv``.

        Raises:
            VolsegError: If pandas is not installed.
        """
        try:
            from pandas import DataFrame  # here: nothing else needs it
        except ImportError:
            got, advice = "none", "Run: pip install pandas"
            raise VolsegError(sentence("to_dataframe", "pandas to be installed", got, advice)) from None
        return DataFrame([[_cell(row, column) for column in self.columns] for row in self.rows], columns=self.columns)


COLUMNS: tuple[str, ...] = (
    *("case", "label", "name", "status", "dice", "iou"),
    *(*SURFACE_COLUMNS, "tolerance_mm"),
    *("volume_reference_ml", "volume_prediction_ml", "volume_bias_ml", "volume_bias_percent"),
    *(*LESION_COLUMNS, *CALIBRATION_COLUMNS),
    *(column for tool in COMPAT_TOOLS for column in compat_columns(tool)),
    "diagonal_mm",
)
"""Columns of ``scores.csv``, in their order, as far as they were measured; readers must accept further ones."""

_WORDS = ("case", "label", "name", "status")
_NUMBERS = ("dice", "iou", "volume_reference_ml", "volume_prediction_ml")
_ALWAYS = frozenset((*_WORDS, *_NUMBERS, "volume_bias_ml", "volume_bias_percent"))

_SCORES, _SUMMARY = "scores.csv", "summary.json"
_ADVICE = "Run `volseg evaluate`."


def write_evaluation(
    evaluation: Evaluation, out: Path, seed: int = 0, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``scores.csv`` and ``summary.json``, each atomically.

    An undefined number is an empty cell in the CSV and null in the JSON; the label of a region of several values is
    ``1+2`` in both. An infinite distance is ``inf`` in the CSV.

    Returns:
        The summary: that of :func:`~pipeline.evaluate.summary.summarize`, each case with its files, and ``labels``,
        ``measures``, ``failures``, ``notes``.
    """
    summary = summarize(evaluation.rows, seed, evaluation.measures)
    scores = {entry["case"]: entry for entry in summary["cases"]}
    unscored = {"dice": None, "worst_organ": None, "worst_dice": None}
    files = {case.id: _case_files(case) for case in evaluation.cases}
    ordered = [*scores, *(case for case in files if case not in scores)]
    summary = {
        **summary,
        "cases": [{"case": case, **scores.get(case, unscored), **files.get(case, {})} for case in ordered],
        **(extra or {}),
        "labels": evaluation.labels.to_json(),
        "measures": evaluation.measures.to_json(),
        "failures": [{"case": case, "message": message} for case, message in evaluation.failures],
        "notes": list(evaluation.notes),
    }
    columns = evaluation.columns
    write_csv(out / _SCORES, [columns, *([_cell(row, column) for column in columns] for row in evaluation.rows)])
    # Last: a folder with a summary counts as scored.
    write_json(out / _SUMMARY, summary)
    return summary


def read_summary(folder: Path) -> dict[str, Any]:
    """Read the ``summary.json`` that :func:`write_evaluation` wrote; a VolsegError if it is missing or damaged."""
    from pipeline.evaluate.summary_model import SummaryModel  # here: scoring starts without

    path = folder / _SUMMARY
    summary: dict[str, Any] = read_json(path, missing=_ADVICE)
    conform(summary, SummaryModel, path, _ADVICE)
    return summary


def read_evaluation(folder: Path) -> Evaluation:
    """Read back what :func:`write_evaluation` wrote; paths are absolute.

    Raises:
        VolsegError: If a file is missing or damaged.
    """
    summary, path = read_summary(folder), folder / _SCORES
    labels = LabelTable.from_json(summary["labels"])
    try:
        # Not read_csv, which strips blanks: names of cases and organs come back as they are.
        table = csv.DictReader(io.StringIO(read_text(path, "a table of scores", _ADVICE), newline=""))
        rows = tuple(_row(cells, labels.targets) for cells in table)
        cases = tuple(sorted((_read_case(entry) for entry in summary["cases"]), key=lambda case: case.id))
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        got = short(error)
        raise VolsegError(f"{folder}: expected the files of an evaluation, got {got}. {_ADVICE}") from None
    failures = tuple((entry["case"], entry["message"]) for entry in summary["failures"])
    # Scores of an earlier version lack newer options, which then have their defaults.
    measures: Measures = conform(summary.get("measures", {"surface": "none"}), Measures, folder / _SUMMARY, _ADVICE)
    return Evaluation(labels, rows, cases, failures, tuple(summary["notes"]), measures)


def joined(one: Evaluation, other: Evaluation) -> Evaluation:
    """Two evaluations as one. Of a case that both have, that with a prediction counts, else that of ``other``.

    Raises:
        VolsegError: If they do not score the same organs.
    """
    if one.labels != other.labels:
        rule, got = "scores of the same organs", "others"
        raise VolsegError(sentence("scores", rule, got, "Give --labels, or use another output folder"))
    files = {case.id: case for case in one.cases}
    kept = {case for case, found in files.items() if found.prediction is not None}
    kept -= {case.id for case in other.cases if case.prediction is not None}
    kept |= files.keys() - {case.id for case in other.cases}
    files |= {case.id: case for case in other.cases if case.id not in kept}
    rows = [*(row for row in one.rows if row.case in kept), *(row for row in other.rows if row.case not in kept)]
    failures = dict(
        [*(pair for pair in one.failures if pair[0] in kept), *(p for p in other.failures if p[0] not in kept)]
    )
    cases = tuple(files[case] for case in sorted(files))
    counted = {*_missing(one.cases), *_missing(other.cases)}
    notes = dict.fromkeys(note for note in (*one.notes, *other.notes) if note not in counted)
    return replace(
        other,
        rows=tuple(sorted(rows, key=lambda row: row.case)),
        cases=cases,
        failures=tuple(sorted(failures.items())),
        notes=(*notes, *_missing(cases)),
    )


def missing_note(missing: Sequence[str], references: int) -> tuple[str, ...]:
    """A note on cases without a prediction; none if there are none."""
    if not missing:
        return ()
    count = f"{len(missing)} of {references} references have"
    return (f"{count} no prediction, e.g. {missing[0]}: their organs score 0.",)


def _missing(cases: Sequence[ScoredFiles]) -> tuple[str, ...]:
    return missing_note([case.id for case in cases if case.prediction is None], len(cases))


def _cell(row: Row, column: str) -> str | int | float | None:
    if column == "label":
        return label_entry(row.label)
    if column in _WORDS:
        return str(getattr(row, column))
    value = row.value(column)
    return None if math.isnan(value) else value


def _row(cells: dict[str, str], targets: Collection[str]) -> Row:
    case, name = read_cell(cells["case"]), read_cell(cells["name"])
    if cells["status"] not in STATUSES or name not in targets:
        raise ValueError(f"{name} with status {cells['status']}")
    own = {name: float(cells[name] or "nan") for name in _NUMBERS}
    more = {name: float(cells[name] or "nan") for name in COLUMNS if name in cells and name not in _ALWAYS}
    label = tuple(int(value) for value in cells["label"].split("+"))
    # NaN where nothing is defined; only distances are infinite.
    wrong = [name for name, value in own.items() if not ((value >= 0.0 and math.isfinite(value)) or math.isnan(value))]
    if wrong or own["dice"] > 1.0 or own["iou"] > 1.0:
        raise ValueError(f"{case} with {own}")
    return Row(case, label, name, cast("Any", cells["status"]), **own, more=more)


def _case_files(case: ScoredFiles) -> dict[str, Any]:
    return {
        "reference": str(real(case.reference)),
        "prediction": None if case.prediction is None else str(real(case.prediction)),
        "images": [str(real(path)) for path in case.images],
    }


def _read_case(entry: dict[str, Any]) -> ScoredFiles:
    prediction = None if entry["prediction"] is None else Path(entry["prediction"])
    return ScoredFiles(entry["case"], Path(entry["reference"]), prediction, tuple(map(Path, entry["images"])))
