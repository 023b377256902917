"""Worker processes as the process that needs them sees them: how they start, work and end.

A :class:`Worker` is one process; a :class:`Crew` is several, each with a thread here that hands it one item at a time.
Workers are new interpreters, on Linux also forks of a server that has imported torch and MONAI for all of them
(:func:`warm_up`; :mod:`pipeline.engine.worker_process` is the other side). Nothing of this needs a main module that can
be imported, a process that may have children of ``multiprocessing``, the main thread, or a place for sockets.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import spawn
from pathlib import Path
from queue import SimpleQueue
from threading import Thread, Timer
from time import monotonic
from typing import IO, Any, NamedTuple

from pipeline.core.lean_monai import is_lean
from pipeline.core.machine import processors
from pipeline.engine.worker_process import GREETING, Outcome, Setup, Work, outcome_of

# One thread per worker, because the workers share the processors. What the user has set stands.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
# Elsewhere libraries may have threads as soon as they are imported, which do not survive a fork.
_FORKS = sys.platform == "linux"
# Niceness of light workers beside the server's imports. With equal shares of the processors the imports would end a
# third later, and all work that follows waits for them.
_YIELDING = 5
_END_S = 3.0  # for a worker to clean up after it was told to end; then it is killed
_KILLED_S = 1.0  # for the system to end a killed process; one that hangs in the system itself is left to it


class NoWorkerError(Exception):
    """No worker process can be had here; the message says why."""


class LostError(Exception):
    """A worker died at its item."""


class LateError(Exception):
    """A worker was ended because its item had taken too long."""


class _Server(NamedTuple):
    """The process that workers are forked from: who started it, it, and where it hears of the next worker."""

    owner: int
    process: subprocess.Popen[bytes]
    control: socket.socket


# Filled by warm_up; the server lives as long as this process.
_servers: list[_Server] = []


def warm_up(jobs: int | None, module: str) -> None:
    """Let a module be imported for workers to come, while this process goes on with its own start.

    Nothing happens where only one worker is asked for, or there is only one processor.
    """
    if not _FORKS or jobs == 1 or processors() == 1 or _server() is not None:
        return
    ours, theirs = socket.socketpair()
    with theirs, suppress(NoWorkerError):  # whoever needs workers finds out
        process = _started(f"serve([{module!a}])", theirs.fileno(), None)
        _servers[:] = [_Server(os.getpid(), process, ours)]
        # Killed, because it takes seconds to hear of the end while it imports.
        atexit.register(_end_server, _servers[0])


def _end_server(server: _Server) -> None:
    if server.owner == os.getpid():
        server.process.kill()
        server.process.wait()


def _server() -> _Server | None:
    """The server; None if there is none, also in a fork of the process that it belongs to."""
    return next((server for server in _servers if server.owner == os.getpid()), None)


def _started(call: str, stdin: int, stdout: int | None) -> subprocess.Popen[bytes]:
    """A new interpreter that calls a function of :mod:`pipeline.engine.worker_process`."""
    path = [str(entry) for entry in sys.path]
    lean = "from pipeline.core.lean_monai import lean_monai; lean_monai(); " if is_lean() else ""
    begin = "from pipeline.engine import worker_process; worker_process"
    code = f"import sys; sys.path[:] = {path!a}; {lean}{begin}.{call}"
    environment = {**_WORKER_ENVIRONMENT, **os.environ}
    try:
        with _interrupts_held():
            return subprocess.Popen([_interpreter(), "-c", code], stdin=stdin, stdout=stdout, env=environment)
    except OSError as error:  # of the number of processes, say
        raise NoWorkerError(f"{error.strerror or error}") from error


def _interpreter() -> str:
    """A Python that starts workers: this one's own program would start anew where it only has Python inside."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    home = Path(sys.exec_prefix)
    named = spawn.get_executable()  # by default sys.executable; programs with Python inside may have set another
    own = [Path(os.fsdecode(named))] if named and not getattr(sys, "frozen", False) else []
    for path in (*own, home / "bin" / version, home / "bin" / "python3", home / "python.exe"):
        if path.name.lower().startswith(("python", "pypy")) and os.access(path, os.X_OK):
            return str(path)
    raise NoWorkerError(f"no Python beside {own[0] if own else 'this program'}")


