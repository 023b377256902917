"""Several runs at work in one output folder: one at a time where they meet, and all of them as one.

Where a file system has no locks (:mod:`~pipeline.core.locks`), runs cannot see each other, and say so.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import uuid4

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import why_not_written
from pipeline.core.locks import NO_LOCKS, is_locked, lock

T = TypeVar("T")


class RunsTogether:
    """The runs of one command that are at work in a folder at the same time, and what they tell each other.

    Each has a hidden file in the folder, which it locks for as long as it lives. What a run told stays there after its
    end until the last one has gone; what a killed run told counts as long.

    Args:
        folder: The output folder; created on entering.
        name: Of the files, such as ``preprocess``: runs of one name see each other.

    Attributes:
        rank: How many others were at work when this run came.
        notes: A sentence for the user where the file system has no locks.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.rank = folder, name, 0
        self.notes: tuple[str, ...] = ()
        self._about: dict[str, Any] = {"host": socket.gethostname(), "process": os.getpid()}
        self._own = folder / f".{name}.{uuid4().hex[:8]}.run"
        self._held: int | None = None
        self._made = not folder.exists()

    def __enter__(self) -> Self:
        """Come to the others; what is left of runs that all have ended is removed.

        Raises:
            VolsegError: If the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise why_not_written(error, self.folder) from error
        with self.alone():
            self.rank = len(self.others())
            if not self.rank:
                self._remove(self._files())
            self._held = None if self.notes else lock(self._own, wait=False)
            self.tell()
        return self

    def __exit__(self, *_: object) -> None:
        """Go; the last one takes all files along."""
        with suppress(OSError, VolsegError), self.alone():
            last = not self.others()
            if self._held is not None:
                os.close(self._held)
                self._held = None
            if last:
                self._remove([*self._files(), self._mutex])
                if self._made:  # and nothing written: what was asked for was refused
                    self.folder.rmdir()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A short block in which no other run is at the same time; threads of one run count as runs, too.

        Raises:
            VolsegError: If the folder cannot be written.
        """
        try:
            held = None if self.notes else lock(self._mutex, wait=True)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise why_not_written(error, self.folder) from error
            held = None
            rule, got = "a file system with locks", "one without, where two runs at once cannot see each other"
            self.notes = (sentence("output folder", rule, got, "Run one at a time there", file=self.folder),)
        try:
            yield
        finally:
            if held is not None:
                os.close(held)

    def others(self) -> list[dict[str, Any]]:
        """What the other runs told that are at work now; called in :meth:`alone`."""
        return [_told(path) for path in self._files() if path != self._own and is_locked(path)]

    def together(self) -> list[dict[str, Any]]:
        """What all others told since the first one came, also those that have ended; called in :meth:`alone`."""
        return [_told(path) for path in self._files() if path != self._own]

    def tell(self, **more: Any) -> None:
        """Tell something more, which replaces what was told under its name; called in :meth:`alone`.

        Raises:
            VolsegError: If it cannot be written.
        """
        self._about |= more
        if self._held is None:
            return
        try:
            # In place: the lock is that of the file, not of its name.
            os.ftruncate(self._held, 0)
            os.pwrite(self._held, json.dumps(self._about).encode(), 0)
        except OSError as error:
            raise why_not_written(error, self._own) from error

    def require(self, rule: str, got: str, advice: str, *, ended: bool = False, **told: object) -> None:
        """Refuse to go on beside runs that told another value under one of these names; called in :meth:`alone`.

        Args:
            rule: What all have in common.
            got: What another has.
            advice: What to do.
            ended: Also compare with runs that were there since the first one came.
            told: The values of this run; without any, no other may be there at all.
        """
        for other in self.together() if ended else self.others():
            if not told or any(other.get(name) not in (None, value) for name, value in told.items()):
                got = f"{got} in process {other.get('process')} on {other.get('host')}"
                raise VolsegError(sentence("output folder", rule, got, advice, file=self.folder))

    def shared(self, items: Sequence[T]) -> Sequence[T]:
        """Items in the order for this run: one that joins others begins elsewhere, so that they share the work."""
        first = len(items) * self.rank // (self.rank + 1)
        return [*items[first:], *items[:first]]

    @property
    def _mutex(self) -> Path:
        return self.folder / f".{self.name}.lock"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f".{self.name}.*.run"))

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)


def _told(path: Path) -> dict[str, Any]:
    """What a run told; a file that was cut off by a kill says nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
