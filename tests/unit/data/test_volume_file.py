"""Every kind of bad input gets one clear sentence with case and file."""

from __future__ import annotations

import gzip
import pickle
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # its usual name

from pipeline.core.errors import DataError
from pipeline.data.dataset import CaseFiles
from pipeline.data.detached_files import detached_files
from pipeline.data.volume_file import VolumeError
from pipeline.data.volumes import read_grid, read_image, read_label_map


def refusal(path: Path, read=read_image) -> VolumeError:
    """The refusal of a file, checked to be one line that names case and file."""
    with pytest.raises(VolumeError) as caught:
        read(path, case="p7")
    message = str(caught.value)
    assert message.startswith(f"case p7: {path}: ")
    assert "\n" not in message
    assert message.endswith(".")
    return caught.value


def cut(path: Path, share: float, name: str = "cut") -> Path:
    target = path.with_name(name + "".join(path.suffixes))
    target.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return target


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, (20, 21, 22)).astype(np.int16)


@pytest.mark.parametrize("name", ["no.nii.gz", "no.nii", "no.nrrd", "no.mha", "no.png"])
def test_missing(tmp_path, name) -> None:
    error = refusal(tmp_path / name)
    assert error.code == "missing"
    assert "file: expected an existing file, got nothing there. Check the path." in str(error)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.mhd", "a.png", "a.tif"])
def test_empty(tmp_path, name) -> None:
    (tmp_path / name).touch()
    error = refusal(tmp_path / name)
    assert error.code == "empty"
    assert "got an empty file (0 bytes). Copy or export it again." in str(error)


@pytest.mark.parametrize("name", ["a.nii", "a.nrrd", "a.mha", "a.mhd", "a.png", "a.tif"])
def test_not_a_volume(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"Dear colleague, " * 100)
    error = refusal(tmp_path / name)
    assert error.code == "format"
    assert re.search(r"got a file (without a NIfTI header|of another kind) \(1600 bytes\)", str(error))


def test_not_gzip(tmp_path, nifti, ramp) -> None:
    plain = nifti("a.nii", ramp).rename(tmp_path / "a.nii.gz")
    error = refusal(plain)
    assert error.code == "format"
    assert "got a file that is not gzip-compressed. If it is a plain NIfTI file, rename it to .nii." in str(error)


def test_gzip_of_something_else(tmp_path) -> None:
    with gzip.open(tmp_path / "a.nii.gz", "wb") as stream:
        stream.write(b"Dear colleague, " * 100)
    assert "got a file without a NIfTI header" in str(refusal(tmp_path / "a.nii.gz"))


def test_folder_and_unknown_ending(tmp_path) -> None:
    (tmp_path / "a.nii").mkdir()
    assert "file: expected a volume file, got a folder. Give a file in it." in str(refusal(tmp_path / "a.nii"))
    (tmp_path / "a.mgz").write_bytes(b"x")
    assert "expected a name ending in .nii.gz, .nii, .seg.nrrd, .nrrd" in str(refusal(tmp_path / "a.mgz"))


def test_no_permission(nifti, ramp, monkeypatch) -> None:
    path = nifti("a.nii.gz", ramp)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "file: expected a readable file, got no permission to read it. Change its rights." in str(refusal(path))


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_gzip(nifti, noise, share) -> None:
    error = refusal(cut(nifti("a.nii.gz", noise), share))
    assert error.code == "truncated"
    assert re.search(r"expected a complete NIfTI volume, got a truncated gzip stream \(\d+ bytes\)", str(error))


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_truncated_nifti(nifti, noise, share) -> None:
    error = refusal(cut(nifti("a.nii", noise), share))
    assert error.code == "truncated"
    assert "voxel data: expected 18480 bytes for shape (20, 21, 22), got " in str(error)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_itk(tmp_path, noise, suffix, compressed) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(path), useCompression=compressed)
    if suffix == ".mhd":
        data = tmp_path / ("a.zraw" if compressed else "a.raw")
        data.write_bytes(data.read_bytes()[:3000])
    else:
        path = cut(path, 0.6)
    error = refusal(path)
    assert error.code == "truncated"
    assert re.search("truncated or (damaged voxel data|its header damaged)", str(error))


