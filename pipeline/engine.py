"""How independent cases are spread over workers: in this process, or over local processes.

A case that fails becomes an outcome with a message, never the end of the batch. Workers are spawned, so that the same
code runs on Linux, macOS and Windows. A worker that dies takes with it only the few cases in flight: these are tried
again one at a time in one process, which shows whose fault it was, while all others go on in parallel.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import Generic, Protocol, TypeVar

from pipeline.core.errors import VolsegError
from pipeline.core.machine import available_bytes, processors

__all__ = ["Outcome", "Run", "default_jobs", "open_engine"]

T = TypeVar("T")
R = TypeVar("R")

_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""One thread per worker, because the workers share the processors. What the user has set stands."""
_ROUND_S = 10.0
"""Seconds without a result after which the pool is asked whether all its workers live."""


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


def default_jobs(items: int, bytes_per_item: int = 0) -> int:
    """As many workers as pay: no more than processors, one for every eight items (a worker starts slowly), or memory.

    Args:
        items: Number of items.
        bytes_per_item: Memory that one worker takes at its peak, its libraries included; 0 if unknown, then memory
            sets no limit.

    Returns:
        At least 1.
    """
    jobs = min(processors(), items // 8)
    memory = available_bytes() if bytes_per_item > 0 else None
    if memory is not None:
        jobs = min(jobs, memory // bytes_per_item)
    return max(1, jobs)


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
        waiting = iter(range(len(items)))
        flying: dict[Future[R], int] = {}
        lost: list[int] = []
        while True:
            # few at a time, one of them queued: only these can be lost with a worker
            for index in islice(waiting, jobs + 1 - len(flying)):
                flying[_submit(pool[0], function, items[index])] = index
            if not flying:
                break
            ready = wait(flying, _ROUND_S, FIRST_COMPLETED).done
            if not ready:  # the pool overlooks the death of a worker it has just started, until something stirs it
                _submit(pool[0], _nothing, None)
            if any(_is_lost(future) for future in ready):
                ready = wait(flying).done  # the pool is broken: nothing in it is running any more
                pool[0].shutdown()
                pool[0] = _pool(jobs)
            done = [(flying.pop(future), future) for future in ready]
            lost += [index for index, future in done if _is_lost(future)]
            yield from (_outcome(index, future.result) for index, future in done if not _is_lost(future))
        yield from _run_alone(function, items, sorted(lost))

    try:
        yield run
    finally:
        pool[0].shutdown(wait=True, cancel_futures=True)


def _run_here(function: Callable[[T], R], items: Sequence[T]) -> Iterator[Outcome[R]]:
    for index, item in enumerate(items):
        yield _outcome(index, lambda item=item: function(item))  # type: ignore[misc]


def _run_alone(function: Callable[[T], R], items: Sequence[T], lost: Sequence[int]) -> Iterator[Outcome[R]]:
    """Try items in flight when a worker died again: one at a time, in a process that only death ends.

    Twice: an item lost with another's worker may be one that needs a second try itself.
    """
    pool: ProcessPoolExecutor | None = None
    try:
        for index in lost:
            for _ in range(2):
                pool = pool or _pool(1)
                future = _submit(pool, function, items[index])
                wait([future])
                if not _is_lost(future):
                    yield _outcome(index, future.result)
                    break
                pool.shutdown()
                pool = None
            else:
                advice = "It may have run out of memory: run again with --jobs 1."
                yield Outcome(index, None, f"worker process: expected to finish, got killed twice. {advice}")
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _outcome(index: int, call: Callable[[], R]) -> Outcome[R]:
    try:
        return Outcome(index, call(), None)
    except (VolsegError, MemoryError) as error:
        return Outcome(index, None, str(error) or "out of memory: run again with --jobs 1.")
    except Exception as error:  # one bad case never ends a batch
        return Outcome(index, None, f"unexpected {type(error).__name__}: {error}")


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it stops the workers in order


def _nothing(_: None) -> None:
    """Work that only stirs the pool."""


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], item: T) -> Future[R]:
    """Submit an item; a pool that broke while it was idle loses it like one that breaks later."""
    try:
        with _worker_environment():
            return pool.submit(function, item)
    except BrokenProcessPool as error:
        future: Future[R] = Future()
        future.set_exception(error)
        return future


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Set what a worker must find when it begins: libraries read it as they are imported, before any initializer."""
    missing = {name: value for name, value in _WORKER_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def _is_lost(future: Future[R]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)
