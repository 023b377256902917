"""What the C library does with memory that the process has freed: GNU's can be told, others are left alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock

__all__ = ["keep_freed_memory", "release_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of mallopt in malloc.h
_NEVER = 2**31 - 1  # the largest number that mallopt takes
_TOP = 256 << 20
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}  # what GNU's adapts itself to

_LOCK = Lock()
_limits: list[int] = []  # of the blocks that run now, one in the other or in several threads


@contextmanager
def keep_freed_memory(below: int | None = None) -> Iterator[None]:
    """For the block, memory that is freed waits for its next use; after it all goes back to the system.

    Blocks may lie in one another and run in several threads: the lowest limit counts, and the last one to end gives
    back.

    Otherwise every tensor of 32 MB or more comes from the system and returns there, which clears each page anew: of a
    training step on a processor that is about a tenth, of inference with a hundred classes a third.

    Args:
        below: Bytes; what is as large goes back to the system at once. As soon as something small has taken a piece of
            a large tensor's place, the next one of its size needs another, and both places count. None to keep all.
    """
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


def _change(limits: Callable[[], None]) -> None:
    """Change the limits, and tell the C library what follows."""
    with _LOCK:
        limits()
        if _limits:
            lowest = min(_limits)
            # What fits in the padding is put there, also what is above the limit.
            _set({_MMAP_THRESHOLD: lowest, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: min(_TOP, lowest // 8)})
        else:
            _set(_USUAL)
            release_freed_memory()


def _set(options: dict[int, int]) -> None:
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        for option, value in options.items():
            library.mallopt(option, value)
