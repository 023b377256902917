"""What this process may use of the machine: memory and processors.

:func:`keep_freed_memory` tells the C library what to do with memory that was freed (GNU's can be told, others are left
alone), :func:`large_pages` has PyTorch ask the system for large pages. :class:`RowMemory` and :class:`RowFile` hold an
array row by row, in memory or in a temporary file. :func:`available_bytes` asks the machine and its control groups.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.files import why_not_written

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of mallopt in malloc.h
_NEVER = 2**31 - 1  # the largest number that mallopt takes
_TOP = 256 << 20
# Once it is given a number, GNU's malloc adapts no more: these are the numbers that it would have come to by itself.
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}

_PYTORCH_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # which PyTorch reads once, before its first tensor
_large_pages_are_ours = _PYTORCH_LARGE_PAGES not in os.environ

_LOCK = Lock()
_limits: list[int] = []  # of the blocks that run now, one in the other or in several threads


@contextmanager
def keep_freed_memory(below: int | None = None) -> Iterator[None]:
    """Within the block, freed memory waits for its next use; after the block all of it goes back to the system.

    Blocks may lie in one another and run in several threads: the lowest limit counts, and the last block to end gives
    back.

    Args:
        below: Bytes. A tensor that is as large goes back to the system at once; None to keep all. As soon as something
            small has taken a piece of a large tensor's place, the next tensor of this size needs another place, and
            both count.
    """
    # Otherwise every tensor of 32 MB or more comes from the system and returns there, which clears each page anew: a
    # tenth of a training step on a processor, a third of inference with a hundred classes.
    limit = _NEVER if below is None else min(below, _NEVER)
    _change(lambda: _limits.append(limit))
    try:
        yield
    finally:
        _change(lambda: _limits.remove(limit))


def release_freed_memory() -> None:
    """Give memory that was freed back to the system now."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def large_pages(wanted: bool) -> None:
    """Whether PyTorch asks the system for pages of 2 MB instead of 4 kB, for tensors on the CPU of 2 MB or more.

    It counts if PyTorch has made no tensor in this process yet, and not if ``THP_MEM_ALLOC_ENABLE`` was set before. A
    large tensor that comes from the system, and returns there, has each page cleared: with large pages the logits of a
    hundred classes take a third of the time. Where memory is kept for its next use, as in training, they gain nothing
    and take a fifth more of it.
    """
    if _large_pages_are_ours:
        os.environ[_PYTORCH_LARGE_PAGES] = "1" if wanted else "0"


def _change(limits: Callable[[], None]) -> None:
    """Change the limits, and tell the C library the lowest."""
    with _LOCK:
        limits()
        if _limits:
            # The lowest limit counts: what one block asks to give back must go back, whichever thread frees it.
            lowest = min(_limits)
            # A tensor above the limit would still be put into padding that is large enough for it.
            _set({_MMAP_THRESHOLD: lowest, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: min(_TOP, lowest // 8)})
        else:
            _set(_USUAL)
            release_freed_memory()


def _set(options: dict[int, int]) -> None:
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        for option, value in options.items():
            library.mallopt(option, value)


class RowMemory:
    """Rows of an array of a shape, kept in memory; the same methods as :class:`RowFile`."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.rows = np.zeros(tuple(shape), np.float32)

    def write(self, first: int, rows: NDArray[np.floating[Any]]) -> None:
        """Take rows (n, …); ``first`` is the number of the first one."""
        self.rows[first : first + len(rows)] = rows

    def array(self) -> NDArray[np.float32]:
        """All rows; those that were not written are 0."""
        return self.rows


class RowFile:
    """Rows of an array, kept in a file without a name: whatever ends the process, nothing of the file is left.

    Args:
        shape: Of the whole array, rows first.
        folder: Where the disk has room; it is created.
    """

    def __init__(self, shape: Sequence[int], folder: Path) -> None:
        self.shape, self.folder = tuple(shape), folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.stream = TemporaryFile(dir=folder)  # noqa: SIM115  # closed with the last array that reads it
        except OSError as error:
            raise why_not_written(error, folder) from error

    def write(self, first: int, rows: NDArray[np.floating[Any]]) -> None:
        """Take rows (n, …); ``first`` is the number of the first one.

        Raises:
            VolsegError: If the disk is full.
        """
        # Written, not mapped: on a full disk a write is an error, and a write to a map ends the process.
        try:
            # float32: four bytes a value.
            self.stream.seek(first * math.prod(self.shape[1:]) * 4)
            self.stream.write(np.ascontiguousarray(rows, dtype=np.float32).data)
        except OSError as error:
            raise why_not_written(error, self.folder) from error

    def array(self) -> NDArray[np.float32]:
        """All rows, as a map of the file, which is read as it is used; rows that were not written are 0.

        Raises:
            VolsegError: If the disk is full.
        """
        try:
            self.stream.flush()
            self.stream.truncate(math.prod(self.shape) * 4)
        except OSError as error:
            raise why_not_written(error, self.folder) from error
        return np.memmap(self.stream, dtype=np.float32, mode="r", shape=self.shape)


def processors() -> int:
    """Processors that this process may use, which a batch system may have limited."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return int(os.process_cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bytes_in_words(count: int) -> str:
    """Bytes for people: 2.3 GB, 450 MB, 7e+30 GB."""
    if count >= 1e15:  # what a wrong header asks for
        return f"{count / 1e9:.2g} GB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that this process may still take: the least that the machine and its control groups leave it.

    Args:
        proc: Where Linux tells about processes.
        groups: Where its control groups are, of version 1 or 2.

    Returns:
        Bytes; None where nothing is known, as on other systems.
    """
    return _least(proc, groups, "MemAvailable:", 1)


def total_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that this process could take if nothing else took any; arguments and None as above."""
    return _least(proc, groups, "MemTotal:", 0)


def _least(proc: Path, groups: Path, of_machine: str, of_group: int) -> int | None:
    machine = _entry(proc / "meminfo", of_machine)
    found = [] if machine is None else [machine * 1024]
    return min((*found, *(group[of_group] for group in _groups(proc, groups))), default=None)


def _groups(proc: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """Limit and free bytes of every control group around this process that has a limit."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            # Control groups of version 2 have one line without controllers.
            home, limit, usage = groups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            home, limit, usage = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = home / group.lstrip("/")
        # A group around this one may be narrower.
        for place in (folder, *folder.parents):
            if not place.is_relative_to(home):
                break
            found = _group_bytes(place, limit, usage)
            if found is not None:
                yield found


def _group_bytes(group: Path, limit: str, usage: str) -> tuple[int, int] | None:
    """A control group's limit, and the bytes that are free below it; None without a limit."""
    most, used = _text(group / limit).strip(), _text(group / usage).strip()
    if not most.isdecimal() or not used.isdecimal():
        return None
    # The kernel counts cached files as used, and drops them when memory is asked for.
    cache = _entry(group / "memory.stat", "total_inactive_file") or _entry(group / "memory.stat", "inactive_file") or 0
    return int(most), max(0, int(most) - max(0, int(used) - cache))


def _entry(path: Path, name: str) -> int | None:
    """The number behind a name in a kernel table; None if it is not there."""
    lines = (line.split() for line in _text(path).splitlines())
    return next((int(words[1]) for words in lines if len(words) > 1 and words[0] == name), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
