"""Values are made ahead, in order, and what making them raises comes out where they are asked for."""

import threading
import time

import pytest

from pipeline.train.ahead import Ahead


def test_values_come_by_number_and_are_made_before_they_are_asked_for() -> None:
    made: list[int] = []
    ahead = Ahead(lambda number: made.append(number) or number * 10, count=2)
    assert ahead.get(3)[0] == 30
    deadline = time.monotonic() + 10
    while made != [3, 4, 5] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [3, 4, 5]
    assert [ahead.get(number)[0] for number in (4, 5)] == [40, 50]
    ahead.close()
    assert not ahead.coming
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_waiting_is_measured() -> None:
    ahead = Ahead(lambda number: time.sleep(0.2), count=1)
    assert ahead.get(0)[1] > 0.15
    time.sleep(0.4)
    assert ahead.get(1)[1] < 0.1
    ahead.close()


def test_errors_come_where_the_value_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise ValueError("broken")
        return number

    ahead = Ahead(make)
    assert ahead.get(0)[0] == 0
    with pytest.raises(ValueError, match="broken"):
        ahead.get(1)
    ahead.close()
