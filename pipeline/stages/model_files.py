"""What a training finds in its model folder, and what it may do with it."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from pipeline.config.settings import Settings
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import file_hash, own_version, read_json, text_hash
from pipeline.data.store import prepared_ids, read_info
from pipeline.model.device import device_name
from pipeline.model.folder import ENSEMBLE_FILE, ModelCard, fold_folder, read_card, trained_folds, write_card
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan_file import Plan
from pipeline.sample.folds import Fold, read_splits
from pipeline.train.class_weights import sampling_weights
from pipeline.train.distributed import SINGLE, Processes
from pipeline.train.mlflow import RUN_FILE

PAGE = "training.html"
"""Curves, validations and scores of a fold as a page."""


# What a training depends on, as a hash, and what its model says of its origin.


def training_identity(spec: NetworkSpec, plan: Plan, settings: Settings, split: Fold, begun: Path | None) -> str:
    """Hash of what must not change while a training goes on; how long it lasts and who is told may."""
    length = {"epochs", "budget", "patience", "validate_every", "validation_cases"}
    length |= {"checkpoint_minutes", "keep_checkpoints", "mlflow"}
    train = settings.train.model_dump(mode="json", exclude=length)
    sample = settings.sample.model_dump(mode="json", exclude={"cache_mb", "folds", "split_seed", "class_weights"})
    sample["first weights"] = settings.model.model_dump(include={"initialization", "foreground_prior"})
    drawn = sampling_weights(settings.sample, plan)
    if drawn is not None:
        sample["class_weights"] = sorted(drawn.items())
    parts = [sample, settings.augment.model_dump(mode="json"), settings.loss.model_dump(mode="json"), train]
    planned = plan.model_dump_json(exclude={"reasons", "class_weights"})  # proposals; what is used is in the settings
    begun_with = [] if begun is None else [file_hash(begun)]
    return text_hash(spec.model_dump_json(), planned, json.dumps(parts), json.dumps(vars(split)), *begun_with)


def with_length(identity: str, settings: Settings) -> str:
    """Hash of what a finished training depends on: its identity, and how long it was."""
    return text_hash(identity, settings.train.model_dump_json())


def provenance(device: torch.device) -> dict[str, str]:
    """Versions, device and date, for ``model.json``."""
    return {
        "volseg": own_version(),
        "torch": torch.__version__,
        "monai": version("monai"),
        "python": platform.python_version(),
        "device": f"{device.type} ({device_name(device)})",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# Which cases a fold may be measured on: those it was validated on, none it was trained on.


def wanted_folds(model: Path, folds: Sequence[int] | None) -> tuple[int, ...]:
    """Folds to work with, ascending.

    Args:
        model: Model folder.
        folds: Those asked for; None or none for all that are trained.

    Raises:
        VolsegError: If one is not trained, or none is.
    """
    trained = trained_folds(model)
    wanted = tuple(sorted(set(folds))) if folds else trained
    missing = sorted(set(wanted) - set(trained))
    if missing or not wanted:
        asked = f"fold {', '.join(map(str, missing))} to be trained" if missing else "a trained fold"
        got = ", ".join(map(str, trained)) or "none"
        raise VolsegError(sentence("folds", asked, got, "Let `volseg train` finish, or choose --fold", file=model))
    return wanted


def validation_cases(model: Path, card: ModelCard, prepared: Path, wanted: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Validation cases of some folds, which must be those that they were validated on when they were trained.

    Args:
        model: Model folder.
        card: Its description.
        prepared: Folder of the prepared dataset it was trained on.
        wanted: Folds.

    Returns:
        Fold → its validation cases.

    Raises:
        VolsegError: If there are no prepared cases, or others than in training.
    """
    infos = {case: read_info(prepared, case) for case in prepared_ids(prepared)}
    folds = _read_folds(prepared, infos)
    advice = "Give the prepared dataset that the model was trained on"
    found = {}
    for fold in wanted:
        cases = folds[fold].validation if fold < len(folds) else ()
        note = fold_folder(model, fold) / "validation.json"
        if not cases or (note.is_file() and _scored(read_json(note)) != set(cases)):
            rule = f"the validation cases of fold {fold} as they were in training"
            raise VolsegError(sentence("splits.json", rule, "others", advice, file=prepared))
        other = [case for case in cases if infos[case].get("recipe") != card.plan.content_hash]
        if other:
            raise VolsegError(sentence("plan", "that of the model", "another", advice, case=other[0], file=prepared))
        found[fold] = cases
    return found


