"""Pages: one HTML file each, that needs neither network nor scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.export.palette import DARK, LIGHT, Theme, png_uri

__all__ = ["both_themes", "compact", "render_page"]


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """Fill in a template of this package; what comes from files is escaped.

    Args:
        template: Its name.
        context: Everything it uses; a name that is missing is an error.
    """
    environment = Environment(
        loader=PackageLoader("pipeline.export", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value, digits=3: "–" if value is None else f"{value:.{digits}f}"
    environment.filters["interval"] = lambda pair: f"{pair[0]:.3f} – {pair[1]:.3f}" if pair else "–"
    environment.filters["compact"] = compact
    return str(environment.get_template(template).render(context))


def both_themes(draw: Callable[[Theme], bytes]) -> dict[str, str]:
    """A plot for light and for dark screens, as ``data:`` URIs.

    Args:
        draw: Takes the colours and gives a PNG.
    """
    return {"light": png_uri(draw(LIGHT)), "dark": png_uri(draw(DARK))}


def compact(value: float | None) -> str:
    """A number as a person writes it: three digits, from 100 on without decimals; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
