"""Tables: as CSV, and as text that is Markdown too."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import DataError, sentence


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


def read_csv(path: Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a comma-separated file with a header line, as dictionaries; names in lower case, blanks stripped.

    Args:
        path: UTF-8 file.
        required: Columns that must be there.

    Raises:
        DataError: If it is not UTF-8, or a column is missing.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.reader(stream)
            columns = [name.strip().lower() for name in next(table, [])]
            rows = [dict(zip(columns, map(str.strip, line), strict=False)) for line in table if any(line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        advice = "Save it as comma-separated UTF-8"
        raise DataError(sentence("table", "comma-separated text", f"an error ({error})", advice, file=path)) from None
    missing = [name for name in required if name not in columns]
    if missing:
        got, advice = f"the columns {', '.join(columns)}", "Correct the header line"
        raise DataError(sentence("table", f"the columns {', '.join(required)}", got, advice, file=path))
    return [{name: row.get(name, "") for name in columns} for row in rows]
