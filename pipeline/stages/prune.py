"""From a UNet++ with deep supervision to the smallest of its levels that is as good."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from torch import nn

from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import OutputFolder, text_hash, write_bytes, write_json, write_text
from pipeline.core.signals import Progress, silent
from pipeline.core.tables import score_cell, text_table, write_csv
from pipeline.evaluate.summary import organ_means
from pipeline.model.cost import MEMORY_MEANS, count_parameters, multiply_adds, watch_memory
from pipeline.model.device import autocast, choose_device, choose_dtype, enough_memory, to_device
from pipeline.model.folder import (
    ModelCard,
    fold_folder,
    load_network,
    read_card,
    save_weights,
    trained_folds,
    wanted_folds,
    write_card,
)
from pipeline.model.unetpp import UNetPlusPlus
from pipeline.report.plots import LIGHT, figure_png, style_axes
from pipeline.stages.model_files import PreparedFolds, validation_cases
from pipeline.validation import make_validation

LEVEL_COLUMNS = ("level", "Dice", "parameters", "multiply-adds", "s per case", "memory")
"""Columns of the table of levels, see :func:`level_cells`."""

_NUMBERS = ("mean_dice", "parameters", "multiply_adds", "seconds_per_case", "peak_bytes")


@dataclass(frozen=True)
class LevelRow:
    """One level of a UNet++, measured.

    Args:
        level: Level L, the nodes with i + j <= L; None for the whole network averaging all of its heads.
        mean_dice: Mean over organs; None if no case has any.
        dice: Organ → mean Dice over the cases that have it; None where no case has it.
        parameters: Trainable parameters.
        multiply_adds: Of the convolutions, for one patch.
        seconds_per_case: Median over cases: reading, windows, labels and scores.
        peak_bytes: Highest memory; None where the system does not tell.
    """

    level: int | None
    mean_dice: float | None
    dice: Mapping[str, float | None]
    parameters: int
    multiply_adds: int
    seconds_per_case: float
    peak_bytes: int | None

    @property
    def name(self) -> str:
        """``L2``, or ``average``."""
        return "average" if self.level is None else f"L{self.level}"


@dataclass(frozen=True)
class PruningResult:
    """All levels of a model side by side, and the one that was chosen.

    Args:
        source: Name of the model.
        rows: One per level, ascending, then the average of all heads.
        level: The level chosen.
        tolerance_points: How many Dice points (hundredths) it may lie below the best level.
        folds: Folds whose validation cases were scored.
        cases: Number of these cases.
        patch_size: The patch of the multiply-adds.
        device: What computed.
        memory: What the memory is; None if it was not measured.
    """

    source: str
    rows: Sequence[LevelRow]
    level: int
    tolerance_points: float
    folds: Sequence[int]
    cases: int
    patch_size: Sequence[int]
    device: str
    memory: str | None

    @property
    def best(self) -> LevelRow:
        """The level with the highest mean Dice; the average does not count."""
        return max((row for row in self.rows if row.level is not None), key=lambda row: row.mean_dice or 0.0)

    @property
    def chosen(self) -> LevelRow:
        """The row of the level chosen."""
        return next(row for row in self.rows if row.level == self.level)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return asdict(self)


def level_cells(row: LevelRow) -> tuple[str, ...]:
    """What a table shows of a level under :data:`LEVEL_COLUMNS`."""
    costs = (f"{row.parameters:,}", f"{row.multiply_adds / 1e9:,.2f} G", f"{row.seconds_per_case:.2f}")
    memory = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB"
    return row.name, score_cell(row.mean_dice), *costs, memory


def verdict(result: PruningResult) -> str:
    """Why this level, in one sentence."""
    best, chosen = result.best, result.chosen
    points, dice = f"within {result.tolerance_points:g} Dice points of", score_cell(best.mean_dice)
    if chosen is best:
        return f"{best.name} is the best level (mean Dice {dice}); no smaller one is {points} it."
    scores = f"{score_cell(chosen.mean_dice)} and {dice}"
    return f"{chosen.name} is the smallest level {points} the best, {best.name} (mean Dice {scores})."


def pruning_rows(result: PruningResult) -> list[list[object]]:
    """Rows of ``pruning.csv``: a header, and for each level the numbers as they were measured and Dice by organ."""
    organs = list(result.rows[0].dice)
    header: list[object] = ["level", *_NUMBERS, "chosen", *(f"dice_{organ}" for organ in organs)]
    rows = [
        [
            row.name,
            *(getattr(row, name) for name in _NUMBERS),
            "yes" if row.level == result.level else "no",
            *(row.dice[organ] for organ in organs),
        ]
        for row in result.rows
    ]
    return [header, *rows]


def pruning_markdown(result: PruningResult) -> str:
    """The table, the choice, how it was measured, and the Dice of every organ."""
    folds = ("fold " if len(result.folds) == 1 else "folds ") + ", ".join(map(str, result.folds))
    patch = " x ".join(map(str, result.patch_size))
    organs = [[organ, *(score_cell(row.dice[organ]) for row in result.rows)] for organ in result.rows[0].dice]
    notes = [
        f"Measured on the {result.cases} validation cases of {folds} with {result.device}.",
        "Level L keeps the nodes with i + j <= L and predicts with the head on x0_L; average is the whole network with"
        " the mean of all heads' probabilities.",
        "Dice: full volumes on the prepared grid, without mirroring.",
        f"Multiply-adds: of the convolutions, for one patch of {patch}.",
        "Seconds per case: median of reading, windows, labels and scores.",
        f"Memory: {result.memory}." if result.memory else "Memory: not told by this system.",
    ]
    blocks = [
        f"# Pruning {result.source}",
        f"**{verdict(result)}**",
        "\n".join(text_table(LEVEL_COLUMNS, [level_cells(row) for row in result.rows])),
        "\n".join(f"- {note}" for note in notes),
        "## Dice per organ",
        "\n".join(text_table(["organ", *(row.name for row in result.rows)], organs)),
    ]
    return "\n\n".join(blocks) + "\n"


def pruning_plot(result: PruningResult) -> bytes:
    """Dice against seconds per case and against parameters, one point per level that has a Dice; PNG on white."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = [row for row in result.rows if row.mean_dice is not None]
    _panel(left, result, rows, [row.seconds_per_case for row in rows])
    _panel(right, result, rows, [float(row.parameters) for row in rows])
    left.set_ylabel("Mean Dice")
    left.set_xlabel("Seconds per case")
    left.set_xlim(left=0)
    right.set_xlabel("Parameters")
    right.set_xscale("log")
    right.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0), numticks=12))
    right.xaxis.set_major_formatter(EngFormatter(sep=" "))
    right.xaxis.set_minor_locator(NullLocator())
    handles = [Line2D([], [], color=LIGHT.accent, marker="o", markersize=8, linestyle="none"), left.get_lines()[-1]]
    meanings = ["chosen", f"best - {result.tolerance_points:g} Dice points"]
    left.legend(handles, meanings, loc="best", fontsize=9, frameon=False, labelcolor=LIGHT.text)
    return figure_png(figure, 150, transparent=False)


