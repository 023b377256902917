"""A queue of long pieces of work, such as trainings, in front of a few places to do them, such as GPUs.

Each piece has a process of its own, so that nothing of a training (memory of the GPU, threads, random state) is left to
the next one at its place.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

from pipeline.engine.local import Outcome, outcome_of
from pipeline.engine.workers import start_worker, starting_workers, worker_context

T = TypeVar("T")
R = TypeVar("R")


class _Flight(NamedTuple):
    """A piece of work in progress."""

    item: int
    place: str
    process: BaseProcess


def run_at_places(function: Callable[[T, str], R], items: Sequence[T], places: Sequence[str]) -> Iterator[Outcome[R]]:
    """Do every item in a process of its own, one at a time at each place; the next goes to the first free place.

    Args:
        function: Takes an item and the place; importable, its arguments and result picklable.
        items: Begun in their order.
        places: Names, at least one; a name that is there twice takes two items at once.

    Yields:
        One outcome per item, as they are ready. A process that dies is an outcome with a sentence. When the caller
        stops early (Ctrl-C), processes in flight are told to end (SIGTERM) and waited for.
    """
    context = worker_context()
    waiting, free = deque(enumerate(items)), deque(places)
    flying: dict[Connection, _Flight] = {}
    try:
        while waiting or flying:
            while waiting and free:
                index, item = waiting.popleft()
                place = free.popleft()
                reader, process = _started(context, function, index, item, place)
                flying[reader] = _Flight(index, place, process)
            for ready in wait(list(flying)):
                flight = flying.pop(ready)  # type: ignore[call-overload]  # wait gives back what it was given
                free.append(flight.place)
                yield _received(ready, flight)  # type: ignore[arg-type]
    finally:
        for flight in flying.values():
            flight.process.terminate()
        for flight in flying.values():
            flight.process.join()


def _started(
    context: BaseContext, function: Callable[[T, str], R], index: int, item: T, place: str
) -> tuple[Connection, BaseProcess]:
    reader, writer = context.Pipe(duplex=False)
    # The worker unpacks it after start_worker: multiprocessing would do so before, and import torch meanwhile.
    work = pickle.dumps((function, item))
    process: BaseProcess = context.Process(target=_work, args=(writer, work, index, place))  # type: ignore[attr-defined]
    with starting_workers():
        process.start()
    # The worker has its own end of the pipe. Once that is closed too, the reader knows that the worker is dead.
    writer.close()
    return reader, process


def _work(writer: Connection, work: bytes, index: int, place: str) -> None:
    def call() -> Any:
        function, item = pickle.loads(work)
        return function(item, place)

    start_worker()
    writer.send(outcome_of(index, call))


def _received(reader: Connection, flight: _Flight) -> Outcome[Any]:
    try:
        outcome: Outcome[Any] = reader.recv()
    except EOFError:
        flight.process.join()
        got = f"killed at {flight.place} (exit code {flight.process.exitcode})"
        advice = "It may have run out of memory: run again, at fewer places at once."
        return Outcome(flight.item, None, f"worker process: expected to finish, got {got}. {advice}")
    flight.process.join()
    return outcome
