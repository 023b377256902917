"""What libraries say about files that they could read nonetheless: told once, with the file's name.

nibabel and ITK print such lines themselves, without the file, in whichever process reads it. Here they become warnings
of one kind, which a worker process hands to the process that asked for its work.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LOCK = threading.Lock()
_told: set[str] = set()  # of this process


class FileWarning(UserWarning):
    """A library found something odd in a file, and read it. The text begins with the file's name."""


def tell(texts: Iterable[str]) -> None:
    """Warn of each text, a :class:`FileWarning`, unless this process has told it before."""
    for text in texts:
        if text not in _told:
            _told.add(text)
            warnings.warn(text, FileWarning, stacklevel=3)


def about(path: Path | str, said: Iterable[str]) -> list[str]:
    """What was said about a file, each text once and on one line, led by the file; it may hold bytes of the file."""
    lines = (" ".join(text.split()) for text in said)
    return [f"{path}: {''.join(c if c.isprintable() else '?' for c in line)}" for line in dict.fromkeys(lines)]


@contextmanager
def listening(logger: str, module: str) -> Iterator[list[str]]:
    """Keep what a library logs in this thread and warns of, instead of printing it.

    Yields:
        The list that takes the texts; warnings are in it once the block has ended.
    """
    said: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        mine = record.thread == thread and record.levelno >= logging.WARNING
        if mine:
            said.append(record.getMessage())
        return not mine

    source = logging.getLogger(logger)
    # Python keeps the state of warnings for all threads together: one at a time may change it.
    with _LOCK:
        source.addFilter(keep)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield said
        finally:
            source.removeFilter(keep)
    for warning in caught:
        if f"{module}/" in warning.filename.replace("\\", "/"):
            said.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def told_to(take: Callable[[str], object]) -> Iterator[None]:
    """Hand what is told within the block to a function, which prints it or keeps it."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def sort(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, FileWarning):
                take(str(message))
            else:
                show(message, category, *place)

        warnings.showwarning = sort  # type: ignore[assignment]  # it takes all places
        warnings.simplefilter("always", FileWarning)
        yield


@contextmanager
def unheard(*libraries: str) -> Iterator[None]:
    """Nothing that packages log or warn of within the block is printed or kept: it may quote names of patients."""
    sources = [logging.getLogger(name) for name in libraries]
    with _LOCK:
        levels = [source.level for source in sources]
        try:
            for source in sources:
                source.setLevel(logging.CRITICAL + 1)  # holds for the loggers below it, too
            with warnings.catch_warnings():
                # Only theirs: other threads are at work meanwhile.
                warnings.filterwarnings("ignore", module=rf"({'|'.join(map(re.escape, libraries))})(\.|$)")
                yield
        finally:
            for source, level in zip(sources, levels, strict=True):
                source.setLevel(level)
