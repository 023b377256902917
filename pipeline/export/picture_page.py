"""Pages of pictures with what belongs to them: numbers at the head, lines of text, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.files import write_text
from pipeline.export.page import render_page
from pipeline.export.palette import png_uri

__all__ = ["Picture", "Table", "write_picture_page"]


@dataclass(frozen=True, eq=False)
class Picture:
    """A section of a page.

    Args:
        heading: Of the section.
        png: The picture.
        alt: What it shows, for those who cannot see it.
        lines: Sentences above it.
    """

    heading: str
    png: bytes
    alt: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of a page; the first column names its rows.

    Args:
        heading: Of the section.
        caption: What it holds.
        columns: Names.
        rows: Cells as they are shown.
    """

    heading: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_picture_page(
    out: Path,
    title: str,
    *,
    pictures: Sequence[Picture],
    numbers: Sequence[tuple[str, str, str]] = (),
    tables: Sequence[Table] = (),
    version: str = "",
    date: str = "",
) -> Path:
    """Write an HTML file that needs neither network nor scripts.

    Args:
        out: The file.
        title: Heading.
        pictures: Sections with a picture.
        numbers: Name, value and detail of what is shown large at the head.
        tables: Sections with a table.
        version: Version of volseg, for the foot of the page.
        date: Date, likewise.

    Returns:
        ``out``.

    Raises:
        VolsegError: If it cannot be written.
    """
    shown = [{"heading": p.heading, "uri": png_uri(p.png), "alt": p.alt, "lines": p.lines} for p in pictures]
    context = {"title": title, "numbers": numbers, "pictures": shown, "tables": tables}
    write_text(out, render_page("pictures.html.j2", {**context, "version": version, "date": date}))
    return out
