"""Commands killed with SIGKILL or SIGTERM and run again: what a run makes that was left alone, and nothing else."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from effort import tries
from toy import write_toy

from pipeline.phantom.torso import write_phantom

COMMANDS = (
    *("check", "fix", "plan", "preprocess", "train", "cross-validate", "predict", "split", "evaluate", "report"),
    *("compare", "stats", "convert", "organs", "phantom", "preview", "choose", "prune", "share", "demo"),
)
SEED = 20261121
HELPER = Path(__file__).parents[1] / "helpers" / "killed_runs.py"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and process groups")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder, hidden ones too, with the contents of files."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def killed_runs(*words: object) -> list[str]:
    """How many runs were killed, and in what they differ from a whole one."""
    command = [sys.executable, str(HELPER), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("killed\n")[-1].splitlines()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_at_random_moments(tmp_path: Path) -> None:
    trials = tries(1, 20)
    killed, *differences = killed_runs("moments", tmp_path, trials, SEED, *COMMANDS)
    assert not differences, "\n".join(differences)
    # A machine that speeds up lets the last runs end before they are killed.
    assert int(killed) >= 0.7 * (trials + 1) * len(COMMANDS)


def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    killed, *differences = killed_runs("moments", tmp_path, 10, SEED, "preprocess")  # byte for byte
    assert not differences, "\n".join(differences)
    assert int(killed) >= 7


def test_killed_before_every_rename(tmp_path: Path) -> None:
    write_toy(tmp_path / "data", 2)
    # plan.yaml, four files of each of two cases, splits.json
    assert killed_runs("renames", tmp_path / "data", tmp_path) == ["10"]
    whole = tree(tmp_path / "whole")
    assert all(tree(tmp_path / f"killed_{trial}") == whole for trial in range(11))


def test_killed_with_its_workers(tmp_path: Path) -> None:
    write_phantom(tmp_path / "data", cases=3, tests=0, seed=0)
    command = [sys.executable, "-m", "pipeline", "preprocess", str(tmp_path / "data"), "--jobs", "2", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    out = tmp_path / "killed"
    running = subprocess.Popen([*command, str(out)], start_new_session=True, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not list(out.glob("cases/*/*")) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(random.Random(7).uniform(0, 0.2))
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert tree(out) == tree(tmp_path / "whole")