def test_mhd_without_its_data(tmp_path, noise) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").unlink()
    error = refusal(tmp_path / "a.mhd")
    assert "voxel data: expected the file a.raw, got no a.raw beside it. Copy both files of the volume." in str(error)


def test_damaged_gzip(nifti, noise) -> None:
    path = nifti("a.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)  # decodes without complaint, to wrong voxels
    path.write_bytes(content)
    error = refusal(path)
    assert error.code == "unreadable"
    assert "file: expected a NIfTI volume, got a damaged gzip stream (CRC check failed" in str(error)
    content[20:] = b"\xff" * (len(content) - 20)
    path.write_bytes(content)
    assert "got a damaged gzip stream (Error -3 while decompressing data" in str(refusal(path))


def test_four_dimensions(nifti, tmp_path, ramp) -> None:
    error = refusal(nifti("a.nii.gz", np.stack([ramp] * 3, axis=-1)))
    assert error.code == "dimensions"
    assert "shape: expected a 3D volume, got a 4D file of 3 volumes. Split it into one 3D file per channel" in str(
        error
    )
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(ramp)] * 2), str(tmp_path / "a.nrrd"))
    assert "got a 4D file of 2 volumes" in str(refusal(tmp_path / "a.nrrd"))
    assert "got 5 axes (4, 5, 6, 1, 3)" in str(refusal(nifti("b.nii", np.zeros((4, 5, 6, 1, 3), np.uint8))))
    assert "got 1 axes (7,)" in str(refusal(nifti("c.nii", np.zeros(7, np.uint8))))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ([np.nan, 0, 0, 0], "expected finite numbers, got [[nan, 0.0, 0.0, 0.0]"),
        ([1, 0, 0, np.inf], "expected finite numbers, got [[1.0, 0.0, 0.0, inf]"),
        ([0, 0, 0, 0], "expected an invertible matrix, got spacing [0.0, 1.0, 1.0] and determinant 0"),
        ([0, 1, 0, 0], "expected an invertible matrix"),
        ([1, 0.1, 0, 0], "expected right angles between the voxel axes, got a shear with cosine 0.0995"),
    ],
)
def test_affine(nifti, ramp, row, text) -> None:
    affine = np.eye(4)
    affine[0] = row
    error = refusal(nifti("a.nii.gz", ramp, affine))
    assert error.code == "affine"
    assert f"grid affine: {text}" in str(error)
    assert str(error).endswith("Repair the header or export the volume again.")


@pytest.mark.parametrize(
    ("name", "good", "bad", "text"),
    [
        (
            "a.nrrd",
            "space origin: (0,0,0)",
            "space origin: (nan,nan,nan)",
            "header, space origin: expected finite numbers",
        ),
        ("a.mha", "Offset = 0 0 0", "Offset = 0 nan 0", "header, Offset: expected finite numbers, got 0 nan 0. Repair"),
        ("a.mha", "TransformMatrix = 1 0 0 0 1", "TransformMatrix = 1 .2 0 0 1", "a shear with cosine 0.1961"),
    ],
)
def test_affine_of_itk_formats(tmp_path, ramp, name, good, bad, text) -> None:
    path = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(ramp), str(path))
    content = path.read_bytes()
    assert good.encode() in content
    path.write_bytes(content.replace(good.encode(), bad.encode()))
    error = refusal(path)
    assert error.code == "affine"
    assert text in str(error)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_absurd_size(nifti, ramp, name) -> None:
    path = nifti(name, ramp)
    opener = nib.openers.ImageOpener
    with opener(path, "rb") as stream:
        content = bytearray(stream.read())
    for shape, text in (
        ((30000, 30000, 30000), "header: expected at most 4e+09 voxels, got 2.7e+13 voxels"),
        ((1000, 1000, 1000), "voxel data: expected 2000000000 bytes for shape (1000, 1000, 1000), got "),
    ):
        content[42:48] = np.array(shape, dtype="<i2").tobytes()
        with opener(path, "wb") as stream:
            stream.write(bytes(content))
        error = refusal(path)
        assert error.code in ("size", "truncated")
        assert text in str(error)


