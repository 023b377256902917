"""A whole case of the prepared-case store in memory."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.prepared_cases import read_info
from pipeline.data.store import PreparedCase, open_prepared, read_class_voxels


def read_prepared(folder: Path, case: str) -> PreparedCase:
    """Read a whole case into memory. Raises DataError if a file of the case is missing or damaged."""
    image, label = open_prepared(folder, case)
    return PreparedCase(case, image[...], label[...], read_class_voxels(folder, case), read_info(folder, case))
