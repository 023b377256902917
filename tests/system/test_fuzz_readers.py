"""Damaged volume files of every format: each is read or refused in a sentence, and good cases beside them are done."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged import good_files, write_damaged
from effort import tries

from pipeline.core.grid import Grid
from pipeline.data.volumes import write_voxels

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")]

MEMORY = 4 << 30  # bytes of addresses that each process may take; libraries alone take one to two GB of them
A_FILE_S = 30.0  # far more than any file takes, and less than any time limit of the readers
HELPERS = Path(__file__).parents[1] / "helpers"


def run(words: list[object], folder: Path, limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run Python within bounds of memory and time; nothing is left in the temporary folder."""
    path = os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH"), str(HELPERS.parents[1])])])
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": temporary, "COLUMNS": "200"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr[-3000:]
        assert list(Path(temporary).iterdir()) == []
    return done


def test_every_damaged_file_is_read_or_refused(tmp_path: Path) -> None:
    number = tries(160, 10_000)
    done = run([HELPERS / "damaged.py", tmp_path / "files", number, 17], tmp_path, 60 + number * 0.2)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(outcomes) == number
    refused = 0
    for outcome in outcomes:
        for kind in ("image", "labels"):
            if re.fullmatch("[0-9a-f]{16}", outcome[kind]):
                continue
            refused += 1
            assert outcome[kind].startswith(f"refused: case c: {tmp_path / 'files' / outcome['file']}: "), outcome
            assert re.search(r": expected .*, got .*\.$", outcome[kind]), outcome
            assert "\n" not in outcome[kind], outcome
        assert outcome["seconds"] < A_FILE_S, outcome
    assert 0.5 * number < refused < 2 * number  # neither all nor none: the damage is of the kind that it should be
    for path in good_files(tmp_path / "same"):
        assert path.read_bytes() == (tmp_path / "files_good" / path.name).read_bytes()


@pytest.fixture(scope="module", params=["volumes", "pictures"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases with damaged images and label maps, and three good ones beside them."""
    folder = tmp_path_factory.mktemp("fuzz") / "data"
    volumes = request.param == "volumes"
    shape = (6, 7, 5 if volumes else 1)
    grid = Grid(shape, np.diag([-1.0, -2.0, 3.0 if volumes else 1.0, 1.0]))
    labels = (np.arange(np.prod(shape)) % 3).astype(np.uint8).reshape(shape)
    for number, suffix in enumerate((".nii.gz", ".nrrd", ".mha") if volumes else (".png", ".tif", ".png")):
        image = np.random.default_rng(number).integers(0, 1000, shape).astype(np.uint16)
        write_voxels(image, grid, folder / "images" / f"a_good_{number}{suffix}")
        write_voxels(labels, grid, folder / "labels" / f"a_good_{number}{suffix}")
    for seed, kind in enumerate(("images", "labels")):
        write_damaged(folder / kind, tries(48, 1200), seed, "case_", of="abcdefghijp" if volumes else "klm")
    (folder / "labels.json").write_text('{"1": "one", "2": "two"}')
    return folder


GOOD = {"a_good_0", "a_good_1", "a_good_2"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_check_names_every_damaged_case_and_passes_the_good_ones(dataset: Path, jobs: int, tmp_path: Path) -> None:
    report = tmp_path / "check.json"
    limit_s = 60 + tries(0, 1200)
    done = run(["-m", "pipeline", "check", dataset, "--json", report, "--jobs", jobs], tmp_path, limit_s)
    assert done.returncode == 2, done.stderr[-3000:]
    problems = json.loads(report.read_text())["problems"]
    wrong = {problem["case"] for problem in problems if problem["severity"] == "error"}
    assert not wrong & GOOD
    assert len(wrong) > tries(10, 300)
    for problem in problems:
        assert "unexpected" not in problem["message"], problem
        assert "killed" not in problem["message"], problem


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "DATA", "--to", "nnunet", "-o", "OUT"],
        ["stats", "DATA/labels", "--images", "DATA/images", "-o", "OUT"],
        ["evaluate", "DATA/labels", "DATA/labels", "-o", "OUT", "--surface", "none"],
    ],
    ids=lambda words: words[0],
)
def test_commands_do_the_good_cases(dataset: Path, words: list[str], tmp_path: Path) -> None:
    places = {"DATA": str(dataset), "OUT": str(tmp_path / "out")}
    named = [re.sub("DATA|OUT", lambda found: places[found[0]], word) for word in words]
    done = run(["-m", "pipeline", *named, "--jobs", 1], tmp_path, 60 + tries(0, 1200))
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    written = " ".join(path.name for path in (tmp_path / "out").rglob("*"))
    written += "".join(path.read_text() for path in (tmp_path / "out").glob("*.[cj]s*"))
    assert all(case in written for case in GOOD)
