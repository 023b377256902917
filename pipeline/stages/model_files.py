"""What a training finds: the folds of its prepared dataset, and in its model folder what an earlier training left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import file_hash, read_record, text_hash
from pipeline.data.prepared_cases import prepared_ids, read_info
from pipeline.model.folder import ENSEMBLE_FILE, ModelCard, fold_folder, read_card, trained_folds, write_card
from pipeline.preprocess.plan_file import Plan
from pipeline.sample.folds import Fold, read_splits
from pipeline.train.checkpoint import is_same_training
from pipeline.train.distributed import SINGLE, Processes
from pipeline.train.loss import planned_loss, sampling_weights
from pipeline.train.mlflow import RUN_FILE

PAGE = "training.html"
"""Curves, validations and scores of a fold as a page."""

LOCK_FILE = "training.lock"


@dataclass(frozen=True)
class PreparedFolds:
    """The folds of a prepared dataset, as ``splits.json`` has them.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        folds: Its folds.
        plan_hashes: Case id → content hash of the plan that it was prepared by, None where an old version noted none.
        case_hashes: Case id → content hash of all that it was prepared from.
    """

    prepared: Path
    folds: tuple[Fold, ...]
    plan_hashes: Mapping[str, str | None]
    case_hashes: Mapping[str, str | None]

    @classmethod
    def read(cls, prepared: Path) -> PreparedFolds:
        """Read ``splits.json`` and the ``case.json`` of every case.

        Raises:
            VolsegError: If there are no prepared cases, or the file cannot be used.
        """
        infos = {case: read_info(prepared, case) for case in prepared_ids(prepared)}
        if not infos:
            advice = "Give the folder that `volseg preprocess` wrote as --prepared"
            raise VolsegError(sentence("prepared dataset", "prepared cases", "none", advice, file=prepared))
        groups = {case: info.get("group") for case, info in infos.items()}
        folds = read_splits(prepared / "splits.json", infos, groups=groups)
        plans, contents = ({case: info.get(key) for case, info in infos.items()} for key in ("recipe", "hash"))
        return cls(prepared, folds, plans, contents)

    def contents(self, fold: Fold) -> str:
        """Content hash of all cases of a fold."""
        return text_hash(json.dumps([[case, self.case_hashes[case]] for case in (*fold.train, *fold.validation)]))

    def prepared_by_others(self, folds: Sequence[Fold], plan: Plan) -> list[str]:
        """Cases of some folds that were not prepared by a plan, sorted."""
        used = {case for fold in folds for case in (*fold.train, *fold.validation)}
        return sorted(case for case in used if self.plan_hashes[case] != plan.content_hash)

    def fold(self, number: int, plan: Plan) -> Fold:
        """One of them, to train with; one that does not exist is refused."""
        folds = self.for_training(plan)
        if not 0 <= number < len(folds):
            rule, advice = f"0 to {len(folds) - 1}", f"splits.json has {len(folds)} folds"
            raise VolsegError(sentence("fold", rule, number, advice))
        return folds[number]

    def for_training(self, plan: Plan) -> tuple[Fold, ...]:
        """All of them, to train with; cases prepared by another plan than ``plan.yaml`` are refused."""
        others = self.prepared_by_others(self.folds, plan)
        if others:
            got = f"{len(others)} prepared otherwise, e.g. {others[0]}"
            advice = "Run `volseg preprocess` again; in plan.yaml only patch and batch sizes may be edited"
            raise VolsegError(f"{self.prepared}: expected cases prepared by plan.yaml, got {got}. {advice}.")
        return self.folds


def validation_cases(
    model: Path, card: ModelCard, folds: PreparedFolds, wanted: Sequence[int]
) -> dict[int, tuple[str, ...]]:
    """Validation cases of some folds, which must be those that they were validated on when they were trained.

    Raises:
        VolsegError: If the prepared cases are others than in training.
    """
    advice = "Give the prepared dataset that the model was trained on"
    cases_of = {}
    for number in wanted:
        cases = folds.folds[number].validation if number < len(folds.folds) else ()
        # A fold that is still in training has no scores to compare with.
        note = fold_folder(model, number) / "validation.json"
        if not cases or (note.is_file() and set(_scores(model, number).get("cases", ())) != set(cases)):
            rule = f"the validation cases of fold {number} as they were in training"
            raise VolsegError(sentence("splits.json", rule, "others", advice, file=folds.prepared))
        others = folds.prepared_by_others([Fold((), cases)], card.plan)
        if others:
            message = sentence("plan", "that of the model", "another", advice, case=others[0], file=folds.prepared)
            raise VolsegError(message)
        cases_of[number] = cases
    return cases_of


class _Scores(BaseModel):
    """What is read of a ``validation.json``."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    training: str | None = None
    mean_dice: float | None = None
    cases: dict[str, dict[str, float | None]] = {}


