"""What a training run of either tool left, read alike: speed, waiting, loss and Dice over the time of training."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from helpers.commands import Cost
from matplotlib.figure import Figure

WARM_UP = 3  # epochs of volseg that are left out of its speed, and as many iterations of nnU-Net as they have


@dataclass(frozen=True)
class Speed:
    """Of the steady state: patches per second, and the share of the time in which the network waits for a batch."""

    patches_per_s: float
    wait_share: float
    patches: int


@dataclass(frozen=True)
class Curve:
    """A training over its time, validation and saving left out.

    Args:
        loss: (seconds, mean loss since the point before).
        dice: (seconds, mean Dice of foreground classes over full validation volumes), in order of time.
        patches: Patches seen in all.
    """

    loss: tuple[tuple[float, float], ...]
    dice: tuple[tuple[float, float], ...]
    patches: int


def rows(path: Path) -> list[dict[str, str]]:
    """Lines of a CSV file by the names of its columns."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _steady(path: Path, warm_up: int) -> list[dict[str, str]]:
    steady = rows(path)[warm_up:]
    if not steady:
        raise ValueError(f"{path}: expected more than {warm_up} lines, got fewer. Let it train for longer.")
    return steady


def nnunet_speed(folder: Path, epoch: int = 1) -> Speed:
    """From the ``iterations.csv`` of ``nnunet_training.py``.

    Args:
        folder: Where that is.
        epoch: Iterations in an epoch of volseg.

    Raises:
        ValueError: If there are too few iterations.
    """
    batch = json.loads((folder / "run.json").read_text())["batch"]
    steady = _steady(folder / "iterations.csv", WARM_UP * epoch)
    seconds = sum(float(row["step_s"]) for row in steady)
    return Speed(
        batch * len(steady) / seconds, sum(float(row["wait_s"]) for row in steady) / seconds, batch * len(steady)
    )


def volseg_speed(history: Path) -> Speed:
    """From the ``history.csv`` of ``volseg train``.

    Raises:
        ValueError: If there are too few epochs.
    """
    steady = _steady(history, WARM_UP)
    seconds = sum(float(row["seconds"]) for row in steady)
    patches = sum(float(row["seconds"]) * float(row["patches_per_s"]) for row in steady)
    waited = sum(float(row["seconds"]) * float(row["data_share"]) for row in steady)
    return Speed(patches / seconds, waited / seconds, round(patches))


def pooled(rounds: list[Speed]) -> Speed:
    """Several rounds of the same as one: patches over seconds, not the mean of speeds."""
    patches = sum(speed.patches for speed in rounds)
    seconds = [speed.patches / speed.patches_per_s for speed in rounds]
    waited = sum(speed.wait_share * own for speed, own in zip(rounds, seconds, strict=True))
    return Speed(patches / sum(seconds), waited / sum(seconds), patches)


def nnunet_curve(folder: Path, dice: dict[float, float], points: int = 100) -> Curve:
    """From what ``nnunet_training.py`` wrote; ``dice`` holds the scored checkpoints by their seconds.

    nnU-Net's loss counts the Dice as a gain, so that it is smaller than ours by 1, which is added.
    """
    noted = rows(folder / "iterations.csv")
    batch = json.loads((folder / "run.json").read_text())["batch"]
    size = max(1, len(noted) // points)
    loss = []
    for first in range(0, len(noted), size):
        part = noted[first : first + size]
        mean = sum(float(row["loss"]) for row in part) / len(part)
        loss.append((float(part[-1]["trained_s"]), mean + 1.0))
    return Curve(tuple(loss), tuple(sorted(dice.items())), batch * len(noted))


def volseg_curve(history: Path) -> Curve:
    """From the ``history.csv`` of ``volseg train``, whose every validation is of all volumes."""
    loss, dice, seconds, patches = [], [], 0.0, 0.0
    for row in rows(history):
        seconds += float(row["seconds"])
        patches += float(row["seconds"]) * float(row["patches_per_s"])
        loss.append((seconds, float(row["loss"])))
        if row["mean_dice"]:
            dice.append((seconds, float(row["mean_dice"])))
    return Curve(tuple(loss), tuple(dice), round(patches))


def time_to(curve: Curve, target: float) -> float | None:
    """Seconds of training at the first validation that reached the Dice, None if none did."""
    return next((seconds for seconds, dice in curve.dice if dice >= target), None)


def speed_table(found: dict[str, Speed]) -> str:
    """Markdown; ratios are to nnU-Net's best."""
    peers = [speed.patches_per_s for name, speed in found.items() if name.startswith("nnU-Net")]
    lines = ["| tool | patches/s | data wait | patches/s, ratio |", "|---|---|---|---|"]
    for name, speed in found.items():
        ratio = f"{speed.patches_per_s / max(peers):.2f}" if peers else ""
        lines.append(f"| {name} | {speed.patches_per_s:.2f} | {speed.wait_share:.1%} | {ratio} |")
    return "\n".join(lines)


def curves_table(curves: dict[str, Curve], costs: dict[str, Cost], target: float) -> str:
    """Markdown; the ratio is of the times to the Dice, nnU-Net's standard schedule first."""
    head = ["tool", "min", "patches", f"min to {target:.2f}", "ratio", "best Dice", "CPU s / patch", "peak MB"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    first = time_to(next(iter(curves.values())), target)
    for name, curve in curves.items():
        taken, cost = time_to(curve, target), costs[name]
        best = max((dice for _, dice in curve.dice), default=float("nan"))
        cells = [name, f"{curve.loss[-1][0] / 60:.1f}", str(curve.patches)]
        cells += ["not reached" if taken is None else f"{taken / 60:.1f}"]
        cells += ["" if taken is None or first is None else f"{first / taken:.1f}"]
        cells += [f"{best:.3f}", f"{cost.cpu_s / curve.patches:.2f}", f"{cost.peak_mb:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(curves: dict[str, Curve], target: float, path: Path) -> None:
    """PNG: loss on the left, Dice on the right, over minutes of training."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, curve), color in zip(curves.items(), ("#D55E00", "#0072B2", "#009E73", "#CC79A7"), strict=False):
        for axes, points, style in ((left, curve.loss, "-"), (right, curve.dice, "o-")):
            minutes, values = [seconds / 60 for seconds, _ in points], [value for _, value in points]
            axes.plot(minutes, values, style, color=color, markersize=3, linewidth=1.2, label=name)
    right.axhline(target, color="0.6", linewidth=0.8, linestyle=":")
    left.set(xlabel="minutes of training", ylabel="loss (nnU-Net's plus 1)", title="Training loss")
    right.set(xlabel="minutes of training", ylabel="mean Dice", ylim=(0, 1), title="Full validation volumes")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
