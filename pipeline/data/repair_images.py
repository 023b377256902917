"""Repairing the image channels of a case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import GRID_TOLERANCE_MM, Grid
from pipeline.data.case_files import CaseFiles
from pipeline.data.detached import detached_files
from pipeline.data.regrid import covered_share, regrid_image
from pipeline.data.repair_parts import SNAP_VOXELS, Change, Part, described, open_repaired
from pipeline.data.volume_file import VolumeError, join_source, refuse, split_source
from pipeline.data.volumes import open_header, read_voxels

__all__ = ["repair_images"]

_MIN_COVERED = 0.5  # a channel that covers less of the first one's field of view is more likely misplaced than small


def repair_images(files: CaseFiles, channels: Sequence[str]) -> tuple[list[Part], bool, list[Change]]:
    """Read every channel of a case and repair what can be repaired.

    A 4D file of as many volumes as the dataset has channels stands for them. Voxels that are not finite get the
    smallest finite value of their channel. Channels on another grid than the first are put onto
    it: as they are if the grids hardly differ, else by linear interpolation.

    Args:
        files: The case.
        channels: Names of the dataset's channels.

    Returns:
        One part per channel, whether the first one's header says where in the world it is, and what was repaired.

    Raises:
        VolumeError: If a channel cannot be used or repaired.
    """
    sources, changes = _sources(files, channels)
    parts: list[Part] = []
    positioned = True
    for number, source in enumerate(sources, start=1):
        volume, found = open_repaired(source, files.id)
        array, grid = read_voxels(volume, source), volume.grid
        array, bad = _finite(array, source, files.id)
        found += bad
        if parts:
            array, grid, moved = _placed(array, grid, parts[0].grid, number, source, files.id)
            found += moved
        else:
            positioned = volume.form_codes != (0, 0)
        if detached_files(volume.path):  # a copy of the header alone would point to a file that is not there
            done = "header and voxel file joined"
            found.append(Change(files.id, str(volume.path), "detached", done, "two files", "one file"))
        own_file = bool(found) or (len(channels) == 1 and split_source(source)[1] == "channel")
        parts.append(Part(source, grid, array if own_file else None))
        changes += found
    return parts, positioned, list(dict.fromkeys(changes))  # the header of a 4D file is repaired once


def _sources(files: CaseFiles, channels: Sequence[str]) -> tuple[tuple[Path, ...], list[Change]]:
    """The case's sources; a single file of several channels is taken apart."""
    only = files.images[0] if len(files.images) == 1 else None
    if only is None or len(channels) == 1 or split_source(only)[1]:
        return files.images, []
    try:
        volumes = open_header(only, case=files.id, straighten=True).volumes
    except VolumeError:
        return files.images, []  # refused, with its sentence, when its turn comes
    if volumes != len(channels):
        return files.images, []
    taken = tuple(join_source(only, "channel", n + 1, volumes) for n in range(volumes))
    before, after = f"one file for {volumes} channels", f"channels {', '.join(channels)}"
    return taken, [Change(files.id, str(only), "channels", "its volumes taken as channels", before, after)]


def _finite(array: NDArray[Any], source: Path, case: str) -> tuple[NDArray[Any], list[Change]]:
    if array.dtype.kind != "f":
        return array, []
    good = np.isfinite(array)
    bad = array.size - int(np.count_nonzero(good))
    if not bad:
        return array, []
    file = split_source(source)[0]
    if bad == array.size:
        got, advice = "none", "Export the image again, or drop the case"
        raise refuse("not_finite", "image intensities", "finite numbers", got, advice, case=case, file=file)
    lowest = array[good].min()
    filled = np.where(good, array, lowest)
    before = f"{int(np.isnan(array).sum())} NaN and {int(np.isinf(array).sum())} infinite of {array.size} voxels"
    done = "replaced by the smallest finite value"
    return filled, [Change(case, str(file), "not_finite", done, before, f"{float(lowest):g} in {bad} voxels")]


def _placed(
    array: NDArray[Any], grid: Grid, first: Grid, number: int, source: Path, case: str
) -> tuple[NDArray[Any], Grid, list[Change]]:
    """A channel on the first one's grid."""
    apart_mm = first.difference_mm(grid)
    if apart_mm <= GRID_TOLERANCE_MM:
        return array, grid, []
    file = str(split_source(source)[0])
    if apart_mm <= SNAP_VOXELS * min(first.spacing_mm):
        done, before = "put onto the grid of channel 1", f"{apart_mm:.3g} mm apart"
        return array, first, [Change(case, file, "channel_grid", done, before, described(first))]
    covered = covered_share(first, grid)
    if covered < _MIN_COVERED:
        rule, got = f"at least {_MIN_COVERED:.0%} of the field of view of channel 1", f"{covered:.0%}"
        what, advice = f"field of view of channel {number}", "Check which of the two headers is wrong"
        raise refuse("channel_grid", what, rule, got, advice, case=case, file=file)
    done = "resampled onto the grid of channel 1, linearly"
    after = described(first) + ("" if covered == 1 else f"; {covered:.0%} covered, the rest is the smallest value")
    change = Change(case, file, "channel_grid", done, described(grid), after)
    return regrid_image(array, grid, first), first, [change]