def training_hash(card: ModelCard, split: Fold, start: Path | None, contents: str) -> str:
    """Content hash of what must not change while a training goes on; how long it lasts and where it is logged may.

    That of the cases (``contents``) comes behind a hyphen: older versions noted the first part alone.
    """
    plan, settings = card.plan, card.settings
    length = {"epochs", "budget", "patience", "validate_every", "validation_cases"}
    length |= {"select", "checkpoint_minutes", "keep_checkpoints", "mlflow"}
    train = settings.train.model_dump(mode="json", exclude=length)
    sample = settings.sample.model_dump(mode="json", exclude={"cache_mb", "folds", "split_seed", "class_weights"})
    sample["first weights"] = settings.model.model_dump(include={"initialization", "foreground_prior"})
    # Left out where all classes weigh the same, so that such a training goes on although the plan proposes weights now.
    drawn = sampling_weights(settings.sample, plan)
    if drawn is not None:
        sample["class_weights"] = sorted(drawn.items())
    loss = planned_loss(settings.loss, plan, card.network.dims).model_dump(mode="json")
    parts = [sample, settings.augment.model_dump(mode="json"), loss, train]
    planned = plan.model_dump_json(exclude={"reasons", "class_weights"})  # proposals; what is used is in the settings
    begun_with = [] if start is None else [file_hash(start)]
    texts = (card.network.model_dump_json(), planned, json.dumps(parts), json.dumps(vars(split)), *begun_with)
    return f"{text_hash(*texts)}-{contents}"


@contextmanager
def alone_in(home: Path, processes: Processes = SINGLE, *, wait: bool = False) -> Iterator[None]:
    """Keep other trainings out of the folder of a fold; however a training ends, the folder is free again.

    Of several processes the first one keeps the folder for all. With ``wait``, one that is not free is waited for.

    Raises:
        VolsegError: In every process, if a training is at work there, or the folder cannot be written.
    """
    # A lock of the system, not a file that says so: it ends with the process, even if that is killed.
    lock = FileLock(home / LOCK_FILE, timeout=-1 if wait else 0)
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


def earlier_card(out: Path) -> ModelCard | None:
    """``model.json`` of an earlier training of any fold, None if there is none; an ensemble's folder is refused."""
    if (out / ENSEMBLE_FILE).is_file():
        rule, advice = "a folder for one model", "Choose another model folder"
        raise VolsegError(sentence("model folder", rule, "an ensemble", advice, file=out))
    return read_card(out) if (out / "model.json").is_file() else None


def require_same_model(out: Path, card: ModelCard, fold: int | None, earlier: ModelCard | None) -> None:
    """Refuse a folder in which other folds, or without a fold any, were trained with another network or plan."""
    if earlier is None or set(trained_folds(out)) <= {fold}:
        return
    # Explanations and proposals in a plan may differ; what is used of them is in the settings.
    passive = {"plan": {"reasons", "class_weights"}}
    there, here = (value.model_dump(mode="json", exclude=passive) for value in (earlier, card))
    if (there["network"], there["plan"]) != (here["network"], here["plan"]):
        raise VolsegError(
            f"{out}: expected the network and plan of the folds trained there, got others. Choose another model folder."
        )


def keep_card(out: Path, card: ModelCard) -> None:
    """Write ``model.json``, unless it says the same already, whenever and wherever that was written."""
    # Read again: another fold may have begun meanwhile. Its card is kept, because masks depend on the file's hash.
    earlier = earlier_card(out)
    if earlier is not None:
        there, here = (value.model_dump(mode="json", exclude={"provenance"}) for value in (earlier, card))
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


def finished_as(out: Path, fold: int, finished_hash: str) -> bool:
    """Whether a fold was trained to its end, with everything as it is now, as its ``validation.json`` says."""
    scores = _scores(out, fold)
    there = (fold_folder(out, fold) / "model.safetensors").is_file()
    return there and is_same_training(scores.get("training"), finished_hash)


def trained_on_others(out: Path, folds: PreparedFolds, wanted: Sequence[int]) -> list[int]:
    """Finished folds of a model whose cases are not, or no longer, those of some folds; old versions noted no cases."""
    noted = {fold: str(_scores(out, fold).get("training") or "").partition("-")[2] for fold in wanted}
    return [fold for fold, contents in noted.items() if contents not in ("", folds.contents(folds.folds[fold]))]


def mean_dice_of(out: Path, fold: int) -> float | None:
    """Mean Dice of a fold's validation, as its ``validation.json`` has it; None if it has none."""
    value = _scores(out, fold).get("mean_dice")
    return float(value) if isinstance(value, int | float) else None


def validated_cases(out: Path, fold: int) -> dict[str, dict[str, float | None]]:
    """Case → Dice per organ of a fold's validation; empty if it has none."""
    cases: dict[str, dict[str, float | None]] = _scores(out, fold).get("cases", {})
    return cases


def _scores(out: Path, fold: int) -> dict[str, Any]:
    """Content of ``validation.json``; a missing or damaged file counts as empty, and is written anew."""
    return read_record(fold_folder(out, fold) / "validation.json", _Scores)
