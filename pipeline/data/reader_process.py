"""Processes that read volume files for this one: C and C++ decoders may crash or never end on a damaged file.

Such a file then costs a small process and one sentence, not the command and all other cases. Voxels come back through a
pipe, straight into their array, so that nothing is left on disk whatever ends. What is read there is decided by the
module that a :class:`Readers` is made for: :mod:`pipeline.data.itk_reader`, :mod:`pipeline.data.dicom_reader`.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_START_S = 120.0  # it takes a fifth of a second, and on a busy machine with a slow disk far longer
_VOXELS_S = 300.0  # and one second more for every _SLOWEST bytes
_SLOWEST = 1_000_000
_SPARE = 1 << 30  # bytes that the process may take beside its libraries and three times the voxels
_MOST_SAID, _MOST_LINES = 1 << 16, 3  # of what libraries say about one file
_MOST_ANSWERED = 1 << 24
_PREFIX = 4  # bytes before an answer that say how long it is
# What libraries say of files that are damaged, and are read nonetheless, to other voxels or another spacing.
_DAMAGE = re.compile(
    "uncompress failed|avoid buffer overrun|CRC error|not read completely|not enough data|IO error", re.I
)
_LATE = -getattr(signal, "SIGALRM", 0)  # exit code of a process that took too long
_READY = {"ready": True}
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import serve; serve()"

Answer = Callable[[dict[str, Any]], tuple[dict[str, Any], NDArray[Any] | None, Any]]
"""Request → answer, the voxels if it asks for some, and what owns their memory."""


class ReaderError(Exception):
    """A file could not be read; the text is the reason.

    Args:
        reason: What the library said.
        fatal: Whether the file has ended the process that read it, or kept it busy for too long.
        damaged: Whether it is certain that voxels are wrong or missing.
    """

    def __init__(self, reason: str, *, fatal: bool = False, damaged: bool = False) -> None:
        super().__init__(reason)
        self.fatal, self.damaged = fatal, damaged


def voxels_limit_s(values: int) -> float:
    """How long reading so many values may take."""
    return _VOXELS_S + 8 * values / _SLOWEST


class Readers:
    """Processes that wait for work: one as a rule, more where several threads read at once.

    One is started where none waits. A file that has ended one leaves the others, and the next file, alone.

    Args:
        module: The module that reads there; its ``serve`` calls that of this module.
        here: Reads in this process where none can be started, as in some programs that embed Python. Without it
            nothing is read there.
    """

    def __init__(self, module: str, here: Answer | None = None) -> None:
        self.module, self.here = module, here
        self.waiting: list[subprocess.Popen[bytes]] = []
        # A program that only embeds Python would start a second time itself.
        self.starts = not getattr(sys, "frozen", False) and "python" in Path(sys.executable or "").name.lower()
        atexit.register(self.end)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[Any] | None]:
        """Answer to a request, with the array if one was asked for; what was said about it is under ``said``.

        Args:
            request: ``limit_s``, the time that it may take; ``values``, how many are promised, if voxels are wanted;
                all else is for the module.

        Raises:
            ReaderError: If the file cannot be read, or what was said shows that it is damaged.
        """
        process = self._taken()
        if process is None:
            if self.here is None:
                raise ReaderError("needs a process of its own, which cannot be started here", fatal=True)
            answer, voxels, _owner = self.here(request)
            array = None if voxels is None else np.array(voxels)
        else:
            answer, array = self._asked(process, request)
        if "error" in answer:  # what else was said is part of it
            raise ReaderError(answer["error"])
        damage = next((line for line in answer.get("said", ()) if _DAMAGE.search(line)), None)
        if damage is not None:
            raise ReaderError(damage, damaged=True)
        return answer, array

    def _asked(
        self, process: subprocess.Popen[bytes], request: dict[str, Any]
    ) -> tuple[dict[str, Any], NDArray[Any] | None]:
        array = None
        try:
            _send(process.stdin, request)
            answer = _received(process.stdout)
            if answer is not None and "shape" in answer:
                array = _promised(answer, request)
                answer = answer if _filled(array, process.stdout) else None
        # Ctrl-C, say, or too little memory: what is still in the pipe would be taken for the next answer.
        except BaseException:
            _ended(process)
            raise
        if answer is None:
            code = _ended(process)
            ended = f"ended the process that read it (exit code {code})"
            raise ReaderError(f"took more than {request['limit_s']:.0f} s" if code == _LATE else ended, fatal=True)
        self.waiting.append(process)
        return answer, array

    def _taken(self) -> subprocess.Popen[bytes] | None:
        """A process for one request, started if need be; None where none can be."""
        while self.waiting:
            with suppress(IndexError):  # another thread was faster
                process = self.waiting.pop()
                if process.poll() is None:
                    return process
                _ended(process)
        with suppress(OSError):
            return _started(self.module) if self.starts else None
        self.starts = False
        return None

    def end(self) -> None:
        """End those that wait."""
        while self.waiting:
            _ended(self.waiting.pop())

    def forget(self) -> None:
        """Leave them to the parent of this process, which was forked from it and has the same pipes."""
        self.waiting = []


def _started(module: str) -> subprocess.Popen[bytes]:
    """A process that has said that it is ready.

    Raises:
        OSError: If it cannot be started, or says something else.
    """
    # A session of its own keeps Ctrl-C from it, on which only this process acts.
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _START.format(module=module), json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    timer = Timer(_START_S, process.kill)
    timer.daemon = True
    timer.start()
    try:
        if _received(process.stdout) != _READY:
            raise OSError("another program answered")
    except BaseException:
        _ended(process)
        raise
    finally:
        timer.cancel()
    return process


def _ended(process: subprocess.Popen[bytes]) -> int:
    # One that has ended keeps its own exit code, if it gets the time to leave it.
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    return process.returncode or 0


def _send(stream: IO[bytes] | None, content: dict[str, Any]) -> None:
    assert stream is not None
    text = json.dumps(content).encode("ascii")
    with suppress(BrokenPipeError):  # the other side has ended: its answer will be missing
        _write(stream, len(text).to_bytes(_PREFIX, "little") + text)


def _write(stream: IO[bytes], content: bytes | memoryview) -> None:
    """Write to an unbuffered pipe, which takes a part at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


