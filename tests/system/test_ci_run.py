"""What CI runs, with a ``make`` that only tells what it was given."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def given_data(folder: Path, **environment: str) -> str:
    """VOLSEG_TEST_DATA as ``make`` finds it when the script runs in ``folder/checkout``."""
    script = folder / "checkout" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    for name, body in (
        ("make", 'echo "$1 ${VOLSEG_TEST_DATA-unset}"'),
        ("anypython", "exit 0"),
        ("chromium", "exit 0"),
        ("dciodvfy", "exit 0"),
        ("Orthanc", "exit 0"),
    ):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    variables = {name: value for name, value in os.environ.items() if name != "VOLSEG_TEST_DATA"}
    variables |= {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHON": "anypython", **environment}
    done = subprocess.run(["bash", str(script)], env=variables, capture_output=True, text=True, check=True)
    target, _, value = done.stdout.strip().partition(" ")
    assert target == "test"
    return value


def test_real_volumes_are_used_where_they_lie_beside_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert given_data(tmp_path) == str(tmp_path / "shared" / "data")


def test_without_a_folder_of_real_volumes_the_variable_stays_unset(tmp_path: Path) -> None:
    assert given_data(tmp_path) == "unset"


def test_a_folder_that_was_named_is_kept(tmp_path: Path) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert given_data(tmp_path, VOLSEG_TEST_DATA="/elsewhere") == "/elsewhere"
