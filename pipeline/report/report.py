"""The report: one HTML file that needs no network, and scripts only for its viewer.

First the page, then its tables, then the cases that it shows, and last how the volumes of a case are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.core.files import write_text
from pipeline.core.volume import Image, LabelMap, require_same_grid
from pipeline.data.volume_file import is_picture
from pipeline.data.volumes import read_image, read_label_map
from pipeline.evaluate.case import aligned, replaced_values, score_case, without_values
from pipeline.evaluate.metrics import METRICS, OVERLAP_ONLY, Row
from pipeline.evaluate.results import Evaluation, ScoredFiles, read_evaluation, read_summary
from pipeline.report.deidentify import Names, names_of
from pipeline.report.overlay import build_scene, case_overlay
from pipeline.report.page import both_themes, render_page
from pipeline.report.plots import (
    ERROR_COLORS,
    MOST_PANELS,
    dice_against_volume,
    metric_boxplots,
    png_uri,
    volume_agreement,
)
from pipeline.report.viewer import SizeBudget, ViewerEntry, chosen_cases, viewer_context, viewer_entry

STATUS_TITLES: Mapping[str, str] = {
    "scored": "Scored",
    "missed": "Missed",
    "hallucinated": "Hallucinated",
    "missing_prediction": "Missing prediction",
    "failed": "Failed",
    "true_negative": "True negative",
}
"""Status of a row → its column, in the order of the table."""

_ROWS_SHOWN = {"cases_shown": 50, "worst_shown": 30, "failures_shown": 50}
_NAMED = 4  # organs named in a remark
_OVERLAP = ("dice", "iou")
_WITHHELD = "the reason may hold a name; --show-names shows it."


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
    neurological: bool = False,
    version: str = "",
    date: str = "",
    log: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of an evaluation; without scores, one that says so. Returns ``out``.

    Volumes are read one case at a time. A file that cannot be read, or that is not what was evaluated, becomes a note
    in the report.

    Args:
        evaluation_folder: Folder that ``volseg evaluate`` wrote.
        out: HTML file to write.
        overlays: Number of worst cases to draw, and at most as many of the best.
        viewer_cases: Number of cases in the viewer, half of them the worst, half the best; 0 leaves the viewer out.
        viewer_mb: Megabytes that their volumes may take; they are shown with fewer voxels where that is not enough.
        show_names: Show case ids and paths; otherwise hashes, and no sentence that may hold a name.
        title: Heading.
        curves: PNG files of training curves to include.
        neurological: Show the patient's left on the left; otherwise on the right, as radiologists do.
        version: Version of volseg, for the foot of the page.
        date: Date of the report, likewise.
        log: Called with one sentence if cases that were to be shown are not.
    """
    evaluation, summary = read_evaluation(evaluation_folder), read_summary(evaluation_folder)
    # Ids may stand in a table beside those of the cases: no reference of a failed case may have been made.
    further = [*(case for case, _ in evaluation.failures), *(row.case for row in evaluation.rows)]
    names = names_of(evaluation.cases, further, show=show_names)
    shown = show_cases(evaluation, summary, names, Wanted(overlays, viewer_cases, viewer_mb, neurological))
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
        "viewer": viewer_context(shown.viewer, evaluation.labels, neurological=neurological),
        "neurological": neurological,
        "in_viewer": {case.name: n for n, case in enumerate(shown.viewer)},
        "error_colors": ERROR_COLORS,
        "curves": pictures,
        "failures": [
            (names.case(case), _reason(names, case, message, f"its files could not be used; {_WITHHELD}"))
            for case, message in evaluation.failures
        ],
        "notes": notes,
        "unscored": evaluation.measures.unscored,
        "hidden": names.hidden,
        "version": version,
        "date": date,
    }
    write_text(out, render_page("report.html.j2", context))
    if log is not None and shown.notes:
        first = shown.notes[0]
        log(f"note  {len(shown.notes)} notes in the report on cases that it does not show in full, e.g. {first}")
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


def _notes(evaluation: Evaluation, names: Names, scores: Path) -> list[str]:
    """What the evaluation noted, as far as it holds no names, and whether files changed since."""
    notes, withheld = names.texts(evaluation.notes)
    if withheld:
        notes.append(f"{withheld} further notes of the evaluation may hold names; --show-names shows them.")
    newer = _newer_predictions(evaluation, scores)
    if newer:
        count = f"{len(newer)} of {len(evaluation.cases)} predictions (e.g. {names.case(newer[0])})"
        notes.append(f"{count} were written after the scores. If they changed, run volseg evaluate again.")
    return notes


