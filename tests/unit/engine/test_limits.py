"""Cases that hang: the time limit of a case, and a stop that does not wait for them."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import VolsegError
from pipeline.core.files import atomic_path
from pipeline.engine import local
from pipeline.engine.local import case_limit, open_engine, within_limit

PATHS = os.pathsep.join((str(Path(__file__).parent), str(Path(local.__file__).parents[2])))
HEAD = "import signal\nfrom pipeline.engine.local import open_engine\nfrom test_limits import hang, write_slowly\n"
HEAD += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # under nohup it would be ignored
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="hangs as Linux does")
LATE = "time limit of a case: expected an end within 2 s, got none. Look at its files, or give it more time."


def hang(marker: str) -> str:
    """Hang in native code that never lets Python go on, as a decoder of damaged files does; the empty text does not."""
    if marker:
        Path(marker).with_suffix(f".{os.getpid()}").touch()
        ctypes.PyDLL(None).pause()
    return "done"


def write_slowly(marker: str) -> None:
    with atomic_path(marker) as temporary:
        temporary.write_text("half")
        time.sleep(3600)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_case_that_takes_too_long_fails_and_the_others_go_on(tmp_path: Path, jobs: int) -> None:
    items = ["", str(tmp_path / "a"), "", ""]
    with case_limit(2.0), open_engine(jobs) as run:
        outcomes = sorted(run(hang, items), key=lambda outcome: outcome.index)
    assert [outcome.value for outcome in outcomes] == ["done", None, "done", "done"]
    assert outcomes[1].error == LATE
    assert len(list(tmp_path.iterdir())) == 1  # not tried again


def test_work_in_this_process_is_not_waited_for_beyond_the_limit() -> None:
    with case_limit(0.2), pytest.raises(VolsegError, match=r"an end within 0\.2 s, got none"):
        within_limit(lambda: time.sleep(3))
    with case_limit(30):
        assert within_limit(lambda: 7) == 7
        with pytest.raises(KeyError):
            within_limit(lambda: {}["x"])


def test_without_a_limit_nothing_is_measured() -> None:
    with case_limit(None):
        assert within_limit(os.getpid) == os.getpid()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_does_not_wait_for_workers_that_hang(tmp_path: Path, number: signal.Signals) -> None:
    code = f"with open_engine(2) as run:\n    list(run(hang, [{str(tmp_path / 'a')!r}, {str(tmp_path / 'b')!r}]))\n"
    done = interrupted(code, number, lambda: len(list(tmp_path.iterdir())) == 2)
    assert done < 15  # seconds; machines that run tests are busy
    workers = [int(path.suffix[1:]) for path in tmp_path.iterdir()]
    assert within(10, lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_a_stop_lets_workers_remove_their_temporary_files(tmp_path: Path) -> None:
    code = f"with open_engine(2) as run:\n    list(run(write_slowly, [{str(tmp_path / 'a')!r}]))\n"
    interrupted(code, signal.SIGINT, lambda: any(path.stat().st_size for path in tmp_path.iterdir()))
    assert list(tmp_path.iterdir()) == []


def interrupted(code: str, number: signal.Signals, begun: Callable[[], bool]) -> float:
    """Seconds from a signal to the end of a script that is at work."""
    command = [sys.executable, "-c", HEAD + code]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PATHS}, stderr=subprocess.DEVNULL)
    try:
        assert within(60, begun)
        process.send_signal(number)
        start = time.monotonic()
        process.wait(60)
        return time.monotonic() - start
    finally:
        process.kill()
        process.wait()


def within(seconds: float, happened: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)
    return happened()
