"""Errors a user can act on, and the one form their sentences take.

Every message reads ``<what>: expected <rule>, got <value>. <what to do>``, led by the case id and the file where there
is one. The command line prints them without a traceback.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST = 1000  # characters of a wrong value that a sentence shows


class VolsegError(Exception):
    """Base of all errors caused by input, settings or the machine rather than by a defect of the code."""


class ConfigError(VolsegError, ValueError):
    """One or more settings are wrong. Holds every problem found, not only the first.

    Args:
        problems: One sentence per problem, each led by its YAML path.
        source: File or place the settings came from.
    """

    def __init__(self, problems: Sequence[str], source: str = "settings") -> None:
        self.problems = tuple(problems)
        self.source = source
        head = f"{source}: {len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))

    # Pickling an exception calls its class with the message alone, which is not what this class takes.
    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...], str]]:
        """Survive the trip back from a worker process."""
        return type(self), (self.problems, self.source)


def require_arguments(source: str, *rules: tuple[str, bool, str, object]) -> None:
    """Raise one ConfigError with every argument that breaks its rule.

    Args:
        source: Where the arguments were given.
        rules: Name of the argument, whether it is right, the rule, and its value.
    """
    problems = [sentence(what, rule, got, "Change it") for what, fine, rule, got in rules if not fine]
    if problems:
        raise ConfigError(problems, source)


class DataError(VolsegError, ValueError):
    """A case or file cannot be used. ``str(error)`` is one sentence that says what to do."""


class AllFailedError(VolsegError):
    """Not one case of a batch could be used. What could be written is there: the reasons, say.

    Args:
        result: What the call would have returned.
        failed: Case id and one sentence for each case, at least one.
    """

    def __init__(self, result: Any, failed: Sequence[tuple[str, str]]) -> None:
        self.result, self.failed = result, tuple(failed)
        case, reason = self.failed[0]
        first = reason if reason.startswith(f"case {case}") else f"case {case}: {reason}"
        super().__init__(first if len(failed) == 1 else f"{first} All {len(failed)} cases failed.")

    def __reduce__(self) -> tuple[type, tuple[Any, tuple[tuple[str, str], ...]]]:
        """Survive the trip back from a worker process."""
        return type(self), (self.result, self.failed)


def result_of(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a call gives back, also where all cases failed: for those who report every case themselves."""
    try:
        return call(*args, **kwargs)
    except AllFailedError as error:
        found: T = error.result
        return found


class Stopped(BaseException):
    """Work that a signal other than Ctrl-C ended, after saving what can be continued."""

    def __init__(self, signal: int) -> None:
        self.signal = signal
        super().__init__(signal)


# What changes what a terminal or an editor shows: control characters, changes of the direction of writing, halves of
# characters; tabs and line ends are for :func:`one_line` only.
_UNSEEN = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"


def visible(text: str) -> str:
    """A text in which what cannot be seen is spelled out: names of files and organs may hold commands to terminals."""

    def spelled(found: re.Match[str]) -> str:
        code = ord(found[0])
        code -= 0xDC00 if 0xDC80 <= code <= 0xDCFF else 0  # a byte of a file name that is not UTF-8
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return re.sub(f"[{_UNSEEN}]", spelled, text)


def one_line(name: str) -> str:
    """A name for files in which a line end or control character would end it: each run of them becomes a blank."""
    return re.sub(rf"\s*[\t\n{_UNSEEN}]+\s*", " ", name).strip()


def listed(values: Iterable[object]) -> str:
    """Numbers or names for a sentence, ``1, 2, 3``; of more than 12 the first ten and the last."""
    shown = [str(value) for value in values]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:10], "…", shown[-1]])


def unforeseen(error: BaseException) -> str:
    """An error of a library on one line, without the addresses of objects, which tell no one anything."""
    return " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(error).__name__}: {error}").split())


def sentence(
    what: str, expected: str, got: object, advice: str, *, case: str | None = None, file: Path | str | None = None
) -> str:
    """Compose an error sentence.

    Args:
        what: The thing that is wrong, e.g. ``label map grid``.
        expected: The rule it must follow, e.g. ``the image grid within 1e-3 mm``.
        got: The offending value; of a very long one the first 1000 characters are shown.
        advice: What the user should do, a full sentence without its full stop.
        case: Case id, if there is one.
        file: File, if there is one.

    Returns:
        ``case <id>: <file>: <what>: expected <rule>, got <value>. <advice>.``
    """
    where = "".join([f"case {case}: " if case else "", f"{file}: " if file else ""]).replace("\n", "\\n")
    shown = str(got)
    # Files from elsewhere may hold names of a million characters.
    shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} …"
    return f"{where}{what}: expected {expected}, got {shown}. {advice.rstrip('.')}."
