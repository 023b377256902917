"""``volseg preprocess`` in forked processes that are killed with SIGKILL; started by ``test_killed_runs.py``.

    python killed_runs.py moments <dataset> <folder> <number> <seed>    at random moments of the time that a run takes
    python killed_runs.py renames <dataset> <folder>                    before every rename of a temporary file

Forked, so that no run waits seconds for its imports. ``<folder>/whole`` is not killed; every ``<folder>/killed_<n>`` is
killed once and run again to its end. Prints how many runs were killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from itertools import count
from pathlib import Path

import pipeline.stages.prepare
from pipeline.__main__ import main

assert pipeline.stages.prepare  # imported for its time


def run(dataset: Path, out: Path, *, kill_after_s: float | None = None, kill_at_rename: int | None = None) -> bool:
    """Prepare a dataset in a process group of its own; whether it was killed."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            os.setsid()
            if kill_at_rename is not None:
                fall_at_rename(kill_at_rename)
            main(["preprocess", str(dataset), "--out", str(out), "--jobs", "1"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os._exit(code)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.killpg(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    if status not in (0, signal.SIGKILL):
        sys.exit(f"preprocess: expected exit code 0 or a kill, got status {status}")
    return status != 0


def fall_at_rename(number: int) -> None:
    """Have this process kill itself when it renames a file for the nth time, from 0."""
    rename, renames = Path.replace, count()

    def replace(self: Path, target: Path) -> Path:
        if next(renames) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = replace  # type: ignore[method-assign]


def at_moments(dataset: Path, folder: Path, number: int, seed: int) -> int:
    """Kill one run in each part of the time that a run takes, so that all parts of the work are hit."""
    began = time.monotonic()
    run(dataset, folder / "whole")
    seconds, moments, killed = time.monotonic() - began, random.Random(seed), 0
    for trial in range(number):
        out = folder / f"killed_{trial}"
        killed += run(dataset, out, kill_after_s=seconds * (trial + moments.random()) / number)
        run(dataset, out)
    return killed


def at_renames(dataset: Path, folder: Path) -> int:
    """Kill a run before its first rename, another before its second, and so on until one comes to its end."""
    run(dataset, folder / "whole")
    for trial in count():
        out = folder / f"killed_{trial}"
        if not run(dataset, out, kill_at_rename=trial):
            return trial
        run(dataset, out)
    raise AssertionError


if __name__ == "__main__":
    where = (Path(sys.argv[2]), Path(sys.argv[3]))
    killed = at_renames(*where) if sys.argv[1] == "renames" else at_moments(*where, *map(int, sys.argv[4:6]))
    sys.stdout.write(f"killed {killed}\n")