def _newer_predictions(evaluation: Evaluation, scores: Path) -> list[str]:
    """Ids of cases whose prediction was written after the scores."""
    if not scores.is_file():
        return []
    written = scores.stat().st_mtime
    files = {case.id: case.prediction for case in evaluation.cases if case.prediction is not None}
    return [case for case, path in files.items() if path.is_file() and path.stat().st_mtime > written]


def _reason(names: Names, case: str, message: str, withheld: str = _WITHHELD) -> str:
    """Why something is not shown, as far as the sentence holds no names."""
    return names.text(message.removeprefix(f"case {case}: ")) or withheld


def _curves(curves: Path | Sequence[Path] | None) -> tuple[list[str], list[str]]:
    """Pictures of training curves, and notes on those that cannot be read."""
    found, notes = [], []
    for path in [curves] if isinstance(curves, Path) else curves or []:
        try:
            found.append(png_uri(path.read_bytes()))
        except OSError as error:
            notes.append(f"Training curves were left out: {error.strerror or 'they cannot be read'}.")
    return found, notes


# Tables: what happened to every organ, the worst organs, the cases.


def table_context(evaluation: Evaluation, summary: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """What the template of the tables uses."""
    by_case: dict[str, list[Row]] = {case.id: [] for case in evaluation.cases}
    for row in evaluation.rows:
        by_case.setdefault(row.case, []).append(row)
    cases = [
        {**entry, "name": names.case(entry["case"]), "status": case_status(by_case.get(entry["case"], ()))}
        for entry in summary["cases"]
    ]
    overall = summary["overall"]
    metrics = [metric for column, metric in METRICS.items() if column in overall and column not in _OVERLAP]
    shown = [METRICS[column] for column in ("hd95_mm", "nsd") if METRICS[column] in metrics]
    return {
        "cases": cases,
        "statuses": STATUS_TITLES,
        "metrics": metrics,
        "worst_metrics": shown,
        "infinite": math.inf,
        "worst_rows": worst_rows(evaluation.rows),
        "case_name": names.case,
    }


def worst_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows with a score, lowest Dice first and among equal ones the largest HD95."""

    def badness(row: Row) -> tuple[float, float, str, str]:
        distance = row.entry("hd95_mm")
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


# Cases that are shown: pictures of the worst and best, and their volumes for the viewer.


@dataclass(frozen=True)
class Wanted:
    """Which cases are shown, and how.

    Args:
        overlays: Worst cases to draw, and at most as many of the best.
        in_viewer: Cases in the viewer, half of them the worst, half the best.
        viewer_mb: Megabytes that their volumes may take in the page.
        neurological: Whether the patient's left is on the left.
    """

    overlays: int
    in_viewer: int
    viewer_mb: float
    neurological: bool = False


@dataclass
class ShownCases:
    """Mutable result: what was drawn so far.

    Args:
        overlays: What the template uses of each picture, the worst case first.
        viewer: Cases in the viewer, the worst first.
        notes: Sentences on what is not shown.
    """

    overlays: list[dict[str, Any]] = field(default_factory=list)
    viewer: list[ViewerEntry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def show_cases(evaluation: Evaluation, summary: Mapping[str, Any], names: Names, wanted: Wanted) -> ShownCases:
    """Draw and pack cases; one is in memory at a time.

    Cases without a usable prediction have nothing to show. One that is known to have an image which is gone is in no
    viewer. What cannot be read becomes a note.

    Args:
        evaluation: The rows and files.
        summary: Statistics, with the order of the cases.
        names: What cases are called.
        wanted: Which cases, and how.
    """
    broken = {case for case, _ in evaluation.failures}
    files = {case.id: case for case in evaluation.cases if case.prediction is not None and case.id not in broken}
    entries = {
        entry["case"]: entry for entry in summary["cases"] if entry["case"] in files and entry["dice"] is not None
    }
    drawn, packed = (dict(chosen_cases(list(entries), count)) for count in (2 * wanted.overlays, wanted.in_viewer))
    budget = SizeBudget(int(wanted.viewer_mb * 1e6), len(packed))
    shown, labels = ShownCases(), evaluation.labels
    for case in (case for case in entries if case in drawn or case in packed):
        volumes, name, organ = None, names.case(case), entries[case]["worst_organ"]
        try:
            volumes = open_case(files[case], evaluation)
        except VolsegError as error:
            shown.notes.append(f"{name}: left out of the pictures: {_reason(names, case, str(error))}")
        if volumes and volumes.problem:
            why = _reason(names, case, volumes.problem)
            shown.notes.append(f"{name}: left out of the viewer, and of the image in its picture: {why}")
        if volumes and case in drawn:
            overlay = _overlay(volumes, evaluation, organ, neurological=wanted.neurological)
            shown.overlays.append({**entries[case], "rank": drawn[case], "name": name, **overlay})
        if case in packed:
            entry = None
            if volumes and not volumes.problem:
                scene = build_scene(
                    volumes.reference, volumes.prediction, labels, volumes.image, picture=volumes.picture
                )
                held = labels.target_values[organ]
                entry = viewer_entry(scene, labels, held, name, packed[case], budget.share())
                if entry is None:
                    shown.notes.append(f"{name}: left out of the viewer, since --viewer-mb leaves it no room.")
            # Cases that are not shown leave their share to those that come.
            budget.take(entry.packed.size if entry else 0)
            shown.viewer += [entry] if entry else []
    return shown


def _overlay(volumes: ScoredVolumes, evaluation: Evaluation, organ: str, *, neurological: bool) -> dict[str, Any]:
    """The picture of a case, and its rows with the worst organ first."""
    labels, rows = evaluation.labels, [row for row in evaluation.rows if row.case == volumes.id and row.counts]
    maps, held = (volumes.reference, volumes.prediction), labels.target_values[organ]
    overlay = case_overlay(*maps, labels, held, volumes.image, picture=volumes.picture, neurological=neurological)
    return {"rows": sorted(rows, key=lambda row: row.dice), "overlay": overlay, "uri": png_uri(overlay.png)}


# The volumes of a case, as they were scored.


@dataclass(frozen=True, eq=False)
class ScoredVolumes:
    """Volumes of a case on one grid.

    Args:
        id: Case id.
        reference: Reference label map without labels that were not scored.
        prediction: Predicted label map as it was scored: on the reference's grid, with the reference's values.
        image: First channel of the image; None if there is none or it cannot be used.
        problem: Why the image that the evaluation knows of cannot be used; empty if it can, or if none is known.
        picture: Whether image or reference is a picture: no one knows the patient's sides.
    """

    id: str
    reference: LabelMap
    prediction: LabelMap
    image: Image | None
    problem: str = ""
    picture: bool = False


def open_case(case: ScoredFiles, evaluation: Evaluation) -> ScoredVolumes:
    """Read the volumes of a case that has a prediction and make sure that they are those that were scored.

    Raises:
        VolsegError: If a label map cannot be read, or its scores are no longer those of the evaluation.
    """
    if case.prediction is None:
        raise DataError(sentence("prediction", "a label map", "none", "Predict it", case=case.id))
    measures = evaluation.measures
    reference = without_values(read_label_map(case.reference, case=case.id), measures.unscored)
    prediction = replaced_values(read_label_map(case.prediction, case=case.id), measures.remap)
    prediction = aligned(prediction, reference.grid, case.id, resample=measures.resample)
    # Files may have changed since: what is shown must be what was scored.
    then = [row for row in evaluation.rows if row.case == case.id]
    _require_same_scores(score_case(prediction, reference, evaluation.labels, case.id, OVERLAP_ONLY), then, case.id)
    image, problem = _image(case, reference)
    picture = any(map(is_picture, (case.reference, *case.images)))
    return ScoredVolumes(case.id, reference, prediction, image, problem, picture)


def _require_same_scores(now: Sequence[Row], then: Sequence[Row], case: str) -> None:
    known = {row.name: row for row in then}
    for row in now:
        old = known.get(row.name, replace(row, dice=math.nan, volume_reference_ml=math.nan))
        for what, one, other in (
            ("Dice", row.dice, old.dice),
            ("mL in the reference", row.volume_reference_ml, old.volume_reference_ml),
        ):
            if not (one == other or math.isclose(one, other, rel_tol=1e-6) or (math.isnan(one) and math.isnan(other))):
                got = f"{row.name} with {what} {one:.3f} instead of {other:.3f}"
                raise DataError(
                    sentence("label maps", "those that were evaluated", got, "Run volseg evaluate again", case=case)
                )


def _image(case: ScoredFiles, reference: LabelMap) -> tuple[Image | None, str]:
    if not case.images:
        return None, ""
    try:
        image = read_image(case.images[:1], case=case.id)
        require_same_grid(reference.grid, image.grid, "image grid", "the reference grid", case=case.id)
    except VolsegError as error:
        return None, str(error)
    return Image(image.array[:1], image.grid), ""
