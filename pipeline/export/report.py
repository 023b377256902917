"""The report: one HTML file that needs neither network nor scripts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core import VolsegError, require_same_grid
from pipeline.core.files import write_text
from pipeline.data.volumes import read_image, read_label_map
from pipeline.evaluate import EvaluatedCase, Evaluation, Row, read_evaluation, read_summary
from pipeline.export.overlay import Overlay, case_overlay
from pipeline.export.page import both_themes, render_page
from pipeline.export.palette import FALSE_NEGATIVE, FALSE_POSITIVE, OTHER_ORGAN, png_uri
from pipeline.export.plots import dice_against_volume, dice_boxplots

__all__ = ["write_report"]

_CASES_SHOWN = 20
_ERRORS = (
    ("false negative", FALSE_NEGATIVE),
    ("false positive", FALSE_POSITIVE),
    ("taken for another organ", OTHER_ORGAN),
)


def write_report(
    evaluation_folder: Path,
    out: Path,
    *,
    overlays: int = 3,
    title: str | None = None,
    curves: Path | Sequence[Path] | None = None,
    version: str = "",
    date: str = "",
) -> Path:
    """Write the report of an evaluation.

    Volumes are read one case at a time. A file that cannot be read becomes a note in the report.

    Args:
        evaluation_folder: Folder that ``volseg evaluate`` wrote.
        out: HTML file to write.
        overlays: Number of worst cases to draw, and at most as many of the best; 0 for none.
        title: Heading; by default ``Segmentation report``.
        curves: PNG files of training curves to include.
        version: Version of volseg, for the foot of the page.
        date: Date of the report, likewise.

    Returns:
        ``out``. For an evaluation without scores, a report that says so.

    Raises:
        VolsegError: If the evaluation cannot be read, or the report not be written.
    """
    evaluation, summary = read_evaluation(evaluation_folder), read_summary(evaluation_folder)
    notes = list(evaluation.notes)
    scored = any(row.counts for row in evaluation.rows)
    context = {
        "title": title or "Segmentation report",
        "summary": summary,
        "scored": scored,
        "statuses": {case.id: _case_status(case.id, evaluation.rows) for case in evaluation.cases},
        "cases_shown": _CASES_SHOWN,
        "boxplots": both_themes(partial(dice_boxplots, evaluation.rows)) if scored else None,
        "scatter": both_themes(partial(dice_against_volume, evaluation.rows)) if scored else None,
        "overlays": _overlays(evaluation, summary, overlays, notes),
        "errors": _ERRORS,
        "curves": _curves(curves, notes),
        "failures": [(case, message.removeprefix(f"case {case}: ")) for case, message in evaluation.failures],
        "notes": notes,
        "version": version,
        "date": date,
    }
    write_text(out, render_page("report.html.j2", context))
    return out


def _case_status(case: str, rows: Sequence[Row]) -> str:
    """What went wrong in a case, in words; empty if nothing did."""
    found = [row for row in rows if row.case == case and (row.counts or row.status == "failed")]
    statuses = {row.status for row in found}
    if "missing_prediction" in statuses:
        return "no prediction"
    if "failed" in statuses or not found:
        return "failed"
    parts = []
    for status in ("missed", "hallucinated"):
        names = [row.name for row in found if row.status == status]
        if names:
            parts.append(f"{status}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}")
    return "; ".join(parts)


def _overlays(evaluation: Evaluation, summary: dict[str, Any], count: int, notes: list[str]) -> list[dict[str, Any]]:
    """Worst cases first, then the best of the others; cases without a usable prediction have nothing to show."""
    broken = {case for case, _ in evaluation.failures}
    files = {
        case.id: (case, case.prediction)
        for case in evaluation.cases
        if case.prediction is not None and case.id not in broken
    }
    ranked = [entry for entry in summary["cases"] if entry["case"] in files and entry["dice"] is not None]
    worst = ranked[:count]
    best = ranked[len(worst) :][::-1][:count]
    drawn = []
    for rank, entry in [*(("worst", e) for e in worst), *(("best", e) for e in best)]:
        try:
            overlay = _draw(*files[entry["case"]], evaluation, entry["worst_organ"], notes)
        except VolsegError as error:
            notes.append(f"Overlay of {entry['case']} left out: {error}")
            continue
        rows = sorted(
            (row for row in evaluation.rows if row.case == entry["case"] and row.counts), key=lambda r: r.dice
        )
        drawn.append({"rank": rank, **entry, "rows": rows, "overlay": overlay, "uri": png_uri(overlay.png)})
    return drawn


def _draw(case: EvaluatedCase, predicted: Path, evaluation: Evaluation, organ: str, notes: list[str]) -> Overlay:
    reference = read_label_map(case.reference, case=case.id)
    prediction = read_label_map(predicted, case=case.id)
    image = None
    if case.images:
        try:
            image = read_image(case.images[:1], case=case.id)
            require_same_grid(reference.grid, image.grid, "image grid", "the reference grid", case=case.id)
        except VolsegError as error:
            notes.append(f"Overlay of {case.id} without its image: {error}")
            image = None
    return case_overlay(reference, prediction, evaluation.labels, evaluation.labels.target_values[organ], image)


def _curves(curves: Path | Sequence[Path] | None, notes: list[str]) -> list[str]:
    found = []
    for path in [curves] if isinstance(curves, Path) else curves or []:
        try:
            found.append(png_uri(path.read_bytes()))
        except OSError as error:
            notes.append(f"{path}: training curves left out ({error.strerror or error}).")
    return found