def _panel(axes: Axes, result: PruningResult, rows: Sequence[LevelRow], x: Sequence[float]) -> None:
    dice = [row.mean_dice or 0.0 for row in rows]
    line = [(a, b) for a, b, row in zip(x, dice, rows, strict=True) if row.level is not None]
    axes.plot(*zip(*line, strict=True), color=LIGHT.mark, linewidth=1, alpha=0.5, zorder=2)
    for place, row in zip(zip(x, dice, strict=True), rows, strict=True):
        chosen, average = row.level == result.level, row.level is None
        color, fill = LIGHT.accent if chosen else LIGHT.mark, "none" if average else None
        axes.plot(*place, "D" if average else "o", color=color, markerfacecolor=fill, markersize=8, zorder=3)
        shift = (0, -17 if average else 8)  # it lies where the deepest level lies, or nearly so
        axes.annotate(row.name, place, shift, textcoords="offset points", ha="center", color=color, fontsize=9)
    limit = (result.best.mean_dice or 0.0) - result.tolerance_points / 100
    axes.axhline(limit, color=LIGHT.text, linewidth=1, linestyle=":")
    axes.margins(0.12, 0.2)
    style_axes(axes, LIGHT, grid="both")


CaseDice = Mapping[str, Mapping[str, float | None]]
"""Case id → organ → Dice; None where the organ is in neither reference nor prediction."""


@dataclass(frozen=True)
class LevelTask:
    """A model folder and its description, the prepared dataset, fold → validation cases, and where to compute."""

    model: Path
    card: ModelCard
    prepared: Path
    splits: Mapping[int, Sequence[str]]
    device: torch.device


@dataclass(frozen=True)
class MeasuredLevel:
    """One level on all validation cases: what is shown of it, and for each fold the Dice of its cases."""

    row: LevelRow
    folds: Mapping[int, CaseDice]


def measure_levels(task: LevelTask, on_case: Callable[[], None]) -> Iterator[MeasuredLevel]:
    """Measure the levels one after the other, the smallest first, and then the average of all heads."""
    with torch.device("meta"):
        network = supervised(task.card.network.build(), task.model)
        parts = [_part(network, level) for level in range(1, network.depth + 1)]
        parts.append(_part(network, None))
    with watch_memory(task.device) as peak_bytes:
        for level, part in zip([*range(1, network.depth + 1), None], parts, strict=True):
            measured = {fold: _measure(task, level, fold, on_case) for fold in task.splits}
            folds = {fold: {case: dice for case, (dice, _) in cases.items()} for fold, cases in measured.items()}
            seconds = median(duration for cases in measured.values() for _, duration in cases.values())
            mean, dice = organ_means([row for cases in folds.values() for row in cases.values()])
            size = count_parameters(part), multiply_adds(part, task.card.network.patch_size, part.in_channels)
            yield MeasuredLevel(LevelRow(level, mean, dice, *size, seconds, peak_bytes()), folds)