class Worker:
    """One process that does one item at a time. One thread gives it work; others may only end it.

    Args:
        forked: Take a fork of the server if there is one.
        niceness: Of the process.

    Raises:
        NoWorkerError: If it does not begin.
    """

    def __init__(self, *, forked: bool = False, niceness: int = 0) -> None:
        self.ended = False
        self._process: subprocess.Popen[bytes] | None = None
        server = _server() if forked else None
        if server is None or not self._fork(server, niceness):
            self._spawn(niceness)

    def do(self, work: Work, limit_s: float | None = None) -> Outcome[Any]:
        """Do one item.

        Raises:
            LateError: If it takes longer than the limit; the process is killed.
            LostError: If the process dies.
        """
        timer = Timer(limit_s, self.kill) if limit_s is not None else None
        began = monotonic()
        try:
            if timer is not None:
                timer.daemon = True
                timer.start()
            pickle.dump(work, self._sender)
            self._sender.flush()
            answer: bytes = pickle.load(self._receiver)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.kill()
            if limit_s is not None and monotonic() - began >= limit_s:
                raise LateError from error
            raise LostError(self._fate()) from error
        finally:
            if timer is not None:
                timer.cancel()
        # Its own name for what went wrong: what cannot be unpickled here is not the worker's death.
        made = outcome_of(work.item, lambda: pickle.loads(answer))
        return made if made.value is None else made.value

    def close(self) -> None:
        """Let an idle process end, by the thread that gives it work."""
        self.ended = True
        for stream in (self._sender, self._receiver):
            with suppress(OSError):  # what it had not read yet
                stream.close()
        self._wait(_END_S)

    def terminate(self) -> None:
        """Tell the process to end: it removes its temporary files, a training also saves where it is."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def _fork(self, server: _Server, niceness: int) -> bool:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(server.control, [b"w"], [theirs.fileno()])
            self._greet(ours.makefile("rb"), ours.makefile("wb"), niceness)
        except (OSError, NoWorkerError):  # the server has died
            return False
        finally:
            ours.close()  # the two files keep it open
        return True

    def _spawn(self, niceness: int) -> None:
        self._process = _started("main()", subprocess.PIPE, subprocess.PIPE)
        try:
            self._greet(self._process.stdout, self._process.stdin, niceness)
        except (OSError, NoWorkerError) as error:
            self.kill()
            raise NoWorkerError("a Python that does not start") from error

    def _greet(self, receiver: IO[bytes] | None, sender: IO[bytes] | None, niceness: int) -> None:
        assert receiver is not None and sender is not None  # noqa: PT018  # as Popen was asked for them
        self._receiver, self._sender = receiver, sender
        greeting = next((line for line in receiver if line.startswith(GREETING)), None)
        if greeting is None:
            raise NoWorkerError
        self.number = int(greeting.removeprefix(GREETING))
        pickle.dump(Setup(str(Path.cwd()), niceness), sender)
        sender.flush()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)  # of no effect where it has ended
        elif not self.ended:
            with suppress(OSError):
                os.kill(self.number, number)

    def _wait(self, seconds: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILLED_S)

    def _fate(self) -> str:
        """How it ended, for a message."""
        self._wait(_KILLED_S)
        self.ended = True
        code = None if self._process is None else self._process.returncode
        return "" if code is None else f" (exit code {code})"


class Answer(NamedTuple):
    """What comes back of an item: its outcome, or what went wrong with its worker."""

    item: int
    result: Outcome[Any] | LateError | LostError | NoWorkerError


class Crew:
    """Workers, started as they are needed, each with a thread that hands it one item at a time.

    Args:
        jobs: How many at most.
        start: Starts one.
        limit_s: Seconds that an item may take.
        fresh: Every item gets a process of its own.
    """

    def __init__(
        self, jobs: int, start: Callable[[], Worker], limit_s: float | None = None, *, fresh: bool = False
    ) -> None:
        self._jobs, self._start, self._limit_s, self._fresh = jobs, start, limit_s, fresh
        self._work: SimpleQueue[tuple[Work, SimpleQueue[Answer]] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._workers: dict[int, Worker] = {}  # by the thread's number
        self._busy = 0
        self._stopped = False

    def submit(
        self, index: int, function: Callable[..., Any], arguments: tuple[Any, ...], answers: SimpleQueue[Answer]
    ) -> None:
        """Queue an item; what becomes of it is put into ``answers``."""
        self._busy += 1
        try:
            work = _packed(index, function, arguments)
        except NoWorkerError as error:
            answers.put(Answer(index, error))
            return
        if len(self._threads) < min(self._jobs, self._busy):
            # Daemonic: a worker that hangs in the system itself must not keep this process from ending.
            thread = Thread(target=self._serve, args=(len(self._threads),), daemon=True)
            self._threads.append(thread)
            thread.start()
        self._work.put((work, answers))

    def answer(self, answers: SimpleQueue[Answer]) -> Answer:
        """The next answer."""
        found = answers.get()
        self._busy -= 1
        return found

    def close(self) -> None:
        """Let all workers end, which are idle."""
        for _ in self._threads:
            self._work.put(None)
        self._join(_END_S)
        self.stop(0)

    def stop(self, patience_s: float = _END_S) -> None:
        """End all workers whatever they do; one that does not react within the time is killed."""
        self._stopped = True
        for act, seconds in ((Worker.terminate, patience_s), (Worker.kill, _KILLED_S)):
            if any(thread.is_alive() for thread in self._threads):
                for worker in list(self._workers.values()):
                    act(worker)
                for _ in self._threads:
                    self._work.put(None)
                self._join(seconds)

    def _join(self, seconds: float) -> None:
        end = monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - monotonic()))

    def _serve(self, number: int) -> None:
        """Hand items to one worker; a new one takes the place of one that died."""
        while (item := self._work.get()) is not None and not self._stopped:
            work, answers = item
            answers.put(Answer(work.item, self._done(number, work)))
            if self._fresh:
                self._close(number)
        self._close(number)

    def _done(self, number: int, work: Work) -> Outcome[Any] | LateError | LostError | NoWorkerError:
        try:
            if number not in self._workers:
                self._workers[number] = self._start()
            # It may have been started while all were told to end.
            if self._stopped:
                self._workers[number].kill()
            return self._workers[number].do(work, self._limit_s)
        except NoWorkerError as error:
            return error
        except (LateError, LostError) as error:
            self._close(number)
            return error

    def _close(self, number: int) -> None:
        worker = self._workers.pop(number, None)
        if worker is not None:
            worker.close()


def light_worker() -> Worker:
    """A worker that needs few libraries: it does not wait for the server's imports, to which it yields."""
    return Worker(niceness=_YIELDING if _server() is not None else 0)


def heavy_worker() -> Worker:
    """A worker that finds torch and MONAI imported if a server does so."""
    return Worker(forked=True)


def _packed(index: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Work:
    """An item as it travels to a worker."""
    try:
        found = pickle.dumps((function, arguments))
    except Exception as error:
        raise NoWorkerError(f"work that cannot be pickled ({error})") from error
    if b"__main__" not in found:
        return Work(index, found)
    # The main module is imported only for what it defines itself.
    keys = ("init_main_from_name", "init_main_from_path", "sys_argv")
    main = {name: value for name, value in spawn.get_preparation_data("").items() if name in keys}
    # Python calls standard input a file too.
    if len(main) < 2 or not Path(main.get("init_main_from_path", __file__)).is_file():
        raise NoWorkerError("functions or classes of a main script without a file, which only a module can hand over")
    return Work(index, found, main)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back in this thread until the block ends; processes started in it never get one, so stay silent."""
    if os.name != "posix":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
