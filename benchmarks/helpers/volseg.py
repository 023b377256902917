"""volseg's commands as the benchmarks run them: one at a time, of a given length, and what a training notes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
STEPS_PER_EPOCH = 50  # of trainings of so many steps


def timed(*words: object) -> float:
    """Run one volseg command and return its wall-clock seconds."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pipeline", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.monotonic() - began


def history(model: Path) -> list[dict[str, str]]:
    """The epochs of a training of fold 0."""
    header, *rows = (model / "fold_0" / "history.csv").read_text().splitlines()
    return [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]


def length_settings(steps: int | None, minutes: float) -> tuple[str, ...]:
    """Settings of a training of so many steps, or else of so many minutes.

    A short last epoch cannot be: the length of epochs is fitted, so that the number of steps is kept.
    """
    if steps is None:
        return (f"train.budget={60 * minutes:g}s",)
    epochs = max(1, round(steps / STEPS_PER_EPOCH))
    return (f"train.epochs={epochs}", f"train.iterations_per_epoch={round(steps / epochs)}")
