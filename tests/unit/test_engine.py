"""The engine: in this process and over spawned workers."""

import os
from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from pipeline.engine import default_jobs, open_engine


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


def test_few_items_start_no_workers() -> None:
    assert default_jobs(7) == 1
    assert 1 <= default_jobs(10_000) <= (os.cpu_count() or 1)
