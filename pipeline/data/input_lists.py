"""Lists of images to predict: dataset.json and MONAI's datalists, CSV, and text files with a path per line."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core import DataError, sentence
from pipeline.core.files import read_json
from pipeline.data.case_files import CaseFiles
from pipeline.data.layout_readers import read_entry
from pipeline.data.layout_tables import Description, read_csv
from pipeline.data.volume_file import volume_suffix

__all__ = ["LIST_SUFFIXES", "read_list"]

LIST_SUFFIXES = (".json", ".csv", ".txt")
"""File name endings of lists."""

_HELD_OUT = ("test", "testing")
_OTHERS = ("cases", "training", "validation")
_IMAGE_COLUMN = re.compile(r"image(_\d+)?$")


def read_list(path: Path, channels: int) -> tuple[list[Path], list[CaseFiles]]:
    """Read a list of images.

    A JSON file has them under ``test`` or ``testing``; where there is no such list, under ``training``, ``validation``
    or ``cases``, or it is itself a list. Entries are file names, or objects with ``image`` and perhaps ``case``. A CSV
    file with a column ``image`` (or ``image_1``, ``image_2``, …) has a case per row; if some rows say ``test`` under
    ``split``, only these. Other CSV files, and text files, hold a path per line; several channels have a ``;`` (in CSV
    a comma) between them. Files are relative to the list; those of a text file that are not there, to the current
    folder. They need not exist.

    Args:
        path: File whose name ends in one of LIST_SUFFIXES.
        channels: Channels that the model wants.

    Returns:
        Files that are grouped to cases by their names, and cases.

    Raises:
        DataError: If it is no such list, or an entry names no image.
        VolsegError: If it cannot be read.
    """
    if path.suffix.lower() == ".json":
        return [], _cases(_entries(read_json(path), path), path, channels)
    rows = _lines(path) if path.suffix.lower() == ".txt" else _rows(path)
    if path.suffix.lower() == ".csv" and any(_IMAGE_COLUMN.match(name.strip().lower()) for name in rows[0]):
        return [], _cases(_chosen(read_csv(path)), path, channels)
    if path.suffix.lower() == ".csv" and not volume_suffix(rows[0][0]):
        rule, advice = "a column called image, or a path in every line", "Correct the header line"
        raise DataError(sentence("list", rule, f"the columns {', '.join(rows[0])}", advice, file=path))
    found = [[str(_located(name, path.parent)) for name in row] for row in rows]
    several = [{"image": row} for row in found if len(row) > 1]
    return [Path(row[0]) for row in found if len(row) == 1], _cases(several, path, channels)


def _entries(content: Any, path: Path) -> list[Any]:
    """The entries of a JSON list that are to be predicted."""
    lists = content if isinstance(content, Mapping) else {"cases": content}
    held_out = [entry for name in _HELD_OUT for entry in _listed(lists.get(name))]
    found = held_out or _chosen([entry for name in _OTHERS for entry in _listed(lists.get(name))])
    if not found:
        rule = f"a list of images under {', '.join((*_HELD_OUT, *_OTHERS))}"
        got = f"the keys {', '.join(map(str, lists)) or 'none'}" if isinstance(content, Mapping) else "an empty list"
        raise DataError(sentence("list", rule, got, "Add one, or give the folder of the images", file=path))
    return found


def _chosen(entries: Sequence[Any]) -> list[Any]:
    """Those whose ``split`` is ``test``, if there are any."""
    split = [str(entry.get("split") or "").lower() if isinstance(entry, Mapping) else "" for entry in entries]
    return [entry for entry, part in zip(entries, split, strict=True) if part == "test" or "test" not in split]


def _cases(entries: Sequence[Any], path: Path, channels: int) -> list[CaseFiles]:
    source = Description(path.parent, path, {})
    found = [read_entry(entry, source, channels, f"entry {number}") for number, entry in enumerate(entries, start=1)]
    return [CaseFiles(case.id, case.images) for case in found]  # the label map of a case is no input


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _lines(path: Path) -> list[list[str]]:
    """Paths of every line that is neither empty nor a comment."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    return _filled([line.split(";") for line in lines if line and not line.startswith("#")], path)


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return _filled(list(csv.reader(stream)), path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from None


def _filled(rows: Sequence[Sequence[str]], path: Path) -> list[list[str]]:
    """The cells of each row that are not empty, and of the rows those that have some."""
    found = [row for row in ([cell.strip() for cell in line if cell.strip()] for line in rows) if row]
    if not found:
        raise DataError(sentence("list", "a path in every line", "an empty file", "Add the images", file=path))
    return found


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(sentence("list", "UTF-8 text", f"an error ({error})", "Save it as plain text", file=path))


def _located(name: str, folder: Path) -> Path:
    beside = folder / name
    return Path(name).absolute() if not beside.exists() and Path(name).exists() else beside
