"""Reading and writing volumes: values, grids, headers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.grid import Grid
from pipeline.core.volume import Image, LabelMap
from pipeline.data.dataset import CaseFiles
from pipeline.data.organ_masks import read_reference
from pipeline.data.volume_file import VolumeError, join_source, split_source, volume_stem, volume_suffix
from pipeline.data.volumes import (
    read_grid,
    read_image,
    read_label_map,
    write_image,
    write_label_map,
)


@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("a/liver.1.nii.gz", "liver.1", ".nii.gz"),
        ("LIVER.NII", "LIVER", ".nii"),
        ("x.mha", "x", ".mha"),
        ("x.seg.nrrd", "x", ".seg.nrrd"),
        ("seg.nrrd", "seg", ".nrrd"),
        ("x.tiff#channel=1of2", "x", ".tiff"),
        ("x.txt", "x", ""),
        (".nii.gz", ".nii", ""),
    ],
)
def test_stem_and_suffix(name: str, stem: str, suffix: str) -> None:
    assert volume_stem(name) == stem
    assert volume_suffix(name) == suffix


def test_source_round_trip() -> None:
    assert split_source(join_source("a/b.nii.gz", "channel", 2, 4)) == (Path("a/b.nii.gz"), "channel", 2, 4)
    assert split_source(join_source("b#1.nii", "label", 7)) == (Path("b#1.nii"), "label", 7, 1)
    assert split_source("b#1.nii") == (Path("b#1.nii"), "", 0, 1)


def test_nifti_image(nifti, ramp) -> None:
    affine = np.array([[-2.0, 0, 0, 10], [0, -3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
    image = read_image(nifti("a.nii.gz", ramp, affine))
    assert image.array.dtype == np.float32
    assert image.array.flags.c_contiguous
    assert image.array.shape == (1, 4, 5, 6)
    assert image.array[0, 3, 2, 1] == 321
    np.testing.assert_array_equal(image.grid.affine, affine)
    assert image.grid.orientation == "LPS"
    assert read_grid(nifti("a.nii.gz", ramp, affine)) == image.grid


def test_sform_counts_before_qform(tmp_path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    image.set_sform(np.diag([1, 2, 3, 1]), 2)
    image.set_qform(np.diag([5, 5, 5, 1]), 1)
    image.header.structarr["pixdim"][1:4] = 5
    nib.save(image, tmp_path / "a.nii")
    assert read_grid(tmp_path / "a.nii").spacing_mm == (1.0, 2.0, 3.0)


def test_scaled_and_big_endian(nifti, ramp, tmp_path) -> None:
    image = read_image(nifti("a.nii", ramp, scale=(2.0, -1024.0)))
    assert image.array[0, 1, 1, 1] == 2 * 111 - 1024
    swapped = nib.Nifti1Image(ramp, np.eye(4)).as_reoriented([[0, 1], [1, 1], [2, 1]])
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(swapped.get_fdata().astype(">i2"), np.eye(4), header), tmp_path / "b.nii")
    labels = read_label_map(tmp_path / "b.nii")
    assert labels.array.dtype.isnative
    np.testing.assert_array_equal(labels.array, ramp)


def test_trailing_axis_of_one_and_single_slice(nifti, ramp) -> None:
    assert read_image(nifti("a.nii.gz", ramp[..., None])).array.shape == (1, 4, 5, 6)
    flat = read_image(nifti("b.nii.gz", ramp[:, :, 0]))
    assert flat.array.shape == (1, 4, 5, 1)
    assert flat.array[0, 3, 2, 0] == 320


def test_channels_are_stacked_in_order(nifti, ramp) -> None:
    image = read_image([nifti("a.nii", ramp), nifti("b.nii.gz", ramp + 1000)])
    assert image.channels == 2
    assert image.array[:, 0, 0, 0].tolist() == [0, 1000]


def test_volumes_of_a_4d_file(nifti, ramp) -> None:
    path = nifti("a.nii.gz", np.stack([ramp, ramp + 1, ramp + 2], axis=-1))
    image = read_image([join_source(path, "channel", n, 3) for n in (3, 1)])
    assert image.array[:, 1, 0, 0].tolist() == [102, 100]
    assert read_grid(join_source(path, "channel", 1, 3)).shape == (4, 5, 6)
    with pytest.raises(
        VolumeError, match=r"expected a 4D file of 2 volumes, got a 4D file of 3 volumes\. Correct the list"
    ):
        read_image(join_source(path, "channel", 1, 2))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_simpleitk_world_is_turned_to_ras(tmp_path, ramp, suffix) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(ramp.transpose(2, 1, 0)))
    image.SetSpacing([2, 3, 4])
    image.SetOrigin([10, 20, 30])  # LPS
    image.SetDirection([1, 0, 0, 0, 0, -1, 0, 1, 0])  # i: left, j: superior, k: anterior (in LPS: -y)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    found = read_image(tmp_path / f"a{suffix}")
    assert found.array[0, 3, 2, 1] == 321
    assert found.grid.orientation == "LSA"
    np.testing.assert_allclose(
        found.grid.affine, [[-2, 0, 0, -10], [0, 0, 4, -20], [0, 3, 0, 30], [0, 0, 0, 1]], atol=1e-12
    )


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures_are_single_slices(tmp_path, suffix) -> None:
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)  # 4 rows (j) of 5 columns (i)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / f"a{suffix}"))
    image = read_image(tmp_path / f"a{suffix}")
    assert image.array.shape == (1, 5, 4, 1)
    assert image.array[0, 1, 2, 0] == 11
    assert image.grid.orientation == "LPS"
    assert image.grid.spacing_mm == pytest.approx((1.0, 1.0, 1.0), rel=1e-6)
    label_map = LabelMap((image.array[0] > 9).astype(np.uint8), image.grid)
    write_label_map(label_map, tmp_path / f"b{suffix}")
    back = read_label_map(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(back.array, label_map.array)
    assert back.grid.matches(image.grid)


def test_picture_with_spacing(tmp_path) -> None:
    image = sitk.GetImageFromArray(np.ones((4, 5), np.uint8))
    image.SetSpacing([0.5, 0.25])
    sitk.WriteImage(image, str(tmp_path / "a.png"))
    assert read_grid(tmp_path / "a.png").spacing_mm == pytest.approx((0.5, 0.25, 1.0), rel=1e-6)


def test_labels_stay_exact(nifti) -> None:
    values = np.array([0, 2**24 + 1, 2**31 + 1], dtype=np.uint32).reshape(3, 1, 1)
    assert read_label_map(nifti("a.nii.gz", values)).values() == (0, 2**24 + 1, 2**31 + 1)
    floats = read_label_map(nifti("b.nii.gz", np.array([0, 300.0]).reshape(2, 1, 1)))
    assert floats.array.dtype == np.uint16
    assert floats.values() == (0, 300)
    scaled = read_label_map(nifti("c.nii.gz", np.array([0, 1], np.uint8).reshape(2, 1, 1), scale=(3.0, 0.0)))
    assert scaled.values() == (0, 3)


def test_organ_masks_are_merged(nifti) -> None:
    liver, spleen = np.zeros((2, 3, 3, 3), dtype=np.uint8)
    liver[0], spleen[1:, 0] = 255, 1
    organs = ((2, nifti("liver.nii.gz", liver)), (300, nifti("spleen.nii.gz", spleen)))
    reference = read_reference(CaseFiles("c", (), organs=organs))
    assert reference.array.dtype == np.uint16
    assert reference.volumes_ml() == pytest.approx({2: 0.009, 300: 0.006})
    shifted = nifti("gut.nii.gz", spleen, np.diag([1, 1, 2, 1]))
    with pytest.raises(DataError, match=r"case c: .*gut.nii.gz: organ mask grid: expected the grid of liver.nii.gz"):
        read_reference(CaseFiles("c", (), organs=(*organs, (4, shifted))))
    several = nifti("both.nii.gz", liver + spleen)
    with pytest.raises(VolumeError, match=r"organ mask: expected 0 and one other value, got \[1, 255\]"):
        read_reference(CaseFiles("c", (), organs=((1, several),)))
    with pytest.raises(
        VolumeError, match=r"case c: reference: reference: expected a label map or organ masks, got none"
    ):
        read_reference(CaseFiles("c", ()))


def test_written_nifti_header(tmp_path, blob, nifti) -> None:
    grid = Grid.from_spacing((4, 5, 6), (0.75, 1.5, 3), "PIL")
    write_label_map(LabelMap(blob.astype(np.int64), grid), tmp_path / "out.nii.gz")
    image = nib.load(tmp_path / "out.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.get_sform(), grid.affine, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), grid.affine, atol=1e-5)
    write_label_map(LabelMap(blob, grid), tmp_path / "out.nii", like=nifti("in.nii.gz", blob, codes=(4, 2)))
    header = nib.load(tmp_path / "out.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 2)
    write_label_map(LabelMap(blob, grid), tmp_path / "out.nii", like=nifti("in.nii.gz", blob, codes=(0, 3)))
    header = nib.load(tmp_path / "out.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (3, 3)


def test_equal_labels_give_equal_bytes(tmp_path, blob) -> None:
    label_map = LabelMap(blob, Grid.from_spacing((4, 5, 6), (1, 1, 1)))
    write_label_map(label_map, tmp_path / "first_name.nii.gz")
    write_label_map(LabelMap(blob.astype(np.uint32), label_map.grid), tmp_path / "second.nii.gz")
    first = (tmp_path / "first_name.nii.gz").read_bytes()
    assert first == (tmp_path / "second.nii.gz").read_bytes()
    assert first[4:8] == b"\0\0\0\0"  # gzip's time stamp


def test_smallest_unsigned_type(tmp_path) -> None:
    for value, dtype in ((255, np.uint8), (256, np.uint16), (65536, np.uint32)):
        write_label_map(LabelMap(np.full((1, 1, 1), value), Grid((1, 1, 1), np.eye(4))), tmp_path / "a.nii")
        assert nib.load(tmp_path / "a.nii").get_data_dtype() == dtype


def test_image_round_trip(tmp_path, ramp) -> None:
    image = Image(ramp[None] / np.float32(7), Grid.from_spacing((4, 5, 6), (1, 2, 3), "ASL"))
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"):
        write_image(image, tmp_path / f"a{suffix}")
        back = read_image(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(back.array, image.array)
        assert back.grid.matches(image.grid, 1e-5)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".zraw", ".part")) == ["a.zraw"]


def test_refused_writes_leave_nothing(tmp_path, blob, monkeypatch) -> None:
    grid = Grid.from_spacing((4, 5, 6), (1, 1, 1))
    label_map = LabelMap(blob, grid)
    with pytest.raises(VolumeError, match=r"output file: expected a name ending in .nii.gz, .* got 'a.txt'"):
        write_label_map(label_map, tmp_path / "a.txt")
    with pytest.raises(VolumeError, match=r"label values: expected values from 0 to 4294967295, got -1 to 0"):
        write_label_map(LabelMap(-(blob > 1).astype(np.int8), grid), tmp_path / "a.nii")
    with pytest.raises(
        VolumeError, match=r"a.png: picture: expected one slice, got 6 slices\. Write .nii.gz instead\."
    ):
        write_label_map(label_map, tmp_path / "a.png")
    flat = Grid.from_spacing((4, 5, 1), (1, 1, 1))
    with pytest.raises(VolumeError, match=r"grid: expected orientation LPS, origin 0 .* got orientation RAS"):
        write_label_map(LabelMap(blob[:, :, :1], flat), tmp_path / "a.png")
    with pytest.raises(VolumeError, match=r"picture: expected values from 0 to 65535, got type float32"):
        write_image(Image(np.zeros((1, 4, 5, 1), np.float32), flat), tmp_path / "a.png")
    with pytest.raises(VolumeError, match=r"image: expected one channel, got 2\. Write every channel to its own file"):
        write_image(Image(np.zeros((2, 4, 5, 6), np.float32), grid), tmp_path / "a.nii")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for suffix in (".nii.gz", ".nrrd"):
        with pytest.raises(VolsegError, match="the disk is full, nothing was written"):
            write_label_map(label_map, tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_no_torch_no_monai() -> None:
    code = (
        "import sys, pipeline.data.check, pipeline.data.layouts; print({'torch', 'monai'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


@pytest.mark.realdata
def test_real_volumes(real_data) -> None:
    folder = real_data / "ct_multiorgan"
    image, labels = read_image(folder / "example_ct.nii.gz"), read_label_map(folder / "example_ct_labels.nii.gz")
    assert image.array.shape == (1, 122, 101, 112)
    assert image.grid.matches(labels.grid)
    assert len(labels.values()) == 62  # background and 61 of the 117 organs
    assert image.grid.spacing_mm == pytest.approx((3, 3, 3), abs=1e-4)


@pytest.mark.realdata
def test_real_orientation_is_preserved(real_data, tmp_path) -> None:
    path = real_data / "ct_multiorgan" / "example_mr_sm.nii.gz"
    labels = read_label_map(real_data / "ct_multiorgan" / "example_mr_sm_labels.nii.gz")
    assert read_grid(path).orientation == "LPS"
    for name in ("out.nii.gz", "out.nrrd"):
        write_label_map(labels, tmp_path / name, like=path)
        back = read_label_map(tmp_path / name)
        assert back.grid.orientation == "LPS"
        np.testing.assert_allclose(back.grid.affine, labels.grid.affine, atol=1e-5)
        np.testing.assert_array_equal(back.array, labels.array)
