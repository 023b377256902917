"""A label map as one mask file per organ: writing it so, and merging such masks to a label map."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap, require_same_grid
from pipeline.data.dataset import CaseFiles
from pipeline.data.legend import LegendEntry
from pipeline.data.volume_file import refuse
from pipeline.data.volumes import read_label_map, write_label_map

_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]')  # not in file names of some system


def safe_file_name(name: str) -> str:
    """A name with ``_`` for what cannot be in a file name; empty if nothing is left."""
    return _UNSAFE.sub("_", name).lstrip(".")


def organ_file_names(table: LabelTable, suffix: str) -> dict[str, str]:
    """Organ or region → name of its mask file; what cannot be in a file name becomes ``_``.

    The names differ by more than the case of their letters, as some systems do not tell that apart.
    """
    names: dict[str, str] = {}
    used: set[str] = set()
    for organ in table.targets:
        clean = safe_file_name(organ) or "organ"
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
    """
    for organ, values in table.target_values.items():
        mask = LabelMap(np.isin(label_map.array, values).astype(np.uint8), label_map.grid)
        write_label_map(mask, folder / names[organ], like=like, legend=(LegendEntry(1, organ, colors[organ]),))


def read_reference(files: CaseFiles) -> LabelMap:
    """Read the reference of a case: its label map, or its organ masks as :func:`merge_organs` merges them."""
    if files.label is not None:
        return read_label_map(files.label, case=files.id)
    return merge_organs(files.organs, soft=files.soft, case=files.id)[0]


def merge_organs(
    organs: Sequence[tuple[int, Path]],
    *,
    soft: bool = False,
    case: str | None = None,
    read: Callable[..., LabelMap] = read_label_map,
) -> tuple[LabelMap, int]:
    """Merge organ masks to a label map.

    Args:
        organs: Label value and mask file of every organ; background is 0, the organ is any one other value.
        soft: The masks are soft maps instead: shares of agreement, the largest value of the type (255 of 8 bits)
            being all of it. The organ is where at least half agree.
        case: Case id for messages.
        read: Reads a mask file, as :func:`~pipeline.data.volumes.read_label_map` does.

    Returns:
        The label map and the number of voxels that more than one organ claims; the organ listed later gets them.

    Raises:
        VolumeError: If there is no mask, one is unreadable or has more than one foreground value, or a soft map nowhere
            reaches half.
        DataError: If the masks are on different grids.
    """
    if not organs:
        advice = "Add a label map or leave the case to prediction"
        raise refuse("missing", "reference", "a label map or organ masks", "none", advice, case=case, file="reference")
    first = read(organs[0][1], case=case)
    grid, shared = first.grid, 0
    merged = np.zeros(grid.shape, dtype=np.min_scalar_type(max(value for value, _ in organs)))
    for number, (value, path) in enumerate(organs):
        mask = read(path, case=case) if number else first
        rule = f"the grid of {organs[0][1].name}"
        require_same_grid(grid, mask.grid, "organ mask grid", rule, case=case, file=str(path))
        inside = _majority(mask, path, case) if soft else _organ(mask, path, case)
        # Counted before they are overwritten.
        shared += int(np.count_nonzero(merged[inside]))
        merged[inside] = value
    return LabelMap(merged, grid), shared


def _organ(mask: LabelMap, path: Path, case: str | None) -> NDArray[np.bool_]:
    found = [number for number in mask.values() if number]
    if len(found) > 1:
        advice = "Give one mask per organ, or a label map"
        raise refuse("labels", "organ mask", "0 and one other value", found[:5], advice, case=case, file=path)
    return np.asarray(mask.array != 0)


def _majority(mask: LabelMap, path: Path, case: str | None) -> NDArray[np.bool_]:
    half = np.iinfo(mask.array.dtype).max / 2
    if mask.array.max() < half:
        rule, got = f"half agreement ({int(half + 1)} or more) somewhere", f"at most {mask.array.max()}"
        raise refuse("labels", "soft map", rule, got, "Replace it, or drop the case", case=case, file=path)
    return np.asarray(mask.array >= half)
