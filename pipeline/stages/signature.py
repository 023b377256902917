"""Who wrote a file and when, for the foot of pages and the provenance of models."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

__all__ = ["own_version", "signature"]


def own_version() -> str:
    """Version of volseg; ``source`` where it runs without being installed."""
    try:
        return version("volseg")
    except PackageNotFoundError:
        return "source"


def signature() -> dict[str, str]:
    """``version`` and ``date``, as pages take them."""
    return {"version": own_version(), "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
