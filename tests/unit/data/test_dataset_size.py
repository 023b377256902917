"""The size of a dataset's largest case, from headers alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.core import LabelTable
from pipeline.data.case_files import CaseFiles, Dataset
from pipeline.data.dataset_size import largest_voxels
from pipeline.data.volume_file import join_source


def test_the_largest_file_counts_with_all_channels(tmp_path, nifti) -> None:
    small = nifti("a.nii", np.zeros((2, 2, 2), np.uint8))
    large = nifti("b.nii", np.zeros((4, 5, 6, 2), np.uint8))
    parts = tuple(join_source(large, "channel", n, 2) for n in (1, 2))
    cases = (CaseFiles("a", (small, small), small), CaseFiles("b", parts, small), CaseFiles("c", (Path("no.nii"),)))
    dataset = Dataset("d", tmp_path, "datalist", ("T1", "T2"), LabelTable({1: "x"}), cases)
    assert largest_voxels(dataset) == 4 * 5 * 6 * 2
    large.write_bytes(b"no volume" * 1000)
    assert largest_voxels(dataset) == 0
