"""What runs in a worker process, and in the server that workers are forked from.

Neither imports the main module of the program that asked for it, so it does not matter whether that is a script with
or without a main guard, a notebook, or another program with Python inside. Only functions and classes that the main
module itself defines need it: then it is imported as ``multiprocessing`` does, under the name ``__mp_main__``.

On Linux the server imports torch and MONAI once for all workers, beside the start of the command itself: on two busy
processors, two workers that need them began to work after 4 s. When each imports for itself, it took 17 s. Workers of a
command import as little of MONAI as the command itself does.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import spawn
from queue import SimpleQueue
from threading import Thread
from types import FrameType
from typing import Any, BinaryIO, Generic, NamedTuple, NoReturn, TypeVar

from pipeline.core.errors import VolsegError, sentence, unforeseen

R = TypeVar("R")

GREETING = b"volseg worker "
"""Begins the line in which a worker says its process number; what other code has printed before does not count."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl


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


class Work(NamedTuple):
    """One item as it travels to a worker.

    Args:
        item: Its position in the input.
        packed: The function and its arguments, pickled.
        main: Where the main module is, if these need it; as ``multiprocessing.spawn.prepare`` takes it.
    """

    item: int
    packed: bytes
    main: dict[str, Any] | None = None


class Setup(NamedTuple):
    """What a worker is told first: the folder it works in, and its niceness."""

    folder: str
    niceness: int


def outcome_of(index: int, call: Callable[[], R]) -> Outcome[R]:
    """Call, and say in a sentence what went wrong if something did."""
    try:
        return Outcome(index, call(), None)
    except (VolsegError, MemoryError) as error:
        return Outcome(index, None, str(error) or "out of memory: run again with --jobs 1.")
    except Exception as error:  # one bad case never ends a batch
        return Outcome(index, None, f"unexpected {unforeseen(error)}")


def main() -> NoReturn:
    """Work for the process at the other end of standard input and output."""
    receiver, sender = os.dup(0), os.dup(1)
    _leave_standard_input()
    # What libraries and users print must not get among the answers.
    with suppress(OSError):  # no standard error
        os.dup2(2, 1)
    _work(os.fdopen(receiver, "rb"), os.fdopen(sender, "wb"))


def serve(modules: list[str]) -> NoReturn:
    """Import modules, then fork a worker for every socket that comes over standard input, until that is closed."""
    control = socket.socket(fileno=os.dup(0))
    _leave_standard_input()
    # Nobody waits for workers that have ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Looking for garbage takes a quarter of the time of these imports (3.8 s instead of 2.8 s) and finds none.
    gc.disable()
    for module in modules:
        with suppress(Exception):  # whoever needs it says what is wrong with it
            import_module(module)
    gc.enable()
    # Objects that were imported are never garbage. Frozen, their pages are not written to, and so stay shared.
    gc.freeze()
    while True:
        message, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            # Tearing down an interpreter that has imported torch takes seconds.
            os._exit(0)
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection = socket.socket(fileno=handles[0])
            _work(connection.makefile("rb"), connection.makefile("wb"))
        os.close(handles[0])


def _leave_standard_input() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)


def _work(receiver: BinaryIO, sender: BinaryIO) -> NoReturn:
    """Do what comes, one after the other, until the other end is closed."""
    # Ctrl-C reaches all processes of a terminal. Only the parent acts on it, and stops its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    if sys.platform == "linux":
        # Native code that hangs keeps the thread below from noticing that the parent was killed.
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, int(signal.SIGKILL))
    coming: SimpleQueue[Work] = SimpleQueue()
    # Flushed at once: the parent waits for it.
    sender.write(b"\n%s%d\n" % (GREETING, os.getpid()))
    sender.flush()
    try:
        setup: Setup = pickle.load(receiver)
        os.chdir(setup.folder)
        if setup.niceness:
            os.nice(setup.niceness)
        Thread(target=_receive, args=(receiver, coming), daemon=True).start()
        while True:
            pickle.dump(_answer(coming.get()), sender)
            sender.flush()
    finally:
        # Without tearing the interpreter down, which takes seconds with torch, and hangs where a thread does.
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(1)


def _end(number: int, frame: FrameType | None) -> None:
    # An exception, so that temporary files are removed on the way.
    raise SystemExit(128 + number)


def _receive(receiver: BinaryIO, coming: SimpleQueue[Work]) -> None:
    """Hand on what comes; without a parent there is no more work, whatever is going on."""
    with suppress(Exception):  # the parent has ended, perhaps in the middle of a message
        while True:
            coming.put(pickle.load(receiver))
    os._exit(0)


def _answer(work: Work) -> bytes:
    """The outcome, pickled."""

    def call() -> Any:
        if work.main is not None:
            _import_main(work.main)
        function, arguments = pickle.loads(work.packed)
        return function(*arguments)

    outcome = outcome_of(work.item, call)
    try:
        return pickle.dumps(outcome)
    except Exception as error:
        return pickle.dumps(Outcome(work.item, None, f"unexpected {unforeseen(error)}"))


# Whether the main module of the program that asked for this worker is being imported in it.
_importing: list[bool] = []


def _import_main(main: dict[str, Any]) -> None:
    _importing.append(True)
    try:
        spawn.prepare(main)
    except SystemExit as error:  # a script that ends by itself, and so works at its top level
        raise _unguarded() from error
    finally:
        _importing.pop()


def refuse_while_importing() -> None:
    """Refuse to begin work in a worker that is only importing the main module; it would go on without end.

    Raises:
        VolsegError: If so.
    """
    if _importing:
        raise _unguarded()


def _unguarded() -> VolsegError:
    rule = "its work below `if __name__ == '__main__':`, since worker processes import what it defines"
    advice = "Add this line, or move its functions and classes to a module of their own, or give jobs=1"
    return VolsegError(sentence("main script", rule, "work at its top level", advice))
