"""Which cases a fold may be measured on: those it was validated on, none it was trained on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import read_json
from pipeline.data.store import prepared_ids, read_info
from pipeline.model.folder import ModelCard, fold_folder, trained_folds
from pipeline.sample.folds import Fold, read_splits

__all__ = ["number_of_folds", "validation_cases", "wanted_folds"]


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
        other = [case for case in cases if infos[case].get("recipe") != card.plan.recipe]
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
