"""How good a model is on the cases that its folds did not train on, and how its masks should be cleaned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.core.files import file_hash, text_hash, write_json
from pipeline.core.progress import Progress, silent
from pipeline.core.tables import score_cell, text_table
from pipeline.core.volume import LabelMap
from pipeline.data.dataset import CaseFiles
from pipeline.data.store import open_prepared, read_info
from pipeline.data.volume_file import split_source, volume_suffix
from pipeline.data.volumes import write_label_map
from pipeline.engine.local import Batch, default_jobs, map_cases, open_engine
from pipeline.evaluate.measures import Row
from pipeline.evaluate.pairing import FilePair
from pipeline.evaluate.results import read_summary, write_evaluation
from pipeline.evaluate.scoring import evaluate_pairs
from pipeline.infer.cleaning import Cleaning
from pipeline.infer.restore import segment
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.device import choose_device
from pipeline.model.folder import ENSEMBLE_FILE, ModelCard, fold_folder, read_card
from pipeline.preprocess.grid_history import GridHistory
from pipeline.stages.evaluate import ReferenceTask, write_reference
from pipeline.stages.model_files import number_of_folds, validation_cases, wanted_folds
from pipeline.stages.postprocessing import (
    Postprocessing,
    choose_postprocessing,
    read_postprocessing,
    write_postprocessing,
)
from pipeline.stages.prediction_files import earlier_entries, note_prediction, prediction_entry, why_failed
from pipeline.stages.prune import mean_scores

# Every training case predicted by the fold that did not train on it, on its own grid.

_FALLBACK_SUFFIX = ".nii.gz"


@dataclass(frozen=True)
class Source:
    """A trained model and what it was trained on.

    Args:
        folder: Model folder.
        card: Its description.
        prepared: Folder of the prepared dataset.
    """

    folder: Path
    card: ModelCard
    prepared: Path


@dataclass(frozen=True)
class OutOfFold:
    """What the prediction of all validation cases gave.

    Args:
        batch: What became of each case.
        pairs: One per case, sorted by id; those that failed have no prediction.
        images: Case id → its image files, as they were when it was prepared.
        coarse: Cases that were predicted on the prepared grid, because their reference was not where it had been.
        hash: Of all that the predictions and their scores depend on.
    """

    batch: Batch
    pairs: tuple[FilePair, ...]
    images: Mapping[str, tuple[Path, ...]]
    coarse: tuple[str, ...]
    hash: str


@dataclass(frozen=True)
class _Case:
    """One case to predict: its files, where they go, and what the prediction and the reference depend on."""

    files: CaseFiles
    own_grid: bool
    prediction: Path
    reference: Path
    digest: str
    scored: str


def predict_out_of_fold(
    sources: Sequence[Source],
    folds: Mapping[int, Sequence[str]],
    out: Path,
    device: torch.device,
    progress: Progress,
) -> OutOfFold:
    """Predict the validation cases of every fold, by one model or by several whose probabilities are averaged.

    The prepared images are read from the store, so the images themselves need not be there. What cross-validation found
    to help is not applied, what the settings ask for is.

    Args:
        sources: The models; all have the same cases, channels and labels.
        folds: Fold → its validation cases, each in one fold.
        out: Folder for ``predictions/`` and, where a reference has to be made, ``references/``.
        device: Where to compute.
        progress: Told after every case.

    Returns:
        Predictions and their references; what is there already and unchanged is kept.
    """
    fold_of = {case: fold for fold, names in folds.items() for case in names}
    models = {fold: _model_hash(sources, fold) for fold in folds}
    cases = {case: _plan_case(sources, case, models[fold_of[case]], out) for case in sorted(fold_of)}
    home = out / "predictions"
    entries = earlier_entries(home)
    _remove_stale(home, entries, {case.prediction.name for case in cases.values()})
    write_json(home / "labels.json", sources[0].card.plan.label_table.to_json())
    done, kept, failed = [], [], []
    for fold in sorted(folds):
        members: list[TrainedModel] = []
        for case in (cases[name] for name in folds[fold]):
            try:
                if not _is_done(case, entries):
                    members = members or [TrainedModel.load(source.folder, device, [fold]) for source in sources]
                    _predict(case, sources, members, entries)
                    done.append(case.files.id)
                else:
                    kept.append(case.files.id)
            except Exception as error:  # one bad case never ends a batch
                failed.append((case.files.id, why_failed(case.files.id, error)))
            progress(len(done) + len(kept) + len(failed), len(cases), "out of fold")
    lost = {case for case, _ in failed}
    return OutOfFold(
        Batch(tuple(sorted(done)), tuple(sorted(kept)), tuple(sorted(failed))),
        tuple(
            FilePair(name, None if name in lost else case.prediction, case.reference) for name, case in cases.items()
        ),
        {name: case.files.images for name, case in cases.items()},
        tuple(name for name, case in cases.items() if not case.own_grid),
        text_hash(*(part for case in cases.values() for part in (case.digest, case.scored))),
    )


def _model_hash(sources: Sequence[Source], fold: int) -> str:
    parts = []
    for source in sources:
        card = source.card
        weights = file_hash(fold_folder(source.folder, fold) / "model.safetensors")
        parts += [
            weights,
            card.network.model_dump_json(),
            card.plan.content_hash,
            card.settings.infer.model_dump_json(),
        ]
    return text_hash(*parts)


def _plan_case(sources: Sequence[Source], case: str, model: str, out: Path) -> _Case:
    infos = [read_info(source.prepared, case) for source in sources]
    files = _files(case, infos[0])
    paths = [split_source(path)[0] for path in files.label_sources]
    own = bool(paths) and all(path.is_file() for path in paths)
    suffix = (volume_suffix(files.images[0]) if files.images and own else "") or _FALLBACK_SUFFIX
    made = out / "references" / f"{case}{volume_suffix(paths[0]) if own else _FALLBACK_SUFFIX}"
    scored = text_hash(*(file_hash(path) for path in paths if own))
    reference = files.label if own and files.label is not None else made
    digest = text_hash(model, scored if reference == made else "", *(str(info.get("hash")) for info in infos))
    return _Case(files, own, out / "predictions" / f"{case}{suffix}", reference, digest, scored)


def _files(case: str, info: Mapping[str, Any]) -> CaseFiles:
    """The files that a case was prepared from; no reference if an older version, which did not note it, prepared it."""
    images = tuple(Path(path) for path in info.get("images", ()))
    labels = [Path(path) for path in info.get("labels", ())]
    parts = [split_source(path) for path in labels]
    if len(labels) == 1 and not parts[0][1]:
        return CaseFiles(case, images, labels[0])
    organs = tuple((number, path) for path, _, number, _ in parts)
    return CaseFiles(case, images, organs=organs, soft=any(kind == "soft" for _, kind, _, _ in parts))


def _is_done(case: _Case, entries: Mapping[str, Mapping[str, Any]]) -> bool:
    there = case.prediction.is_file() and case.reference.is_file()
    return there and entries.get(case.prediction.name, {}).get("hash") == case.digest


def _predict(
    case: _Case, sources: Sequence[Source], members: Sequence[TrainedModel], entries: dict[str, dict[str, Any]]
) -> None:
    """Write the prediction of a case, and its reference unless a file of the dataset is that."""
    name, table = case.files.id, sources[0].card.plan.label_table
    prepared = []
    for source in sources:
        trace = GridHistory.from_json(read_info(source.prepared, name)["trace"])
        prepared.append((np.asarray(open_prepared(source.prepared, name)[0][...]), trace))
    trace = prepared[0][1]
    if case.own_grid:
        index, grid = segment(members, prepared), trace.source
    elif len(members) == 1:
        axis, rows = members[0].labels(prepared[0][0], trace.prepared.shape)
        index, grid = torch.cat([part for _, part in rows]).movedim(0, axis).cpu().numpy(), trace.prepared
    else:
        rule, advice = "its reference where it was when it was prepared", "Put it back, or prepare the dataset again"
        raise DataError(sentence("dataset", rule, "nothing there", advice, case=name))
    cleaning = Cleaning()
    for member in members:
        cleaning |= Cleaning.of(member.settings)
    cleaned = cleaning.apply(index, table, grid.voxel_volume_ml)
    entry = prediction_entry(case.files, case.prediction.name, cleaning.to_json() if cleaning else None)
    if not case.own_grid:
        label = np.asarray(open_prepared(sources[0].prepared, name)[1][...])
        write_label_map(LabelMap(table.from_index(label), grid), case.reference)
    elif case.files.label is None:
        write_reference(ReferenceTask(case.files, case.reference))
    note_prediction(case.prediction.parent, entries, entry)  # first, so that a killed run knows its own file
    image = split_source(case.files.images[0])[0] if case.files.images else None
    like = image if case.own_grid and image is not None and image.is_file() else None
    write_label_map(LabelMap(table.from_index(cleaned), grid), case.prediction, like=like)
    note_prediction(case.prediction.parent, entries, {**entry, "hash": case.digest})


def _remove_stale(home: Path, entries: dict[str, dict[str, Any]], names: set[str]) -> None:
    """Remove the predictions of cases that are in no fold any more."""
    for name in set(entries) - names:
        (home / Path(name).name).unlink(missing_ok=True)
        del entries[name]


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
    progress: Progress = silent,
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
    progress: Progress = silent,
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
        score = map_cases(run, progress, "evaluate")
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
