"""Workers from the node's side: processes that are started, given one study at a time, and replaced when they end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from pipeline.service.queue import Study, StudyQueue

_LOAD_S = 600.0
"""How long loading a model may take."""

_END_S = 5.0
_PAUSE_S = 5.0
"""Before a worker is started again that ended while it loaded."""


class WorkerError(Exception):
    """A worker ended, or did not answer in time; the text says which, ``late`` that it was the latter."""

    def __init__(self, reason: str, *, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


class Worker:
    """One process.

    Args:
        command: What starts it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )
        self._lines: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def answer(self, limit_s: float) -> dict[str, Any]:
        """Its next answer.

        Raises:
            WorkerError: If none comes.
        """
        try:
            line = self._lines.get(timeout=limit_s)
        except Empty:
            raise WorkerError(f"one that took more than {limit_s:.0f} s", late=True) from None
        try:
            found = json.loads(line) if line else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            code = self.end()
            raise WorkerError(f"one that ended the process that segmented it (exit code {code})")
        return found

    def ask(self, task: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """What becomes of a task.

        Raises:
            WorkerError: If no answer comes.
        """
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: its answer will be missing
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        return self.answer(limit_s)

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def end(self) -> int:
        """End it; its exit code."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(0.1)
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        return self._process.returncode or 0


class Workers:
    """All workers of a node, each with a thread that gives it studies.

    Args:
        queue: Where studies wait.
        command: What starts a worker.
        count: How many there are.
        task: What a worker is told of a study.
        finished: Called with a study and the answer of its worker, or a WorkerError.
        limit_s: Longest time for a study.
    """

    def __init__(
        self,
        queue: StudyQueue,
        command: Sequence[str],
        count: int,
        task: Callable[[Study], Mapping[str, Any]],
        finished: Callable[[Study, dict[str, Any] | WorkerError], None],
        limit_s: float,
    ) -> None:
        self._queue, self._command, self._task, self._finished, self._limit_s = queue, command, task, finished, limit_s
        self._ending = threading.Event()
        self.ready = [False] * count
        self.refusal = ""
        """Why the model cannot be loaded at all."""
        self._now: list[Worker | None] = [None] * count
        self._threads = [threading.Thread(target=self._serve, args=(n,), daemon=True) for n in range(count)]

    def start(self) -> None:
        """Start all."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """End all; what they were at waits again when the node starts next."""
        self._ending.set()
        with self._queue.changed:
            self._queue.changed.notify_all()
        for worker in self._now:
            if worker is not None:
                worker.end()
        for thread in self._threads:
            thread.join(_END_S)

    def _serve(self, number: int) -> None:
        while not self._ending.is_set():
            self._now[number] = worker = Worker(self._command)
            try:
                loaded = worker.answer(_LOAD_S)
                if not loaded.get("ready"):
                    self.refusal = str(loaded.get("reason"))
                    return
                self.ready[number] = True
                while not self._ending.is_set() and worker.alive:
                    self._one(worker)
            except Exception:  # a full disk below the queue, say
                self._ending.wait(_PAUSE_S)
            finally:
                self.ready[number] = False
                worker.end()

    def _one(self, worker: Worker) -> None:
        """Give it the next study, if one waits."""
        study = self._queue.take("waiting", "running")
        if study is None:
            with self._queue.changed:
                self._queue.changed.wait(0.5)
            return
        try:
            answer: dict[str, Any] | WorkerError = worker.ask(self._task(study), self._limit_s)
        except WorkerError as error:
            worker.end()
            answer = error
        while not self._ending.is_set():
            try:
                self._finished(study, answer)
                return
            except Exception:  # a full disk, say: what the worker made is there, so noting it is tried until it works
                self._ending.wait(_PAUSE_S)


def command_of(settings: Mapping[str, Any]) -> list[str]:
    """What starts a worker with a model and what it writes; see :mod:`pipeline.service.worker`."""
    begin = "import json, sys; sys.path[:] = json.loads(sys.argv[1])"
    lean = "from pipeline.core.lean_monai import lean_monai; lean_monai()"
    return [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        f"{begin}; {lean}; from pipeline.service.worker import main; main(sys.argv[2:])",
        json.dumps(sys.path),
        json.dumps(settings),
    ]
