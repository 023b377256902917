"""Tables that read well as plain text and are Markdown too."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["score_cell", "text_table"]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Lines of a Markdown table, columns as wide as their longest cell, all but the first to the right.

    Args:
        header: Name of each column.
        rows: Cells, as many per row as there are columns.
    """
    table = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[n]) for line in table)) for n in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    first, *rest = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in table)
    return tuple(f"| {' | '.join(line)} |" for line in (first, rule, *rest))


def score_cell(value: float | None, digits: int = 3) -> str:
    """A number with so many digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
