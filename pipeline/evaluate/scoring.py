"""From files of label maps to one row of scores per case and organ or region."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.errors import VolsegError
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap, require_same_grid
from pipeline.data.volumes import read_label_map
from pipeline.evaluate.overlap import overlaps
from pipeline.evaluate.pairing import FilePair, find_images, find_labels, pair_files, unpaired_predictions
from pipeline.evaluate.rows import EvaluatedCase, Evaluation, Row, Status

__all__ = ["CaseScores", "MapCases", "evaluate", "evaluate_pairs", "score_case", "score_without_prediction"]

_LOST = "scoring: expected a result, got none (its worker stopped). Run again with --jobs 1."


@dataclass(frozen=True)
class CaseScores:
    """What scoring one case gave.

    Args:
        case: Case id.
        rows: One per organ or region; empty if the reference could not be read.
        failure: Why a file could not be used, or None.
    """

    case: str
    rows: tuple[Row, ...]
    failure: str | None = None


class MapCases(Protocol):
    """Anything that works like ``map``: in this process, or over workers. The order of the results is free."""

    def __call__(self, function: Callable[[FilePair], Any], pairs: Sequence[FilePair], /) -> Iterable[Any]:
        """Apply a picklable function to every pair."""


def score_case(prediction: LabelMap, reference: LabelMap, labels: LabelTable, case: str) -> list[Row]:
    """Score every organ of one case, or every region if the table has regions.

    Args:
        prediction: Predicted label map on the reference's grid.
        reference: Reference label map.
        labels: The organs or regions, and the ignore label if there is one.
        case: Case id.

    Returns:
        One row per target, in the order of the table.

    Raises:
        DataError: If the grids differ (shapes, or the distance in mm), or a value is not in the label table.
    """
    require_same_grid(reference.grid, prediction.grid, "prediction grid", "the reference grid", case=case)
    voxel_ml = reference.grid.voxel_volume_ml
    return [
        Row(
            case,
            found.label,
            found.name,
            found.status,
            found.dice,
            found.iou,
            found.reference_voxels * voxel_ml,
            found.prediction_voxels * voxel_ml,
        )
        for found in overlaps(reference.array, prediction.array, labels, case=case)
    ]


def score_without_prediction(
    reference: LabelMap, labels: LabelTable, case: str, status: Status = "missing_prediction"
) -> list[Row]:
    """Score a case that has no usable prediction: 0 for every organ (or region) in its reference.

    Args:
        reference: Reference label map.
        labels: The organs or regions, and the ignore label if there is one.
        case: Case id.
        status: ``missing_prediction`` or ``failed``.

    Returns:
        One row per target; Dice and IoU are NaN for organs that the reference does not have.

    Raises:
        DataError: If the reference holds a value that is not in the label table.
    """
    rows = []
    for found in overlaps(reference.array, reference.array, labels, case=case):
        score = 0.0 if found.reference_voxels else float("nan")
        volume_ml = found.reference_voxels * reference.grid.voxel_volume_ml
        rows.append(Row(case, found.label, found.name, status, score, score, volume_ml, float("nan")))
    return rows


def evaluate(
    predictions: Path, references: Path, labels: LabelTable | None = None, map_cases: MapCases = map
) -> Evaluation:
    """Score a folder of predictions against a folder of references.

    A reference without a prediction is a miss, and so is one whose prediction cannot be read, lies on another grid or
    holds unknown values: such a case is reported as failed, and its organs score 0, so that a broken file never
    improves a mean. A case whose reference cannot be used is reported and has no rows.

    Args:
        predictions: Predicted label map or folder of label maps.
        references: Reference label map, folder of label maps, or dataset folder.
        labels: The organs or regions. By default those of ``labels.json`` beside the predictions or ``dataset.json``
            beside the references; without such files every value found is an organ called ``label_<value>``.
        map_cases: Applies the scoring of one case to all of them, like ``map``.

    Returns:
        Rows, failures and notes.

    Raises:
        VolsegError: If there is nothing to score: no such path, no volumes, no matching names.
    """
    pairs = pair_files(predictions, references)
    notes = [
        f"{path.name}: no reference of that name, not scored." for path in unpaired_predictions(predictions, pairs)
    ]
    labels = labels or find_labels(predictions, references)
    if labels is None:
        labels = _labels_of_values(pairs, map_cases)
        notes.append("No label table found: organs are named after their label values.")
    images, image_notes = find_images(predictions, pairs)
    return evaluate_pairs(pairs, labels, map_cases, images=images, notes=(*notes, *image_notes))


def evaluate_pairs(
    pairs: Sequence[FilePair],
    labels: LabelTable,
    map_cases: MapCases = map,
    *,
    images: Mapping[str, tuple[Path, ...]] | None = None,
    notes: Sequence[str] = (),
) -> Evaluation:
    """Score predictions against references, as :func:`evaluate` does, where it is known which belong together.

    Args:
        pairs: One per case.
        labels: The organs or regions.
        map_cases: Applies the scoring of one case to all of them, like ``map``.
        images: Case id → its image files, where they are known.
        notes: Sentences a reader of the scores should know.
    """
    results = {scores.case: scores for scores in map_cases(partial(_score_pair, labels), pairs)}
    results = {pair.case: results.get(pair.case) or CaseScores(pair.case, (), _LOST) for pair in pairs}
    known = images or {}
    return Evaluation(
        labels=labels,
        rows=tuple(row for pair in pairs for row in results[pair.case].rows),
        cases=tuple(EvaluatedCase(p.case, p.reference, p.prediction, known.get(p.case, ())) for p in pairs),
        failures=tuple((scores.case, scores.failure) for scores in results.values() if scores.failure),
        notes=tuple(notes),
    )


def _score_pair(labels: LabelTable, pair: FilePair) -> CaseScores:
    """Read and score one case; what goes wrong becomes a message."""
    case = pair.case
    try:
        reference = read_label_map(pair.reference, case=case)
    except VolsegError as error:
        return CaseScores(case, (), str(error))
    try:
        if pair.prediction is None:
            return CaseScores(case, tuple(score_without_prediction(reference, labels, case)))
        prediction = read_label_map(pair.prediction, case=case)
        return CaseScores(case, tuple(score_case(prediction, reference, labels, case)))
    except VolsegError as error:
        return CaseScores(case, _failed_rows(reference, labels, case), str(error))


def _failed_rows(reference: LabelMap, labels: LabelTable, case: str) -> tuple[Row, ...]:
    try:
        return tuple(score_without_prediction(reference, labels, case, "failed"))
    except VolsegError:  # the reference itself holds unknown values: there is nothing to score against
        return ()


def _labels_of_values(pairs: Sequence[FilePair], map_cases: MapCases) -> LabelTable:
    values = {value for found in map_cases(_values_of_pair, pairs) for value in found if value > 0}
    return LabelTable({value: f"label_{value}" for value in values})


def _values_of_pair(pair: FilePair) -> tuple[int, ...]:
    """Label values of both files; files that cannot be read are reported when they are scored."""
    values: set[int] = set()
    for path in (pair.prediction, pair.reference):
        try:
            values.update(read_label_map(path, case=pair.case).values() if path else ())
        except VolsegError:
            continue
    return tuple(values)
