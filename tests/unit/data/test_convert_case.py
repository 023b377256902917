"""One case from files to files, its voxels compared."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.data.convert_case import ConvertTask, convert_case
from pipeline.data.dataset import CaseFiles
from pipeline.data.itk import write_itk
from pipeline.data.volume_file import VolumeError, join_source
from pipeline.data.volumes import open_volume, read_image, read_label_map

LABELS = LabelTable({1: "liver", 2: "spleen"})
OBLIQUE = np.array([[0.9, -0.2, 0, 5], [0.2, 0.9, 0, -7], [0, 0, 2.5, 3], [0, 0, 0, 1.0]])


def task(
    tmp_path: Path,
    images: tuple[Path, ...],
    label: Path | None,
    *,
    targets: int | None = None,
    new_labels: LabelTable = LABELS,
    earlier: str = "",
    link: bool = False,
) -> ConvertTask:
    out = tmp_path / "out"
    written = tuple(out / f"c_{n:04d}.nii.gz" for n in range(targets or len(images)))
    target = CaseFiles("c", written, out / "c.nii.gz" if label else None)
    return ConvertTask(CaseFiles("c", images, label), target, LABELS, new_labels, link, earlier)


def test_files_that_fit_are_copied_byte_by_byte(tmp_path, nifti, ramp, blob) -> None:
    work = task(tmp_path, (nifti("a.nii.gz", ramp, OBLIQUE),), nifti("s.nii.gz", blob, OBLIQUE))
    nib.Nifti1Image(ramp, OBLIQUE).to_filename(tmp_path / "a.nii.gz")
    nib.Nifti1Image(blob, OBLIQUE).to_filename(tmp_path / "s.nii.gz")
    done = convert_case(work)
    assert (done.new, done.not_finite, done.shared) == (True, 0, 0)
    assert work.target.images[0].read_bytes() == (tmp_path / "a.nii.gz").read_bytes()
    assert work.target.label is not None
    assert work.target.label.read_bytes() == (tmp_path / "s.nii.gz").read_bytes()
    assert work.target.images[0].stat().st_nlink == 1


def test_link_makes_hard_links_and_can_be_run_again(tmp_path, nifti, ramp, blob) -> None:
    work = task(tmp_path, (nifti("a.nii.gz", ramp),), nifti("s.nii.gz", blob), link=True)
    for _ in range(2):
        convert_case(work)
        assert work.target.images[0].samefile(tmp_path / "a.nii.gz")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c.nii.gz", "c_0000.nii.gz"]


def test_an_unchanged_case_is_kept_and_a_changed_one_is_not(tmp_path, nifti, ramp, blob) -> None:
    image, label = nifti("a.nii.gz", ramp), nifti("s.nii.gz", blob)
    first = convert_case(task(tmp_path, (image,), label))
    again = convert_case(task(tmp_path, (image,), label, earlier=first.content_hash))
    assert (again.new, again.content_hash) == (False, first.content_hash)
    renumbered = LabelTable({1: "liver", 3: "spleen"})
    assert convert_case(task(tmp_path, (image,), label, earlier=first.content_hash, new_labels=renumbered)).new
    nifti("a.nii.gz", ramp + 1)
    assert convert_case(task(tmp_path, (image,), label, earlier=first.content_hash)).new
    (tmp_path / "out/c.nii.gz").unlink()
    assert convert_case(task(tmp_path, (image,), label, earlier=first.content_hash)).new


@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (1, 2)])
def test_headers_that_readers_understand_differently_are_written_anew(tmp_path, nifti, ramp, blob, codes) -> None:
    """No form, a qform alone, and two that disagree (the fixture writes the affine into the sform only)."""
    image, label = nifti("a.nii.gz", ramp, OBLIQUE, codes=codes), nifti("s.nii.gz", blob, OBLIQUE, codes=codes)
    work = task(tmp_path, (image,), label)
    convert_case(work)
    found = nib.load(work.target.images[0])
    assert found.header["sform_code"] > 0
    assert found.header["qform_code"] > 0
    assert open_volume(work.target.images[0]).grid.difference_mm(open_volume(image).grid) < 1e-5
    assert work.target.label is not None
    assert open_volume(work.target.label).grid == open_volume(work.target.images[0]).grid
    assert np.array_equal(np.asanyarray(found.dataobj), ramp)
    assert found.get_data_dtype() == np.int16


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_other_formats_keep_voxels_type_and_grid(tmp_path, ramp, blob, dtype) -> None:
    grid = Grid(ramp.shape, OBLIQUE)
    image, label = tmp_path / "a.nrrd", tmp_path / "s.mha"
    array = (ramp % 200).astype(dtype)
    write_itk(array, grid, image)
    write_itk(blob, grid, label)
    work = task(tmp_path, (image,), label)
    convert_case(work)
    found = nib.load(work.target.images[0])
    assert found.get_data_dtype() == dtype
    assert np.array_equal(np.asanyarray(found.dataobj), array)
    assert np.abs(found.affine - OBLIQUE).max() < 1e-5
    assert np.array_equal(read_label_map(work.target.label or "").array, blob)


def test_four_channels_in_one_file_and_back(tmp_path, nifti, ramp) -> None:
    whole = nifti("a.nii.gz", np.stack([ramp, ramp + 1, ramp + 2, ramp + 3], axis=-1), OBLIQUE)
    parts = tuple(join_source(whole, "channel", n + 1, 4) for n in range(4))
    split = task(tmp_path, parts, None)
    convert_case(split)
    assert [int(read_image(path).array[0, 0, 0, 0]) for path in split.target.images] == [0, 1, 2, 3]
    assert {open_volume(path).grid for path in split.target.images} == {open_volume(parts[0]).grid}
    joined = CaseFiles("c", tuple(join_source(tmp_path / "out/whole.nii.gz", "channel", n + 1, 4) for n in range(4)))
    convert_case(ConvertTask(split.target, joined, LABELS, LABELS))
    found = nib.load(tmp_path / "out/whole.nii.gz")
    assert found.shape == (4, 5, 6, 4)
    assert found.get_data_dtype() == np.int16
    assert np.array_equal(np.asanyarray(found.dataobj), np.asanyarray(nib.load(whole).dataobj))
    copied = CaseFiles("d", tuple(join_source(tmp_path / "out/copy.nii.gz", "channel", n + 1, 4) for n in range(4)))
    convert_case(ConvertTask(joined, copied, LABELS, LABELS))
    assert (tmp_path / "out/copy.nii.gz").read_bytes() == (tmp_path / "out/whole.nii.gz").read_bytes()


def test_channels_of_different_types_share_one_that_holds_both(tmp_path, nifti, ramp) -> None:
    sources = (nifti("a.nii.gz", ramp), nifti("b.nii.gz", ramp.astype(np.float32) + 0.25))
    joined = CaseFiles("c", tuple(join_source(tmp_path / "out/c.nii.gz", "channel", n + 1, 2) for n in range(2)))
    convert_case(ConvertTask(CaseFiles("c", sources), joined, LABELS, LABELS))
    assert nib.load(tmp_path / "out/c.nii.gz").get_data_dtype() == np.float32
    assert np.array_equal(read_image(joined.images).array, read_image(sources).array)


def test_a_channel_a_hair_off_the_first_is_written_on_its_grid(tmp_path, nifti, ramp) -> None:
    moved = OBLIQUE.copy()
    moved[0, 3] += 5e-4
    work = task(tmp_path, (nifti("a.nii.gz", ramp, OBLIQUE), nifti("b.nii.gz", ramp, moved)), None)
    convert_case(work)
    first, second = (open_volume(path).grid for path in work.target.images)
    assert first == second


def test_labels_are_renumbered_and_small(tmp_path, nifti, ramp, blob) -> None:
    label = nifti("s.nii.gz", blob.astype(np.int16))
    work = task(tmp_path, (nifti("a.nii.gz", ramp),), label, new_labels=LabelTable({5: "liver", 9: "spleen"}))
    convert_case(work)
    found = nib.load(work.target.label or "")
    assert found.get_data_dtype() == np.uint8
    assert np.array_equal(np.asanyarray(found.dataobj), np.array([0, 5, 9])[blob])


def test_label_maps_of_a_larger_type_or_with_a_scale_are_written_small(tmp_path, nifti, ramp, blob) -> None:
    for array, scale in ((blob.astype(np.int16), (1, 0)), (blob.astype(np.float32), (1, 0)), (blob * 2, (0.5, 0))):
        work = task(tmp_path, (nifti("a.nii.gz", ramp),), nifti("s.nii.gz", array, scale=scale))
        convert_case(work)
        found = nib.load(work.target.label or "")
        assert found.get_data_dtype() == np.uint8
        assert np.array_equal(np.asanyarray(found.dataobj), blob)


def test_one_mask_per_organ_and_back(tmp_path, nifti, ramp, blob) -> None:
    image, label = nifti("a.nii.gz", ramp, OBLIQUE), nifti("s.nii.gz", blob, OBLIQUE)
    masks = ((1, tmp_path / "out/liver.nii.gz"), (2, tmp_path / "out/spleen.nii.gz"))
    folder = CaseFiles("c", (tmp_path / "out/ct.nii.gz",), organs=masks)
    convert_case(ConvertTask(CaseFiles("c", (image,), label), folder, LABELS, LABELS))
    for value, path in masks:
        assert np.array_equal(read_label_map(path).array, (blob == value).astype(np.uint8))
    back = CaseFiles("c", (tmp_path / "back/c.nii.gz",), tmp_path / "back/s.nii.gz")
    assert convert_case(ConvertTask(folder, back, LABELS, LABELS)).shared == 0
    assert np.array_equal(read_label_map(back.label or "").array, blob)


def test_overlapping_masks_are_counted(tmp_path, nifti, ramp, blob) -> None:
    masks = ((1, nifti("m1.nii.gz", (blob > 0).astype(np.uint8))), (2, nifti("m2.nii.gz", (blob > 1).astype(np.uint8))))
    source = CaseFiles("c", (nifti("a.nii.gz", ramp),), organs=masks)
    target = CaseFiles("c", (tmp_path / "out/c.nii.gz",), tmp_path / "out/s.nii.gz")
    assert convert_case(ConvertTask(source, target, LABELS, LABELS)).shared == 1


def test_nan_is_kept_and_counted(tmp_path, nifti, ramp) -> None:
    array = ramp.astype(np.float32)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    work = task(tmp_path, (nifti("a.nii.gz", array),), None)
    assert convert_case(work).not_finite == 3
    assert np.array_equal(read_image(work.target.images[0]).array[0], array, equal_nan=True)


def test_scaled_intensities_keep_their_values(tmp_path, nifti, ramp) -> None:
    """A scaled file fits as it is; split from a 4D file, the values it stands for are written."""
    whole = nifti("a.nii.gz", np.stack([ramp, ramp], axis=-1), scale=(0.5, -3))
    work = task(tmp_path, tuple(join_source(whole, "channel", n, 2) for n in (1, 2)), None)
    convert_case(work)
    assert np.array_equal(read_image(work.target.images[1]).array[0], ramp * 0.5 - 3)
    assert nib.load(work.target.images[1]).get_data_dtype() == np.float32


def test_double_precision_stays_where_it_says_more(tmp_path, nifti, ramp) -> None:
    fine = ramp.astype(np.float64) + 1e-12
    whole = nifti("a.nii.gz", np.stack([fine, fine], axis=-1))
    work = task(tmp_path, tuple(join_source(whole, "channel", n, 2) for n in (1, 2)), None)
    convert_case(work)
    assert np.array_equal(np.asanyarray(nib.load(work.target.images[0]).dataobj), fine)


def refused(work: ConvertTask, message: str) -> None:
    """A failing case leaves none of its files, not even those of an earlier conversion."""
    for path in work.target.files:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"earlier")
    with pytest.raises(DataError, match=message):
        convert_case(work)
    assert not any((work.target.images[0].parent).iterdir())


def test_what_cannot_be_used_is_refused_and_leaves_nothing(tmp_path, nifti, ramp, blob) -> None:
    image, label = nifti("a.nii.gz", ramp), nifti("s.nii.gz", blob)
    other = nifti("o.nii.gz", blob[:3])
    refused(task(tmp_path, (image,), other), "case c: .*label map grid: expected the image grid")
    refused(task(tmp_path, (image, other), label), "grid of channel 2: expected the grid of channel 1")
    refused(task(tmp_path, (tmp_path / "no.nii.gz",), label), "expected an existing file, got nothing there")
    refused(task(tmp_path, (image,), tmp_path / "no.nii.gz"), "case c: .*no.nii.gz")
    refused(task(tmp_path, (image,), nifti("u.nii.gz", blob * 3)), r"case c: .*label table \(1, 2\), got \[3, 6\]")
    refused(task(tmp_path, (image,), nifti("f.nii.gz", blob + 0.5)), "expected whole numbers")
    refused(task(tmp_path, (image,), label, targets=2), "image: expected 2 channels, got 1")
    refused(task(tmp_path, (nifti("t.nii.gz", np.stack([ramp, ramp], -1)),), label), "expected a 3D volume, got a 4D")
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(gzip.compress(gzip.decompress(image.read_bytes()))[:-20])
    refused(task(tmp_path, (cut,), label), "truncated")
    assert issubclass(VolumeError, DataError)
