from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.core import locks
from pipeline.core.errors import VolsegError
from pipeline.core.together import RunsTogether

pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="no locks of POSIX")

OTHER = """
import sys, time
from pathlib import Path
from pipeline.core.together import RunsTogether
with RunsTogether(Path(sys.argv[1]), "work") as runs:
    with runs.alone():
        runs.tell(plan="one")
    print(runs.rank, flush=True)
    time.sleep(60)
"""


def test_alone_in_a_folder_leaves_nothing(tmp_path: Path) -> None:
    with RunsTogether(tmp_path / "out", "work") as runs, runs.alone():
        assert (runs.rank, runs.others(), runs.together(), runs.notes) == (0, [], [], ())
    assert not (tmp_path / "out").exists()
    with RunsTogether(tmp_path / "out", "work"):
        (tmp_path / "out" / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_runs_tell_each_other_until_the_last_has_gone(tmp_path: Path) -> None:
    with RunsTogether(tmp_path, "work") as first:
        with first.alone():
            first.tell(plan="a")
        with RunsTogether(tmp_path, "work") as second:
            with second.alone():
                (seen,) = second.others()
                assert (second.rank, seen["plan"], seen["process"]) == (1, "a", os.getpid())
                second.tell(cases=["x"])
            with RunsTogether(tmp_path, "other") as apart:
                assert apart.rank == 0
        with first.alone():
            assert first.others() == []
            assert [told["cases"] for told in first.together()] == [["x"]]
            first.require("one plan", "another plan", "Wait for it")  # nobody is there any more
            first.require("one plan", "another plan", "Wait for it", ended=True, cases=["x"], unheard="of")
            with pytest.raises(VolsegError) as refused:
                first.require("one plan", "another plan", "Wait for it", ended=True, cases=["y"])
        where = f"process {os.getpid()} on {socket.gethostname()}"
        message = f"{tmp_path}: output folder: expected one plan, got another plan in {where}. Wait for it."
        assert str(refused.value) == message
        assert (first.shared("abc"), second.shared("abc")) == (["a", "b", "c"], ["b", "c", "a"])
    assert list(tmp_path.iterdir()) == []


def test_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with RunsTogether(tmp_path, "work") as runs:
            for _ in range(20):
                with runs.alone():
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.0005)
                    inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(most)) == (1, 80)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_killed_is_no_other(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "0\n"
    with RunsTogether(tmp_path, "work") as runs:
        with runs.alone():
            assert [(other["process"], other["plan"]) for other in runs.others()] == [(run.pid, "one")]
        run.send_signal(signal.SIGKILL)
        run.wait()
        with runs.alone():
            assert runs.others() == []
    run.stdout.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_run_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with RunsTogether(tmp_path, "work") as runs, RunsTogether(tmp_path, "work") as others:
        with runs.alone(), others.alone():
            runs.tell(plan="a")
            assert others.others() == []
        assert runs.notes == (
            f"{tmp_path}: output folder: expected a file system with locks, got one without, where two runs at once "
            "cannot see each other. Run one at a time there.",
        )
    assert list(tmp_path.iterdir()) == []
