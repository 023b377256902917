"""The engine: in this process and over spawned workers."""

import os
import time
from pathlib import Path

import pytest

from pipeline import engine
from pipeline.core.errors import DataError
from pipeline.engine import default_jobs, open_engine

GIB = 2**30
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")


def double(number: int) -> int:
    if number == 3:
        raise DataError("case 3: number: expected anything else, got 3. Drop it.")
    if number == 4:
        raise KeyError("what")
    return 2 * number


def die(marker: str) -> str:
    """Kill the worker, the first time only where the marker says so."""
    if marker.startswith("always"):
        os._exit(9)
    path = Path(marker)
    if path.suffix == ".once" and not path.exists():
        path.touch()
        os._exit(9)
    return marker


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_item_has_an_outcome_and_errors_are_sentences(jobs: int) -> None:
    with open_engine(jobs) as run:
        outcomes = sorted(run(double, [1, 2, 3, 4]), key=lambda outcome: outcome.index)
        again = sorted(outcome.value or 0 for outcome in run(double, [5, 6]))
    assert [outcome.value for outcome in outcomes] == [2, 4, None, None]
    assert outcomes[2].error == "case 3: number: expected anything else, got 3. Drop it."
    assert outcomes[3].error == "unexpected KeyError: 'what'"
    assert again == [10, 12]


def test_a_dead_worker_takes_only_its_own_case_with_it(tmp_path: Path) -> None:
    items = [str(tmp_path / "a.once"), "always", "fine"]
    with open_engine(2) as run:
        outcomes = sorted(run(die, items), key=lambda outcome: outcome.index)
        assert [outcome.value for outcome in outcomes] == [items[0], None, "fine"]
        assert "killed twice" in (outcomes[1].error or "")
        assert [outcome.value for outcome in run(die, ["after"])] == ["after"]


def die_with_another_and_once_alone(marker: str) -> str:
    """The killer waits until the item is at work; the item is killed with it, then kills its own worker, then works."""
    path = Path(marker)
    if path.name == "killer":
        while not path.with_name("item.1").exists():
            time.sleep(0.01)
        os._exit(9)
    tries = len(list(path.parent.glob("item.*"))) + 1
    path.with_name(f"item.{tries}").touch()
    if tries == 1:
        time.sleep(3600)
    if tries == 2:
        os._exit(9)
    return marker


def test_who_was_lost_with_another_may_still_die_once_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_ROUND_S", 0.5)  # one time in four the pool overlooks the killer's death at first
    items = [str(tmp_path / "item"), str(tmp_path / "killer")]
    with open_engine(2) as run:
        outcomes = {outcome.index: outcome for outcome in run(die_with_another_and_once_alone, items)}
    assert outcomes[0].value == items[0]
    assert "killed twice" in (outcomes[1].error or "")


def own_process(number: int) -> int:
    """Id of the process that works; a 0 kills it."""
    if number == 0:
        os._exit(9)
    return os.getpid()


def first_environment(name: str) -> str | None:
    """A variable as it was when this process began, before any import."""
    start = Path("/proc/self/environ")
    if not start.exists():
        return os.environ.get(name)
    return dict(entry.split("=", 1) for entry in start.read_text().split("\0") if entry).get(name)


@pytest.mark.parametrize("killer", [0, 17])
def test_one_killer_among_thirty_does_not_cost_the_others_a_process_each(killer: int) -> None:
    items = [int(n != killer) for n in range(30)]
    with open_engine(2) as run:
        outcomes = sorted(run(own_process, items), key=lambda outcome: outcome.index)
    assert [outcome.index for outcome in outcomes] == list(range(30))
    assert [outcome.index for outcome in outcomes if outcome.error] == [killer]
    assert "killed twice" in (outcomes[killer].error or "")
    # two workers before the death, two after it, and one or two for what was lost with them
    assert len({outcome.value for outcome in outcomes if outcome.value}) <= 6


def test_workers_begin_with_one_thread_and_the_parent_keeps_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")  # the user's own choice stands
    before = dict(os.environ)
    with open_engine(2) as run:
        found = {THREADS[outcome.index]: outcome.value for outcome in run(first_environment, THREADS)}
        assert dict(os.environ) == before
    assert found == dict(zip(THREADS, ("1", "3", "1", "PASSIVE"), strict=True))


def test_few_items_start_no_workers() -> None:
    assert default_jobs(7) == 1
    assert 1 <= default_jobs(10_000) <= (os.cpu_count() or 1)


def test_workers_are_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "processors", lambda: 16)
    monkeypatch.setattr(engine, "available_bytes", lambda: 10 * GIB)
    assert default_jobs(10_000) == 16
    assert default_jobs(10_000, 3 * GIB) == 3
    assert default_jobs(10_000, 11 * GIB) == 1
    assert default_jobs(16, 3 * GIB) == 2
    monkeypatch.setattr(engine, "available_bytes", lambda: None)
    assert default_jobs(10_000, 3 * GIB) == 16
