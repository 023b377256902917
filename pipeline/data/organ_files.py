"""A label map as one mask file per organ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.core import LabelMap, LabelTable
from pipeline.data.legend import LegendEntry
from pipeline.data.volumes import write_label_map

__all__ = ["organ_file_names", "write_organs"]

_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]')  # not in file names of some system


def organ_file_names(table: LabelTable, suffix: str) -> dict[str, str]:
    """Organ or region → name of its mask file; what cannot be in a file name becomes ``_``.

    Args:
        table: Label table.
        suffix: Ending of the files, e.g. ``.nii.gz``.

    Returns:
        Names that differ by more than the case of their letters.
    """
    names: dict[str, str] = {}
    used: set[str] = set()
    for organ in table.targets:
        clean = _UNSAFE.sub("_", organ).lstrip(".") or "organ"
        name, number = clean, 1
        while name.lower() in used:
            number += 1
            name = f"{clean}_{number}"
        used.add(name.lower())
        names[organ] = f"{name}{suffix}"
    return names


def write_organs(
    label_map: LabelMap,
    table: LabelTable,
    folder: Path,
    names: Mapping[str, str],
    colors: Mapping[str, str],
    *,
    like: Path | None = None,
) -> None:
    """Write a mask of 0 and 1 for every organ, also for those that are not there; each file atomically.

    Args:
        label_map: Label values.
        table: Their names. Of a table with regions, every region has a file.
        folder: Folder for the files.
        names: What :func:`organ_file_names` gave.
        colors: Organ or region → ``#rrggbb``.
        like: As in :func:`~pipeline.data.volumes.write_label_map`.

    Raises:
        VolsegError: If a file cannot be written.
    """
    for organ, values in table.target_values.items():
        mask = LabelMap(np.isin(label_map.array, values).astype(np.uint8), label_map.grid)
        write_label_map(mask, folder / names[organ], like=like, legend=(LegendEntry(1, organ, colors[organ]),))
