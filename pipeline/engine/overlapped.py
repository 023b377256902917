"""Reading the next item and writing the last one while one is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from pipeline.core.signals import stoppable
from pipeline.engine.local import Task, within_limit

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")

_WRITE_S = 30.0  # for the mask that is being written when someone ends the work


def overlapped(
    items: Sequence[T],
    read: Callable[[T], A],
    work: Callable[[A], B],
    write: Callable[[B], None],
    *,
    failed: Callable[[T, Exception], None],
    done: Callable[[], None],
) -> None:
    """Take every item through three steps, of which the first and the last have a thread of their own.

    At most one item is read ahead, and at most one waits to be written, so that memory does not grow with their number.
    An item that fails in any step does not end the others.

    Args:
        items: One per case.
        read: First step, in a thread.
        work: Second step, in this thread; a signal may end it at any place.
        write: Last step, in a thread.
        failed: Called with the item and the error, in this thread.
        done: Called after the second step of every item, also where one failed.

    Raises:
        KeyboardInterrupt, Stopped: If someone ended the work, once the item that is being written has been written; a
            reader or writer that hangs is not waited for.
    """

    def settle(writing: tuple[T, Task[None]] | None) -> None:
        if writing is not None:
            try:
                writing[1].result(_WRITE_S if stop.signal else None)
            except Exception as error:  # of the disk, say
                failed(writing[0], error)

    with stoppable() as stop:
        writing: tuple[T, Task[None]] | None = None
        coming = [Task(partial(read, item)) for item in items[:1]]
        try:
            for number, item in enumerate(items):
                current = coming.pop()
                coming = [Task(partial(read, following)) for following in items[number + 1 : number + 2]]
                try:
                    with stop.at_once():
                        made = within_limit(partial(work, current.result()))
                except Exception as error:
                    failed(item, error)
                else:
                    # Waiting for the write before this one keeps one result in memory, not one per case.
                    before, writing = writing, None
                    settle(before)
                    writing = item, Task(partial(write, made))
                    del made
                # The future holds the image, which the case after the next one must not wait for.
                del current
                done()
        finally:
            settle(writing)
