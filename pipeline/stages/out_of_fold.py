"""Every training case predicted by the fold that did not train on it, on its own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.errors import DataError, sentence
from pipeline.core.files import file_hash, text_hash, write_json
from pipeline.core.volume import LabelMap
from pipeline.data.case_files import CaseFiles
from pipeline.data.store import open_prepared, read_info
from pipeline.data.volume_file import split_source, volume_suffix
from pipeline.data.volumes import write_label_map
from pipeline.evaluate.pairing import FilePair
from pipeline.infer.cleaning import Cleaning
from pipeline.infer.member import Member
from pipeline.infer.segment import segment
from pipeline.model.folder import ModelCard, fold_folder
from pipeline.preprocess.trace import Trace
from pipeline.stages.batch import Batch, Progress
from pipeline.stages.predictions import earlier_entries, note_prediction, prediction_entry, why_failed
from pipeline.stages.references import ReferenceTask, write_reference

__all__ = ["OutOfFold", "Source", "predict_out_of_fold"]

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
        members: list[Member] = []
        for case in (cases[name] for name in folds[fold]):
            try:
                if not _is_done(case, entries):
                    members = members or [Member.load(source.folder, device, [fold]) for source in sources]
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
        parts += [weights, card.network.model_dump_json(), card.plan.recipe, card.settings.infer.model_dump_json()]
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
    case: _Case, sources: Sequence[Source], members: Sequence[Member], entries: dict[str, dict[str, Any]]
) -> None:
    """Write the prediction of a case, and its reference unless a file of the dataset is that."""
    name, table = case.files.id, sources[0].card.plan.label_table
    prepared = []
    for source in sources:
        trace = Trace.from_json(read_info(source.prepared, name)["trace"])
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
