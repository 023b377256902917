"""From files of label maps to one row of scores per case and organ or region."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.volume_file import volume_stem
from pipeline.data.volumes import doubtful, doubtful_note, read_label_map
from pipeline.evaluate.case import score_case, score_without_prediction
from pipeline.evaluate.label_choice import choose_labels
from pipeline.evaluate.metrics import OVERLAP_ONLY, Measures, Row
from pipeline.evaluate.pairing import FilePair, find_images, pair_files, prediction_names, unpaired_predictions
from pipeline.evaluate.results import Evaluation, ScoredFiles, missing_note

_LOST = "scoring: expected a result, got none (its worker stopped). Run again with --jobs 1."


@dataclass(frozen=True)
class CaseScores:
    """What scoring one case gave.

    Args:
        case: Case id.
        rows: One per organ or region; empty if the reference could not be read.
        failure: Why a file could not be used, or None.
        spacing_mm: Largest spacing of the reference; 0 if it could not be read.
        resampled: Whether the prediction was on another grid and was brought to the reference's.
        uncalibrated: Whether probabilities were asked for and those of an organ were not there.
        doubtful: File of a label map that other programs may place elsewhere, and what its header says.
        missing: Whether there was no prediction.
    """

    case: str
    rows: tuple[Row, ...]
    failure: str | None = None
    spacing_mm: float = 0.0
    resampled: bool = False
    uncalibrated: bool = False
    doubtful: str | None = None
    missing: bool = False


class MapCases(Protocol):
    """Anything that works like ``map``: in this process, or over workers. The order of the results is free."""

    def __call__(self, function: Callable[[FilePair], Any], pairs: Sequence[FilePair], /) -> Iterable[Any]:
        """Apply a picklable function to every pair."""


def evaluate(
    predictions: Path,
    references: Path,
    labels: LabelTable | None = None,
    map_cases: MapCases = map,
    measures: Measures = OVERLAP_ONLY,
    notes: Sequence[str] = (),
) -> Evaluation:
    """Score a folder of predictions against a folder of references.

    A reference without a prediction is a miss, and so is one whose prediction cannot be read, lies on another grid or
    holds unknown values: such a case is reported as failed, and its organs score 0, so that a broken file never
    improves a mean. A case whose reference cannot be used is reported and has no rows.

    Args:
        predictions: Predicted label map or folder of label maps.
        references: Reference label map, folder of label maps, or dataset folder.
        labels: The organs or regions. By default those of ``labels.json`` beside the predictions or ``dataset.json``
            beside the references, as :func:`~pipeline.evaluate.label_choice.choose_labels` decides; without such files
            every value found is an organ called ``label_<value>``.
        map_cases: Applies the scoring of one case to all of them, like ``map``.
        measures: What to measure beside overlap and volumes.
        notes: Sentences a reader of the scores should know.

    Returns:
        Rows, failures and notes.

    Raises:
        VolsegError: If there is nothing to score: no such path, no volumes, no matching names.
    """
    pairs = pair_files(predictions, references)
    found = [
        f"{path.name}: no reference of that name, not scored." for path in unpaired_predictions(predictions, pairs)
    ]
    if labels is None:
        chosen = choose_labels(predictions, references)
        labels, measures = chosen.labels, replace(measures, unscored=chosen.unscored)
        found.extend(chosen.notes)
    if labels is None:
        labels = _labels_of_values(pairs, map_cases)
        found.append("No label table found: organs are named after their label values.")
    images, image_notes = find_images(predictions, pairs)
    measures = measures.for_organs(labels.targets)
    every = (*notes, *found, *image_notes)
    return score_pairs(pairs, labels, map_cases, images=images, notes=every, measures=measures)


def score_pairs(
    pairs: Sequence[FilePair],
    labels: LabelTable,
    map_cases: MapCases = map,
    *,
    images: Mapping[str, tuple[Path, ...]] | None = None,
    notes: Sequence[str] = (),
    measures: Measures = OVERLAP_ONLY,
) -> Evaluation:
    """Score predictions against references, as :func:`evaluate` does, where it is known which belong together.

    Args:
        pairs: One per case.
        labels: The organs or regions.
        map_cases: Applies the scoring of one case to all of them, like ``map``.
        images: Case id → its image files, where they are known.
        notes: Sentences a reader of the scores should know.
        measures: What to measure beside overlap and volumes.
    """
    results = {scores.case: scores for scores in map_cases(partial(_score_pair, labels, measures), pairs)}
    # Results come in any order, and those of a worker that was killed not at all.
    results = {pair.case: results.get(pair.case) or CaseScores(pair.case, (), _LOST) for pair in pairs}
    known = images or {}
    files = [ScoredFiles(p.case, p.reference, p.prediction, known.get(p.case, ())) for p in pairs]
    return _evaluation(list(results.values()), files, labels, measures, notes)


def evaluate_pairs(
    pairs: Iterable[tuple[LabelMap | Path | str | None, LabelMap | Path | str]],
    labels: LabelTable,
    *,
    measures: Measures = OVERLAP_ONLY,
) -> Evaluation:
    """Score pairs of prediction and reference, as label maps or as files.

    Args:
        pairs: Prediction and reference of every case; None for a prediction that is missing, which is a miss. A case is
            called after the file of its reference, else ``case_0``, ``case_1``, … by its place.
        labels: The organs or regions.
        measures: What to measure beside overlap and volumes.

    Returns:
        One row per case and organ or region. A case whose prediction cannot be used is among the failures, and its
        organs are scored as missed.

    Raises:
        VolsegError: If every case failed, something else than label maps and files is given, or the measures name an
            organ that there is not.
    """
    measures = measures.for_organs(labels.targets)
    found: dict[str, CaseScores] = {}
    files = []
    for number, (prediction, reference) in enumerate(pairs):
        _require_source(reference)
        _require_source(reference if prediction is None else prediction)
        case = f"case_{number}" if isinstance(reference, LabelMap) else volume_stem(reference)
        while case in found:
            case = f"{case}_{number}"
        found[case] = _score(labels, measures, case, prediction, reference)
        if not isinstance(reference, LabelMap):
            path = None if prediction is None or isinstance(prediction, LabelMap) else Path(prediction)
            files.append(ScoredFiles(case, Path(reference), path))
    failures = [scores.failure for scores in found.values() if scores.failure]
    if failures and len(failures) == len(found):
        raise VolsegError(f"All {len(found)} cases failed. The first: {failures[0]}")
    return _evaluation(list(found.values()), files, labels, measures)


def _evaluation(
    found: Sequence[CaseScores],
    files: Sequence[ScoredFiles],
    labels: LabelTable,
    measures: Measures,
    notes: Sequence[str] = (),
) -> Evaluation:
    return Evaluation(
        labels=labels,
        rows=tuple(row for scores in found for row in scores.rows),
        cases=tuple(files),
        failures=tuple((scores.case, scores.failure) for scores in found if scores.failure),
        notes=(*notes, *_notes(found, measures)),
        measures=measures,
    )


def _require_source(source: object) -> None:
    if not isinstance(source, LabelMap | Path | str):
        rule, got = "a LabelMap or a file", f"an object of type {type(source).__name__}"
        raise VolsegError(sentence("pair", rule, got, "Give pairs of (prediction, reference)"))


def _score_pair(labels: LabelTable, measures: Measures, pair: FilePair) -> CaseScores:
    """Read and score one case; what goes wrong becomes a message."""
    found = _score(labels, measures, pair.case, pair.prediction, pair.reference)
    files = [path for path in (pair.reference, pair.prediction) if path is not None]
    return replace(found, doubtful=doubtful(files))


def _score(
    labels: LabelTable,
    measures: Measures,
    case: str,
    prediction_source: LabelMap | Path | str | None,
    reference_source: LabelMap | Path | str,
) -> CaseScores:
    try:
        reference = _opened(reference_source, case)
    except VolsegError as error:
        return CaseScores(case, (), str(error))
    spacing = max(reference.grid.spacing_mm)
    try:
        if prediction_source is None:
            rows = score_without_prediction(reference, labels, case, measures=measures)
            return CaseScores(case, tuple(rows), spacing_mm=spacing, missing=True)
        prediction = _opened(prediction_source, case)
        moved = not reference.grid.matches(prediction.grid)
        probabilities = None
        if measures.probabilities is not None:
            from pipeline.evaluate.probability_files import read_probabilities  # here: they are seldom there

            names = () if isinstance(prediction_source, LabelMap) else prediction_names(Path(prediction_source))
            probabilities = read_probabilities(measures.probabilities, case, reference.grid, labels, names)
        rows = score_case(prediction, reference, labels, case, measures, probabilities)
        lacking = any(row.counts and row.name not in (probabilities or ()) for row in rows)
        uncalibrated = measures.probabilities is not None and lacking
        return CaseScores(case, tuple(rows), None, spacing, moved, uncalibrated)
    except VolsegError as error:
        return CaseScores(case, _failed_rows(reference, labels, case, measures), str(error), spacing)


def _opened(source: LabelMap | Path | str, case: str) -> LabelMap:
    return source if isinstance(source, LabelMap) else read_label_map(source, case=case)


def _notes(results: Sequence[CaseScores], measures: Measures) -> list[str]:
    """What a reader should know of missing predictions, surface Dice, resampled predictions, and calibration."""
    notes = [*missing_note([scores.case for scores in results if scores.missing], len(results))]
    tolerance = min((measures.tolerance_mm, *measures.tolerances_mm.values()))
    coarse = [scores for scores in results if scores.spacing_mm > tolerance * (1 + 1e-6)]
    if coarse and measures.surface != "none":
        largest = max(scores.spacing_mm for scores in coarse)
        notes.append(
            f"The tolerance of NSD ({tolerance:g} mm) is below the largest spacing in {len(coarse)} of {len(results)} "
            f"cases (up to {largest:.3g} mm): there an error of one voxel counts in full. Consider --tolerance-mm."
        )
    moved = [scores.case for scores in results if scores.resampled]
    if moved:
        notes.append(f"{len(moved)} predictions on other grids were resampled to their references', e.g. {moved[0]}.")
    notes += doubtful_note([scores.doubtful for scores in results])
    lacking = [scores.case for scores in results if scores.uncalibrated]
    if lacking:
        notes.append(
            f"{len(lacking)} of {len(results)} cases have no probabilities of some organs, e.g. {lacking[0]}: there "
            "ECE and Brier score are 1, the worst. If that is not meant, check the folder of --probabilities."
        )
    return notes


def _failed_rows(reference: LabelMap, labels: LabelTable, case: str, measures: Measures) -> tuple[Row, ...]:
    try:
        return tuple(score_without_prediction(reference, labels, case, "failed", measures))
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
