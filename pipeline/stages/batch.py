"""Running a step over many cases and telling what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.core.errors import VolsegError
from pipeline.engine import Run

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
) -> tuple[dict[str, R], list[tuple[str, str]]]:
    """Apply a function to every case.

    Args:
        run: The engine's function.
        function: Applied to each item.
        items: One per case.
        names: Case ids, in the same order.
        progress: Told after every case.
        what: What is being done, for the progress.

    Returns:
        Results by case id, and (case id, sentence) of those that failed.
    """
    results: dict[str, R] = {}
    failed: list[tuple[str, str]] = []
    for done, outcome in enumerate(run(function, items), start=1):
        name = names[outcome.index]
        if outcome.error is None:
            results[name] = outcome.value  # type: ignore[assignment]  # None only where R allows it
        else:
            failed.append((name, outcome.error))
        progress(done, len(items), what)
    return results, failed


def mapped(run: Run, progress: Progress, what: str) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]:
    """The engine as a function that works like ``map``, in the items' order, for steps whose own function never fails.

    Raises:
        VolsegError: On iteration, if a worker died twice over an item.
    """

    def apply(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        outcomes = []
        for done, outcome in enumerate(run(function, items), start=1):
            if outcome.error is not None:
                raise VolsegError(outcome.error)
            outcomes.append(outcome)
            progress(done, len(items), what)
        yield from (outcome.value for outcome in sorted(outcomes, key=lambda outcome: outcome.index))

    return apply
