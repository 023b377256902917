"""What a finished training leaves beside its weights: the scores, and a page of its curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.files import write_json
from pipeline.export.picture_page import Picture, Table, write_picture_page
from pipeline.model.folder import ModelCard
from pipeline.stages.signature import signature
from pipeline.train.history import EpochRecord
from pipeline.train.loop import TrainResult

__all__ = ["PAGE", "write_outcome"]

PAGE = "training.html"
"""In the fold's folder."""

_VALIDATIONS_SHOWN = 30


def write_outcome(home: Path, result: TrainResult, training: str, card: ModelCard, fold: int) -> None:
    """Write ``training.html``, and then ``validation.json``, which says that the training has ended.

    Args:
        home: Folder of the fold, with ``curves.png``.
        result: What was trained.
        training: Hash of everything it depends on.
        card: The model.
        fold: Its fold.

    Raises:
        VolsegError: If a file cannot be written.
    """
    scores, records = result.scores, result.progress.records
    curves = home / "curves.png"
    alt = "Loss, learning rate, Dice per organ and speed over the epochs; the table has the validations."
    pictures = [Picture("Learning curves", curves.read_bytes(), alt)] if curves.is_file() else []
    spec = card.network
    write_picture_page(
        home / PAGE,
        f"Training on {card.plan.dataset}, fold {fold}",
        pictures=pictures,
        numbers=[
            ("Mean foreground Dice", _number(scores.mean_dice), "best weights, prepared grid"),
            ("Network", spec.name, f"{spec.dims}D, patch {' × '.join(map(str, spec.patch_size))}"),
            ("Epochs", str(len(records)), f"{result.progress.iteration:,} iterations"),
            ("Time", f"{result.progress.elapsed_s / 60:.0f} min", "over all sittings"),
        ],
        tables=[*_organs(result), *_validations(records)],
        **signature(),
    )
    content = {"mean_dice": scores.mean_dice, "organs": dict(scores.dice), "cases": dict(scores.cases)}
    write_json(home / "validation.json", {"grid": "prepared", "weights": "best", "training": training, **content})


def _organs(result: TrainResult) -> list[Table]:
    rows = tuple((organ, _number(dice)) for organ, dice in result.scores.dice.items())
    cases = len(result.scores.cases)
    return [Table("Organs", f"Dice of the best weights on {cases} validation cases.", ("Organ", "Dice"), rows)]


def _validations(records: Sequence[EpochRecord]) -> list[Table]:
    """Every validation, of many evenly spread ones and the last."""
    validated = [record for record in records if record.validation_s > 0]
    every = max(1, -(-len(validated) // _VALIDATIONS_SHOWN))
    shown = validated[::-1][::every][::-1]
    rows = tuple(
        (str(record.epoch), f"{record.loss:.4f}", f"{record.learning_rate:.2e}", _number(record.mean_dice))
        for record in shown
    )
    caption = "All validations." if every == 1 else f"One of {every} validations; history.csv has all."
    return [Table("Validations", caption, ("Epoch", "Loss", "Learning rate", "Mean Dice"), rows)] if rows else []


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
