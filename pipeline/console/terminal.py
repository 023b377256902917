"""The terminal that everything is printed to."""

from __future__ import annotations

from rich.console import Console

__all__ = ["CONSOLE", "say"]

CONSOLE = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)  # names are shown as they are


def say(text: str) -> None:
    """Print a line."""
    CONSOLE.print(text)
