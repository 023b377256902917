"""The cases that a report shows: pictures of the worst and best, and their volumes for the viewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core import VolsegError
from pipeline.evaluate import Evaluation
from pipeline.export.names import Names
from pipeline.export.opened_case import OpenedCase, open_case
from pipeline.export.overlay import case_overlay
from pipeline.export.palette import png_uri
from pipeline.export.scene import build_scene
from pipeline.export.viewer import Ranked, Room, ViewerCase, chosen_cases, viewer_case

__all__ = ["ShownCases", "newer_predictions", "show_cases"]

_WITHHELD = "the reason may hold a name; --show-names shows it."


@dataclass
class ShownCases:
    """Mutable result: what was drawn so far.

    Args:
        overlays: What the template uses of each picture, the worst case first.
        viewer: Cases in the viewer, the worst first.
        notes: Sentences on what is not shown.
    """

    overlays: list[dict[str, Any]] = field(default_factory=list)
    viewer: list[ViewerCase] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def show_cases(
    evaluation: Evaluation, summary: Mapping[str, Any], names: Names, overlays: int, in_viewer: int, viewer_mb: float
) -> ShownCases:
    """Draw and pack cases; one is in memory at a time.

    Cases without a usable prediction have nothing to show. One that is known to have an image which is gone is in no
    viewer. What cannot be read becomes a note.

    Args:
        evaluation: The rows and files.
        summary: Statistics, with the order of the cases.
        names: What cases are called.
        overlays: Worst cases to draw, and at most as many of the best.
        in_viewer: Cases in the viewer, half of them the worst, half the best.
        viewer_mb: Megabytes that their volumes may take in the page.
    """
    broken = {case for case, _ in evaluation.failures}
    files = {case.id: case for case in evaluation.cases if case.prediction is not None and case.id not in broken}
    entries = {
        entry["case"]: entry for entry in summary["cases"] if entry["case"] in files and entry["dice"] is not None
    }
    drawn = {ranked.case: ranked for ranked in chosen_cases(list(entries), 2 * overlays)}
    packed = {ranked.case: ranked for ranked in chosen_cases(list(entries), in_viewer)}
    room = Room(int(viewer_mb * 1e6), len(packed))
    shown = ShownCases()
    for case in (case for case in entries if case in drawn or case in packed):
        try:
            opened = open_case(files[case], evaluation)
        except VolsegError as error:
            shown.notes.append(f"{names.case(case)}: left out of the pictures: {_reason(str(error), case, names)}")
            if case in packed:
                room.take(0)
            continue
        if opened.problem:
            consequence = "left out of the viewer, and of the image in its picture"
            shown.notes.append(f"{names.case(case)}: {consequence}: {_reason(opened.problem, case, names)}")
        if case in drawn:
            shown.overlays.append(_overlay(opened, evaluation, entries[case], drawn[case].rank, names))
        if case in packed:
            _pack(opened, evaluation, entries[case]["worst_organ"], packed[case], names, room, shown)
    return shown


def newer_predictions(evaluation: Evaluation, scores: Path) -> list[str]:
    """Ids of cases whose prediction was written after the scores."""
    try:
        written = scores.stat().st_mtime
    except OSError:
        return []
    found = []
    for case in evaluation.cases:
        if case.prediction is not None and case.prediction.is_file() and case.prediction.stat().st_mtime > written:
            found.append(case.id)
    return found


def _reason(message: str, case: str, names: Names) -> str:
    return names.text(message.removeprefix(f"case {case}: ")) or _WITHHELD


def _overlay(
    opened: OpenedCase, evaluation: Evaluation, entry: Mapping[str, Any], rank: str, names: Names
) -> dict[str, Any]:
    organ = evaluation.labels.target_values[entry["worst_organ"]]
    volumes = opened.reference, opened.prediction
    overlay = case_overlay(*volumes, evaluation.labels, organ, opened.image, picture=opened.picture)
    rows = sorted((row for row in evaluation.rows if row.case == opened.id and row.counts), key=lambda row: row.dice)
    name = names.case(opened.id)
    return {**entry, "rank": rank, "name": name, "rows": rows, "overlay": overlay, "uri": png_uri(overlay.png)}


def _pack(
    opened: OpenedCase, evaluation: Evaluation, organ: str, ranked: Ranked, names: Names, room: Room, shown: ShownCases
) -> None:
    if opened.problem:
        room.take(0)
        return
    labels, name = evaluation.labels, names.case(opened.id)
    scene = build_scene(opened.reference, opened.prediction, labels, opened.image, picture=opened.picture)
    made = viewer_case(scene, labels, labels.target_values[organ], name, ranked.rank, room.share())
    room.take(made.packed.size if made else 0)
    if made:
        shown.viewer.append(made)
    else:
        shown.notes.append(f"{name}: left out of the viewer, since --viewer-mb leaves it no room.")
