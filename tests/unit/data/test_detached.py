"""Volumes whose voxels lie in files of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.data.case_files import CaseFiles
from pipeline.data.detached import detached_files
from pipeline.data.volumes import read_image


@pytest.mark.parametrize("compressed", [False, True])
def test_the_voxels_of_an_mhd_belong_to_the_case(tmp_path: Path, compressed: bool) -> None:
    image, label = tmp_path / "a.mhd", tmp_path / "b.mha"
    for path in (image, label):
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((2, 3, 4), np.int16)), str(path), useCompression=compressed)
    data = tmp_path / ("a.zraw" if compressed else "a.raw")
    assert detached_files(image) == (data,)
    assert detached_files(label) == ()
    assert CaseFiles("a", (image,), label).files == (image, data, label)
    assert CaseFiles("a", (image, image)).files == (image, data)
    data.unlink()
    assert CaseFiles("a", (image,)).files == (image, data)  # named, so that it is missed


def nrrd(folder: Path, line: str, *more: str) -> Path:
    path = folder / "a.nrrd"
    head = ["NRRD0004", "type: short", "dimension: 3", "sizes: 2 3 2", "endian: little", "encoding: raw", line, *more]
    path.write_text("\n".join(head) + ("\n" if more else "\n\n"))
    return path


def test_the_voxels_of_a_nrrd_may_lie_in_one_file_or_in_many(tmp_path: Path) -> None:
    (tmp_path / "v.raw").write_bytes(np.arange(12, dtype="<i2").tobytes())
    path = nrrd(tmp_path, "data file: v.raw")
    assert read_image(path).array.max() == 11
    assert detached_files(path) == (tmp_path / "v.raw",)
    assert detached_files(nrrd(tmp_path, "datafile: /data/v.raw")) == (Path("/data/v.raw"),)
    found = detached_files(nrrd(tmp_path, "data file: s%02d.raw 2 6 2"))
    assert found == tuple(tmp_path / f"s0{n}.raw" for n in (2, 4, 6))
    listed = nrrd(tmp_path, "data file: LIST 2", "x.raw", "y.raw")
    assert detached_files(listed) == (tmp_path / "x.raw", tmp_path / "y.raw")
    inside = tmp_path / "b.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((2, 3, 4), np.int16)), str(inside))
    assert detached_files(inside) == ()


def test_other_and_missing_files_have_none(tmp_path: Path) -> None:
    assert detached_files(tmp_path / "no.mhd") == ()
    (tmp_path / "a.nii").write_text("ElementDataFile = b.raw")
    assert detached_files(tmp_path / "a.nii") == ()
    (tmp_path / "a.mhd").write_text("")
    assert detached_files(tmp_path / "a.mhd") == ()
