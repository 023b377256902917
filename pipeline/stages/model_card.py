"""What a model card says, as the files of a model have it; and whether these files are whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.paths import is_named
from pipeline.evaluate.results import read_summary
from pipeline.evaluate.summary import statistics
from pipeline.infer.cleaning import POSTPROCESSING_FILE, read_cleaning
from pipeline.model.folder import (
    ENSEMBLE_FILE,
    PARTS_FILE,
    ModelCard,
    labels_of,
    load_network,
    member_folders,
    read_card,
    read_parts,
    trained_folds,
    wanted_folds,
)
from pipeline.model.manifest import MANIFEST, require_noted
from pipeline.model.readme import PAINTED, Described, KnownScores, body_of, model_card
from pipeline.model.zoo import model_folder
from pipeline.preprocess.plan_file import FIRST_STAGE
from pipeline.stages.cross_validate import FOLDER
from pipeline.stages.model_files import validated_cases

_MEMBERS = "An ensemble: the probabilities of {} models are averaged."


@dataclass(frozen=True)
class Verified:
    """A model whose files are whole.

    Args:
        folder: Its folder.
        files: How many files have the content that the manifest notes; None if the model has no manifest.
        networks: How many networks were built, whose weights fit.
    """

    folder: Path
    files: int | None
    networks: int


def card_of(folder: Path) -> str:
    """A model card made of what a folder holds now, without its head; nothing is written.

    Raises:
        VolsegError: If it is no model folder.
    """
    return body_of(model_card(describe(folder)))


def describe(folder: Path, *, scores: Path | None = None, license: str | None = None) -> Described:
    """What the card of a model says of it, read from its folder.

    Args:
        folder: Model folder, also of an ensemble.
        scores: Folder that ``volseg evaluate`` wrote; by default what the training or a cross-validation found.
        license: Of the weights, as SPDX names it.

    Raises:
        VolsegError: If it is no model, or the scores are of other organs.
    """
    homes = member_folders(folder)
    cards = tuple(read_card(home) for home in homes)
    networks = sum(len(wanted_folds(home)) for home in homes)
    several = PAINTED if read_parts(folder) else _MEMBERS
    made_of = several.format(len(homes)) if len(homes) > 1 else ""
    labels = labels_of(folder, cards)
    known = _known_scores(folder, homes, cards) if scores is None else _evaluated(scores, labels.targets)
    return Described(cards, labels, made_of, networks, known, license)


def _evaluated(scores: Path, targets: tuple[str, ...]) -> KnownScores:
    """What an evaluation says."""
    summary = read_summary(scores)
    unknown = sorted(set(summary["organs"]) - set(targets))
    if unknown:
        rule, advice = f"organs of the model ({', '.join(targets)})", "Give scores of this model's masks"
        raise VolsegError(sentence("scores", rule, unknown[0], advice, file=scores))
    return _summarized(summary, "An evaluation of masks that the model made of cases with a reference.")


def _known_scores(folder: Path, homes: tuple[Path, ...], cards: tuple[ModelCard, ...]) -> KnownScores | None:
    """Scores of a cross-validation, else of the validation at the end of the trainings; None if there are neither."""
    names = "" if len(homes) == 1 else "+".join(home.name for home in homes)
    out = folder / FOLDER / names
    about = "Cross-validation: every case by a network that did not train on it, masks as they come."
    # What is missing or damaged counts as none: a card is made of what there is.
    with suppress(VolsegError):
        return _summarized(read_summary(out), about)
    return _validated(homes[0], cards[0]) if len(homes) == 1 else None


def _summarized(summary: dict[str, Any], about: str) -> KnownScores:
    dice = {name: entry["dice"] for name, entry in summary["organs"].items()}
    overall = summary["overall"]
    organs = {name: (entry["mean"], entry["interval_95"]) for name, entry in dice.items()}
    return KnownScores(about, overall["n_cases"], overall["dice"]["mean"], overall["dice"]["interval_95"], organs)


def _validated(home: Path, card: ModelCard) -> KnownScores | None:
    """Scores of the validations of all folds; of a case of several folds those of the last."""
    folds = trained_folds(home)
    cases = {case: dice for fold in folds for case, dice in validated_cases(home, fold).items()}
    if not cases:
        return None
    organs = card.plan.label_table.targets
    table = np.array([[dice.get(organ) for organ in organs] for dice in cases.values()], dtype=np.float64)
    found = statistics(table, seed=0)
    chosen = " The weights were chosen by them, so expect less." if card.settings.train.select == "best" else ""
    numbers = ", ".join(map(str, folds))
    about = f"Validation of fold {numbers}: cases that it did not train on, on the prepared grid.{chosen}"
    by_organ = {name: (one["mean"], one["interval_95"]) for name, one in zip(organs, found["organs"], strict=True)}
    overall = found["overall"]
    return KnownScores(about, len(cases), overall["mean"], overall["interval_95"], by_organ)


def verify_model(model: Path | str) -> Verified:
    """Whether all files of a model are whole, and its weights those of its networks.

    Args:
        model: Model folder, also of an ensemble, or the name of a model that comes with volseg.

    Raises:
        VolsegError: With the first file that is missing, truncated, changed, surplus, or does not fit.
    """
    folder = model_folder(model)
    noted = require_noted(folder)
    homes = member_folders(folder)
    found = [file for home in homes for file in _files(folder, home)]
    found += [file for file in (ENSEMBLE_FILE, PARTS_FILE, POSTPROCESSING_FILE) if is_named(folder / file)]
    surplus = [] if noted is None else [file for file in found if file not in noted]
    if surplus:
        rule, advice = f"only files that {MANIFEST} notes", "Remove it, or get the model again"
        raise VolsegError(sentence("file", rule, "one more", advice, file=folder / surplus[0]))
    networks = [_fits(home) for home in homes]
    read_cleaning(folder, labels_of(folder, [read_card(home) for home in homes]))
    return Verified(folder, None if noted is None else len(noted), sum(networks))


def _files(folder: Path, home: Path) -> Iterator[str]:
    """Files that predicting reads of one model, relative to a folder."""
    place = home.relative_to(folder)
    yield (place / "model.json").as_posix()
    yield from ((place / f"fold_{fold}" / "model.safetensors").as_posix() for fold in trained_folds(home))
    if read_card(home).plan.cascade:
        yield from _files(folder, home / FIRST_STAGE)


def _fits(home: Path) -> int:
    """Build every network of a model with its weights, of a cascade of both stages; how many there are."""
    card, folds = read_card(home), wanted_folds(home)
    for fold in folds:
        load_network(home, card, fold)
    return len(folds) + (_fits(home / FIRST_STAGE) if card.plan.cascade else 0)
