"""How good a model is on the cases that its folds did not train on, and how its masks should be cleaned.

Every case is predicted by the fold that did not train on it (out of fold), on its own grid, and scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.documents import conform
from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.core.files import OutputFolder, file_hash, text_hash, write_json
from pipeline.core.signals import Progress, silent
from pipeline.core.together import RunsTogether
from pipeline.core.volume import LabelMap
from pipeline.data.dataset import CaseFiles
from pipeline.data.prediction_record import PredictionRecord
from pipeline.data.prepared_cases import PossibleFile, read_info
from pipeline.data.store import open_prepared, open_stage_map, stage_map_hash
from pipeline.data.volume_file import split_source, volume_suffix
from pipeline.data.volumes import write_label_map
from pipeline.engine.local import Batch, default_jobs, map_cases, open_engine
from pipeline.evaluate.metrics import Row
from pipeline.evaluate.pairing import FilePair
from pipeline.evaluate.results import read_summary, write_evaluation
from pipeline.evaluate.scoring import score_pairs
from pipeline.evaluate.summary import organ_means
from pipeline.infer.cleaning import Cleaning
from pipeline.infer.segment import labels_on, segment, with_stage_map
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.device import choose_device
from pipeline.model.folder import ENSEMBLE_FILE, ModelCard, fold_folder, read_card, wanted_folds
from pipeline.preprocess.grid_history import GridHistory
from pipeline.stages.cascade import first_stage
from pipeline.stages.evaluate import ReferenceTask, write_reference
from pipeline.stages.model_files import PreparedFolds, validation_cases
from pipeline.stages.postprocessing import (
    Postprocessing,
    choose_postprocessing,
    read_postprocessing,
    write_postprocessing,
)
from pipeline.stages.prediction_files import Entry, prediction_entry, why_failed

FOLDER = "cross_validation"
"""In a model folder: predictions of the training cases, each by the fold that did not train on it, and their scores."""

_FALLBACK_SUFFIX = ".nii.gz"


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
    tested = ModelUnderTest.read(model, prepared)
    cases = tested.fold_cases(folds)
    return cross_validate_models([tested], cases, model / FOLDER, device=device, jobs=jobs, progress=progress)


@dataclass(frozen=True)
class ModelUnderTest:
    """A trained model and what it was trained on."""

    folder: Path
    card: ModelCard
    prepared: Path

    @property
    def stage_maps(self) -> Path | None:
        """Of a cascade, the folder of what its first stage found in the cases it was trained on."""
        first = first_stage(self.card.plan, self.prepared, self.folder)
        return None if first is None else first.maps

    def image(self, case: str) -> NDArray[np.float32]:
        """A prepared case as its networks see it, in a cascade with what the first stage found when it was trained."""
        image = np.asarray(open_prepared(self.prepared, case)[0][...])
        if self.stage_maps is None:
            return image
        return with_stage_map(image, open_stage_map(self.stage_maps, case, image.shape[1:])[...])

    def case_hash(self, case: str) -> str:
        """Content hash of what :meth:`image` gives."""
        own = str(read_info(self.prepared, case).get("hash"))
        return own if self.stage_maps is None else f"{own} {stage_map_hash(self.stage_maps, case)}"

    @classmethod
    def read(cls, model: Path, prepared: Path) -> ModelUnderTest:
        """Read the description of a model; an ensemble is refused."""
        if (model / ENSEMBLE_FILE).is_file():
            advice = "`volseg choose` has cross-validated it; its scores are in its folder"
            raise VolsegError(sentence("model", "a single model", "an ensemble", advice, file=model))
        return cls(model, read_card(model), prepared)

    def fold_cases(self, folds: Sequence[int] | None) -> dict[int, tuple[str, ...]]:
        """Fold → its validation cases; None for all of ``splits.json``. A case of several folds is left to the first.

        Raises:
            VolsegError: If a fold is not trained, or its validation cases are not those of the training.
        """
        prepared_folds = PreparedFolds.read(self.prepared)
        wanted = sorted(set(wanted_folds(self.folder, folds or range(len(prepared_folds.folds)))))
        cases_of = validation_cases(self.folder, self.card, prepared_folds, wanted)
        first = {case: fold for fold in reversed(wanted) for case in cases_of[fold]}
        return {fold: tuple(case for case in cases if first[case] == fold) for fold, cases in cases_of.items()}


def cross_validate_models(
    models: Sequence[ModelUnderTest],
    cases: Mapping[int, Sequence[str]],
    out: Path,
    *,
    device: str | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
) -> CrossValidation:
    """Cross-validate a model, or several whose probabilities are averaged fold by fold.

    Args:
        models: The models.
        cases: Fold → its validation cases.
        out: Folder for predictions and scores; that of several models also gets the choice of post-processing, which a
            single model has in its own folder.
        device: As for :func:`cross_validate`, and so are the next two.
        jobs: Worker processes.
        progress: Called after every case.
    """
    home = models[0].folder if len(models) == 1 else out
    found = predict_out_of_fold(models, cases, out, choose_device(device), progress)
    earlier = None if found.batch.done or found.batch.failed else _earlier(found, out, home)
    if earlier is not None:
        return earlier
    labels = models[0].card.plan.label_table
    # The masks are scored as they are; only then is it known which cleaning of them would help.
    with open_engine(jobs or default_jobs(len(found.pairs))) as run:
        score = map_cases(run, progress, "evaluate")
        result = score_pairs(found.pairs, labels, score, images=found.images, notes=_notes(found))
        summary = write_evaluation(result, out)
        unusable = {case for case, _ in result.failures}
        usable = [pair for pair in found.pairs if pair.prediction is not None and pair.case not in unusable]
        chosen = choose_postprocessing(usable, labels, run, progress)
    write_postprocessing(chosen, home)
    summary["cross_validation"] = {
        "hash": found.hash if not (found.batch.failed or unusable) else None,
        "models": [{"name": model.folder.name, "prepared": str(model.prepared.resolve())} for model in models],
        "folds": [_fold_entry(fold, cases[fold], result.rows) for fold in sorted(cases)],
        "prepared_grid": list(found.coarse),
    }
    write_json(out / "summary.json", summary)  # last: its hash says that all is finished
    return CrossValidation(out, found.batch, summary, chosen)


class _Model(BaseModel):
    name: str
    prepared: PossibleFile


class _Fold(BaseModel):
    fold: int
    cases: list[str]
    mean_dice: float | None
    dice: dict[str, float | None]


class NotedValidation(BaseModel):
    """What ``summary.json`` says of a cross-validation."""

    model_config = ConfigDict(allow_inf_nan=False)

    hash: str | None
    models: Annotated[list[_Model], Field(min_length=1)]
    folds: list[_Fold]
    prepared_grid: list[str]


def noted_validation(summary: Mapping[str, Any], folder: Path) -> NotedValidation:
    """The part on the cross-validation; a VolsegError if it is missing or damaged."""
    noted: NotedValidation = conform(summary.get("cross_validation"), NotedValidation, folder / "summary.json")
    return noted


def _earlier(found: OutOfFold, out: Path, home: Path) -> CrossValidation | None:
    """The finished cross-validation of the same predictions, if there is one."""
    try:
        summary = read_summary(out)
        if noted_validation(summary, out).hash != found.hash:
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
    mean, dice = organ_means(entry for entry in scores.values() if entry)
    return {"fold": fold, "cases": list(cases), "mean_dice": mean, "dice": dice}


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
class _CaseTask:
    """One case to predict.

    Args:
        files: The files it was prepared from.
        own_grid: Whether its reference is where it was, so that it is predicted on the case's own grid.
        prediction: Where its mask goes.
        reference: Its reference: a file of the dataset, or one that is made.
        prediction_hash: Content hash of what the prediction depends on.
        reference_hash: Content hash of the reference's files.
    """

    files: CaseFiles
    own_grid: bool
    prediction: Path
    reference: Path
    prediction_hash: str
    reference_hash: str


def predict_out_of_fold(
    models: Sequence[ModelUnderTest],
    folds: Mapping[int, Sequence[str]],
    out: Path,
    device: torch.device,
    progress: Progress,
) -> OutOfFold:
    """Predict the validation cases of every fold, by one model or by several whose probabilities are averaged.

    The prepared images are read from the store, so the images themselves need not be there. What cross-validation found
    to help is not applied, what the settings ask for is. What is there already and unchanged is kept.

    Args:
        models: All have the same cases, channels and labels.
        folds: Fold → its validation cases, each in one fold.
        out: Folder for ``predictions/`` and, where a reference has to be made, ``references/``.
        device: Where to compute.
        progress: Called after every case.
    """
    fold_of = {case: fold for fold, names in folds.items() for case in names}
    hashes = {fold: _model_hash(models, fold) for fold in folds}
    cases = {case: _case_task(models, case, hashes[fold_of[case]], out) for case in sorted(fold_of)}
    home = out / "predictions"
    done, kept, failed = [], [], []
    with _own_record(home, {case.prediction.name for case in cases.values()}) as record:
        write_json(home / "labels.json", models[0].card.plan.label_table.to_json())
        for fold in sorted(folds):
            members: list[TrainedModel] = []
            for case in (cases[name] for name in folds[fold]):
                try:
                    if not _is_done(case, record.entries):
                        # The networks are loaded for the first case that needs them: often all are up to date.
                        members = members or [
                            TrainedModel.load(model.folder, model.card, device, [fold], alone=True) for model in models
                        ]
                        _predict(case, models, members, record)
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
        text_hash(*(part for case in cases.values() for part in (case.prediction_hash, case.reference_hash))),
    )


def _model_hash(models: Sequence[ModelUnderTest], fold: int) -> str:
    parts = []
    for model in models:
        card = model.card
        weights = file_hash(fold_folder(model.folder, fold) / "model.safetensors")
        settings = card.settings.infer.model_dump_json()
        parts += [weights, card.network.model_dump_json(), card.plan.content_hash, settings]
    return text_hash(*parts)


def _case_task(models: Sequence[ModelUnderTest], case: str, model_hash: str, out: Path) -> _CaseTask:
    files = _files(case, read_info(models[0].prepared, case))
    paths = [split_source(path)[0] for path in files.label_sources]
    own = bool(paths) and all(path.is_file() for path in paths)
    suffix = (volume_suffix(files.images[0]) if files.images and own else "") or _FALLBACK_SUFFIX
    made = out / "references" / f"{case}{(volume_suffix(paths[0]) if own else '') or _FALLBACK_SUFFIX}"
    reference_hash = text_hash(*(file_hash(path) for path in paths if own))
    # DICOM labels are no file that can be scored: a label map is made of them.
    reference = files.label if own and files.label is not None and volume_suffix(files.label) else made
    made_from = reference_hash if reference == made else ""
    prediction_hash = text_hash(model_hash, made_from, *(model.case_hash(case) for model in models))
    return _CaseTask(files, own, out / "predictions" / f"{case}{suffix}", reference, prediction_hash, reference_hash)


def _files(case: str, info: Mapping[str, Any]) -> CaseFiles:
    """The files that a case was prepared from; no reference if an older version, which did not note it, prepared it."""
    images = tuple(Path(path) for path in info.get("images", ()))
    labels = [Path(path) for path in info.get("labels", ())]
    parts = [split_source(path) for path in labels]
    if len(labels) == 1 and parts[0][1] in ("", "labels"):
        return CaseFiles(case, images, labels[0])
    organs = tuple((number, path) for path, _, number, _ in parts)
    return CaseFiles(case, images, organs=organs, soft=any(kind == "soft" for _, kind, _, _ in parts))


def _is_done(case: _CaseTask, entries: Mapping[str, Mapping[str, Any]]) -> bool:
    there = case.prediction.is_file() and case.reference.is_file()
    return there and entries.get(case.prediction.name, {}).get("hash") == case.prediction_hash


def _predict(
    case: _CaseTask,
    models: Sequence[ModelUnderTest],
    members: Sequence[TrainedModel],
    record: PredictionRecord,
) -> None:
    """Write the prediction of a case, and its reference unless that is a file of the dataset."""
    name, table = case.files.id, models[0].card.plan.label_table
    # Each model sees the case as it was prepared for it.
    prepared = []
    for model in models:
        try:
            history = GridHistory.from_json(read_info(model.prepared, name).get("trace", {}))
        except ValueError as error:
            raise DataError(f"case {name}: {error}") from None
        prepared.append((model.image(name), history))
    history = prepared[0][1]
    if case.own_grid:
        index, grid = segment(members, prepared), history.source
    elif len(members) == 1:
        index, grid = labels_on(members[0], prepared[0][0], history.prepared.shape), history.prepared
    else:
        rule, advice = "its reference where it was when it was prepared", "Put it back, or prepare the dataset again"
        raise DataError(sentence("dataset", rule, "nothing there", advice, case=name))
    # Only what the settings ask for: what cross-validation finds to help is chosen from these very predictions.
    cleaning = Cleaning()
    for member in members:
        cleaning |= Cleaning.of(member.settings)
    cleaned = cleaning.apply(index, table, grid.voxel_volume_ml)
    entry = prediction_entry(case.files, case.prediction.name, cleaning.to_json() if cleaning else None)
    if not case.own_grid:
        label = np.asarray(open_prepared(models[0].prepared, name)[1][...])
        write_label_map(LabelMap(table.from_index(label), grid), case.reference)
    elif case.reference != case.files.label:
        write_reference(ReferenceTask(case.files, case.reference))
    # Noted twice: first, so that a killed run knows its own file; then with the hash, which says that it is finished.
    record.note(entry)
    image = split_source(case.files.images[0])[0] if case.files.images else None
    like = image if case.own_grid and image is not None and image.is_file() else None
    write_label_map(LabelMap(table.from_index(cleaned), grid), case.prediction, like=like)
    record.note({**entry, "hash": case.prediction_hash})


@contextmanager
def _own_record(home: Path, names: set[str]) -> Iterator[PredictionRecord]:
    """The record of the predictions, from which those of cases that are in no fold any more are removed.

    Whoever evaluates the folder would score them. No other run may be at work there: its cases would be gone.
    """
    with RunsTogether(home, "predictions") as runs:
        with runs.alone():
            runs.require("one cross-validation at a time", "another", "Wait for it, or end it")
            record = PredictionRecord(home, Entry)
            stale = set(record.entries) - names
            record.entries = {name: entry for name, entry in record.entries.items() if name not in stale}
            OutputFolder(home).remove(stale)
            record.write()
        try:
            yield record
        finally:
            record.write()
