"""``statistics.json`` and ``statistics.csv`` beside the masks: volume, intensities and edges of every organ."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import VolsegError
from pipeline.core.files import read_json, write_json, write_text
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap
from pipeline.evaluate.statistics import organ_statistics, statistics_columns, statistics_entry, statistics_row

__all__ = ["STATISTICS_FILES", "earlier_statistics", "measure", "write_statistics"]

STATISTICS_FILES = ("statistics.json", "statistics.csv")
"""Names of what :func:`write_statistics` writes."""

_CONVENTIONS = (
    "volume_ml: number of voxels times the volume of a voxel",
    "mean, sd: intensities of the image's own voxels in its own units (HU of a CT); sd divides by their number",
    "touches_edge: some voxel lies in the first or last plane along an axis, so a part may be outside; edges: "
    "which sides of the patient these are (L, R, A, P, I, S)",
    "confidence: mean probability of the organ over the voxels that the network gave to it, before cleaning; empty "
    "where it was not asked for (--confidence, --probabilities, --entropy) or no voxel was given",
)


def earlier_statistics(out: Path) -> dict[str, dict[str, Any]]:
    """What is known of every mask, by file name; empty without a file, or with one that is damaged."""
    try:
        content = read_json(out / STATISTICS_FILES[0])
        return {entry["prediction"]: entry for entry in content["cases"]}
    except (VolsegError, KeyError, TypeError):
        return {}


def measure(label_map: LabelMap, table: LabelTable, image: Image, channels: Sequence[str]) -> dict[str, Any]:
    """Statistics of a case: organ or region → its numbers."""
    found = organ_statistics(label_map, table, image)
    return {organ.name: statistics_entry(organ, channels) for organ in found}


def write_statistics(out: Path, cases: Mapping[str, Mapping[str, Any]], channels: Sequence[str]) -> None:
    """Write both files.

    Args:
        out: Folder of the masks.
        cases: File name of a mask → ``case``, ``prediction``, ``hash`` and ``organs``, as :func:`measure` gave them,
            with ``confidence`` where it is known.
        channels: Name of every channel of the images.

    Raises:
        VolsegError: If they cannot be written.
    """
    entries = [cases[name] for name in sorted(cases)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow((*statistics_columns(channels), "confidence"))
    for entry in entries:
        for name, organ in entry["organs"].items():
            sure = organ.get("confidence")
            row = statistics_row(entry["case"], name, organ, channels)
            table.writerow((*row, "" if sure is None else f"{sure:.6g}"))
    content = {"channels": list(channels), "cases": entries, "conventions": list(_CONVENTIONS)}
    write_json(out / STATISTICS_FILES[0], content)
    write_text(out / STATISTICS_FILES[1], text.getvalue())
