from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.core.errors import Stopped
from pipeline.engine.local import case_limit
from pipeline.engine.overlapped import overlapped

WAIT_S = 30.0


def test_the_next_is_read_and_the_last_written_while_one_is_computed() -> None:
    read_next, written = [threading.Event() for _ in range(3)], [threading.Event() for _ in range(3)]
    met: list[tuple[int, bool, bool]] = []

    def read(item: int) -> int:
        read_next[item].set()
        return item

    def work(item: int) -> int:
        ahead = item == 2 or read_next[item + 1].wait(WAIT_S)
        behind = item == 0 or written[item - 1].wait(WAIT_S)
        met.append((item, ahead, behind))
        return item

    overlapped(
        [0, 1, 2], read, work, lambda item: written[item].set(), failed=no_failure, done=lambda: None
    )  # fmt: skip
    assert met == [(0, True, True), (1, True, True), (2, True, True)]
    assert written[2].is_set()


def no_failure(item: int, error: Exception) -> None:
    raise AssertionError(f"{item}: {error}")


def test_no_more_than_one_is_read_ahead_and_one_waits_to_be_written() -> None:
    counts = {"read": 0, "worked": 0, "written": 0}
    most = {"ahead": 0, "behind": 0}

    def read(item: int) -> int:
        counts["read"] += 1
        most["ahead"] = max(most["ahead"], counts["read"] - counts["worked"])
        return item

    def work(item: int) -> int:
        time.sleep(0.002)
        most["behind"] = max(most["behind"], counts["worked"] - counts["written"])
        counts["worked"] += 1
        return item

    def write(item: int) -> None:
        time.sleep(0.01)
        counts["written"] += 1

    overlapped(range(12), read, work, write, failed=no_failure, done=lambda: None)
    assert counts == {"read": 12, "worked": 12, "written": 12}
    assert most["ahead"] <= 3  # the one that is computed, the next, and one whose turn to be counted has not come
    assert most["behind"] <= 2  # the one that is written, and the one that waits for it


def test_an_item_that_fails_in_any_step_does_not_end_the_others() -> None:
    written: list[int] = []
    failed: list[tuple[int, str]] = []
    seen: list[None] = []

    def failing(step: int):
        def run(item: int) -> int:
            if item == step:
                raise ValueError(f"step {step}")
            return item

        return run

    def write(item: int) -> None:
        failing(2)(item)
        written.append(item)

    overlapped(
        range(5),
        failing(0),
        failing(1),
        write,
        failed=lambda item, error: failed.append((item, str(error))),
        done=lambda: seen.append(None),
    )
    assert written == [3, 4]
    assert sorted(failed) == [(0, "step 0"), (1, "step 1"), (2, "step 2")]
    assert len(seen) == 5


def test_nothing_is_nothing() -> None:
    overlapped([], abs, abs, print, failed=no_failure, done=lambda: None)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_write_and_for_nothing_else(number: signal.Signals) -> None:
    written: list[int] = []

    def work(item: int) -> int:
        if item == 2:
            os.kill(os.getpid(), number)
            time.sleep(WAIT_S)  # the signal ends it
        return item

    def write(item: int) -> None:
        time.sleep(0.2)
        written.append(item)

    began = time.monotonic()
    with pytest.raises((KeyboardInterrupt, Stopped)) as caught:
        overlapped(range(5), abs, work, write, failed=no_failure, done=lambda: None)
    assert isinstance(caught.value, KeyboardInterrupt) == (number == signal.SIGINT)
    assert written == [0, 1]
    assert time.monotonic() - began < WAIT_S


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_does_not_wait_for_a_reader_that_hangs() -> None:
    let_go = threading.Event()

    def read(item: int) -> int:
        if item == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            let_go.wait(WAIT_S)  # no signal ends another thread
        return item

    began, written = time.monotonic(), []
    with pytest.raises(Stopped):
        overlapped(range(3), read, abs, written.append, failed=no_failure, done=lambda: None)
    let_go.set()
    assert time.monotonic() - began < WAIT_S / 2
    assert written in ([], [0])


def test_a_step_that_takes_too_long_costs_its_item_only() -> None:
    let_go, lost, written = threading.Event(), [], []

    def slowly(item: int, slow: int) -> int:
        if item == slow:
            let_go.wait(WAIT_S)
        return item

    with case_limit(1.0):
        overlapped(
            range(5),
            lambda item: slowly(item, 1),
            lambda item: slowly(item, 3),
            written.append,
            failed=lambda item, error: lost.append((item, str(error)[:49])),
            done=lambda: None,
        )
    let_go.set()
    reason = "time limit of a case: expected an end within 1 s,"
    assert (lost, written) == ([(1, reason), (3, reason)], [0, 2, 4])


def test_predicting_waits_for_nothing_that_draws_reports() -> None:
    heavy = "[m for m in sys.modules if m.startswith(('pipeline.report', 'jinja2'))]"
    code = f"import sys, pipeline.stages.predict; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"  # matplotlib is imported by MONAI itself
