"""``predictions.json`` beside the masks: which image each came from, how it was cleaned, and whether it is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import VolsegError
from pipeline.core.files import read_json, write_text
from pipeline.data.case_files import CaseFiles
from pipeline.model.device import out_of_memory

__all__ = ["earlier_entries", "note_prediction", "prediction_entry", "why_failed", "write_entries"]

_FILE = "predictions.json"


def earlier_entries(out: Path) -> dict[str, dict[str, Any]]:
    """Entries of ``predictions.json`` by file name; a damaged file counts as none, and is written anew."""
    try:
        content = read_json(out / _FILE)
        return {entry["prediction"]: entry for entry in content["cases"]}
    except (VolsegError, KeyError, TypeError):
        return {}


def prediction_entry(files: CaseFiles, name: str, cleaning: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entry of a mask that is not done yet, which an empty hash says.

    Args:
        files: The case.
        name: File name of the mask.
        cleaning: How it is cleaned, as :meth:`~pipeline.infer.cleaning.Cleaning.to_json` has it; None if it is not.
    """
    images = [str(path.resolve()) for path in files.images]
    return {"case": files.id, "images": images, "prediction": name, "postprocessing": cleaning, "hash": ""}


def note_prediction(out: Path, entries: dict[str, dict[str, Any]], entry: dict[str, Any]) -> None:
    """Enter a mask in ``predictions.json``, in place of an earlier entry of its name."""
    entries[entry["prediction"]] = entry
    write_entries(out, entries)


def write_entries(out: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``predictions.json``, a line per case: it is written often, and this is many times faster.

    Raises:
        VolsegError: If it cannot be written.
    """
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in entries.values())
    write_text(out / _FILE, f'{{"cases": [\n{lines}\n]}}\n')


def why_failed(case: str, error: BaseException) -> str:
    """One sentence on why a case could not be predicted."""
    if isinstance(error, VolsegError):
        return str(error)
    if out_of_memory(error):
        return f"case {case}: memory: expected enough, got too little. Lower infer.batch_size, or use --device cpu."
    return f"case {case}: expected a prediction, got {type(error).__name__}: {error}. Check the file and the device."
