"""Results in the items' order, each as soon as its turn comes, and what becomes of failed items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.core.progress import silent
from pipeline.engine.local import Outcome, collect, map_cases

ORDER = (2, 0, 1, 4, 3)


class Engine:
    """Gives outcomes in an order of its own; notes how far it was asked and for which sizes."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.sizes: list[int] = []

    def __call__(
        self, function: Callable[[Any], Any], items: Sequence[Any], bytes_of: Callable[[Any], int] | None = None
    ) -> Iterator[Outcome[Any]]:
        for index in ORDER:
            self.begun.append(index)
            self.sizes += [bytes_of(items[index])] if bytes_of else []
            error = "worker process: expected to finish." if items[index] == "bad" else None
            yield Outcome(index, None if error else function(items[index]), error)


def test_mapped_keeps_the_order_and_waits_no_longer_than_it_must() -> None:
    engine, told = Engine(), []
    results = map_cases(engine, lambda done, total, what: told.append((done, total, what)), "check", len)(
        str.upper, ["a", "b", "c", "d", "e"]
    )
    assert next(results) == "A"
    assert engine.begun == [2, 0]
    assert list(results) == ["B", "C", "D", "E"]
    assert told == [(n, 5, "check") for n in range(1, 6)]
    assert engine.sizes == [1] * 5


def test_mapped_leaves_failed_items_out_or_makes_results_of_them() -> None:
    items = ["a", "bad", "c", "d", "e"]
    assert list(map_cases(Engine(), silent, "")(str.upper, items)) == ["A", "C", "D", "E"]
    found = list(map_cases(Engine(), silent, "", None, lambda item, error: f"{item}: {error}")(str.upper, items))
    assert found == ["A", "bad: worker process: expected to finish.", "C", "D", "E"]


def test_collect_names_what_failed() -> None:
    done, failed = collect(Engine(), str.upper, ["a", "b", "bad", "d", "e"], list("vwxyz"))
    assert done == {"v": "A", "w": "B", "y": "D", "z": "E"}
    assert failed == [("x", "worker process: expected to finish.")]
