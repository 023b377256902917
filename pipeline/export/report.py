"""The report: one HTML file that needs no network, and scripts only for its viewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.files import write_text
from pipeline.evaluate import Evaluation, read_evaluation, read_summary
from pipeline.evaluate.metrics import METRICS
from pipeline.export.agreement_plot import MOST_PANELS, volume_agreement
from pipeline.export.names import Names, names_of
from pipeline.export.page import both_themes, render_page
from pipeline.export.palette import ERROR_COLORS, png_uri
from pipeline.export.plots import dice_against_volume, metric_boxplots
from pipeline.export.report_cases import newer_predictions, show_cases
from pipeline.export.report_tables import table_context
from pipeline.export.viewer import viewer_context

__all__ = ["write_report"]

_ROWS_SHOWN = {"cases_shown": 50, "worst_shown": 30, "failures_shown": 50}


def write_report(
    evaluation_folder: Path,
    out: Path,
    *,
    overlays: int = 3,
    viewer_cases: int = 20,
    viewer_mb: float = 6.0,
    show_names: bool = False,
    title: str | None = None,
    curves: Path | Sequence[Path] | None = None,
    version: str = "",
    date: str = "",
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of an evaluation.

    Volumes are read one case at a time. A file that cannot be read, or that is not what was evaluated, becomes a note
    in the report.

    Args:
        evaluation_folder: Folder that ``volseg evaluate`` wrote.
        out: HTML file to write.
        overlays: Number of worst cases to draw, and at most as many of the best; 0 for none.
        viewer_cases: Number of cases in the viewer, half of them the worst, half the best; 0 leaves the viewer out.
        viewer_mb: Megabytes that their volumes may take; they are shown with fewer voxels where that is not enough.
        show_names: Show case ids and paths. Otherwise cases are named by a hash, and sentences that may hold a name
            are left out.
        title: Heading; by default ``Segmentation report``.
        curves: PNG files of training curves to include.
        version: Version of volseg, for the foot of the page.
        date: Date of the report, likewise.
        say: Told in one sentence if cases that were to be shown are not.

    Returns:
        ``out``. For an evaluation without scores, a report that says so.

    Raises:
        VolsegError: If the evaluation cannot be read, or the report not be written.
    """
    evaluation, summary = read_evaluation(evaluation_folder), read_summary(evaluation_folder)
    names = names_of(evaluation.cases, _further_ids(evaluation), show=show_names)
    shown = show_cases(evaluation, summary, names, overlays, viewer_cases, viewer_mb)
    pictures, lost_curves = _curves(curves)
    notes = [*_notes(evaluation, names, evaluation_folder / "scores.csv"), *shown.notes, *lost_curves]
    scored = any(row.counts for row in evaluation.rows)
    context = {
        "title": title or "Segmentation report",
        "summary": summary,
        "scored": scored,
        **_ROWS_SHOWN,
        **table_context(evaluation, summary, names),
        **_plots(evaluation, summary, scored),
        "overlays": shown.overlays,
        "viewer": viewer_context(shown.viewer, evaluation.labels),
        "in_viewer": {case.name: n for n, case in enumerate(shown.viewer)},
        "error_colors": ERROR_COLORS,
        "curves": pictures,
        "failures": [_failure(names, case, message) for case, message in evaluation.failures],
        "notes": notes,
        "unscored": evaluation.measures.unscored,
        "hidden": names.hidden,
        "version": version,
        "date": date,
    }
    write_text(out, render_page("report.html.j2", context))
    if say is not None and shown.notes:
        first = shown.notes[0]
        say(f"note  {len(shown.notes)} notes in the report on cases that it does not show in full, e.g. {first}")
    return out


def _plots(evaluation: Evaluation, summary: Mapping[str, Any], scored: bool) -> dict[str, Any]:
    """Every plot for light and dark screens; empty without scores."""
    if not scored:
        return {"boxplots": [], "scatter": None, "agreement": None, "most_panels": MOST_PANELS}
    drawn = [METRICS[column] for column in ("dice", "hd95_mm", "nsd") if column in summary["overall"]]
    return {
        "boxplots": [(m, both_themes(partial(metric_boxplots, evaluation.rows, metric=m))) for m in drawn],
        "scatter": both_themes(partial(dice_against_volume, evaluation.rows)),
        "agreement": both_themes(partial(volume_agreement, evaluation.rows)),
        "most_panels": MOST_PANELS,
    }


def _further_ids(evaluation: Evaluation) -> list[str]:
    """Ids that may stand in a table beside those of the cases: no reference of a failed case may have been made."""
    return [*(case for case, _ in evaluation.failures), *(row.case for row in evaluation.rows)]


def _failure(names: Names, case: str, message: str) -> tuple[str, str]:
    withheld = "its files could not be used; the reason may hold a name, --show-names shows it."
    return names.case(case), names.text(message.removeprefix(f"case {case}: ")) or withheld


def _notes(evaluation: Evaluation, names: Names, scores: Path) -> list[str]:
    """What the evaluation noted, as far as it holds no names, and whether files changed since."""
    notes, withheld = names.texts(evaluation.notes)
    if withheld:
        notes.append(f"{withheld} further notes of the evaluation may hold names; --show-names shows them.")
    newer = newer_predictions(evaluation, scores)
    if newer:
        count = f"{len(newer)} of {len(evaluation.cases)} predictions (e.g. {names.case(newer[0])})"
        notes.append(f"{count} were written after the scores. If they changed, run volseg evaluate again.")
    return notes


def _curves(curves: Path | Sequence[Path] | None) -> tuple[list[str], list[str]]:
    """Pictures of training curves, and notes on those that cannot be read."""
    found, notes = [], []
    for path in [curves] if isinstance(curves, Path) else curves or []:
        try:
            found.append(png_uri(path.read_bytes()))
        except OSError as error:
            notes.append(f"Training curves were left out: {error.strerror or 'they cannot be read'}.")
    return found, notes
