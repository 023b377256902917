"""Shares from 0 to 1 as files of two bytes per voxel."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.core.grid import Grid
from pipeline.data.nifti import PROBABILITY_STEP, write_probabilities
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
