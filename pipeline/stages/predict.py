"""From images to label maps on their own grids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import InferSettings, load_settings
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.core.files import file_hash, text_hash, write_json
from pipeline.data.case_files import CaseFiles
from pipeline.data.layouts import find_inputs
from pipeline.data.volume_file import split_source, volume_suffix
from pipeline.data.volumes import read_image, write_label_map
from pipeline.infer.predictor import Predictor
from pipeline.model.folder import fold_folder, member_folders, read_card, trained_folds
from pipeline.stages.batch import Batch, Progress, quiet
from pipeline.stages.predictions import earlier_entries, note_prediction, prediction_entry, why_failed

__all__ = ["infer_settings", "predict"]


def infer_settings(model: Path, overrides: Sequence[str] = ()) -> InferSettings:
    """Section ``infer`` that the model (of an ensemble, its first member) was trained with, some keys overridden.

    Args:
        model: Model folder.
        overrides: ``infer.key=value``.

    Raises:
        ConfigError: If a key or value is wrong, or is not of this section.
    """
    own = read_card(member_folders(model)[0]).settings.infer
    changed = load_settings(None, overrides)
    problems = [
        f"--set {text}: expected infer.key=value, got another section. Only these can change after training."
        for text in overrides
        if not text.startswith("infer.")
    ]
    if problems:
        raise ConfigError(problems, str(model))
    names = {text.partition("=")[0].removeprefix("infer.").strip() for text in overrides}
    return own.model_copy(update={name: getattr(changed.infer, name) for name in names})


def predict(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    device: str | None = None,
    settings: InferSettings | None = None,
    progress: Progress = quiet,
) -> Batch:
    """Segment files or folders; every mask keeps its input's name.

    Beside the masks stand ``labels.json`` (what the values mean) and ``predictions.json`` (which image each came
    from, and how it was cleaned). A mask made from the same image by the same model is kept.

    Args:
        model: Model folder.
        inputs: Image files and folders; of several channels, files ending in ``_0000``, ``_0001``, ….
        out: Folder for the masks.
        folds: Folds to average; by default all that are trained.
        device: Name of the device; by default the best there is.
        settings: Section ``infer``; by default the model's own.
        progress: Told after every case.

    Raises:
        VolsegError: If there is no trained model or nothing to segment, or two inputs would be written to one file.
    """
    predictor = Predictor.load(model, folds=folds, device=device, settings=settings)
    cases = find_inputs(inputs, len(predictor.card.plan.channels))
    targets = _targets(cases, out)
    identity = _model_hash(model, folds, predictor)
    entries = earlier_entries(out)
    _require_own_files(out, targets.values(), entries)
    write_json(out / "predictions.json", {"cases": list(entries.values())})  # first: it marks the folder as ours
    write_json(out / "labels.json", predictor.labels.to_json())
    cleaning = predictor.cleaning.to_json() if predictor.cleaning else None
    done: list[str] = []
    kept: list[str] = []
    failed: list[tuple[str, str]] = []
    for number, files in enumerate(cases, start=1):
        target = out / targets[files.id]
        try:
            digest = text_hash(identity, *(file_hash(path) for path in files.files))
            if target.is_file() and entries.get(target.name, {}).get("hash") == digest:
                kept.append(files.id)
            else:
                label_map = predictor.predict(read_image(files.images, case=files.id), files.id)
                entry = prediction_entry(files, target.name, cleaning)
                note_prediction(out, entries, entry)  # first, so that a killed run knows its own file
                write_label_map(label_map, target, like=files.images[0])
                note_prediction(out, entries, {**entry, "hash": digest})
                done.append(files.id)
        except Exception as error:  # one bad case never ends a batch
            failed.append((files.id, why_failed(files.id, error)))
        progress(number, len(cases), "predict")
    return Batch(tuple(done), tuple(kept), tuple(failed))


def _targets(cases: Sequence[CaseFiles], out: Path) -> dict[str, str]:
    """Case id → name of its mask: the input's own name, or the case's with the first channel's ending."""
    names: dict[str, str] = {}
    for files in cases:
        first = files.images[0]
        suffix = volume_suffix(first)
        single = len(files.images) == 1 and split_source(first)[0] == first
        name = first.name if single else files.id + suffix
        clash = next((case for case, other in names.items() if other == name), None)
        if clash or (out / name).resolve() == first.resolve():
            culprit = f"case {clash}" if clash else "the input itself"
            raise VolsegError(f"{out / name}: expected one mask per file, got {culprit} there too. Use another folder.")
        names[files.id] = name
    return names


def _require_own_files(out: Path, names: Iterable[str], entries: Mapping[str, Any]) -> None:
    """Refuse to overwrite what no earlier prediction wrote: reference label maps, or a dataset's label table."""
    strangers = [name for name in names if name not in entries and (out / name).exists()]
    if not (out / "predictions.json").exists() and (out / "labels.json").exists():
        strangers.append("labels.json")
    if strangers:
        raise VolsegError(
            f"{out / strangers[0]}: expected a free place or the mask of an earlier prediction, got another file. "
            "Use another output folder."
        )


def _model_hash(model: Path, folds: Sequence[int] | None, predictor: Predictor) -> str:
    parts = [json.dumps(predictor.cleaning.to_json())]
    for home, member in zip(member_folders(model), predictor.members, strict=True):
        wanted = folds if folds is not None else trained_folds(home)
        weights = [file_hash(fold_folder(home, fold) / "model.safetensors") for fold in wanted]
        parts += [file_hash(home / "model.json"), *weights, member.settings.model_dump_json()]
    return text_hash(*parts)
