"""How independent cases are spread over workers: in this process, or over local processes.

A case that fails becomes an outcome with a message, never the end of the batch. Workers are spawned, so that the same
code runs on Linux, macOS and Windows; a worker that dies takes only its own case with it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Generic, Protocol, TypeVar

from pipeline.core.errors import VolsegError

__all__ = ["Outcome", "Run", "default_jobs", "open_engine"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of one item.

    Args:
        index: Position of the item in the input.
        value: The function's result, or None if it failed.
        error: One sentence, or None if it went well.
    """

    index: int
    value: R | None
    error: str | None


class Run(Protocol):
    """Apply a function to every item; outcomes come as they are ready, in no fixed order."""

    def __call__(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[Outcome[R]]:
        """Run the function, which must be importable and its arguments picklable."""


def default_jobs(items: int) -> int:
    """As many workers as there are processors, but no more than one for every eight items (a worker starts slowly)."""
    return max(1, min(os.cpu_count() or 1, items // 8))


@contextmanager
def open_engine(jobs: int) -> Iterator[Run]:
    """Start workers and hand out the function that uses them; they live until the block ends.

    Args:
        jobs: Number of local processes; 1 or less means this process.

    Yields:
        The function that runs a batch.
    """
    if jobs <= 1:
        yield _run_here
        return
    pool = [_pool(jobs)]

    def run(function: Callable[[T], R], items: Sequence[T]) -> Iterator[Outcome[R]]:
        lost = []
        futures: dict[Future[R], int] = {pool[0].submit(function, item): n for n, item in enumerate(items)}
        for future in as_completed(futures):
            try:
                yield _outcome(futures[future], future.result)
            except BrokenProcessPool:
                lost.append(futures[future])
        if lost:
            pool[0] = _pool(jobs)
        for index in sorted(lost):
            yield _run_alone(function, items[index], index)

    try:
        yield run
    finally:
        pool[0].shutdown(wait=True, cancel_futures=True)


def _run_here(function: Callable[[T], R], items: Sequence[T]) -> Iterator[Outcome[R]]:
    for index, item in enumerate(items):
        yield _outcome(index, lambda item=item: function(item))  # type: ignore[misc]


def _run_alone(function: Callable[[T], R], item: T, index: int) -> Outcome[R]:
    """Second and last try of an item whose worker died, in a process of its own."""
    with _pool(1) as alone:
        try:
            return _outcome(index, alone.submit(function, item).result)
        except BrokenProcessPool:
            advice = "It may have run out of memory: run again with --jobs 1."
            return Outcome(index, None, f"worker process: expected to finish, got killed twice. {advice}")


def _outcome(index: int, call: Callable[[], R]) -> Outcome[R]:
    try:
        return Outcome(index, call(), None)
    except BrokenProcessPool:
        raise
    except (VolsegError, MemoryError) as error:
        return Outcome(index, None, str(error) or "out of memory: run again with --jobs 1.")
    except Exception as error:  # one bad case never ends a batch
        return Outcome(index, None, f"unexpected {type(error).__name__}: {error}")


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it stops the workers in order
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ.setdefault(name, "1")
