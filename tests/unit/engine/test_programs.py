"""The engine in programs of all kinds: how Python was started, and from where the engine is asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.lean_monai import is_lean
from pipeline.engine import local

PATHS = os.pathsep.join((str(Path(__file__).parent), str(Path(local.__file__).parents[2])))
HEAD = "import os, sys\nfrom pipeline.engine.local import open_engine\nfrom test_local import own_process\n"
WORK = """\
def work():
    with open_engine(2) as run:
        found = [outcome.value or outcome.error for outcome in run(own_process, [1, 2, 3])]
    print(len(found), sum(value in (os.getpid(), None) for value in found), flush=True)
"""
"""Prints how many items were done, and how many of them not by workers."""

OWN = """\
def own(number):
    return -number
def work():
    with open_engine(2) as run:
        found = [outcome.value or outcome.error for outcome in run(own, [1, 2])]
    print(sorted(map(str, found)), flush=True)
"""
"""Prints what a function of the script itself made."""

NAMED = "from multiprocessing.spawn import set_executable\nsys.executable = {0!r}\nset_executable({0!r})\n"
"""Tells a Python inside another program that this program is its interpreter."""

GUARDED = "if __name__ == '__main__':\n    work()\n"


def output(folder: Path, code: str, stdin: bool = False, **environment: str) -> tuple[str, str]:
    """What a script prints, from a file or from standard input."""
    script = folder / "script.py"
    script.write_text(HEAD + code, encoding="utf-8")
    command = [sys.executable, "-"] if stdin else [sys.executable, str(script)]
    variables = {**os.environ, "PYTHONPATH": PATHS, **environment}
    done = subprocess.run(
        command, input=script.read_text("utf-8") if stdin else "", env=variables, capture_output=True, text=True,
        check=False, timeout=100,
    )  # fmt: skip
    return done.stdout, done.stderr


def lean_there(_: int) -> bool:
    """Whether the process that this runs in imports of MONAI only what it uses."""
    return is_lean()


@pytest.mark.parametrize("lean", [False, True])
def test_workers_import_monai_as_the_program_does_that_asks_for_them(tmp_path: Path, lean: bool) -> None:
    begin = "from pipeline.core.lean_monai import lean_monai\nlean_monai()\n" if lean else ""
    work = "with open_engine(2) as run:\n    print({outcome.value for outcome in run(lean_there, [1, 2])})\n"
    assert output(tmp_path, f"{begin}from test_programs import lean_there\n{work}") == (f"{{{lean}}}\n", "")


@pytest.mark.parametrize(
    "code",
    [
        WORK + GUARDED,
        WORK + "work()\n",
        "import matplotlib\n" + WORK + GUARDED,
        WORK + "from threading import Thread\nthread = Thread(target=work)\nthread.start()\nthread.join()\n",
        WORK + "from multiprocessing import get_context\n"
        "if __name__ == '__main__':\n    worker = get_context('spawn').Process(target=work, daemon=True)\n"
        "    worker.start()\n    worker.join()\n",
        # another program with Python inside names itself
        f"{NAMED.format('/bin/false')}{WORK}work()\n",
        f"{NAMED.format('')}{WORK}work()\n",
    ],
    ids=["guarded", "no guard", "matplotlib", "thread", "daemon", "embedded", "no executable"],
)
def test_workers_work_whatever_program_asks_for_them(tmp_path: Path, code: str) -> None:
    assert output(tmp_path, code) == ("3 0\n", "")


def test_workers_of_a_script_from_standard_input(tmp_path: Path) -> None:
    assert output(tmp_path, WORK + "work()\n", stdin=True) == ("3 0\n", "")


def test_workers_need_no_place_for_a_socket(tmp_path: Path) -> None:
    place = tmp_path / ("x" * 100)
    place.mkdir()
    assert output(tmp_path, WORK + GUARDED, TMPDIR=str(place)) == ("3 0\n", "")
    assert list(place.iterdir()) == []


def test_without_a_python_to_start_this_process_does_the_work_and_says_so_once(tmp_path: Path) -> None:
    out, err = output(tmp_path, f"sys.exec_prefix = '/none'\n{NAMED.format('/bin/false')}{WORK}work()\n")
    assert out == "3 3\n"
    assert err.count("worker processes: expected to take the cases, got no Python beside /bin/false. ") == 1
    assert "This process does the work itself, one case after the other." in err


def test_a_python_that_does_not_start_is_none(tmp_path: Path) -> None:
    wrong = tmp_path / "python"
    wrong.write_text("#!/bin/sh\nexit 3\n")
    wrong.chmod(0o755)
    out, err = output(tmp_path, f"{NAMED.format(str(wrong))}{WORK}work()\n")
    assert out == "3 3\n"
    assert "got a Python that does not start." in err


def test_functions_of_the_script_itself_reach_workers(tmp_path: Path) -> None:
    assert output(tmp_path, OWN + GUARDED) == ("['-1', '-2']\n", "")


def test_functions_of_standard_input_are_done_here_which_is_said_once(tmp_path: Path) -> None:
    out, err = output(tmp_path, OWN + "work()\n", stdin=True)
    assert out == "['-1', '-2']\n"
    assert err.count("got functions or classes of a main script without a file") == 1
    out, err = output(tmp_path, OWN.replace("run(own,", "run(lambda number: -number,") + GUARDED)
    assert out == "['-1', '-2']\n"
    assert err.count("got work that cannot be pickled") == 1


def test_a_script_without_a_guard_learns_what_it_needs_for_functions_of_its_own(tmp_path: Path) -> None:
    out, err = output(tmp_path, OWN + "work()\n")
    rule = "main script: expected its work below `if __name__ == '__main__':`"
    assert (out.count(rule), err) == (2, "")
    assert len(out.splitlines()) == 1
