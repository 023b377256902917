"""How good a model is on the cases that its folds did not train on, and how its masks should be cleaned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import write_json
from pipeline.engine import default_jobs, open_engine
from pipeline.evaluate.results import read_summary, write_evaluation
from pipeline.evaluate.rows import Row
from pipeline.evaluate.scoring import evaluate_pairs
from pipeline.export.text_table import score_cell, text_table
from pipeline.model.device import choose_device
from pipeline.model.folder import ENSEMBLE_FILE, read_card
from pipeline.stages.batch import Batch, Progress, mapped, quiet
from pipeline.stages.levels import mean_scores
from pipeline.stages.out_of_fold import OutOfFold, Source, predict_out_of_fold
from pipeline.stages.postprocessing import (
    Postprocessing,
    choose_postprocessing,
    read_postprocessing,
    write_postprocessing,
)
from pipeline.stages.validation_cases import number_of_folds, validation_cases, wanted_folds

__all__ = ["FOLDER", "CrossValidation", "cross_validate", "cross_validate_sources", "read_source"]

FOLDER = "cross_validation"
"""In a model folder: predictions of the training cases, each by the fold that did not train on it, and their scores."""


@dataclass(frozen=True)
class CrossValidation:
    """What a cross-validation gave.

    Args:
        out: Its folder.
        batch: What became of each case.
        summary: Content of ``summary.json``: that of an evaluation, and under ``cross_validation`` the folds.
        postprocessing: What cleaning of the masks helps.
    """

    out: Path
    batch: Batch
    summary: Mapping[str, Any]
    postprocessing: Postprocessing

    @property
    def mean_dice(self) -> float | None:
        """Mean over organs of each organ's mean over cases, masks not cleaned; None if nothing could be scored."""
        value = self.summary["overall"]["dice"]["mean"]
        return None if value is None else float(value)

    @property
    def exit_code(self) -> int:
        """0 all fine, 2 some cases could not be predicted or scored, 3 none could."""
        lost = {case for case, _ in self.batch.failed} | {entry["case"] for entry in self.summary["failures"]}
        return 0 if not lost else 2 if len(lost) < len(self.summary["cases"]) else 3

    def lines(self) -> tuple[str, ...]:
        """Dice per organ over all cases and in each fold, and what cleaning is kept."""
        folds = self.summary["cross_validation"]["folds"]
        header = ("organ", "cases", "Dice", "SD", *(f"fold {entry['fold']}" for entry in folds))
        rows = []
        for organ, entry in self.summary["organs"].items():
            spread = (score_cell(entry["dice"]["mean"]), score_cell(entry["dice"]["sd"]))
            rows.append((organ, str(entry["n"]), *spread, *(score_cell(fold["dice"].get(organ)) for fold in folds)))
        over_cases = score_cell(self.summary["overall"]["dice"]["over_cases"]["sd"])
        overall = (score_cell(self.mean_dice), over_cases, *(score_cell(fold["mean_dice"]) for fold in folds))
        rows.append(("all organs", str(self.summary["overall"]["n_cases"]), *overall))
        return (*text_table(header, rows), "", *self.postprocessing.lines())


def cross_validate(
    model: Path,
    prepared: Path,
    *,
    folds: Sequence[int] | None = None,
    device: str | None = None,
    jobs: int | None = None,
    progress: Progress = quiet,
) -> CrossValidation:
    """Predict every training case by the fold that did not train on it, score it, and choose the post-processing.

    The model folder gets ``cross_validation/`` (``predictions/``, ``scores.csv``, ``summary.json``) and
    ``postprocessing.json``, which predictions with the model follow from then on. What is there already and unchanged
    is kept.

    Args:
        model: Model folder.
        prepared: Folder of the prepared dataset it was trained on.
        folds: Folds whose validation cases count; by default all of ``splits.json``, which must all be trained.
        device: Name of the device that predicts; by default the best there is.
        jobs: Worker processes that score; by default as many as pay.
        progress: Told after every case.

    Raises:
        VolsegError: If a fold is not trained, the validation cases are not those of the training, or the folder cannot
            be written to.
    """
    source = read_source(model, prepared)
    cases = fold_cases(source, folds)
    return cross_validate_sources([source], cases, model / FOLDER, model, device=device, jobs=jobs, progress=progress)


