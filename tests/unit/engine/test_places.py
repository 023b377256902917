"""A queue of long work in front of a few places."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from pipeline.engine import places
from pipeline.engine.places import run_at_places

PATHS = os.pathsep.join((str(Path(__file__).parent), str(Path(places.__file__).parents[2])))


def occupy(folder: str, place: str) -> tuple[str, bool]:
    """Hold a place for a moment; tells whether somebody held it already."""
    mark = Path(folder) / place
    alone = not mark.exists()
    mark.touch()
    time.sleep(0.3)
    mark.unlink()
    return place, alone


def fail_or_die(what: str, place: str) -> str:
    if what == "die":
        os._exit(9)
    if what == "wrong":
        raise DataError("fold 1: loss: expected a finite number, got nan. Lower it.")
    if what == "defect":
        raise KeyError("what")
    return f"{what} at {place}"


def sleep_long(mark: str, place: str) -> None:
    Path(mark).touch()
    time.sleep(3600)


def test_each_place_holds_one_item_at_a_time_and_all_are_used(tmp_path: Path) -> None:
    outcomes = list(run_at_places(occupy, [str(tmp_path)] * 5, ["gpu0", "gpu1"]))
    assert sorted(outcome.index for outcome in outcomes) == [0, 1, 2, 3, 4]
    used = [outcome.value for outcome in outcomes if outcome.value is not None]
    assert all(alone for _, alone in used)
    counts = sorted(sum(place == name for place, _ in used) for name in ("gpu0", "gpu1"))
    assert counts[0] >= 1
    assert sum(counts) == 5


def test_failures_and_deaths_are_outcomes_and_their_place_is_used_again() -> None:
    found = {o.index: o for o in run_at_places(fail_or_die, ["die", "wrong", "defect", "fine"], ["gpu0"])}
    assert found[0].error == (
        "worker process: expected to finish, got killed at gpu0 (exit code 9). "
        "It may have run out of memory: run again, at fewer places at once."
    )
    assert found[1].error == "fold 1: loss: expected a finite number, got nan. Lower it."
    assert found[2].error == "unexpected KeyError: 'what'"
    assert (found[3].value, found[3].error) == ("fine at gpu0", None)


def test_no_items_need_no_process() -> None:
    assert list(run_at_places(fail_or_die, [], ["gpu0"])) == []


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_an_interrupt_ends_what_is_in_flight(tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup it would be ignored\n"
        "from pipeline.engine.places import run_at_places; from test_places import sleep_long\n"
        f"try: list(run_at_places(sleep_long, [{str(mark)!r}], ['gpu0']))\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    environment = {**os.environ, "PYTHONPATH": PATHS}
    command = [sys.executable, "-c", f"if __name__ == '__main__':\n  {code.replace(chr(10), chr(10) + '  ')}"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert out.strip() == "interrupted"
