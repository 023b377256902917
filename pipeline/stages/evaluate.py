"""From predictions and references to scores, and from scores to a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.labels import LabelTable
from pipeline.data.volumes import read_grid
from pipeline.engine import default_jobs, open_engine
from pipeline.evaluate.choose_labels import MatchLabels, choose_labels
from pipeline.evaluate.measures import Measures
from pipeline.evaluate.pairing import FilePair, pair_files
from pipeline.evaluate.results import write_evaluation
from pipeline.evaluate.scoring import evaluate as score
from pipeline.evaluate.subgroups import read_metadata, summarize_subgroups
from pipeline.export.report import write_report
from pipeline.stages.batch import Progress, mapped, quiet
from pipeline.stages.memory import READING_WORKER_BYTES
from pipeline.stages.references import merged_references
from pipeline.stages.signature import signature

__all__ = ["Meaning", "evaluate", "report"]

_PNG = b"\x89PNG\r\n\x1a\n"
_HTML = (".html", ".htm")
_BYTES_PER_VOXEL = 16  # two label maps, twice each, and the faces of their organs


@dataclass(frozen=True)
class Meaning:
    """What label values mean, where a user says so.

    Args:
        labels: File with the label table.
        match: Whether labels of predictions and references belong together by value or by name.
        remap: Label values of the predictions and what they stand for, each ``from=to`` or a file of these.
    """

    labels: Path | None = None
    match: MatchLabels | None = None
    remap: tuple[str, ...] = ()


def evaluate(
    predictions: Path,
    references: Path,
    out: Path,
    *,
    labels: LabelTable | None = None,
    measures: Measures | None = None,
    meaning: Meaning | None = None,
    metadata: Path | None = None,
    by: Sequence[str] = (),
    jobs: int | None = None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Score label maps against references: ``scores.csv`` with every row, ``summary.json`` with the statistics.

    Of a dataset that keeps a mask per organ, the label maps they make are written to ``references/`` first.

    Args:
        predictions: Predicted label map, folder or list of cases.
        references: Reference label map, folder of them, dataset folder or list of cases.
        out: Folder for the scores.
        labels: The organs; by default found beside the predictions or references.
        measures: What to measure; by default overlap, volumes and exact surface distances.
        meaning: What label values mean.
        metadata: CSV file of what is known about the cases: then there are scores by its columns.
        by: Which columns; by default those of few values.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Returns:
        The summary.

    Raises:
        VolsegError: If there is nothing to score, or label tables contradict each other.
    """
    known = None if metadata is None else read_metadata(metadata)  # first: a wrong path costs no scoring
    measures = measures or Measures()
    if measures.probabilities is not None and not measures.probabilities.is_dir():
        got, advice = "nothing there", "Check the path"
        raise VolsegError(sentence("probabilities", "a folder", got, advice, file=measures.probabilities))
    references, failed = merged_references(predictions, references, out / "references", jobs, progress)
    pairs = pair_files(predictions, references)
    notes: tuple[str, ...] = ()
    if labels is None:
        labels, measures, notes = _labels(predictions, references, measures, meaning or Meaning())
    with open_engine(jobs or default_jobs(len(pairs)), READING_WORKER_BYTES) as run:
        result = score(predictions, references, labels, mapped(run, progress, "evaluate", _case_bytes), measures, notes)
    extra = {} if known is None else {"subgroups": summarize_subgroups(result.rows, known, by)}
    return write_evaluation(replace(result, failures=(*result.failures, *failed)), out, extra=extra)


def report(
    evaluation: Path,
    out: Path,
    *,
    overlays: int = 3,
    viewer_cases: int = 20,
    viewer_mb: float = 6.0,
    show_names: bool = False,
    title: str | None = None,
    curves: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of an evaluation, signed with version and date.

    Args:
        evaluation: Folder that :func:`evaluate` wrote.
        out: HTML file; its name ends in ``.html`` or ``.htm``.
        overlays: Worst and best cases to draw, each.
        viewer_cases: Cases in the viewer, half of them the worst.
        viewer_mb: Megabytes that their volumes may take.
        show_names: Show case ids and paths instead of hashes.
        title: Heading.
        curves: PNG of training curves to include.
        say: Told in one sentence if cases that were to be shown are not.

    Returns:
        ``out``.

    Raises:
        VolsegError: If ``out`` has another ending, the evaluation cannot be read, ``curves`` is no PNG file, or the
            report cannot be written.
    """
    if out.suffix.lower() not in _HTML:
        rule, advice = "a file that ends in .html", f"Name it for example {out.stem or 'report'}.html"
        raise VolsegError(sentence("out", rule, str(out), advice))
    if curves is not None:
        _require_png(curves)
    return write_report(
        evaluation,
        out,
        overlays=overlays,
        viewer_cases=viewer_cases,
        viewer_mb=viewer_mb,
        show_names=show_names,
        title=title,
        curves=curves,
        say=say,
        **signature(),
    )


def _labels(
    predictions: Path, references: Path, measures: Measures, meaning: Meaning
) -> tuple[LabelTable | None, Measures, tuple[str, ...]]:
    """The label table, what is measured with the predictions' values replaced by its, and notes."""
    chosen = choose_labels(predictions, references, meaning.labels, meaning.match, meaning.remap)
    return chosen.labels, replace(measures, remap=chosen.remap, unscored=chosen.unscored), chosen.notes


def _require_png(path: Path) -> None:
    """Refuse a wrong path before a report is written without the picture."""
    try:
        with path.open("rb") as stream:
            found = "another file" if stream.read(len(_PNG)) != _PNG else ""
    except OSError as error:
        found = error.strerror or "one that cannot be read"
    if found:
        raise VolsegError(sentence("--curves", "a PNG picture", found, "Give the curves.png of a fold", file=path))


def _case_bytes(pair: FilePair) -> int:
    """Memory to score a case, by the header of its reference."""
    return _BYTES_PER_VOXEL * read_grid(pair.reference).voxels