def read_source(model: Path, prepared: Path) -> Source:
    """A model and its prepared dataset.

    Raises:
        VolsegError: If the folder holds no model, or an ensemble.
    """
    if (model / ENSEMBLE_FILE).is_file():
        advice = "`volseg choose` has cross-validated it; its scores are in its folder"
        raise VolsegError(sentence("model", "a single model", "an ensemble", advice, file=model))
    return Source(model, read_card(model), prepared)


def fold_cases(source: Source, folds: Sequence[int] | None) -> dict[int, tuple[str, ...]]:
    """Fold → its validation cases. A case of several folds is left to the first.

    Args:
        source: The model.
        folds: Folds; None for all of ``splits.json``.

    Raises:
        VolsegError: If a fold is not trained, or its validation cases are not those of the training.
    """
    wanted = wanted_folds(source.folder, folds or range(number_of_folds(source.prepared)))
    found = validation_cases(source.folder, source.card, source.prepared, wanted)
    first = {case: fold for fold in reversed(wanted) for case in found[fold]}
    return {fold: tuple(case for case in cases if first[case] == fold) for fold, cases in found.items()}


def cross_validate_sources(
    sources: Sequence[Source],
    cases: Mapping[int, Sequence[str]],
    out: Path,
    home: Path,
    *,
    device: str | None = None,
    jobs: int | None = None,
    progress: Progress = quiet,
) -> CrossValidation:
    """Cross-validate a model, or several whose probabilities are averaged fold by fold.

    Args:
        sources: The models.
        cases: Fold → its validation cases.
        out: Folder for predictions and scores.
        home: Folder for the choice of post-processing.
        device: As for :func:`cross_validate`.
        jobs: As for :func:`cross_validate`.
        progress: As for :func:`cross_validate`.

    Raises:
        VolsegError: If there is no such device, or a folder cannot be written to.
    """
    found = predict_out_of_fold(sources, cases, out, choose_device(device), progress)
    earlier = None if found.batch.done or found.batch.failed else _earlier(found, out, home)
    if earlier is not None:
        return earlier
    labels = sources[0].card.plan.label_table
    with open_engine(jobs or default_jobs(len(found.pairs))) as run:
        score = mapped(run, progress, "evaluate")
        result = evaluate_pairs(found.pairs, labels, score, images=found.images, notes=_notes(found))
        summary = write_evaluation(result, out)
        unusable = {case for case, _ in result.failures}
        usable = [pair for pair in found.pairs if pair.prediction is not None and pair.case not in unusable]
        chosen = choose_postprocessing(usable, labels, run, progress)
    write_postprocessing(chosen, home)
    summary["cross_validation"] = {
        "hash": found.hash if not (found.batch.failed or unusable) else None,
        "models": [{"name": source.folder.name, "prepared": str(source.prepared.resolve())} for source in sources],
        "folds": [_fold_entry(fold, cases[fold], result.rows) for fold in sorted(cases)],
        "prepared_grid": list(found.coarse),
    }
    write_json(out / "summary.json", summary)  # last: its hash says that all is finished
    return CrossValidation(out, found.batch, summary, chosen)


def _earlier(found: OutOfFold, out: Path, home: Path) -> CrossValidation | None:
    """The finished cross-validation of the same predictions, if there is one."""
    try:
        summary = read_summary(out)
        if summary.get("cross_validation", {}).get("hash") != found.hash:
            return None
        return CrossValidation(out, found.batch, summary, read_postprocessing(home))
    except VolsegError:  # missing or damaged: done again
        return None


def _notes(found: OutOfFold) -> tuple[str, ...]:
    if not found.coarse:
        return ()
    advice = "Run `volseg preprocess` again where the dataset is"
    rule, got = "references where they were when they were prepared", f"none of {len(found.coarse)} cases"
    return (f"{sentence('dataset', rule, got, advice)} Until then these are scored on the prepared grid.",)


def _fold_entry(fold: int, cases: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    """Mean Dice of a fold's cases, per organ and overall."""
    scores: dict[str, dict[str, float | None]] = {case: {} for case in cases}
    for row in rows:
        if row.case in scores:
            scores[row.case][row.name] = row.dice if row.counts else None
    scored = [entry for entry in scores.values() if entry]
    mean, dice = mean_scores(scored) if scored else (None, {})
    return {"fold": fold, "cases": list(cases), "mean_dice": mean, "dice": dice}
