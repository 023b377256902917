"""``predictions.json``: which image each mask came from, how it was made, and whether it is finished.

The file is written when a run begins and when it ends. In between, entries go to the end of a hidden file beside it,
one line each, so that a case costs the same whether the folder has ten masks or 20,000. Readers take both.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.core.documents import conform
from pipeline.core.errors import VolsegError
from pipeline.core.files import inside, read_record, why_not_written, write_text

RECORD_FILE = "predictions.json"
_JOURNAL = ".predictions.jsonl"

Entries = dict[str, dict[str, Any]]
"""File name of a mask → its entry."""


def by_mask(file: Path, entries: Any, kind: Any = None) -> Entries:
    """Entries by file name of the mask; those of files elsewhere, or of another kind, count as none.

    Args:
        file: Where they were read.
        entries: What stands there as their list.
        kind: The type that each must have, a pydantic model.
    """
    found: Entries = {}
    for entry in entries if isinstance(entries, list) else ():
        with suppress(VolsegError, KeyError, TypeError, AttributeError):  # damaged
            if kind is not None:
                conform(entry, kind, file)
            beside = ("organ_files", "soft_files", "dicom_files")
            names = (entry["prediction"], *(name for kind in beside for name in entry.get(kind) or ()))
            if all(inside(file.parent, name) for name in names):
                found[names[0]] = entry
    return found


def journal_entries(folder: Path) -> list[dict[str, Any]]:
    """Entries that ``predictions.json`` does not have yet: a run is at work there, or was killed."""
    return _entries(_read(folder / _JOURNAL, 0))


class PredictionRecord:
    """The entries of a folder of masks, while one run or several write there.

    Args:
        folder: The folder.
        kind: The type that every entry must have, a pydantic model.

    Attributes:
        entries: By file name of the mask; kept up to date.
    """

    def __init__(self, folder: Path, kind: Any = None) -> None:
        self.folder, self._kind, self._read_bytes = folder, kind, 0
        self._turn = threading.RLock()  # one thread reads the next case while another writes the last one
        cases = read_record(folder / RECORD_FILE).get("cases")
        self.entries = by_mask(folder / RECORD_FILE, cases, kind)
        whole = isinstance(cases, list) and len(cases) == len(self.entries)
        self._written = dict(self.entries) if whole else None  # what the file holds; None: other things, too
        self.refresh()

    def refresh(self) -> None:
        """Take over what other runs noted since; it costs what they wrote."""
        with self._turn:
            text = _read(self.folder / _JOURNAL, self._read_bytes)
            whole = text[: text.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            self.entries |= by_mask(self.folder / _JOURNAL, _entries(whole), self._kind)

    def note(self, entry: Mapping[str, Any]) -> None:
        """Enter a mask, in place of an earlier entry of its name; on the disk when this returns.

        Raises:
            VolsegError: If it cannot be written.
        """
        path = self.folder / _JOURNAL
        # A line end before it as well: a run that was killed, or a full disk, may have left half a line.
        line = f"\n{json.dumps(entry, ensure_ascii=False, allow_nan=False)}\n".encode()
        try:
            with self._turn:
                with path.open("ab") as stream:
                    stream.write(line)
                    stream.flush()
                    os.fsync(stream.fileno())
                self.entries[entry["prediction"]] = dict(entry)
        except OSError as error:
            raise why_not_written(error, path) from error

    def write(self, *, alone: bool = True) -> None:
        """Write ``predictions.json``, if it does not hold this; the lines beside it go where no other run reads them.

        Raises:
            VolsegError: If it cannot be written.
        """
        if alone and self._written == self.entries and not (self.folder / _JOURNAL).exists():
            return
        # A line per case: many times faster than indented JSON.
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in self.entries.values())
        write_text(self.folder / RECORD_FILE, f'{{"cases": [\n{lines}\n]}}\n')
        self._written = dict(self.entries)
        if alone:
            (self.folder / _JOURNAL).unlink(missing_ok=True)
            self._read_bytes = 0


def _read(path: Path, start: int) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            return stream.read()
    except OSError:
        return b""


def _entries(text: bytes) -> list[dict[str, Any]]:
    """The entries of whole lines; a line that was cut off is none."""
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("prediction"), str):
            found.append(entry)
    return found
