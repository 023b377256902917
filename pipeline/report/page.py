"""Pages: one HTML file each, that needs neither network nor scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.core.files import write_text
from pipeline.core.tables import compact_cell, interval_cell, number_cell
from pipeline.report.plots import DARK, LIGHT, Theme, png_uri


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """Fill in a template of this package; what comes from files is escaped, and a name that is missing is an error."""
    # Names and messages come from files: everything is escaped, and what a template misses is an error, not a gap.
    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number_cell, "interval": interval_cell, "compact": compact_cell}
    return str(environment.get_template(template).render(context))


def both_themes(draw: Callable[[Theme], bytes]) -> dict[str, str]:
    """A plot for light and for dark screens, as ``data:`` URIs."""
    return {"light": png_uri(draw(LIGHT)), "dark": png_uri(draw(DARK))}


# Pages of pictures with what belongs to them: numbers at the head, lines of text, tables.


@dataclass(frozen=True, eq=False)
class Picture:
    """A section of a page: heading, sentences, and a picture with what it shows for those who cannot see it."""

    heading: str
    png: bytes
    alt: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of a page; the first column names its rows."""

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

    Returns:
        ``out``.

    Raises:
        VolsegError: If it cannot be written.
    """
    shown = [{**vars(picture), "uri": png_uri(picture.png)} for picture in pictures]
    context = {"title": title, "numbers": numbers, "pictures": shown, "tables": tables}
    write_text(out, render_page("pictures.html.j2", {**context, "version": version, "date": date}))
    return out
