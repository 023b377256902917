"""What pruning a UNet++ to each of its levels costs and gains: the values, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from pipeline.core.tables import score_cell, text_table
from pipeline.report.plots import LIGHT, figure_png, style_axes

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
