"""Lists of cases, CSV or JSON, as predictions or references."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.core.errors import DataError, sentence
from pipeline.data.layout_tables import read_description
from pipeline.data.volume_file import volume_stem

__all__ = ["is_list", "listed_maps"]

_KEYS = {
    "prediction": ("prediction", "label", "mask", "file"),
    "reference": ("reference", "label", "mask", "file"),
}


def is_list(path: Path) -> bool:
    """Whether a path is a file that lists cases."""
    return path.suffix.lower() in (".csv", ".json") and not path.is_dir()


def listed_maps(path: Path, what: Literal["prediction", "reference"]) -> dict[str, Path]:
    """Label maps that a list of cases names.

    Args:
        path: CSV, or JSON with a list, or with one under ``cases`` or ``training``. Each entry has ``prediction`` or
            ``reference``, or else ``label``, ``mask`` or ``file``, relative to the list, and may have ``case`` (or
            ``id``, else the name of its ``image`` or label map is the case's). Entries without are left out.
        what: Which of the two is wanted.

    Returns:
        Case id → file.

    Raises:
        DataError: If no entry names a label map, or two are of the same case.
    """
    source = read_description(path)
    rows = next((rows for key in ("cases", "training") if isinstance(rows := source.content.get(key), list)), [])
    found: dict[str, Path] = {}
    for row in rows:
        name = next((str(row[key]) for key in _KEYS[what] if isinstance(row, Mapping) and row.get(key)), None)
        if name is None:
            continue
        case = _case(row, name)
        if case in found:
            advice = "Give every case its own id"
            raise DataError(sentence("cases", "one entry per case", "two", advice, case=case, file=path))
        found[case] = source.root / name
    if not found:
        rule, advice = f"entries with one of {', '.join(_KEYS[what])}", "Name the label map of every case"
        raise DataError(sentence(f"{what} list", rule, "none", advice, file=path))
    return found


def _case(row: Mapping[str, Any], name: str) -> str:
    given = row.get("case") or row.get("id")
    image = row.get("image")
    return str(given) if given else volume_stem(str(image) if isinstance(image, str) else name).removesuffix("_0000")
