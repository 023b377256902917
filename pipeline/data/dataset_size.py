"""How large the volumes of a dataset are, without reading any."""

from __future__ import annotations

from pipeline.core import DataError
from pipeline.data.case_files import CaseFiles, Dataset
from pipeline.data.volumes import open_header

__all__ = ["largest_voxels"]


def largest_voxels(dataset: Dataset) -> int:
    """Voxels of the case whose largest file is the largest of all, all channels together; 0 if it cannot be read."""

    def largest_file(files: CaseFiles) -> int:
        return max((path.stat().st_size for path in files.files if path.is_file()), default=0)

    case = max(dataset.cases, key=largest_file)
    try:
        return open_header(case.files[0], case=case.id).grid.voxels * len(dataset.channels)
    except DataError:  # the case is reported when its turn comes
        return 0
