"""How much memory work on a case takes, estimated from a header, so that no more cases run at once than fit."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from pipeline.data.dataset import CaseFiles
from pipeline.data.volumes import read_grid

if TYPE_CHECKING:  # only for type checkers: `volseg evaluate` starts without the settings
    from pipeline.core.grid import Grid
    from pipeline.preprocess.fingerprint import CaseFingerprint
    from pipeline.preprocess.plan_file import Plan

READING_WORKER_BYTES = 250 * 2**20
"""A worker that reads volumes, before its first case: its libraries."""

TORCH_WORKER_BYTES = 700 * 2**20
"""The same with torch and monai."""

# Bytes per voxel, for every channel and once for the reference. Peaks measured with one channel and with three: 2 and 1
# to check integers (6 for floats), 7 and 4 for a fingerprint (more foreground, up to 11), 11 and 13 to prepare.
# Converting and repairing hold the stored, the scaled and the compared volume at once.
_CHECK, _FINGERPRINT, _PREPARE, _REWRITE = 8, 12, 16, 24


def check_bytes(files: CaseFiles) -> int:
    """Memory to check a case: bytes at the peak, rather too many than too few.

    Raises:
        VolumeError: If that file cannot be used.
    """
    return _CHECK * _voxels(files)


def fingerprint_bytes(files: CaseFiles) -> int:
    """Memory to take a case's fingerprint; as :func:`check_bytes`."""
    return _FINGERPRINT * _voxels(files)


def prepare_bytes(files: CaseFiles, plan: Plan, known: CaseFingerprint | None = None) -> int:
    """Memory to prepare a case, as it is or as the plan resamples it, whichever is larger; as :func:`check_bytes`.

    Args:
        files: The case.
        plan: How it is prepared.
        known: Its fingerprint, along the plan's axes, where there is one; then no header is read.
    """
    grid = known or _turned(read_grid(files.images[0]), plan)
    stretched = prod(
        n * mm / target for n, mm, target in zip(grid.shape, grid.spacing_mm, plan.spacing_mm, strict=True)
    )
    resampled = prod(plan.shape) if plan.shape else int(stretched)
    return _PREPARE * (len(files.images) + 1) * max(prod(grid.shape), resampled)


def rewrite_bytes(files: CaseFiles) -> int:
    """Memory to convert or repair a case; as :func:`check_bytes`."""
    return _REWRITE * _voxels(files)


def _turned(grid: Grid, plan: Plan) -> Grid:
    return grid.reoriented(plan.orientation_of(grid))


def _voxels(files: CaseFiles) -> int:
    """Of all channels and the reference; the header of the first channel is read."""
    return (len(files.images) + 1) * read_grid(files.images[0]).voxels
