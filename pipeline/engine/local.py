"""How independent cases are spread over workers: in this process, or over local processes.

:func:`open_engine` starts the workers and hands out a function, a :class:`Run`. It gives one :class:`Outcome` per item:
a value, or a sentence on why it failed; a case that fails never ends the others. :func:`collect` and :func:`map_cases`
run a function over all cases and report progress, and a :class:`Batch` says what became of them.

Items are begun in their order, no more at once than there are workers and than their estimated memory allows. One that
is larger than all memory runs alone. A worker that dies costs only its own item, which is tried once more at the end,
when nothing else takes memory. An item that takes longer than :func:`case_limit` allows fails, and its worker ends.
Where no processes can be had, this one does the work, and says so once.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pipeline.core.errors import AllFailedError, VolsegError, sentence
from pipeline.core.machine import available_bytes, processors
from pipeline.core.notices import tell, told_to
from pipeline.core.signals import Progress, silent
from pipeline.engine.worker_process import Outcome as Outcome
from pipeline.engine.worker_process import outcome_of, refuse_while_importing
from pipeline.engine.workers import Answer, Crew, LateError, LostError, NoWorkerError, heavy_worker, light_worker

T = TypeVar("T")
R = TypeVar("R")


class Run(Protocol):
    """Apply a function to every item; outcomes come as they are ready, in no fixed order."""

    def __call__(
        self, function: Callable[[T], R], items: Sequence[T], bytes_of: Callable[[T], int] | None = None
    ) -> Iterator[Outcome[R]]:
        """Run the function, which must be importable and its arguments picklable.

        Args:
            function: Applied to each item.
            items: The items, begun in their order.
            bytes_of: Estimates, in this process and shortly before an item is begun, the memory that work on it takes.
                Items run at once only while their estimates together fit; by default nothing bounds them. What goes
                wrong here counts as 0: it shows when the item is worked on.
        """


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

    @classmethod
    def of(cls, written: Mapping[str, bool], failed: Iterable[tuple[str, str]], notes: Iterable[str] = ()) -> Batch:
        """A batch from case id → whether the case was written now, or was up to date; the other arguments as above."""
        done, kept = (tuple(sorted(case for case in written if written[case] is new)) for new in (True, False))
        return cls(done, kept, tuple(sorted(failed)), tuple(notes))

    @property
    def exit_code(self) -> int:
        """0 all fine, 2 some cases failed, 3 all failed."""
        if not self.failed:
            return 0
        return 2 if self.done or self.kept else 3

    def require_some(self, result: Any = None) -> Batch:
        """This batch, unless all cases failed; ``result`` is what the call would have returned, by default the batch.

        Raises:
            AllFailedError: If so.
        """
        if self.exit_code == 3:
            raise AllFailedError(self if result is None else result, self.failed)
        return self


class _Flight(NamedTuple):
    """An item that a worker has, or gets next: its position in the input, and the bytes that it takes."""

    item: int
    size: int


def default_jobs(items: int) -> int:
    """As many workers as pay: at most one per processor, and one for every four items, because it starts slowly."""
    return max(1, min(processors(), items // 4))


_limit_s: ContextVar[float | None] = ContextVar("seconds that a case may take", default=None)


@contextmanager
def case_limit(seconds: float | None) -> Iterator[None]:
    """Within the block, a case fails that takes longer; None for no limit. Work that is stuck can be ended then.

    A case in a process of its own is ended with it, so with a limit all cases get one, also where there is one worker.
    """
    token = _limit_s.set(seconds)
    try:
        yield
    finally:
        _limit_s.reset(token)


class Task(Generic[R]):
    """A call in a thread of its own, which does not keep this process from ending, whatever the call hangs in."""

    def __init__(self, call: Callable[[], R]) -> None:
        self._future: Future[R] = Future()
        self._limit_s = _limit_s.get()

        def settle() -> None:
            try:
                self._future.set_result(call())
            except BaseException as error:
                self._future.set_exception(error)

        self._thread = Thread(target=copy_context().run, args=(settle,), daemon=True)
        self._thread.start()

    def result(self, limit_s: float | None = None) -> R:
        """Wait for the call, at most as long as a case may take, or for the seconds that are given.

        Raises:
            VolsegError: If it takes longer; Python code that runs in it is ended then, what hangs is left alone.
        """
        limit_s = self._limit_s if limit_s is None else limit_s
        if not wait([self._future], limit_s).done:
            number = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(SystemExit))
            raise VolsegError(_late(limit_s or 0.0))
        return self._future.result()


def within_limit(call: Callable[[], R]) -> R:
    """Call in this process, but not for longer than a case may take.

    Raises:
        VolsegError: As :meth:`Task.result`.
    """
    return call() if _limit_s.get() is None else Task(call).result()


def _late(seconds: float) -> str:
    advice = "Look at its files, or give it more time"
    return sentence("time limit of a case", f"an end within {seconds:g} s", "none", advice)


@contextmanager
def open_engine(jobs: int, worker_bytes: int = 0, *, light: bool = False) -> Iterator[Run]:
    """Start workers and hand out the function that uses them; they live until the block ends.

    Args:
        jobs: Number of local processes at most; 1 or less means this process, unless cases have a time limit.
        worker_bytes: Memory that a worker takes before it has begun an item; 0 if unknown. Workers get at most half the
            machine's memory; what they leave is the budget for the items that run at once.
        light: The work needs neither torch nor MONAI: workers begin at once, while a server may still import these.

    Yields:
        The function that runs a batch.

    Raises:
        VolsegError: In a worker that is only importing a main script, which has no main guard.
    """
    refuse_while_importing()
    memory = available_bytes()
    # Half for the workers themselves, half for what they work on: more workers than that would wait for memory.
    if memory is not None and worker_bytes > 0:
        jobs = min(jobs, memory // (2 * worker_bytes))
    if jobs <= 1 and _limit_s.get() is None:
        yield _run_here
        return
    jobs = max(jobs, 1)
    budget = None if memory is None else memory - jobs * worker_bytes
    crew = Crew(jobs, light_worker if light else heavy_worker, _limit_s.get())

    def run(
        function: Callable[[T], R], items: Sequence[T], bytes_of: Callable[[T], int] | None = None
    ) -> Iterator[Outcome[R]]:
        waiting = (_Flight(index, _size(bytes_of, item)) for index, item in enumerate(items))
        following = next(waiting, None)
        flying: dict[int, _Flight] = {}
        answers: SimpleQueue[Answer] = SimpleQueue()
        lost: list[int] = []
        while following or flying:
            # One item per worker and one in the queue: a list of 20,000 cases takes no memory in the queue.
            while following and len(flying) <= jobs and _fits(following, flying.values(), budget):
                flying[following.item] = following
                crew.submit(following.item, _heard, (function, items[following.item]), answers)
                following = next(waiting, None)
            answer = crew.answer(answers)
            del flying[answer.item]
            if isinstance(answer.result, LostError):
                lost.append(answer.item)
            else:
                yield _settled(answer, function, items)
        # One at a time: an item that was lost for want of memory may find enough now.
        for index in sorted(lost):
            crew.submit(index, _heard, (function, items[index]), answers)
            yield _settled(crew.answer(answers), function, items)

    try:
        yield run
    except BaseException:
        crew.stop()
        raise
    else:
        crew.close()


def collect(
    run: Run,
    function: Callable[[T], R],
    items: Mapping[str, T],
    progress: Progress = silent,
    what: str = "",
    bytes_of: Callable[[T], int] | None = None,
) -> tuple[dict[str, R], list[tuple[str, str]]]:
    """Apply a function to every case, by its id.

    Args:
        run: The engine's function.
        function: Applied to each item.
        items: Case id → what the function is applied to.
        progress: Told after every case.
        what: What is being done, for the progress.
        bytes_of: As in :class:`Run`.

    Returns:
        Results by case id, and (case id, sentence) of those that failed.
    """
    results: dict[str, R] = {}
    failed: list[tuple[str, str]] = []
    names = list(items)
    for done, outcome in enumerate(run(function, list(items.values()), bytes_of), start=1):
        name = names[outcome.index]
        if outcome.error is None:
            results[name] = outcome.value  # type: ignore[assignment]  # None only where R allows it
        else:
            failed.append((name, outcome.error))
        progress(done, len(items), what)
    return results, failed


def map_cases(
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
        # Outcomes that come before their turn wait here; the engine begins items in order, so there are few.
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


def _size(bytes_of: Callable[[T], int] | None, item: T) -> int:
    try:
        return 0 if bytes_of is None else within_limit(lambda: bytes_of(item))
    except Exception:  # a file that cannot be read, say: the item's own turn reports it
        return 0


def _fits(following: _Flight, flying: Iterable[_Flight], budget: int | None) -> bool:
    """Whether an item may begin beside others; alone it always may."""
    sizes = [flight.size for flight in flying]
    return budget is None or not sizes or following.size + sum(sizes) <= budget


def _run_here(
    function: Callable[[T], R], items: Sequence[T], bytes_of: Callable[[T], int] | None = None
) -> Iterator[Outcome[R]]:
    """One item at a time, whatever its size."""
    for index, item in enumerate(items):
        yield outcome_of(index, lambda item=item: function(item))  # type: ignore[misc]


def _heard(function: Callable[[T], R], item: T) -> tuple[R, list[str]]:
    """In a worker: the result, and what is to be told about files that were read for it."""
    said: list[str] = []
    with told_to(said.append):
        return function(item), said


def _settled(answer: Answer, function: Callable[[T], R], items: Sequence[T]) -> Outcome[R]:
    """The outcome of an item, also where its worker has none; what no worker can take is done here."""
    index, result = answer
    if isinstance(result, Outcome):
        if result.value is None:
            return result
        value, said = result.value
        tell(said)
        return Outcome(index, value, None)
    if isinstance(result, NoWorkerError):
        advice = "This process does the work itself, one case after the other"
        warnings.warn(sentence("worker processes", "to take the cases", result, advice), RuntimeWarning, stacklevel=3)
        return outcome_of(index, lambda: within_limit(lambda: function(items[index])))
    if isinstance(result, LateError):
        return Outcome(index, None, _late(_limit_s.get() or 0.0))
    advice = "It may have run out of memory: run again with --jobs 1."
    return Outcome(index, None, f"worker process: expected to finish, got killed twice. {advice}")
