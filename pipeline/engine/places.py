"""A queue of long pieces of work, such as trainings, in front of a few places to do them, such as GPUs.

Each piece has a process of its own, so that nothing of a training (memory of the GPU, threads, random state) is left to
the next one at its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

from pipeline.engine.worker_process import Outcome
from pipeline.engine.workers import Answer, Crew, LostError, heavy_worker

T = TypeVar("T")
R = TypeVar("R")

_SAVE_S = 60.0  # for a training that was told to end to finish its step and save where it is


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
    waiting, free = deque(enumerate(items)), deque(places)
    crew = Crew(len(places), heavy_worker, fresh=True)
    answers: SimpleQueue[Answer] = SimpleQueue()
    flying: dict[int, str] = {}
    try:
        while waiting or flying:
            while waiting and free:
                index, item = waiting.popleft()
                flying[index] = free.popleft()
                crew.submit(index, function, (item, flying[index]), answers)
            index, result = crew.answer(answers)
            place = flying.pop(index)
            free.append(place)
            if isinstance(result, Outcome):
                yield result
            else:
                got = f"killed at {place}{result}" if isinstance(result, LostError) else str(result)
                advice = "It may have run out of memory: run again, at fewer places at once."
                yield Outcome(index, None, f"worker process: expected to finish, got {got}. {advice}")
    finally:
        crew.stop(_SAVE_S)
