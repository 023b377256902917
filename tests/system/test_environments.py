"""Commands where the terminal, the folders or the variables are not those of a desktop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from toy import write_toy

from pipeline.core.errors import AllFailedError
from pipeline.core.grid import Grid
from pipeline.core.volume import LabelMap
from pipeline.data.volumes import write_label_map
from pipeline.evaluate.results import read_summary
from pipeline.stages.evaluate import evaluate

COMMAND = [sys.executable, "-m", "pipeline"]
ORGANS = ("zürich", "胃", "left…")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label maps of organs with names of all kinds, and a file that is none."""
    folder = tmp_path_factory.mktemp("masks")
    labels = LabelMap(np.arange(64, dtype=np.uint8).reshape(4, 4, 4) % 4, Grid.from_spacing((4, 4, 4), (1, 1, 1)))
    for name in ("a", "胃"):
        write_label_map(labels, folder / f"{name}.nii.gz")
    (folder / "bäd.nii.gz").write_bytes(b"no volume")
    (folder / "labels.json").write_text(json.dumps(dict(zip("123", ORGANS, strict=True))), encoding="utf-8")
    return folder


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    command = [*COMMAND, *map(str, words)]
    done = subprocess.run(command, env={**own, **environment}, capture_output=True, check=False)
    assert b"Traceback" not in done.stdout + done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", ("zürich", "胃", "left…", "bäd")),
        ("latin-1", ("zürich", r"\u80c3", "left...", "bäd")),
        ("cp1252", ("zürich", r"\u80c3", "left…", "bäd")),
        ("cp932", (r"z\xfcrich", "胃", "left…", r"b\xe4d")),
        ("ascii", (r"z\xfcrich", r"\u80c3", "left...", r"b\xe4d")),
    ],
)
def test_every_name_is_shown_in_every_encoding(
    masks: Path, tmp_path: Path, encoding: str, shown: Sequence[str]
) -> None:
    done = run("stats", masks, "-o", tmp_path, PYTHONIOENCODING=encoding, LC_ALL="C")
    assert done.returncode == 2
    assert [name for name in shown if name not in done.stdout.decode(encoding)] == []
    rows = (tmp_path / "stats.csv").read_text("utf-8").splitlines()
    assert [organ in row for organ, row in zip(ORGANS, rows[1:4], strict=True)] == [True] * 3


def test_help_fits_into_ascii() -> None:
    assert run("--help", LC_ALL="C", PYTHONIOENCODING="ascii").stdout.isascii()


def test_who_stops_reading_ends_nothing(masks: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "stats", masks, "-o", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (2, b"")
    assert (tmp_path / "stats.csv").is_file()


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_closed_streams_get_none_of_the_files(masks: Path, tmp_path: Path) -> None:
    words = [*COMMAND, "stats", str(masks), "-o", str(tmp_path), "-j", "2"]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], check=False)
    assert done.returncode == 2
    assert len((tmp_path / "stats.csv").read_text("utf-8").splitlines()) == 7


def test_a_home_that_is_not_there_is_not_needed(masks: Path, tmp_path: Path) -> None:
    shutil.copytree(masks, tmp_path / "b")
    words = ("compare", masks, tmp_path / "b", "--reference", masks, "--surface", "none", "-o", tmp_path / "c")
    done = run(*words, HOME="/proc/none", XDG_CACHE_HOME="", TMPDIR=str(tmp_path))
    assert done.returncode == 2
    assert json.loads((tmp_path / "c" / "comparison.json").read_text("utf-8"))


def test_a_call_of_which_every_case_fails_raises(masks: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(masks / "bäd.nii.gz", tmp_path / f"{name}.nii.gz")
    with pytest.raises(AllFailedError, match=r"case a: .* All 2 cases failed"):
        evaluate(tmp_path, tmp_path, tmp_path / "scores", jobs=1)
    assert len(read_summary(tmp_path / "scores")["failures"]) == 2
    done = run("evaluate", tmp_path, tmp_path, "-o", tmp_path / "again")
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_sigterm_ends_a_command_that_waits_for_a_worker(tmp_path: Path) -> None:
    data, place = write_toy(tmp_path / "data", 4), tmp_path / ("x" * 90)
    place.mkdir()
    hangs = "import os, sys\nfrom pipeline.stages import prepare\nfrom pipeline.__main__ import main\n"
    code = f"{hangs}prepare.fingerprint_case = lambda *a, **k: __import__('time').sleep(99)\n"
    script = tmp_path / "hang.py"
    script.write_text(f"{code}main({['preprocess', str(data), '-o', str(tmp_path / 'p'), '-j', '2']!r})\n")
    process = subprocess.Popen(
        [sys.executable, script], env={**os.environ, "TMPDIR": str(place)}, stderr=subprocess.PIPE
    )
    time.sleep(8)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, time.monotonic() - began < 20) == (143, True)
    assert err.decode() == "Interrupted. What was finished is kept: the same command goes on from there.\n"
    assert list(place.iterdir()) == []
