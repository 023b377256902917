"""What repairs of images and of label maps share: the log entry, the volume to be written, headers put right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.core import Grid
from pipeline.data.volume_file import VolumeError, VolumeFile, split_source
from pipeline.data.volumes import open_volume

__all__ = ["REPAIRABLE", "SNAP_VOXELS", "Change", "Part", "described", "open_repaired"]

REPAIRABLE = (
    "affine",
    "channel_grid",
    "channels",
    "dimensions",
    "duplicate_id",
    "forms",
    "label_grid",
    "labels",
    "not_finite",
    "unknown_labels",
)
"""Problems of ``volseg check`` that a repair can solve, in most cases; all others need a person or another file."""

SNAP_VOXELS = 0.25
"""Grids of one shape that differ by no more than this are the same grid with a rounded header; a voxel's nearest
neighbour is then still itself."""


@dataclass(frozen=True)
class Change:
    """One thing that was repaired.

    Args:
        case: Case id.
        file: The original file.
        problem: Code of the problem; those of ``volseg check`` where it reports it.
        done: What was done.
        before: What it was like.
        after: What it is like now.
    """

    case: str
    file: str
    problem: str
    done: str
    before: str
    after: str


@dataclass(frozen=True, eq=False)
class Part:
    """One volume of the repaired copy.

    Args:
        source: Where it comes from: a file, or a volume of a 4D file.
        grid: Its grid, repaired.
        array: Voxels (I, J, K) to be written, or None if the file is copied as it is.
    """

    source: Path
    grid: Grid
    array: NDArray[Any] | None = None


def open_repaired(source: Path, case: str) -> tuple[VolumeFile, list[Change]]:
    """Open a volume; a slight shear is taken out of its header, and a qform that contradicts the sform is reported.

    Args:
        source: A file, or one volume of a 4D file.
        case: Case id.

    Returns:
        The opened file and what must be written anew because of its header.

    Raises:
        VolumeError: If the file cannot be used, or its axes are too far from right angles.
    """
    file, changes = str(split_source(source)[0]), []
    try:
        volume = open_volume(source, case=case)
    except VolumeError as error:
        if error.code != "affine":
            raise
        volume = open_volume(source, case=case, straighten=True)
        before = str(error).partition(", got ")[2].partition(". ")[0]
        changes.append(Change(case, file, "affine", "axes set at right angles", before, described(volume.grid)))
    if volume.forms_differ:
        before = f"sform and qform up to {volume.forms_apart_mm:.3g} mm apart"
        changes.append(Change(case, file, "forms", "sform written into the qform too", before, described(volume.grid)))
    return volume, changes


def described(grid: Grid) -> str:
    """A grid in words: ``20 x 24 x 16 voxels of 2 x 1.5 x 2.5 mm, LPS, from (-38, 0, 12) mm``."""
    shape, spacing = (" x ".join(f"{n:.4g}" for n in values) for values in (grid.shape, grid.spacing_mm))
    origin = ", ".join(f"{n:.4g}" for n in grid.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm, {grid.orientation}, from ({origin}) mm"
