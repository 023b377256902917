"""Units, forms and steps of NIfTI headers: where voxels lie, what is doubtful, and what a mask is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.check import check_case
from pipeline.data.dataset import CaseFiles
from pipeline.data.itk_open import itk_affine
from pipeline.data.volumes import open_volume, read_grid, read_label_map, write_label_map
from pipeline.evaluate.scoring import evaluate
from pipeline.stages.label_stats import label_stats

PLACE = np.array([[-1.5, 0, 0, 40], [0, -1.5, 0, 30], [0, 0, 2.0, -20], [0, 0, 0, 1]])
MASK = np.ones((4, 5, 6), np.uint8)


def _store(path: Path, affine: np.ndarray, unit: int = 2, codes: tuple[int, int] = (1, 1), **fields: Any) -> Path:
    image = nib.Nifti1Image(MASK, affine)
    image.set_sform(affine, 1)
    image.set_qform(fields.pop("qform", affine), 1)
    header = image.header
    header["xyzt_units"] = unit
    header["sform_code"], header["qform_code"] = codes
    header["pixdim"][1:4] = fields.pop("steps", header["pixdim"][1:4])
    plain = nib.Nifti1Image(MASK, None, header)
    nib.save(plain, path)
    return path


def _itk(path: Path) -> np.ndarray:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    read = {"size": reader.GetSize(), "spacing": reader.GetSpacing(), "origin": reader.GetOrigin()}
    return itk_affine({**read, "direction": reader.GetDirection()})


@pytest.mark.parametrize(("unit", "mm"), [(1, 1000.0), (2, 1.0), (3, 0.001), (1 + 8, 1000.0), (3 + 16, 0.001)])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (2, 0)])
def test_a_unit_is_read_as_mm_and_written_back(tmp_path, unit, mm, codes) -> None:
    stored = PLACE.copy()
    stored[:3] /= mm
    path = _store(tmp_path / "a.nii.gz", stored, unit, codes)
    grid = read_grid(path)
    np.testing.assert_allclose(grid.affine, PLACE, atol=1e-5)
    np.testing.assert_allclose(_itk(path), PLACE, atol=1e-5)
    assert grid.voxel_volume_ml == pytest.approx(0.0045, rel=1e-6)
    assert open_volume(path).doubts == ()
    write_label_map(LabelMap(MASK, grid), tmp_path / "mask.nii.gz", like=path)
    header = nib.load(tmp_path / "mask.nii.gz").header
    assert int(header["xyzt_units"]) == unit % 8
    np.testing.assert_allclose(header.get_sform(), stored, rtol=1e-6)
    assert read_grid(tmp_path / "mask.nii.gz").matches(grid, 1e-5)
    np.testing.assert_allclose(_itk(tmp_path / "mask.nii.gz"), PLACE, atol=1e-5)


@pytest.mark.parametrize("unit", [0, 4, 5, 7])
def test_no_unit_and_an_unknown_one_are_mm(tmp_path, unit) -> None:
    path = _store(tmp_path / "a.nii", PLACE, unit)
    np.testing.assert_allclose(read_grid(path).affine, PLACE)
    np.testing.assert_allclose(_itk(path), PLACE)
    write_label_map(LabelMap(MASK, read_grid(path)), tmp_path / "mask.nii", like=path)
    assert int(nib.load(tmp_path / "mask.nii").header["xyzt_units"]) == 2


def test_steps_that_are_not_those_of_the_sform(tmp_path) -> None:
    """ITK reads steps of 0.866 mm where we read 1.0; the mask lies on its image for both."""
    place = np.eye(4)
    place[:3, 3] = -55
    path = _store(tmp_path / "a.nii", place, codes=(2, 0), steps=(0.866, 0.866, 0.796))
    volume = open_volume(path)
    assert volume.grid.spacing_mm == (1.0, 1.0, 1.0)
    assert volume.forms_apart_mm == pytest.approx(np.linalg.norm([3 * 0.134, 4 * 0.134, 5 * 0.204]), rel=1e-6)
    assert [(doubt.severity, doubt.code) for doubt in volume.doubts] == [("warning", "forms")]
    assert volume.doubts[0].what == f"{path}: sform and pixdim"
    write_label_map(LabelMap(MASK, volume.grid), tmp_path / "mask.nii.gz", like=path)
    np.testing.assert_allclose(_itk(tmp_path / "mask.nii.gz"), _itk(path), atol=1e-6)
    assert read_grid(tmp_path / "mask.nii.gz") == volume.grid
    write_label_map(LabelMap(MASK, volume.grid), tmp_path / "mask.nii.gz", like=path, settle=True)
    np.testing.assert_allclose(_itk(tmp_path / "mask.nii.gz"), place, atol=1e-6)


def test_a_mask_has_the_forms_of_an_image_whose_forms_differ(tmp_path) -> None:
    moved = PLACE.copy()
    moved[0, 3] += 15
    path = _store(tmp_path / "a.nii", PLACE, codes=(2, 1), qform=moved)
    write_label_map(LabelMap(MASK, read_grid(path)), tmp_path / "mask.nii", like=path)
    header = nib.load(tmp_path / "mask.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 1)
    np.testing.assert_allclose(header.get_sform(), PLACE)
    np.testing.assert_allclose(header.get_qform(), moved)


@pytest.mark.filterwarnings("ignore::pipeline.core.notices.FileWarning")  # nibabel and ITK say it, too
@pytest.mark.parametrize("codes", [(0, 0), (0, -1), (99, 0)])
def test_without_a_code_the_mask_has_none_either(tmp_path, codes) -> None:
    path = _store(tmp_path / "a.nii.gz", PLACE, unit=3)
    content = bytearray(nib.openers.Opener(path).read())
    content[252:256] = np.array([codes[1], codes[0]], "<i2").tobytes()
    (tmp_path / "b.nii").write_bytes(content)
    volume = open_volume(tmp_path / "b.nii")
    assert volume.form_codes == codes
    assert [doubt.code for doubt in volume.doubts] == ["form_codes"]
    write_label_map(LabelMap(MASK, volume.grid), tmp_path / "mask.nii", like=tmp_path / "b.nii")
    stored = np.frombuffer((tmp_path / "mask.nii").read_bytes()[252:256], "<i2")
    assert tuple(stored[::-1]) == codes
    assert read_label_map(tmp_path / "mask.nii").grid.matches(volume.grid, 1e-6)
    np.testing.assert_allclose(_itk(tmp_path / "mask.nii"), _itk(tmp_path / "b.nii"), atol=1e-6)


def test_a_mask_of_another_grid_has_forms_of_its_own(tmp_path) -> None:
    path = _store(tmp_path / "a.nii", PLACE, codes=(0, 0))
    grid = Grid((4, 5, 6), PLACE)
    write_label_map(LabelMap(MASK, grid), tmp_path / "mask.nii", like=path)
    header = nib.load(tmp_path / "mask.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert read_grid(tmp_path / "mask.nii").matches(grid)


@pytest.mark.filterwarnings("ignore::pipeline.core.notices.FileWarning")  # nibabel and ITK say it, too
def test_steps_below_zero_mirror_the_volume_for_others(tmp_path) -> None:
    path = _store(tmp_path / "a.nii", PLACE, codes=(0, 1))
    content = bytearray(path.read_bytes())
    content[80:84] = np.array([-1.5], "<f4").tobytes()
    path.write_bytes(content)
    assert [doubt.what for doubt in open_volume(path).doubts] == [f"{path}: qform and pixdim"]


def test_half_a_turn_is_not_turned_by_rounding(tmp_path) -> None:
    """A quaternion of three single precision numbers: what they leave of 1 is rounding."""
    tilt = np.eye(4)
    tilt[:3, :3] = [[-1, 0, 0], [0, -np.cos(0.3), np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]]
    path = _store(tmp_path / "a.nii", tilt @ np.diag([0.7, 0.7, 3, 1]), codes=(0, 1))
    np.testing.assert_allclose(read_grid(path).affine, _itk(path), atol=1e-7)


def test_a_file_of_two_axes_across_the_body_alone_is_plain(tmp_path) -> None:
    for name, turn, codes in (("axial", np.eye(4), []), ("sagittal", np.eye(4)[[2, 0, 1, 3]], ["axes"])):
        image = nib.Nifti1Image(MASK[:, :, 0], turn @ PLACE)
        nib.save(image, tmp_path / f"{name}.nii")
        assert [doubt.code for doubt in open_volume(tmp_path / f"{name}.nii").doubts] == codes


def test_an_evaluation_says_that_label_maps_may_lie_elsewhere(tmp_path) -> None:
    for folder, codes in (("ref", (1, 1)), ("pred", (0, 0))):
        (tmp_path / folder).mkdir()
        _store(tmp_path / folder / "a.nii.gz", np.diag([-1.0, 1, 1, 1]) @ np.eye(4), codes=codes)
    found = evaluate(tmp_path / "pred", tmp_path / "pred")
    assert found.notes[-1] == (
        "1 of 1 cases have label maps that other programs may place elsewhere or size otherwise, e.g. "
        f"{tmp_path / 'pred/a.nii.gz'}: sform_code and qform_code 0 and 0."
    )
    assert not any("elsewhere" in note for note in evaluate(tmp_path / "ref", tmp_path / "ref").notes)
    batch, _ = label_stats(tmp_path / "pred", tmp_path / "stats", jobs=1)
    assert batch.notes[-1] == found.notes[-1]
    assert not any("elsewhere" in note for note in label_stats(tmp_path / "ref", tmp_path / "stats")[0].notes)


def test_a_label_map_that_lies_elsewhere_for_others_is_reported(tmp_path) -> None:
    image = _store(tmp_path / "a.nii", PLACE)
    label = _store(tmp_path / "l.nii", PLACE, steps=(1.5, 1.5, 3))
    facts = check_case(CaseFiles("c", (image,), label), LabelTable({1: "organ"}), 1)
    assert "l.nii: sform and pixdim: expected one position for every voxel, got positions up to 5 mm apart" in next(
        problem.message for problem in facts.problems if problem.code == "forms"
    )
