"""Tables: CSV files, text that is Markdown too, and the cells of both."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path

from pipeline.core.documents import require_regular
from pipeline.core.errors import DataError, one_line, sentence
from pipeline.core.files import write_text
from pipeline.core.paths import absence

# What a spreadsheet takes for a formula, behind the apostrophes that mark texts; not numbers, nor a hyphen alone.
_NUMBER = r"\.?\d[\d.]*(e[+-]?\d+)?\Z|inf\Z|nan\Z"
_FORMULA = re.compile(rf"'*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20](?!\Z|{_NUMBER})", re.IGNORECASE)

DASH = "–"
"""What tables on pages and on the screen show where there is no number; text files have a hyphen."""


def number_cell(value: float | None, digits: int = 3, *, sign: str = "", dash: str = DASH) -> str:
    """A number with so many decimals, or a dash where there is none.

    Args:
        value: The number; None and NaN are none.
        digits: Decimals.
        sign: ``+`` shows the sign of positive numbers too.
        dash: What stands for no number.
    """
    return dash if value is None or isnan(value) else f"{value:{sign}.{digits}f}"


def compact_cell(value: float | None, *, dash: str = DASH) -> str:
    """A number as a person writes it: three digits, from 100 on without decimals; a dash for None."""
    if value is None:
        return dash
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interval_cell(interval: Sequence[float] | None) -> str:
    """A confidence interval with three decimals, or a dash."""
    return f"{interval[0]:.3f} {DASH} {interval[1]:.3f}" if interval else DASH


def score_cell(value: float | None, digits: int = 3) -> str:
    """A number in a text file."""
    return number_cell(value, digits, dash="-")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Lines of a Markdown table, columns as wide as their longest cell, all but the first to the right.

    Args:
        header: Name of each column.
        rows: Cells, as many per row as there are columns.
    """
    table = [[one_line(cell).replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[n]) for line in table)) for n in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    first, *rest = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in table)
    return tuple(f"| {' | '.join(line)} |" for line in (first, rule, *rest))


def write_csv(path: Path, rows: Iterable[Iterable[object]], digits: int | None = None) -> None:
    """Write a table atomically: UTF-8, commas, lines that end in a line feed on every system.

    A text that a spreadsheet would compute, such as a case called ``=1+1``, gets an apostrophe before it, which
    :func:`read_cell` takes off again.

    Args:
        path: The file.
        rows: The header line and all others; None becomes an empty cell.
        digits: Significant digits of floats; by default all that tell two numbers apart.

    Raises:
        VolsegError: If it cannot be written.
    """

    def cell(value: object) -> object:
        if isinstance(value, str) and _FORMULA.match(value):
            return f"'{value}"
        return f"{value:.{digits}g}" if digits is not None and isinstance(value, float) else value

    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([cell(value) for value in row] for row in rows)
    write_text(path, stream.getvalue())


def read_cell(text: str) -> str:
    """A text of a table as it was before :func:`write_csv`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text


def read_csv(path: Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a comma-separated file with a header line, as dictionaries; names in lower case, blanks stripped.

    Raises:
        DataError: If it is not there or not UTF-8, a column is missing or given twice, or a line has more cells than
            columns.
        VolsegError: If it is a pipe or a device.
    """
    if gone := absence(path):
        raise DataError(sentence("table", "comma-separated text", *gone, file=path))
    require_regular(path)
    try:
        # Spreadsheets put a byte order mark before the first column, which would become part of its name.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.reader(stream)
            columns = [name.strip().lower() for name in next(table, [])]
            lines = [[read_cell(cell.strip()) for cell in line] for line in table if any(line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        advice = "Save it as comma-separated UTF-8"
        raise DataError(sentence("table", "comma-separated text", f"an error ({error})", advice, file=path)) from None
    # A cell without a column, as from a comma in a name, would shift all others or be lost.
    surplus = next((line for line in lines if any(line[len(columns) :])), None)
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if surplus or twice:
        rule = "each column once" if twice else f"{len(columns)} cells, as the header has"
        got, advice = (
            (repr(twice), "Remove one") if twice else (", ".join(surplus or ()), "Put names with commas in quotes")
        )
        raise DataError(sentence("table", rule, got, advice, file=path))
    missing = [name for name in required if name not in columns]
    if missing:
        got, advice = f"the columns {', '.join(columns)}", "Correct the header line"
        raise DataError(sentence("table", f"the columns {', '.join(required)}", got, advice, file=path))
    return [{**dict.fromkeys(columns, ""), **dict(zip(columns, line, strict=False))} for line in lines]
