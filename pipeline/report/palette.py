"""Colours that stay apart for colour-blind readers, on light and on dark paper, and images as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FALSE_POSITIVE = "#b6ff00"
FALSE_NEGATIVE = "#ff2d7e"
OTHER_ORGAN = "#7b4dff"
"""Kinds of errors, in no organ's colour. For all kinds of colour blindness they are at least 55 apart (CIELAB)."""

ERROR_COLORS: Mapping[str, str] = {
    "false negative": FALSE_NEGATIVE,
    "false positive": FALSE_POSITIVE,
    "taken for another organ": OTHER_ORGAN,
}
"""Kind of error → its colour."""


@dataclass(frozen=True)
class Theme:
    """Colours of a plot: text and axes, grid lines, boxes and points, and what deserves attention."""

    text: str
    grid: str
    mark: str
    accent: str


LIGHT = Theme(text="#3d4653", grid="#dfe4ea", mark="#0072b2", accent="#d55e00")
DARK = Theme(text="#c3ccd8", grid="#323b48", mark="#56b4e9", accent="#e69f00")


def figure_png(figure: Figure, dpi: int, *, transparent: bool = True) -> bytes:
    """Draw a figure without any window system or global state."""
    stream = io.BytesIO()
    # A canvas of its own instead of pyplot, whose global state would keep every figure in memory.
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", dpi=dpi, transparent=transparent, metadata={"Software": None})
    return stream.getvalue()


def png_uri(png: bytes) -> str:
    """A PNG as a ``data:`` URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