def test_negative_size(nifti, ramp) -> None:
    path = nifti("a.nii", ramp)
    content = bytearray(path.read_bytes())
    content[42:44] = np.int16(-4).tobytes()
    path.write_bytes(content)
    assert "expected axes of at least 1 voxel, got (-4, 5, 6)" in str(refusal(path))


def test_colours_and_complex_numbers(nifti, tmp_path) -> None:
    colours = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "voxel type: expected integers or floats, got colours or vectors" in str(refusal(nifti("a.nii", colours)))
    assert "got complex numbers" in str(refusal(nifti("b.nii.gz", np.zeros((4, 5, 6), np.complex64))))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), str(tmp_path / "c.nrrd"))
    assert "got 3 numbers per voxel (vector of 8-bit unsigned integer)" in str(refusal(tmp_path / "c.nrrd"))


def test_fractional_labels(nifti) -> None:
    values = np.array([0, 1, 0.25, 1.5, 2.5, 3.5, 4.5, 5.5], np.float32).reshape(2, 2, 2)
    error = refusal(nifti("a.nii.gz", values), read_label_map)
    assert error.code == "labels"
    assert "got 0.25, 1.5, 2.5, 3.5, 4.5 … (6 fractional values)" in str(error)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.array([0, np.nan]), "label values: expected whole numbers, got NaN or infinity in 1 voxels"),
        (np.array([np.inf, np.nan]), "NaN or infinity in 2 voxels"),
        (np.array([-3, 1], np.int16), "label values: expected values from 0 to 4294967295, got -3 to 1. Renumber"),
        (np.array([0, 2**33]), "got 0 to 8589934592"),
        (np.array([0.0, 2.0**33]), "got 0 to 8589934592"),
    ],
)
def test_labels_out_of_range(nifti, values, text) -> None:
    assert text in str(refusal(nifti("a.nii.gz", values.reshape(2, 1, 1)), read_label_map))


def test_channels_on_different_grids(nifti, ramp) -> None:
    first, moved = nifti("a.nii", ramp), np.eye(4)
    moved[0, 3] = 2.5
    with pytest.raises(
        DataError,
        match=r"case p7: .*b.nii: grid of channel 2: expected the grid of channel 1 within 0.001 mm, "
        r"got a difference of 2.5 mm",
    ):
        read_image([first, nifti("b.nii", ramp, moved)], case="p7")
    with pytest.raises(DataError, match=r"got shapes \(4, 5, 6\) and \(4, 5, 5\)"):
        read_image([first, nifti("c.nii", ramp[:, :, :5])], case="p7")


def test_images_may_hold_nan(nifti) -> None:
    assert np.isnan(read_image(nifti("a.nii", np.full((2, 2, 2), np.nan))).array).all()


def test_no_files_and_headers_only(nifti, noise) -> None:
    with pytest.raises(VolumeError, match="case p7: image: image: expected at least one file, got none"):
        read_image([], case="p7")
    assert read_grid(cut(nifti("a.nii.gz", noise), 0.9)).shape == (20, 21, 22)  # voxels are not touched


def test_errors_survive_a_worker_process(tmp_path) -> None:
    error = pickle.loads(pickle.dumps(refusal(tmp_path / "no.nii")))
    assert isinstance(error, VolumeError)
    assert error.code == "missing"
    assert "expected an existing file" in str(error)


# Volumes whose voxels lie in files of their own.


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
