"""Reading the next case and writing the last one while one is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.train.stop import StopRequest

__all__ = ["overlapped"]

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


def overlapped(
    items: Sequence[T],
    read: Callable[[T], A],
    work: Callable[[A], B],
    write: Callable[[B], None],
    *,
    failed: Callable[[T, Exception], None],
    worked: Callable[[], None],
    stop: StopRequest,
) -> None:
    """Take every item through three steps, of which the first and the last have a thread of their own.

    At most one item is read ahead, and at most one waits to be written, so that memory does not grow with their number.
    An item that fails in any step does not end the others. What ends the work early (Ctrl-C, SIGTERM) is raised once
    the item that is being written has been written.

    Args:
        items: One per case.
        read: First step, in a thread.
        work: Second step, in this thread; a signal may end it at any place.
        write: Last step, in a thread.
        failed: Told the item and the error, in this thread.
        worked: Called after the second step of every item, also where one failed.
        stop: Whether someone asked for an end.

    Raises:
        KeyboardInterrupt, Stopped: If someone did.
    """

    def settle(writing: tuple[T, Future[None]] | None) -> None:
        if writing is not None:
            try:
                writing[1].result()
            except Exception as error:  # of the disk, say
                failed(writing[0], error)

    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        writing: tuple[T, Future[None]] | None = None
        coming = [reader.submit(read, item) for item in items[:1]]
        try:
            for number, item in enumerate(items):
                current = coming.pop()
                coming = [reader.submit(read, following) for following in items[number + 1 : number + 2]]
                try:
                    with stop.at_once():
                        made = work(current.result())
                except Exception as error:
                    failed(item, error)
                else:
                    before, writing = writing, None
                    settle(before)
                    writing = item, writer.submit(write, made)
                    del made
                del current  # and with it the image
                worked()
        finally:
            for future in coming:
                future.cancel()
            settle(writing)
