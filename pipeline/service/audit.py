"""The audit log: who sent what when, and what became of it, as lines of JSON without any text of a patient's file."""

from __future__ import annotations

import json
import threading
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.core.errors import one_line

FILE = "audit.jsonl"
_LARGEST = 16 << 20  # bytes of a file; the one before is kept as well
_LONGEST = 500  # characters of a value


class AuditLog:
    """Lines in the node's folder. Studies are named by their number, their identifiers only as a hash.

    Args:
        folder: Of the node.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._lock = folder / FILE, threading.Lock()

    def note(self, event: str, study: int | None = None, **values: str | float | None) -> None:
        """Write one line; a full disk stops no study."""
        entry: dict[str, str | float] = {"time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", "event": event}
        entry |= {} if study is None else {"study": study}
        for name, value in values.items():
            if value is not None:
                entry[name] = one_line(value)[:_LONGEST] if isinstance(value, str) else value
        with self._lock, suppress(OSError):
            if self.path.exists() and self.path.stat().st_size > _LARGEST:
                self.path.replace(self.path.with_suffix(".1.jsonl"))
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")


def where(error: BaseException) -> str:
    """The kind of an error and the place in the code; its text may quote a patient's file."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"an error ({type(error).__name__}{place})"
