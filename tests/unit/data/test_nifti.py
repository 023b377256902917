"""Shares from 0 to 1 as files of two bytes per voxel."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.core.grid import Grid
from pipeline.data.nifti import PROBABILITY_STEP, write_probabilities
from pipeline.data.volume_file import VolumeError
from pipeline.data.volumes import read_image

GRID = Grid.from_spacing((3, 4, 5), (1.0, 2.0, 3.0), "LPS")


@pytest.mark.parametrize("order", ["C", "F"])
def test_shares_come_back_but_for_rounding_in_every_reader(tmp_path: Path, order: str) -> None:
    array = np.random.default_rng(0).random(GRID.shape).astype(np.float32)
    array[0, 0, :3] = 0.0, 0.5, 1.0
    path = tmp_path / "new" / "a.nii.gz"
    write_probabilities(np.asarray(array, order=order), GRID, path)  # type: ignore[call-overload]
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    assert (image.get_data_dtype(), image.dataobj.slope, image.dataobj.inter) == (np.int16, 2.0**-14, 0.0)
    itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose()
    for found in (image.get_fdata(), itk, read_image(path).array[0]):
        np.testing.assert_allclose(found, array, atol=PROBABILITY_STEP / 2, rtol=0)
        assert found[0, 0, :3].tolist() == [0.0, 0.5, 1.0]
    assert read_image(path).grid.matches(GRID)


def test_an_array_that_lies_in_a_file_and_is_turned(tmp_path: Path) -> None:
    rows = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(5, 4, 3))
    rows[:] = np.arange(60).reshape(rows.shape) / 64
    turned = np.moveaxis(rows, 0, 2)[:, ::-1].transpose(1, 0, 2)
    write_probabilities(turned, Grid.from_spacing((3, 4, 5), (1.0, 1.0, 1.0)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii").array[0], turned)


def small(path: Path, *, extension: bytes = b"") -> bytes:
    """A tiny NIfTI-1 file, not compressed."""
    image = nib.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.eye(4))
    if extension:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", extension))
    nib.save(image, path)
    return path.read_bytes()


def test_little_behind_the_voxels_is_read_to_its_end(tmp_path: Path) -> None:
    content = small(tmp_path / "a.nii")
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content + bytes(1 << 20)))
    assert read_image(path).array.max() == 23
    damaged = bytearray(path.read_bytes())
    damaged[-8] ^= 1  # the checksum, far behind the voxels
    path.write_bytes(damaged)
    with pytest.raises(VolumeError, match="got a damaged gzip stream"):
        read_image(path)


def test_gigabytes_behind_a_tiny_volume_are_not_read(tmp_path: Path) -> None:
    block = gzip.compress(bytes(16 << 20), 6)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(small(tmp_path / "a.nii")) + block * 1300)  # 20 GB
    began = time.monotonic()
    with pytest.raises(VolumeError) as caught:
        read_image(path, case="p7")
    assert time.monotonic() - began < 10  # reading them takes a minute
    assert caught.value.code == "size"
    assert "file: expected little or nothing behind the voxels, got more than 64 MB. Copy" in str(caught.value)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_extensions_without_end_are_not_read(tmp_path: Path, version: int, suffix: str) -> None:
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    path = tmp_path / f"a{suffix}"
    nib.save(kind(np.zeros((2, 3, 4), np.uint8), np.eye(4)), tmp_path / "b.nii")
    content = bytearray((tmp_path / "b.nii").read_bytes())
    if version == 1:
        content[108:112] = np.float32(2**31).tobytes()
    else:
        content[168:176] = np.int64(2**31).tobytes()
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    with pytest.raises(VolumeError, match="header: expected at most 67108864 bytes before the voxels, got 2147483648"):
        read_image(path)


def test_a_header_with_extensions_is_read(tmp_path: Path) -> None:
    small(tmp_path / "a.nii", extension=b"x" * 100_000)
    assert read_image(tmp_path / "a.nii").array.max() == 23
