"""Shares from 0 to 1, such as probabilities, as NIfTI files of two bytes per voxel that every reader can scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import Grid
from pipeline.data.nifti import write_nifti
from pipeline.data.volume_file import split_source

__all__ = ["SHARE_STEP", "write_shares"]

SHARE_STEP = 2.0**-14
"""What is written is a multiple of it, so off by at most 0.00003; 0, 0.5 and 1 are exact."""


def write_shares(array: NDArray[np.floating[Any]], grid: Grid, path: Path, *, like: Path | str | None = None) -> None:
    """Write shares as int16 with a slope in the header, atomically.

    Args:
        array: (I, J, K), 0 to 1; it may be the map of a file, which is read plane by plane.
        grid: Its grid.
        path: ``.nii`` or ``.nii.gz``.
        like: As in :func:`~pipeline.data.volumes.write_voxels`.

    Raises:
        VolsegError: If the file cannot be written.
    """
    steps = np.empty(array.shape, np.int16, order="F")  # the order of the file
    slowest = int(np.argmax(np.abs(array.strides)))
    for source, target in zip(np.moveaxis(array, slowest, 0), np.moveaxis(steps, slowest, 0), strict=True):
        target[...] = np.rint(source / SHARE_STEP)
    write_nifti(steps, grid, path, like=None if like is None else split_source(like)[0], slope=SHARE_STEP)
