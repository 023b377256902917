"""``repair_case``: what is done about each kind of problem, and what is left out."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.core.errors import DataError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.repair_case import PlannedCase, RepairOutcome, RepairTask, planned_cases, repair_case
from pipeline.data.repair_volumes import LabelRules
from pipeline.data.volumes import read_grid, read_image, read_label_map, write_label_map, write_voxels

LABELS = LabelTable({1: "liver", 2: "spleen"})
PLACE = np.array([[-1.0, 0, 0, 30], [0, -1, 0, 20], [0, 0, 2, -10], [0, 0, 0, 1]])


@pytest.fixture
def case(nifti, ramp, blob) -> CaseFiles:
    return CaseFiles("a", (nifti("image.nii.gz", ramp, PLACE),), nifti("label.nii.gz", blob, PLACE))


@pytest.fixture
def fix(tmp_path: Path):
    """Repair one case into ``tmp_path / copy``."""

    def run(files: CaseFiles, *channels: str, **rules: object) -> RepairOutcome:
        labels = rules.pop("labels", LABELS)
        task = RepairTask(
            PlannedCase(files, False), channels or ("MRI",), LabelRules(labels, **rules), tmp_path / "copy"
        )
        return repair_case(task)

    return run


def log(done: RepairOutcome) -> list[tuple[str, str, str]]:
    return [(change.problem, change.before, change.after) for change in done.changes]


def refused(fix, files: CaseFiles, *channels: str, **rules: object) -> str:
    with pytest.raises(DataError) as error:
        fix(files, *channels, **rules)
    copy = files.images[0].parent / "copy"
    assert list(copy.glob("*/*")) == []
    return str(error.value)


def test_a_sound_case_is_copied_byte_by_byte_and_kept_the_next_time(case, fix, tmp_path) -> None:
    first = fix(replace(case, group="g", split="validation"))
    assert first.changes == ()
    assert first.entry == {
        "case": "a",
        "image": ["images/a.nii.gz"],
        "label": "labels/a.nii.gz",
        "group": "g",
        "split": "validation",
    }
    copies = [tmp_path / "copy/images/a.nii.gz", tmp_path / "copy/labels/a.nii.gz"]
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in (*case.images, case.label)]
    assert first.facts is not None
    assert first.facts.values == (1, 2)
    again = fix(replace(case, group="g", split="validation"))
    assert (again.entry, again.facts) == (first.entry, None)
    copies[0].unlink()
    assert fix(replace(case, group="g", split="validation")).facts is not None
    assert copies[0].is_file()


def test_a_changed_input_is_repaired_anew_and_takes_its_old_files_with_it(case, fix, tmp_path, nifti, ramp) -> None:
    fix(case)
    plain = nifti("image.nii", ramp + 1, PLACE)
    assert fix(replace(case, images=(plain,))).entry["image"] == ["images/a.nii"]
    assert sorted(path.name for path in (tmp_path / "copy/images").iterdir()) == ["a.nii"]
    message = refused(fix, replace(case, images=(tmp_path / "gone.nii",)))
    assert "gone.nii: file: expected an existing file" in message


@pytest.mark.parametrize("hurt", ["files", "entry", "kind"])
def test_a_record_that_names_files_elsewhere_is_none(case, fix, tmp_path, hurt) -> None:
    first = fix(case)
    precious, record = tmp_path / "precious.txt", tmp_path / "copy/repairs/a.json"
    precious.write_text("mine")
    content = json.loads(record.read_text())
    strange = {"files": ["../precious.txt", str(precious)], "entry": {"image": ["../precious.txt"]}, "kind": {}}
    content |= {"files": [5]} if hurt == "kind" else {hurt: strange[hurt]}
    record.write_text(json.dumps(content))
    again = fix(case)
    assert again.facts is not None  # written anew
    assert again.entry == first.entry
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("orientation", ["RAS", "SPL", "AIR"])
def test_label_maps_listed_along_other_axes_are_brought_back(case, fix, tmp_path, blob, orientation) -> None:
    write_label_map(LabelMap(blob, Grid(blob.shape, PLACE)).reoriented(orientation), case.label)
    done = fix(case)
    assert [problem for problem, _, _ in log(done)] == ["label_grid"]
    result = read_label_map(tmp_path / "copy/labels/a.nii.gz")
    np.testing.assert_array_equal(result.array, blob)
    assert result.grid.matches(Grid(blob.shape, PLACE))


def test_a_rounded_header_is_replaced_and_no_voxel_moves(case, fix, tmp_path, blob, nifti) -> None:
    moved = PLACE.copy()
    moved[0, 3] += 0.2
    done = fix(replace(case, label=nifti("l.nii.gz", blob, moved)))
    assert log(done) == [("label_grid", "0.2 mm apart", "4 x 5 x 6 voxels of 1 x 1 x 2 mm, LPS, from (30, 20, -10) mm")]
    np.testing.assert_array_equal(read_label_map(tmp_path / "copy/labels/a.nii.gz").array, blob)


def test_labels_too_small_for_the_image_grid_are_said(case, fix, tmp_path, nifti) -> None:
    fine = np.zeros((8, 10, 12), np.uint8)
    fine[0:8, 2:8, 2:8] = 1
    fine[5, 5, 9] = 2  # an eighth of a voxel of the image
    grid = Grid((4, 5, 6), PLACE).resized(fine.shape)
    done = fix(replace(case, label=nifti("l.nii.gz", fine, grid.affine)))
    assert log(done)[0][2].endswith(" mm; too small for it, gone: label 2")
    assert read_label_map(tmp_path / "copy/labels/a.nii.gz").values() == (0, 1)


def test_what_has_no_place_in_the_world_is_not_guessed(case, fix, tmp_path, blob, nifti, ramp) -> None:
    lost = replace(case, label=nifti("identity.nii.gz", blob))
    formless = replace(case, label=nifti("formless.nii.gz", blob, codes=(0, 0)))
    for files in (lost, formless):
        message = refused(fix, files)
        assert "expected headers that say where the voxels are" in message
        assert message.endswith("If its voxels are those of the image, add --image-grid.")
        done = fix(files, image_grid=True)
        np.testing.assert_array_equal(read_label_map(tmp_path / "copy/labels/a.nii.gz").array, blob)
        assert log(done)[0][0] == "label_grid"
    blank = replace(case, images=(nifti("blank.nii.gz", ramp, codes=(0, 0)),))
    assert "got one without a position" in refused(fix, blank)
    bare = replace(case, label=nifti("small.nii.gz", blob[1:], codes=(0, 0)))
    assert refused(fix, bare, image_grid=True).endswith("Export it again.")


def test_a_label_map_elsewhere_is_left_out(case, fix, blob, nifti) -> None:
    far = PLACE.copy()
    far[1, 3] += 2  # blob lies at j = 2 of 5, so 2 mm to anterior is still inside
    near = replace(case, label=nifti("near.nii", blob, far))
    message = refused(fix, near)
    assert "got the image's shape at another place or spacing. If its voxels are those of the image, add" in message
    assert message.endswith("add --image-grid; if its header is right, add --label-header.")
    assert log(fix(near, label_header=True))[0][0] == "label_grid"
    far[0, 3] += 2  # i = 1 leaves the image, i = 2 stays: one of three voxels is inside
    message = refused(fix, replace(case, label=nifti("far.nii", blob, far)))
    assert "expected at least 90% of the labelled voxels inside the image, got 33%." in message


SCAN = Grid((6, 7, 5), np.array([[1.5, 0, 0, -20], [0, 1.5, 0, 8], [0, 0, 2, 4], [0, 0, 0, 1.0]]))


def drawn() -> np.ndarray:
    """Two organs in the middle, unlike along any two axes, so that no wrong place gives them back."""
    array = np.zeros(SCAN.shape, np.uint8)
    array[2:4, 2:5, 1:3] = 1
    array[3, 3, 2] = 2
    return array


@pytest.fixture
def labelled(nifti):
    """A case whose label map has another array or header than its image."""

    def make(array: np.ndarray, affine: np.ndarray) -> CaseFiles:
        image = np.arange(np.prod(SCAN.shape), dtype=np.int16).reshape(SCAN.shape)
        return CaseFiles("a", (nifti("scan.nii", image, SCAN.affine),), nifti("drawn.nii", array, affine))

    return make


def moved(affine: np.ndarray, *offset_mm: float) -> np.ndarray:
    result = affine.copy()
    result[:3, 3] += offset_mm
    return result


@pytest.mark.parametrize(
    ("array", "affine", "reason"),
    [
        (drawn().T, SCAN.affine, "the image's axes in another order"),
        (drawn().transpose(1, 0, 2), SCAN.affine, "the image's axes in another order"),
        (drawn().T, np.diag([2, 1.5, 1.5, 1]) @ moved(np.eye(4), -9, 4, 4), "the image's axes in another order"),
        (drawn()[::2, ::2, ::2], SCAN.affine, "so its header was copied"),
        (drawn()[:, :, :4], SCAN.affine, "so its header was copied"),  # which slice is missing?
        (drawn()[:, :, 1:], SCAN.affine, "so its header was copied"),
        (
            drawn()[::2, ::2, ::2],
            moved(np.diag([1, 1, 1, 1.0]), -18, 10, 5),
            "neither the image's voxels nor its field",
        ),
        (drawn(), moved(SCAN.affine, 0, 0, 2), "the image's shape at another place"),
        (drawn(), moved(SCAN.affine, 0.75, 0.75, 1), "the image's shape at another place"),  # corners for centres
        (drawn()[::-1], np.diag([-1, 1, 1, 1]) @ moved(SCAN.affine, 34, 0, 0), "the image's shape at another place"),
        (drawn()[:, :, 1:4], moved(SCAN.affine, 0, 0, 2.6), "neither the image's voxels nor its field of view"),
        (drawn()[1:5, 1:6, :], np.array([[1.5, -0.3, 0, -18], [0.3, 1.5, 0, 9], [0, 0, 2, 4], [0, 0, 0, 1]]), "turned"),
    ],
)
def test_a_label_map_whose_place_nothing_proves_is_left_out(fix, labelled, array, affine, reason) -> None:
    message = refused(fix, labelled(array, affine))
    assert reason in message
    assert "label map grid: expected the image's voxels in another order or number, or its field of view" in message
    empty = fix(labelled(array * 0, affine))  # background is background wherever it lies
    assert [entry[0] for entry in log(empty)] == ["label_grid"]


def test_axes_swapped_in_a_cube_are_told_by_the_spacing(fix, nifti) -> None:
    array, affine = np.zeros((5, 5, 5), np.uint8), np.diag([1, 1, 2.0, 1])
    array[1:3, 1:4, 2] = 1
    image = nifti("cube.nii", np.arange(125, dtype=np.int16).reshape(5, 5, 5), affine)
    swapped = nifti("swapped.nii", np.ascontiguousarray(array.T), np.diag([2, 1, 1.0, 1]))
    assert "the image's shape at another place or spacing" in refused(fix, CaseFiles("a", (image,), swapped))


@pytest.mark.parametrize(
    ("array", "affine"),
    [
        (drawn()[::-1], SCAN.reoriented("LAS").affine),
        (drawn().T[:, ::-1], SCAN.reoriented("SPR").affine),
        (drawn()[1:5, 1:6, 1:4], SCAN.cropped((1, 1, 1), (5, 6, 4)).affine),
        (np.pad(drawn(), 2), SCAN.cropped((-2, -2, -2), (8, 9, 7)).affine),
        (drawn().repeat(2, 0).repeat(3, 1), SCAN.resized((12, 21, 5)).affine),
    ],
)
def test_a_label_map_whose_header_proves_its_place_is_brought_back(fix, labelled, tmp_path, array, affine) -> None:
    assert [entry[0] for entry in log(fix(labelled(array, affine)))] == ["label_grid"]
    np.testing.assert_array_equal(read_label_map(tmp_path / "copy/labels/a.nii").array, drawn())


def test_a_header_that_lost_its_origin_proves_nothing(fix, nifti) -> None:
    image = nifti("scan.nii", np.arange(210, dtype=np.int16).reshape(6, 7, 5), moved(np.eye(4), -2, -2, -1))
    lost = nifti("lost.nii", drawn()[1:5, 1:6, 1:4], np.eye(4))
    assert "a first voxel at the world's origin" in refused(fix, CaseFiles("a", (image,), lost))


def test_whole_numbers_in_floats(case, fix, tmp_path, blob, nifti) -> None:
    noisy = nifti("noisy.nii.gz", blob + np.float32(2e-4), PLACE)
    assert log(fix(replace(case, label=noisy))) == [("float_labels", "float32", "uint8")]
    written = nib.load(tmp_path / "copy/labels/a.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), blob)
    half = replace(case, label=nifti("half.nii.gz", blob / 2, PLACE))
    assert "expected whole numbers, got 0.5 (1 fractional values)" in refused(fix, half)
    nan = blob.astype(np.float32)
    nan[0, 0, 0] = np.nan
    assert "got NaN or infinity in 1 voxels" in refused(fix, replace(case, label=nifti("nan.nii.gz", nan, PLACE)))


def test_unknown_values_need_a_table(case, fix, tmp_path, blob, nifti) -> None:
    strange = np.where(blob == 2, -7, blob.astype(np.int16))
    strange[0, 0, 0] = 255
    files = replace(case, label=nifti("strange.nii.gz", strange, PLACE))
    assert "got -7, 255. Say what they become: --remap=-7=0 or --remap table.csv" in refused(fix, files)
    message = refused(fix, files, remap={-7: 2})
    assert "expected only those of the label table, got 255. Say what they become: --remap=255=0" in message
    done = fix(files, remap={-7: 2, 255: 0})
    assert log(done) == [("unknown_labels", "-7 in 1 voxels, 255 in 1 voxels", "-7 is 2, 255 is 0")]
    np.testing.assert_array_equal(read_label_map(tmp_path / "copy/labels/a.nii.gz").array, blob)


def test_values_that_are_not_finite_get_the_smallest_one(case, fix, tmp_path, nifti, ramp) -> None:
    array = ramp.astype(np.float32) - 50
    array[0, 0, 0], array[1, 1, 1], array[3, 4, 5] = np.nan, np.inf, -np.inf
    done = fix(replace(case, images=(nifti("bad.nii.gz", array, PLACE),)))
    assert log(done) == [("not_finite", "1 NaN and 2 infinite of 120 voxels", "-49 in 3 voxels")]
    expected = array.copy()
    expected[~np.isfinite(array)] = -49  # ramp begins with 0, 1, 2 along k
    written = read_image(tmp_path / "copy/images/a.nii.gz")
    np.testing.assert_array_equal(written.array[0], expected)
    assert written.grid == read_grid(case.images[0])
    nothing = replace(case, images=(nifti("nothing.nii", ramp * np.float32(np.nan), PLACE),))
    assert "image intensities: expected finite numbers, got none." in refused(fix, nothing)


def test_slight_shears_are_straightened_in_image_and_label_map_alike(case, fix, tmp_path, nifti, ramp, blob) -> None:
    sheared = PLACE.copy()
    sheared[0, 1] = 0.005
    files = CaseFiles("a", (nifti("i.nii", ramp, sheared),), nifti("l.nii", blob, sheared))
    done = fix(files)
    assert [entry[:2] for entry in log(done)] == [("affine", "a shear with cosine 0.0050")] * 2
    copies = [tmp_path / "copy/images/a.nii", tmp_path / "copy/labels/a.nii"]
    assert read_grid(copies[0]).matches(read_grid(copies[1]))
    np.testing.assert_array_equal(read_label_map(copies[1]).array, blob)
    assert np.asarray(nib.load(copies[0]).dataobj).dtype == np.int16
    sheared[0, 1] = 0.1
    tilted = replace(files, images=(nifti("tilted.nii", ramp, sheared),))
    assert "expected right angles between the voxel axes, got a shear with cosine 0.0995" in refused(fix, tilted)


def test_forms_that_differ_are_made_equal(case, fix, tmp_path, nifti, ramp) -> None:
    done = fix(replace(case, images=(nifti("q.nii.gz", ramp, PLACE, qform=np.eye(4)),)))
    assert [entry[0] for entry in log(done)] == ["forms"]
    header = nib.load(tmp_path / "copy/images/a.nii.gz").header
    np.testing.assert_allclose(header.get_sform(), PLACE)
    np.testing.assert_allclose(header.get_qform(), PLACE, atol=1e-5)
    assert done.facts is not None
    assert done.facts.problems == ()


def test_channels_on_other_grids(case, fix, tmp_path, nifti, ramp) -> None:
    near, shifted, far = PLACE.copy(), PLACE.copy(), PLACE.copy()
    near[2, 3] += 0.1
    shifted[2, 3] += 2  # one voxel up
    far[2, 3] += 8
    one = case.images[0]
    done = fix(replace(case, images=(one, nifti("near.nii", ramp, near))), "T1", "T2")
    assert log(done)[0][:2] == ("channel_grid", "0.1 mm apart")
    assert done.entry["image"] == ["images/a_0000.nii.gz", "images/a_0001.nii"]
    np.testing.assert_array_equal(read_image(tmp_path / "copy/images/a_0001.nii").array[0], ramp)
    done = fix(replace(case, images=(one, nifti("shifted.nii", ramp + 5, shifted))), "T1", "T2")
    assert log(done)[0][2].endswith("; 83% covered, the rest is the smallest value")
    moved = read_image([tmp_path / "copy" / name for name in done.entry["image"]]).array[1]
    np.testing.assert_allclose(moved[:, :, 1:], ramp[:, :, :-1] + 5, atol=1e-3)
    assert (moved[:, :, 0] == 5).all()
    message = refused(fix, replace(case, images=(one, nifti("far.nii", ramp, far))), "T1", "T2")
    assert "field of view of channel 2: expected at least 50% of the field of view of channel 1, got 33%." in message


def test_channels_whose_headers_contradict_themselves_are_left_out(case, fix, nifti, ramp) -> None:
    swapped = replace(case, images=(case.images[0], nifti("t2.nii", np.ascontiguousarray(ramp.T), PLACE)))
    assert "grid of channel 2: expected a place that two headers agree on, got the image's axes in" in refused(
        fix, swapped, "T1", "T2"
    )
    copied = replace(case, images=(case.images[0], nifti("t2.nii", ramp[:, :, :4], PLACE)))
    assert "so its header was copied. Export the channel again." in refused(fix, copied, "T1", "T2")
    lost = replace(case, images=(case.images[0], nifti("t2.nii", ramp[1:], codes=(0, 0))))
    assert "got one without a position" in refused(fix, lost, "T1", "T2")


def test_free_text_of_headers_is_cleared_and_logged_by_the_names_of_its_fields(case, fix, tmp_path) -> None:
    for path in (case.images[0], case.label):
        image = nib.load(path)
        image.header["descrip"] = "Ann Smith"
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), PLACE, image.header), path)
    done = fix(case)
    assert log(done) == [("header_text", "descrip", "empty; --keep-header-text keeps it")] * 2
    for name in ("images/a.nii.gz", "labels/a.nii.gz"):
        assert b"Smith" not in gzip.decompress((tmp_path / "copy" / name).read_bytes())
    assert b"Smith" not in (tmp_path / "copy/repairs/a.json").read_bytes()
    task = RepairTask(PlannedCase(case, False), ("MRI",), LabelRules(LABELS), tmp_path / "copy", keep_text=True)
    assert repair_case(task).changes == ()
    assert (tmp_path / "copy/labels/a.nii.gz").read_bytes() == case.label.read_bytes()


def test_a_file_of_several_volumes_stands_for_the_channels(case, fix, tmp_path, nifti, ramp) -> None:
    four = replace(case, images=(nifti("4d.nii.gz", np.stack([ramp, ramp + 1], -1), PLACE),))
    done = fix(four, "T1", "T2")
    assert log(done) == [("channels", "one file for 2 channels", "channels T1, T2")]
    assert done.entry["image"] == ["images/a.nii.gz#channel=1of2", "images/a.nii.gz#channel=2of2"]
    assert (tmp_path / "copy/images/a.nii.gz").read_bytes() == four.images[0].read_bytes()
    assert "expected a 3D volume, got a 4D file of 2 volumes. Split it into" in refused(fix, four)
    assert "expected a 3D volume, got a 4D file of 2 volumes." in refused(fix, four, "T1", "T2", "FLAIR")
    array = np.stack([ramp, ramp], -1).astype(np.float32)
    array[0, 0, 0, 1] = np.nan
    done = fix(replace(case, images=(nifti("nan.nii.gz", array, PLACE),)), "T1", "T2")
    assert done.entry["image"] == ["images/a_0000.nii.gz#channel=1of2", "images/a_0001.nii.gz"]


def test_what_no_one_can_repair_is_left_out(case, fix, tmp_path, nifti, ramp, blob) -> None:
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(case.images[0].read_bytes()[:-40])
    assert "got a truncated gzip stream" in refused(fix, replace(case, images=(cut,)))
    flat = nifti("flat.nii.gz", ramp * 0 + 3, PLACE)
    assert "expected more than one value, got 3 everywhere" in refused(fix, replace(case, images=(flat,)))
    assert "image channels: expected 2 files, got 1" in refused(fix, case, "T1", "T2")
    four = nifti("l4.nii.gz", np.stack([blob, blob], -1), PLACE)
    assert "got a 4D file of 2 volumes" in refused(fix, replace(case, label=four))


def test_other_formats(fix, tmp_path, ramp, blob) -> None:
    grid = Grid(ramp.shape, PLACE)
    write_voxels(ramp, grid, tmp_path / "i.mhd")
    write_voxels(blob.astype(np.float32), grid, tmp_path / "l.nrrd")
    done = fix(CaseFiles("a", (tmp_path / "i.mhd",), tmp_path / "l.nrrd"))
    assert [entry[0] for entry in log(done)] == ["detached", "float_labels"]
    assert done.entry["image"] == ["images/a.mha"]
    assert done.entry["label"] == "labels/a.nrrd"
    np.testing.assert_array_equal(read_image(tmp_path / "copy/images/a.mha").array[0], ramp)


def test_a_sheared_nrrd(fix, tmp_path, ramp, blob) -> None:
    image = sitk.GetImageFromArray(ramp.T)
    image.SetDirection([1, 0.01, 0, 0, 1, 0, 0, 0, 1])
    sitk.WriteImage(image, tmp_path / "i.mha")
    label = sitk.GetImageFromArray(blob.T)
    sitk.WriteImage(label, tmp_path / "l.mha")
    done = fix(CaseFiles("a", (tmp_path / "i.mha",), tmp_path / "l.mha"))
    assert [entry[0] for entry in log(done)] == ["affine", "label_grid"]
    np.testing.assert_array_equal(read_label_map(tmp_path / "copy/labels/a.mha").array, blob)


def test_organ_masks_become_a_label_map_on_the_image_grid(case, fix, tmp_path, nifti, blob) -> None:
    turned = PLACE @ np.diag([1, 1, -1, 1])
    turned[:3, 3] = (PLACE @ [0, 0, 5, 1])[:3]
    flipped = nifti("spleen.nii.gz", (blob == 2)[:, :, ::-1].astype(np.uint8), turned)
    same = nifti("liver.nii.gz", (blob == 1).astype(np.uint8), PLACE)
    done = fix(CaseFiles("a", case.images, organs=((1, same), (2, flipped))))
    assert [entry[0] for entry in log(done)] == ["label_grid", "organs"]
    np.testing.assert_array_equal(read_label_map(tmp_path / "copy/labels/a.nii.gz").array, blob)
    both = nifti("liver2.nii.gz", (blob > 0).astype(np.uint8), PLACE)
    done = fix(CaseFiles("a", case.images, organs=((1, both), (2, nifti("s.nii.gz", (blob == 2) * 1.0, PLACE)))))
    assert log(done)[-1] == (
        "organs",
        "2 masks",
        "one label map; 1 voxels of several masks went to the later one",
    )


def planned(*cases: CaseFiles, tests: tuple[CaseFiles, ...] = ()) -> list[PlannedCase]:
    return planned_cases(Dataset("toy", Path(), "pairs", ("MRI",), LABELS, cases, tests))


def test_time_points_of_unlabelled_images_become_cases(case, fix, tmp_path, nifti, ramp) -> None:
    movie = CaseFiles("heart", (nifti("4d.nii.gz", np.stack([ramp, ramp + 1, ramp + 2], -1), PLACE),))
    found = planned(case, tests=(movie,))
    assert [(part.files.id, part.files.group, part.held_out) for part in found] == [
        ("a", None, False),
        ("heart_1", "heart", True),
        ("heart_2", "heart", True),
        ("heart_3", "heart", True),
    ]
    done = fix(found[2].files)
    assert done.entry == {"case": "heart_2", "image": ["images/heart_2.nii.gz"], "group": "heart"}
    np.testing.assert_array_equal(read_image(tmp_path / "copy/images/heart_2.nii.gz").array[0], ramp + 1)
    labelled = planned(replace(movie, label=case.label))
    assert [part.files.id for part in labelled] == ["heart"]  # which volume the label map belongs to is not known


def test_cases_of_one_name_get_their_own_and_one_group(case, nifti, ramp) -> None:
    other = replace(case, images=(nifti("other.nii", ramp),))
    found = planned(case, case, other, replace(case, id="a_2"), tests=(replace(case, label=None, group="g"),))
    assert [(part.files.id, part.files.group, part.held_out) for part in found] == [
        ("a", "a", False),
        ("a_3", "a", False),
        ("a_2", None, False),
        ("a_4", "g", True),
    ]
    assert [change.problem for part in found for change in part.changes] == ["duplicate_id"] * 3
