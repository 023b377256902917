"""How independent cases are spread over workers: in this process, or over local processes.

:func:`open_engine` starts the workers and hands out a function, a :class:`Run`. It gives one :class:`Outcome` per item:
a value, or a sentence on why it failed; a case that fails never ends the others. :func:`collect` and :func:`map_cases`
run a function over all cases and report progress, and a :class:`Batch` says what became of them.

Items are begun in their order, no more at once than there are workers and than their estimated memory allows. One that
is larger than all memory runs alone. A worker that dies takes only the few items in flight with it. Each of these is
tried again in a process of its own, which shows whose fault it was, while the others go on side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pipeline.core.errors import VolsegError, unforeseen
from pipeline.core.machine import available_bytes, processors
from pipeline.core.notices import tell, told_to
from pipeline.core.signals import Progress, silent
from pipeline.engine.workers import starting_workers, worker_pool

T = TypeVar("T")
R = TypeVar("R")

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


class _Flight(NamedTuple):
    """An item that a worker has, or gets next: its position in the input, and the bytes that it takes."""

    item: int
    size: int


def default_jobs(items: int) -> int:
    """As many workers as pay: at most one per processor, and one for every four items, because it starts slowly."""
    return max(1, min(processors(), items // 4))


@contextmanager
def open_engine(jobs: int, worker_bytes: int = 0, *, light: bool = False) -> Iterator[Run]:
    """Start workers and hand out the function that uses them; they live until the block ends.

    Args:
        jobs: Number of local processes at most; 1 or less means this process.
        worker_bytes: Memory that a worker takes before it has begun an item; 0 if unknown. Workers get at most half the
            machine's memory; what they leave is the budget for the items that run at once.
        light: The work needs neither torch nor MONAI: workers begin at once, while a server may still import these.

    Yields:
        The function that runs a batch.
    """
    memory = available_bytes()
    # Half for the workers themselves, half for what they work on: more workers than that would wait for memory.
    if memory is not None and worker_bytes > 0:
        jobs = min(jobs, memory // (2 * worker_bytes))
    if jobs <= 1:
        yield _run_here
        return
    budget = None if memory is None else memory - jobs * worker_bytes
    # In a list, because the function below puts a new pool in place of a broken one.
    pool = [worker_pool(jobs, light=light)]

    def run(
        function: Callable[[T], R], items: Sequence[T], bytes_of: Callable[[T], int] | None = None
    ) -> Iterator[Outcome[R]]:
        waiting = (_Flight(index, _size(bytes_of, item)) for index, item in enumerate(items))
        following = next(waiting, None)
        flying: dict[Future[tuple[R, list[str]]], _Flight] = {}
        lost: list[int] = []
        while True:
            # One item per worker and one in the queue: only these can be lost with a worker, and a list of 20,000
            # cases takes no memory in the pool.
            while following and len(flying) <= jobs and _fits(following, flying.values(), budget):
                flying[_submit(pool[0], function, items[following.item])] = following
                following = next(waiting, None)
            if not flying:
                break
            ready = wait(flying, _ROUND_S, FIRST_COMPLETED).done
            # ProcessPoolExecutor overlooks the death of a worker that it has just started, until new work stirs it.
            if not ready:
                _submit(pool[0], _nothing, None)
            # One dead worker breaks the whole pool: all that was in flight is lost, and the next pool does the rest.
            if any(_is_lost(future) for future in ready):
                ready = wait(flying).done
                pool[0].shutdown()
                pool[0] = worker_pool(jobs, light=light)
            done = [(flying.pop(future).item, future) for future in ready]
            lost += [index for index, future in done if _is_lost(future)]
            yield from (outcome_of(index, partial(_result, future)) for index, future in done if not _is_lost(future))
        yield from _run_alone(function, items, sorted(lost))

    try:
        yield run
    finally:
        pool[0].shutdown(wait=True, cancel_futures=True)


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
        return 0 if bytes_of is None else bytes_of(item)
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


def _run_alone(function: Callable[[T], R], items: Sequence[T], lost: Sequence[int]) -> Iterator[Outcome[R]]:
    """Try again what was lost with a worker: one item at a time, in a process that only death ends.

    Twice: an item that was lost with the worker of another may need a second try itself.
    """
    pool: ProcessPoolExecutor | None = None
    try:
        for index in lost:
            for _ in range(2):
                pool = pool or worker_pool(1)
                future = _submit(pool, function, items[index])
                wait([future])
                if not _is_lost(future):
                    yield outcome_of(index, partial(_result, future))
                    break
                pool.shutdown()
                pool = None
            else:
                advice = "It may have run out of memory: run again with --jobs 1."
                yield Outcome(index, None, f"worker process: expected to finish, got killed twice. {advice}")
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def outcome_of(index: int, call: Callable[[], R]) -> Outcome[R]:
    """Call, and say in a sentence what went wrong if something did."""
    try:
        return Outcome(index, call(), None)
    except (VolsegError, MemoryError) as error:
        return Outcome(index, None, str(error) or "out of memory: run again with --jobs 1.")
    except Exception as error:  # one bad case never ends a batch
        return Outcome(index, None, f"unexpected {unforeseen(error)}")


def _nothing(_: None) -> None:
    """Work that only stirs the pool."""


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], item: T) -> Future[tuple[R, list[str]]]:
    """Submit an item; a pool that broke while it was idle loses it like one that breaks later."""
    try:
        with starting_workers():
            return pool.submit(_heard, function, item)
    except BrokenProcessPool as error:
        future: Future[tuple[R, list[str]]] = Future()
        future.set_exception(error)
        return future


def _heard(function: Callable[[T], R], item: T) -> tuple[R, list[str]]:
    """In a worker: the result, and what is to be told about files that were read for it."""
    said: list[str] = []
    with told_to(said.append):
        return function(item), said


def _result(future: Future[tuple[R, list[str]]]) -> R:
    """The result of a worker; what it was told about files is told here."""
    value, said = future.result()
    tell(said)
    return value


def _is_lost(future: Future[Any]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)