def number_of_folds(prepared: Path) -> int:
    """How many folds ``splits.json`` has.

    Raises:
        VolsegError: If there are no prepared cases, or the file cannot be used.
    """
    return len(_read_folds(prepared, prepared_ids(prepared)))


def _read_folds(prepared: Path, cases: Collection[str]) -> tuple[Fold, ...]:
    if not cases:
        advice = "Give the folder that `volseg preprocess` wrote as --prepared"
        raise VolsegError(sentence("prepared dataset", "prepared cases", "none", advice, file=prepared))
    return read_splits(prepared / "splits.json", cases)


def _scored(validation: Any) -> set[str] | None:
    """Cases of a ``validation.json``; None if it is no such file."""
    return set(validation.get("cases", ())) if isinstance(validation, dict) else None


LOCK_FILE = "training.lock"


@contextmanager
def alone_in(home: Path, processes: Processes = SINGLE) -> Iterator[None]:
    """Keep other trainings out of the folder of a fold; however a training ends, the folder is free again.

    Args:
        home: The fold's folder, made if it is not there.
        processes: Those that train together: the first one keeps the folder for all.

    Raises:
        VolsegError: In every process, if a training is at work there, or the folder cannot be written.
    """
    lock = FileLock(home / LOCK_FILE, timeout=0)
    found = _locked(lock, home) if processes.first else ""
    try:
        problem = processes.gathered({str(processes.rank): found})["0"]  # the others would wait for one that has left
        if problem:
            raise VolsegError(problem)
        yield
    finally:
        lock.release()


def _locked(lock: FileLock, home: Path) -> str:
    """Take a lock; why it cannot be had, empty if it can."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        advice = "Wait for it, end it, or choose another model folder"
        return sentence("training", "to be the only one in its folder", "another", advice, file=home)
    except OSError as error:
        got, advice = error.strerror or str(error), "Choose another place"
        return sentence("model folder", "one that can be written", got, advice, file=home)
    return ""


def require_same_model(out: Path, card: ModelCard, fold: int) -> None:
    """Refuse a folder in which other folds were trained with another network or plan.

    Args:
        out: Model folder.
        card: The model about to be trained.
        fold: The fold about to be trained.

    Raises:
        VolsegError: If the models differ, or the folder holds an ensemble.
    """
    if (out / ENSEMBLE_FILE).is_file():
        rule, advice = "a folder for one model", "Choose another model folder"
        raise VolsegError(sentence("model folder", rule, "an ensemble", advice, file=out))
    if set(trained_folds(out)) <= {fold} or not (out / "model.json").is_file():
        return
    passive = {"plan": {"reasons", "class_weights"}}
    there, here = (value.model_dump(mode="json", exclude=passive) for value in (read_card(out), card))
    if (there["network"], there["plan"]) != (here["network"], here["plan"]):
        raise VolsegError(
            f"{out}: expected the network and plan of the folds trained there, got others. Choose another model folder."
        )


def keep_card(out: Path, card: ModelCard) -> None:
    """Write ``model.json``, unless it says the same already, whenever and wherever that was written."""
    if (out / "model.json").is_file():
        there, here = (value.model_dump(mode="json", exclude={"provenance"}) for value in (read_card(out), card))
        if there == here:
            return
    write_card(out, card)


def remove_training(home: Path) -> None:
    """Remove what an earlier training left in the folder of a fold."""
    for pattern in ("*.safetensors", "validation.json", "history.csv", PAGE, RUN_FILE):
        for path in home.glob(pattern):
            path.unlink()
    for events in (home / "events").glob("events.*"):
        events.unlink()


def finished_as(out: Path, fold: int, training: str) -> bool:
    """Whether a fold was trained to its end, with everything as it is now.

    Args:
        out: Model folder.
        fold: The fold.
        training: Its entry of :func:`~pipeline.stages.train.training_hashes`.
    """
    return (fold_folder(out, fold) / "model.safetensors").is_file() and _scores(out, fold).get("training") == training


def mean_dice_of(out: Path, fold: int) -> float | None:
    """Mean Dice of a fold's validation, as its ``validation.json`` has it; None if it has none."""
    value = _scores(out, fold).get("mean_dice")
    return float(value) if isinstance(value, int | float) else None


def _scores(out: Path, fold: int) -> dict[str, object]:
    """Content of ``validation.json``; a missing or damaged file counts as empty, and is written anew."""
    try:
        content = read_json(fold_folder(out, fold) / "validation.json")
    except VolsegError:
        return {}
    return content if isinstance(content, dict) else {}
