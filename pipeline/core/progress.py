"""How a long step reports how far it is: one kind of callback, on the command line and from Python."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with how many items are done, how many there are, and what is being done."""


def silent(done: int, total: int, what: str) -> None:
    """Report progress to nobody."""
