"""Copies without free text: nothing of it is left, voxels, grids and label tables are as before."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Extension
from PIL import Image, PngImagePlugin

from pipeline.core.grid import Grid
from pipeline.core.volume import LabelMap
from pipeline.data.header_text import copy_volume
from pipeline.data.legend import LegendEntry
from pipeline.data.volume_file import VolumeError
from pipeline.data.volumes import open_volume, read_label_map, write_label_map, write_voxels

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
VOXELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
NAME = b"SMITH"


def content(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw + gzip.decompress(raw) if path.suffix == ".gz" else raw


def copied(path: Path, **options: bool) -> tuple[tuple[str, ...], Path]:
    target = path.parent / "copy" / path.name
    return copy_volume(path, target, **options), target


def require_same(one: Path, other: Path) -> None:
    first, second = open_volume(one), open_volume(other)
    np.testing.assert_array_equal(first.load(), second.load())
    assert first.load().dtype == second.load().dtype
    assert first.grid == second.grid


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti(tmp_path: Path, kind: type, suffix: str, order: str) -> None:
    image = kind(VOXELS, AFFINE, kind.header_class(endianness=order))
    for field in ("descrip", "aux_file", "intent_name", *(("db_name", "data_type") if kind is nib.Nifti1Image else ())):
        image.header[field] = f"{field[:3]} SMITH"
    image.header.extensions.append(Nifti1Extension("comment", b"patient SMITH"))
    image.header.extensions.append(Nifti1Extension("comment", b"SMITH" * 90))
    nib.save(image, tmp_path / f"a{suffix}")
    cleared, copy = copied(tmp_path / f"a{suffix}")
    assert set(cleared) >= {"descrip", "aux_file", "intent_name", "extension"}
    assert ("db_name" in cleared) is (kind is nib.Nifti1Image)
    assert NAME not in content(copy)
    assert NAME in content(tmp_path / f"a{suffix}")
    require_same(tmp_path / f"a{suffix}", copy)
    assert len(nib.load(copy).header.extensions) == 2
    assert copy_volume(copy, tmp_path / f"again{suffix}") == ()
    kept, same = copied(tmp_path / f"a{suffix}", keep_text=True)
    assert (kept, same.read_bytes()) == ((), (tmp_path / f"a{suffix}").read_bytes())


@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd"])
def test_names_of_labels_stay_and_what_we_write_is_copied_byte_by_byte(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    array = np.zeros((4, 5, 6), np.uint8)
    array[1, 2, 3] = 2
    legend = [LegendEntry(2, "liver", "#ff0000")]
    write_label_map(LabelMap(array, Grid(array.shape, AFFINE)), path, legend=legend)
    cleared, copy = copied(path)
    assert (cleared, copy.read_bytes()) == ((), path.read_bytes())
    linked = tmp_path / f"link{suffix}"
    copy_volume(path, linked, link=True)
    assert linked.samefile(path)
    np.testing.assert_array_equal(read_label_map(copy).array, array)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".tif"])
def test_files_without_text_are_copied_byte_by_byte(tmp_path: Path, suffix: str) -> None:
    picture = suffix in (".png", ".tif")
    array = VOXELS[:, :, :1].astype(np.uint8) if picture else VOXELS
    grid = Grid(array.shape, np.diag([-1.0, -1, 1, 1]) if picture else AFFINE)
    write_voxels(array, grid, tmp_path / f"a{suffix}")
    cleared, copy = copied(tmp_path / f"a{suffix}")
    assert (cleared, copy.read_bytes()) == ((), (tmp_path / f"a{suffix}").read_bytes())


@pytest.mark.parametrize(("text", "kept"), [("5.0.10", True), ("FSL5.0", True), ("12.03.85", False), ("none", True)])
def test_what_fsl_writes_into_every_header_names_no_one(tmp_path: Path, text: str, kept: bool) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header["descrip"] = text
    nib.save(image, tmp_path / "a.nii")
    assert copied(tmp_path / "a.nii")[0] == (() if kept else ("descrip",))


def test_a_header_that_says_a_wrong_size(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header["descrip"] = "SMITH"
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[:4] = bytes(4)
    (tmp_path / "a.nii").write_bytes(raw)
    cleared, copy = copied(tmp_path / "a.nii")
    assert cleared == ("descrip",)
    assert NAME not in content(copy)


def test_fields_of_nrrd_without_a_blank_stay(tmp_path: Path) -> None:
    write_voxels(VOXELS, Grid(VOXELS.shape, AFFINE), tmp_path / "a.nrrd")
    raw = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(raw.replace(b"type: ", b"type:", 1).replace(b"\n\n", b"\ntype:=SMITH\n\n", 1))
    cleared, copy = copied(tmp_path / "a.nrrd")
    assert cleared == ("type",)
    assert b"type:short" in copy.read_bytes()
    assert NAME not in copy.read_bytes()


def test_the_name_in_a_gzip_header(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "a.nii")
    with gzip.open(tmp_path / "SMITH.nii.gz", "wb") as stream:
        stream.write((tmp_path / "a.nii").read_bytes())
    (tmp_path / "SMITH.nii.gz").rename(tmp_path / "b.nii.gz")
    cleared, copy = copied(tmp_path / "b.nii.gz")
    assert cleared == ("gzip header",)
    assert NAME not in copy.read_bytes()
    require_same(tmp_path / "b.nii.gz", copy)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("suffix", [".nrrd", ".seg.nrrd", ".mha"])
def test_nrrd_and_metaimage(tmp_path: Path, suffix: str, compress: bool) -> None:
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing([1.5, 2.5, 2])
    for key in ("PatientName", "Comment", "0010|0010", "Name", "Segment0_Name", "Segmentation_SourceRepresentation"):
        image.SetMetaData(key, "SMITH" if not key.startswith("Seg") else "liver")
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image, str(path), useCompression=compress)
    if suffix != ".mha":
        head, rest = path.read_bytes().split(b"\n\n", 1)
        path.write_bytes(head + b"\n# drawn by SMITH\ncontent: SMITH\nsample units: SMITH\n\n" + rest)
    cleared, copy = copied(path)
    assert "PatientName" in cleared
    assert suffix == ".mha" or {"comment", "content", "sample units"} <= set(cleared)
    assert NAME not in copy.read_bytes()
    assert path.stat().st_size == copy.stat().st_size
    require_same(path, copy)
    if suffix != ".mha":
        assert sitk.ReadImage(str(copy)).GetMetaData("Segment0_Name") == "liver"
    assert copy_volume(copy, tmp_path / f"again{suffix}") == ()


def test_png(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "SMITH")
    info.add_itxt("Patient", "SMITH", zip=False)
    path = tmp_path / "a.png"
    Image.fromarray(VOXELS[0].astype(np.uint8)).save(path, pnginfo=info, dpi=(100, 100))
    path.write_bytes(path.read_bytes() + b"SMITH")
    cleared, copy = copied(path)
    assert cleared == ("tEXt", "iTXt", "end of the file")
    assert NAME not in copy.read_bytes()
    require_same(path, copy)


@pytest.mark.filterwarnings("ignore::pipeline.core.notices.FileWarning")  # nibabel and ITK say it, too
@pytest.mark.parametrize("big", [False, True])
def test_tiff(tmp_path: Path, big: bool) -> None:
    path = tmp_path / "a.tif"
    exif = Image.Exif()
    exif[0x013B], exif[0x010E] = "SMITH", "a scan of SMITH"
    exif.get_ifd(0x8769)[0x9286] = b"SMITH took it"
    Image.fromarray(VOXELS[0].astype(np.uint8)).save(path, exif=exif, big_tiff=big)
    cleared, copy = copied(path)
    assert {"tag 315", "tag 270"} <= set(cleared)
    assert NAME not in copy.read_bytes()
    require_same(path, copy)
    # A directory that leads back to itself ends, and so does one that leads out of the file.
    raw = bytearray(path.read_bytes())
    for number in (8, len(raw) - 3, 1 << 31):
        struct.pack_into("<Q" if big else "<I", raw, 8 if big else 4, number)
        path.write_bytes(raw)
        copied(path)


def test_a_header_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.header_text._MOST_BYTES", 1000)
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"NRRD0004\n" + b"# more\n" * 500 + b"\n")
    with pytest.raises(VolumeError, match=re.escape("a.nrrd: header: expected at most 0 MB, got more.")):
        copied(path)
