"""What a training finds in its model folder, and what it may do with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import read_json
from pipeline.model.folder import ENSEMBLE_FILE, ModelCard, fold_folder, read_card, trained_folds, write_card
from pipeline.stages.training_outcome import PAGE
from pipeline.train.processes import ALONE, Processes
from pipeline.train.tracking import RUN_FILE

__all__ = ["LOCK_FILE", "alone_in", "finished_as", "keep_card", "mean_dice_of", "remove_training", "require_same_model"]

LOCK_FILE = "training.lock"


@contextmanager
def alone_in(home: Path, processes: Processes = ALONE) -> Iterator[None]:
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
