"""Worker processes: how they begin, what they find when they do, and how they end with their parent.

They are spawned, so that the same code runs on Linux, macOS and Windows. On Linux those that need torch and MONAI are
forked from a server instead (:mod:`pipeline.engine.server`), which imports both once for all of them.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from threading import Event, Thread

from pipeline.core.machine import processors

# One thread per worker, because the workers share the processors. What the user has set stands.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
_SERVER = "pipeline.engine.server"
# Elsewhere libraries may have threads as soon as they are imported, which do not survive a fork.
_FORKS = sys.platform == "linux"
# Niceness of light workers beside the server's imports. With equal shares of the processors the imports would end a
# third later, and all work that follows waits for them.
_YIELDING = 5
_warming = Event()


def warm_up(jobs: int | None, module: str) -> None:
    """Let a module be imported for workers to come, while this process goes on with its own start.

    Nothing happens where only one worker is asked for, or there is only one processor.
    """
    if not _FORKS or jobs == 1 or processors() == 1:
        return
    forkserver.set_forkserver_preload([_SERVER, module])
    _warming.set()
    with starting_workers():
        forkserver.ensure_running()


def worker_pool(jobs: int, *, light: bool = False) -> ProcessPoolExecutor:
    """A pool whose workers leave Ctrl-C to this process and end when it is killed.

    ``light`` work needs few libraries: its workers are spawned and do not wait for the server's imports, to which they
    yield while these go on.
    """
    niceness = _YIELDING if light and _warming.is_set() else 0
    return ProcessPoolExecutor(jobs, mp_context=worker_context(light), initializer=start_worker, initargs=(niceness,))


def worker_context(light: bool = False) -> BaseContext:
    """How worker processes begin: forked from the server where that can be and pays, else spawned."""
    forked = _FORKS and not light
    if forked:
        forkserver.set_forkserver_preload([_SERVER])  # of no effect where it runs already
    return get_context("forkserver" if forked else "spawn")


def start_worker(niceness: int = 0) -> None:
    """What a worker does first: leave Ctrl-C to its parent, and see to it that it ends with this parent."""
    if niceness:
        os.nice(niceness)
    # The server has hidden matplotlib from MONAI and switched the search for garbage off.
    if sys.modules.get("matplotlib", gc) is None:
        del sys.modules["matplotlib"]
    gc.enable()
    # Objects that the server imported are never garbage. Frozen, their pages are not written to, and so stay shared.
    gc.freeze()
    # Ctrl-C reaches all processes of a terminal. Only the parent acts on it, and stops its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this worker when its parent was killed; it would wait for items for ever, holding its memory."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def starting_workers() -> Iterator[None]:
    """What workers that are started within this block find: their environment, and no Ctrl-C.

    The environment has to be there before they begin, because libraries read it as they are imported. Ctrl-C comes to
    this process when the block ends.
    """
    with _worker_environment(), _interrupts_held():
        yield


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; processes started in it never get one, and so print no traceback."""
    if not _FORKS:
        yield
        return
    # Started within the block, multiprocessing's tracker would let Ctrl-C through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _worker_environment() -> Iterator[None]:
    missing = {name: value for name, value in _WORKER_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
