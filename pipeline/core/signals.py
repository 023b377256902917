"""What a long step and the one who waits for it tell each other: progress, and requests to stop (Ctrl-C, SIGTERM).

A stop waits where something must be finished first: a training step and its checkpoint, a mask on its way.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from pipeline.core.errors import Stopped

Progress = Callable[[int, int, str], None]
"""Called with how many items are done, how many there are, and what is being done."""


def silent(done: int, total: int, what: str) -> None:
    """Report progress to nobody."""


STOPS = (KeyboardInterrupt, Stopped)
"""What :meth:`StopRequest.stop` raises."""


class StopRequest:
    """Whether someone asked for an end; a signal handler that takes note the first time.

    Attributes:
        signal: Number of the signal that came, 0 if none has.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._at_once = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: a second one, or one where nothing would be lost, ends at once what runs."""
        again, self.signal = self.signal != 0, number
        if again or self._at_once:
            self.stop()

    def stop(self) -> NoReturn:
        """End what runs.

        Raises:
            KeyboardInterrupt: If it was Ctrl-C that asked for it.
            Stopped: If it was another signal.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(self.signal)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that a signal may end at any place, because it can be done again.

        Raises:
            KeyboardInterrupt, Stopped: When a signal comes, or has come already; as :meth:`stop`.
        """
        if self.signal:
            self.stop()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """Take SIGINT and SIGTERM for the length of a block; other threads than the main one cannot, and get no signals."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