def _received(stream: IO[bytes] | None) -> dict[str, Any] | None:
    """The next message; None if the pipe has ended, or something else than a message is in it."""
    prefix = np.empty(_PREFIX, np.uint8)
    if not _filled(prefix, stream):
        return None
    text = np.empty(min(int.from_bytes(prefix.tobytes(), "little"), _MOST_ANSWERED), np.uint8)
    with suppress(ValueError):
        content = json.loads(text.tobytes()) if _filled(text, stream) else None
        return content if isinstance(content, dict) else None
    return None


def _filled(array: NDArray[Any], stream: IO[bytes] | None) -> bool:
    """Fill an array from a pipe; False if that ends before."""
    assert stream is not None
    rest = memoryview(_bytes(array))
    while rest:
        count = stream.readinto(rest)  # type: ignore[attr-defined]  # an unbuffered stream has it
        if not count:
            return False
        rest = rest[count:]
    return True


def _bytes(array: NDArray[Any]) -> Any:
    """The bytes of an array, in its memory."""
    return array.reshape(-1).view(np.uint8)


def _promised(answer: dict[str, Any], request: dict[str, Any]) -> NDArray[Any]:
    """Memory for the voxels that follow, if they are as many as the header promised."""
    shape, dtype = tuple(int(n) for n in answer["shape"]), np.dtype(answer["dtype"])
    if int(np.prod(shape, dtype=object)) != request["values"] or dtype.kind not in "iuf":
        raise ReaderError(f"{shape} of {dtype} instead of {request['values']} values", damaged=True)
    return np.empty(shape, dtype)


# The other side: what runs in the process.


def serve_requests(answer_to: Answer, prepare: Callable[[], object]) -> None:
    """Answer requests from standard input on standard output until that ends.

    Args:
        answer_to: Answers one request.
        prepare: Loads the libraries, before this process is said to be ready.
    """
    requests, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # nothing but answers goes where answers go
    prepare()
    heard = _hearing()
    _send(answers, _READY)
    while (request := _received(requests)) is not None:
        _limit_memory(request.get("values", 0))
        # Whatever keeps this process busy, it ends in time, also where nobody waits for its answer any more.
        with _time_limit(request["limit_s"]):
            answer, voxels, owner = answer_to(request)
            if voxels is not None:
                answer = {"shape": voxels.shape, "dtype": voxels.dtype.str, **answer}
            answer["said"] = _sayings(heard())
            _send(answers, answer)
            if voxels is not None:
                # A view of its voxels: a copy would take the memory twice.
                _write(answers, memoryview(_bytes(voxels)))
            del voxels, owner


def _hearing() -> Callable[[], str]:
    """Take what libraries print on standard error; the function gives what came since it was called last."""
    source, target = os.pipe()
    for end in (source, target):
        os.set_blocking(end, False)  # what no longer fits is lost; waiting for it to be read would last for ever
    os.dup2(target, 2)

    def heard() -> str:
        with suppress(BlockingIOError):
            return os.read(source, _MOST_SAID).decode("utf-8", "replace")
        return ""

    return heard


def _sayings(printed: str) -> list[str]:
    """The first lines that ITK printed, without the places in its code and in memory that it puts before each."""
    lines = [line.strip() for line in printed.splitlines()]
    texts = [
        line.split("): ", 1)[1] if "(0x" in line and "): " in line else line
        for line in lines
        if line and not line.startswith("WARNING: In ")
    ]
    return list(dict.fromkeys(texts))[:_MOST_LINES]


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer; the system does, since ITK may leave Python no chance to."""
    if not hasattr(signal, "setitimer"):  # Windows
        faulthandler.dump_traceback_later(seconds, exit=True)
        yield
        faulthandler.cancel_dump_traceback_later()
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the asking process may have left it ignored
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(values: int) -> None:
    """Let this process take what so many values need; a damaged file that asks for more gets an error."""
    with suppress(ImportError, OSError, ValueError):  # other systems than Linux
        import resource

        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        _set_limit(taken + _SPARE + 3 * 8 * values)


def allow_memory(more: int) -> None:
    """Let this process take so many bytes more for the request at hand: those of a file that is read whole, say."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit >= 0:
            _set_limit(limit + more)


def _set_limit(wanted: int) -> None:
    import resource

    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most < 0 else min(wanted, most), most))
