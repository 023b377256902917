"""Running a step over many cases and telling what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.engine import Outcome, Run

__all__ = ["Batch", "Progress", "collect", "mapped", "quiet"]

T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[int, int, str], None]
"""Told how many items are done, how many there are, and what is being done."""


@dataclass(frozen=True)
class Batch:
    """What became of a batch of cases.

    Args:
        done: Ids of cases that were processed.
        kept: Ids of cases that were up to date already.
        failed: Case id and one sentence for each case that failed.
        notes: Further sentences for the user.
    """

    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all fine, 2 some cases failed, 3 all failed."""
        if not self.failed:
            return 0
        return 2 if self.done or self.kept else 3


def quiet(done: int, total: int, what: str) -> None:
    """Report progress to nobody."""


def collect(
    run: Run,
    function: Callable[[T], R],
    items: Sequence[T],
    names: Sequence[str],
    progress: Progress = quiet,
    what: str = "",
    bytes_of: Callable[[T], int] | None = None,
) -> tuple[dict[str, R], list[tuple[str, str]]]:
    """Apply a function to every case.

    Args:
        run: The engine's function.
        function: Applied to each item.
        items: One per case.
        names: Case ids, in the same order.
        progress: Told after every case.
        what: What is being done, for the progress.
        bytes_of: Estimates the memory that an item takes, so that no more run at once than fit.

    Returns:
        Results by case id, and (case id, sentence) of those that failed.
    """
    results: dict[str, R] = {}
    failed: list[tuple[str, str]] = []
    for done, outcome in enumerate(run(function, items, bytes_of), start=1):
        name = names[outcome.index]
        if outcome.error is None:
            results[name] = outcome.value  # type: ignore[assignment]  # None only where R allows it
        else:
            failed.append((name, outcome.error))
        progress(done, len(items), what)
    return results, failed


def mapped(
    run: Run,
    progress: Progress,
    what: str,
    bytes_of: Callable[[Any], int] | None = None,
    failed: Callable[[Any, str], Any] | None = None,
) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]:
    """The engine as a function that works like ``map``: results in the items' order, each as soon as its turn comes.

    Args:
        run: The engine's function.
        progress: Told after every item.
        what: What is being done, for the progress.
        bytes_of: As in :func:`collect`.
        failed: Makes a result of an item and the sentence that says why its function failed; by default the item is
            left out.
    """

    def apply(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        early: dict[int, Outcome[Any]] = {}
        turn = 0
        for done, outcome in enumerate(run(function, items, bytes_of), start=1):
            early[outcome.index] = outcome
            progress(done, len(items), what)
            while turn in early:
                ready = early.pop(turn)
                if ready.error is None:
                    yield ready.value
                elif failed is not None:
                    yield failed(items[turn], ready.error)
                turn += 1

    return apply