def supervised(network: nn.Module, model: Path) -> UNetPlusPlus:
    """The network of a model folder, if it has levels to choose from, else a VolsegError."""
    if not isinstance(network, UNetPlusPlus):
        got, advice = type(network).__name__, "Other networks have no levels to choose from"
        raise VolsegError(sentence("network", "unetpp or unetplus", got, advice, file=model))
    if not network.deep_supervision:
        rule, advice = "one trained with deep supervision", "Train it with model.deep_supervision: true"
        raise VolsegError(sentence("network", rule, "one with a single head", advice, file=model))
    return network


def load_level(model: Path, card: ModelCard, fold: int, level: int | None) -> UNetPlusPlus:
    """A trained network cut off at a level, on the CPU in evaluation mode; level None averages all of its heads."""
    return _part(supervised(load_network(model, card, fold), model), level)


def _part(network: UNetPlusPlus, level: int | None) -> UNetPlusPlus:
    if level is not None:
        return network.prune(level)
    network.mode = "accurate"
    return network


def _measure(
    task: LevelTask, level: int | None, fold: int, on_case: Callable[[], None]
) -> dict[str, tuple[Mapping[str, float | None], float]]:
    """Dice and seconds of every validation case of a fold."""
    card, device = task.card, task.device
    found: dict[str, tuple[Mapping[str, float | None], float]] = {}
    advice = "Lower infer.batch_size in model.json, or use --device cpu"
    with enough_memory(device, "a case to be predicted", advice):
        network = to_device(load_level(task.model, card, fold, level), device)
        patch = torch.zeros(1, card.network.in_channels, *card.network.patch_size, device=device)
        with torch.no_grad(), autocast(device, choose_dtype(device, card.settings.train.precision)):
            network(patch)  # what libraries do once should not count for the first case
        for case in task.splits[fold]:
            validation = make_validation(task.prepared, [case], card, device)
            began = time.perf_counter()
            scores = validation.score(network, False)  # not mirrored
            found[case] = scores.cases[case], time.perf_counter() - began
            on_case()
    return found


def prune(
    model: Path,
    prepared: Path,
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    tolerance_points: float = 0.5,
    device: str | None = None,
    progress: Progress = silent,
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
    if card.plan.cascade:
        raise VolsegError(sentence("model", "one without a first stage", "a cascade", "Do not prune it", file=model))
    with torch.device("meta"):
        network = supervised(card.network.build(), model)
    if not (math.isfinite(tolerance_points) and tolerance_points >= 0):
        raise ConfigError([sentence("tolerance", "0 or more Dice points", tolerance_points, "Try 0.5")], "pruning")
    content_hash = text_hash(card.model_dump_json())
    _require_own_folder(out, model, content_hash)
    wanted = sorted(set(wanted_folds(model, folds)))
    splits = validation_cases(model, card, PreparedFolds.read(prepared), wanted)
    place = choose_device(device)
    if not (out / "pruning.json").is_file():  # marks the folder as ours, and shows now whether it can be written to
        write_json(out / "pruning.json", {"model": content_hash})
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
    write_json(out / "pruning.json", {"model": content_hash, **result.to_json()})
    options = network.options.pruned(result.level).model_dump(mode="json")
    note = {"pruned_from": result.source, "pruned_level": str(result.level)}
    smaller = {
        "network": card.network.model_copy(update={"options": options}),
        "provenance": {**card.provenance, **note},
    }
    _write_folds(model, card, out, measured[result.level - 1])
    write_card(out, card.model_copy(update=smaller))  # last: without it the folder is no model
    write_csv(out / "pruning.csv", pruning_rows(result), digits=6)
    write_text(out / "pruning.md", pruning_markdown(result))
    write_bytes(out / "pruning.png", pruning_plot(result))
    return result


def smallest_level(rows: Sequence[LevelRow], tolerance_points: float) -> int:
    """The smallest level whose mean Dice is at most the tolerance (hundredths) below that of the best.

    Raises:
        VolsegError: If no level has a mean Dice.
    """
    scored = {row.level: row.mean_dice for row in rows if row.level is not None and row.mean_dice is not None}
    if not scored:
        raise VolsegError(sentence("validation cases", "at least one organ", "none", "Choose other folds with --fold"))
    limit = max(scored.values()) - tolerance_points / 100 - 1e-12  # 0.9 - 0.005 is not exactly 0.895
    return min(level for level, dice in scored.items() if dice >= limit)


def _require_own_folder(out: Path, model: Path, content_hash: str) -> None:
    """Refuse a folder that holds anything but an earlier pruning of the same model."""
    folder = OutputFolder(out, "pruning.json", {"model": content_hash})
    if out.resolve() == model.resolve():
        folder.refuse("a new folder, or an earlier pruning of this model", "the model itself")
    folder.require_own("an earlier pruning of this model")


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
            mean, dice = organ_means(cases.values())
            content = {"grid": "prepared", "weights": "best", "mean_dice": mean, "organs": dice, "cases": cases}
            write_json(home / "validation.json", content)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"
