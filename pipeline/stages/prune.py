"""From a UNet++ with deep supervision to the smallest of its levels that is as good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import read_json, text_hash, write_bytes, write_json, write_text
from pipeline.export.pruning import LevelRow, PruningResult, pruning_csv, pruning_markdown, pruning_plot
from pipeline.model.device import choose_device
from pipeline.model.folder import ModelCard, fold_folder, read_card, save_weights, trained_folds, write_card
from pipeline.model.memory import MEMORY_MEANS
from pipeline.stages.batch import Progress, quiet
from pipeline.stages.levels import LevelTask, MeasuredLevel, load_level, mean_scores, measure_levels, supervised
from pipeline.stages.validation_cases import validation_cases, wanted_folds

__all__ = ["prune", "smallest_level"]


def prune(
    model: Path,
    prepared: Path,
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    tolerance_points: float = 0.5,
    device: str | None = None,
    progress: Progress = quiet,
) -> PruningResult:
    """Score every level of a UNet++ on its validation cases and write the smallest one that is good enough.

    ``out`` becomes a model folder like any other, with every trained fold cut off at the chosen level. Beside it stand
    ``pruning.json``, ``.csv``, ``.md`` and ``.png``: Dice, parameters, multiply-adds, time and memory of all levels and
    of the average of all heads. An earlier pruning of the same model is replaced.

    Args:
        model: Model folder of ``unetpp`` or ``unetplus``, trained with deep supervision.
        prepared: Folder of the prepared dataset it was trained on.
        out: Model folder to write.
        folds: Folds whose validation cases decide; by default all that are trained.
        tolerance_points: How many Dice points (hundredths) below the best level are good enough.
        device: Name of the device; by default the best there is.
        progress: Told after every case.

    Returns:
        All levels and the choice.

    Raises:
        VolsegError: If the model cannot be pruned, the validation cases are not there or not those of the training, a
            fold is not trained, or ``out`` holds anything else.
    """
    card = read_card(model)
    with torch.device("meta"):
        network = supervised(card.network.build(), model)
    if not (math.isfinite(tolerance_points) and tolerance_points >= 0):
        raise ConfigError([sentence("tolerance", "0 or more Dice points", tolerance_points, "Try 0.5")], "pruning")
    identity = text_hash(card.model_dump_json())
    _require_own_folder(out, model, identity)
    splits = validation_cases(model, card, prepared, wanted_folds(model, folds))
    place = choose_device(device)
    if not (out / "pruning.json").is_file():  # marks the folder as ours, and shows now whether it can be written to
        write_json(out / "pruning.json", {"model": identity})
    total = sum(map(len, splits.values())) * (network.depth + 1)
    done = iter(range(1, total + 1))
    measured = list(
        measure_levels(LevelTask(model, card, prepared, splits, place), lambda: progress(next(done), total, "prune"))
    )
    rows = [entry.row for entry in measured]
    known = any(row.peak_bytes is not None for row in rows)
    result = PruningResult(
        source=model.resolve().name,
        rows=rows,
        level=smallest_level(rows, tolerance_points),
        tolerance_points=tolerance_points,
        folds=tuple(splits),
        cases=sum(map(len, splits.values())),
        patch_size=card.network.patch_size,
        device=_describe(place),
        memory=MEMORY_MEANS[place.type] if known else None,
    )
    write_json(out / "pruning.json", {"model": identity, **result.to_json()})
    options = network.options.pruned(result.level).model_dump(mode="json")
    note = {"pruned_from": result.source, "pruned_level": str(result.level)}
    smaller = {
        "network": card.network.model_copy(update={"options": options}),
        "provenance": {**card.provenance, **note},
    }
    _write_folds(model, card, out, measured[result.level - 1])
    write_card(out, card.model_copy(update=smaller))  # last: without it the folder is no model
    write_text(out / "pruning.csv", pruning_csv(result))
    write_text(out / "pruning.md", pruning_markdown(result))
    write_bytes(out / "pruning.png", pruning_plot(result))
    return result


def smallest_level(rows: Sequence[LevelRow], tolerance_points: float) -> int:
    """The smallest level whose mean Dice is at most the tolerance below that of the best.

    Args:
        rows: One per level, ascending; the average of all heads, which is no level, is passed over.
        tolerance_points: In hundredths of Dice.

    Raises:
        VolsegError: If no level has a mean Dice.
    """
    scored = {row.level: row.mean_dice for row in rows if row.level is not None and row.mean_dice is not None}
    if not scored:
        raise VolsegError(sentence("validation cases", "at least one organ", "none", "Choose other folds with --fold"))
    limit = max(scored.values()) - tolerance_points / 100 - 1e-12  # 0.9 - 0.005 is not exactly 0.895
    return min(level for level, dice in scored.items() if dice >= limit)


def _require_own_folder(out: Path, model: Path, identity: str) -> None:
    """Refuse a folder that holds anything but an earlier pruning of the same model."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    mark = out / "pruning.json"
    if out.resolve() == model.resolve() or not mark.is_file() or _model_of(read_json(mark)) != identity:
        rule, got = "a new folder, or an earlier pruning of this model", "another model or other files"
        raise VolsegError(sentence("output folder", rule, got, "Choose another one with --out", file=out))


def _model_of(pruning: Any) -> Any:
    """The model that a ``pruning.json`` names; None if it is no such file."""
    return pruning.get("model") if isinstance(pruning, dict) else None


def _write_folds(model: Path, card: ModelCard, out: Path, measured: MeasuredLevel) -> None:
    """Write the weights of every trained fold and the scores of those that were measured."""
    (out / "model.json").unlink(missing_ok=True)
    trained = trained_folds(model)
    for fold in set(trained_folds(out)) - set(trained):
        (fold_folder(out, fold) / "model.safetensors").unlink()
    for fold in trained:
        home = fold_folder(out, fold)
        save_weights(home / "model.safetensors", load_level(model, card, fold, measured.row.level).state_dict())
        (home / "validation.json").unlink(missing_ok=True)
        if fold in measured.folds:
            cases = measured.folds[fold]
            mean, dice = mean_scores(list(cases.values()))
            content = {"grid": "prepared", "weights": "best", "mean_dice": mean, "organs": dice, "cases": cases}
            write_json(home / "validation.json", content)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"
