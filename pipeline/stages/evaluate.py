"""From predictions and references to scores, and from scores to a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.core.labels import LabelTable
from pipeline.engine import default_jobs, open_engine
from pipeline.evaluate.pairing import pair_files
from pipeline.evaluate.results import write_evaluation
from pipeline.evaluate.scoring import evaluate as score
from pipeline.export.report import write_report
from pipeline.stages.batch import Progress, mapped, quiet
from pipeline.stages.references import merged_references
from pipeline.stages.signature import signature

__all__ = ["evaluate", "report"]


def evaluate(
    predictions: Path,
    references: Path,
    out: Path,
    *,
    labels: LabelTable | None = None,
    jobs: int | None = None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Score label maps against references: ``scores.csv`` with every row, ``summary.json`` with the statistics.

    Of a dataset that keeps a mask per organ, the label maps they make are written to ``references/`` first.

    Args:
        predictions: Predicted label map or folder.
        references: Reference label map, folder of them, or dataset folder.
        out: Folder for the scores.
        labels: The organs; by default found beside the predictions or references.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Returns:
        The summary.

    Raises:
        VolsegError: If there is nothing to score.
    """
    references, failed = merged_references(predictions, references, out / "references", jobs, progress)
    workers = jobs or default_jobs(len(pair_files(predictions, references)))
    with open_engine(workers) as run:
        result = score(predictions, references, labels, mapped(run, progress, "evaluate"))
    return write_evaluation(replace(result, failures=(*result.failures, *failed)), out)


def report(
    evaluation: Path, out: Path, *, overlays: int = 3, title: str | None = None, curves: Path | None = None
) -> Path:
    """Write the report of an evaluation, signed with version and date.

    Args:
        evaluation: Folder that :func:`evaluate` wrote.
        out: HTML file.
        overlays: Worst and best cases to draw, each.
        title: Heading.
        curves: PNG of training curves to include.

    Returns:
        ``out``.

    Raises:
        VolsegError: If the evaluation cannot be read, or the report not be written.
    """
    return write_report(evaluation, out, overlays=overlays, title=title, curves=curves, **signature())
