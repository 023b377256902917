"""``volseg check --fix`` on a folder with every kind of damage at once."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from toy import toy_case, write_toy

from pipeline.__main__ import main
from pipeline.console.printing import repair_lines
from pipeline.core.errors import VolsegError
from pipeline.data.layouts import open_dataset
from pipeline.data.repair_volumes import REPAIRABLE
from pipeline.data.volumes import read_grid, read_image, read_label_map, write_label_map
from pipeline.stages import repair as repair_module
from pipeline.stages.prepare import check
from pipeline.stages.repair import repair

DAMAGES = {
    0: "none",
    1: "label map listed along other axes",
    2: "label map of other spacing",
    3: "label map of floats",
    4: "unknown label value",
    5: "NaN",
    6: "slight shear of image and label map",
    7: "qform elsewhere",
    8: "4D image with a label map",
    9: "truncated image",
    10: "label map without a header",
    11: "interpolated label map",
    12: "label map elsewhere",
    13: "empty label map",
    14: "constant image",
    15: "label map of a rounded header",
    16: "large shear",
}
LEFT_OUT = {8, 9, 10, 11, 12, 14, 16}


def _store(path: Path, array: np.ndarray, affine: np.ndarray, qform: np.ndarray | None = None) -> None:
    image = nib.Nifti1Image(array, None)
    image.set_sform(affine, 1)
    image.set_qform(affine if qform is None else qform, 1)
    nib.save(image, path)


def _damage(folder: Path) -> None:
    images, labels = ({n: folder / kind / f"toy_{n}.nii.gz" for n in DAMAGES} for kind in ("images", "labels"))
    pixels = {n: np.asarray(nib.load(path).dataobj) for n, path in images.items()}
    values = {n: np.asarray(nib.load(path).dataobj) for n, path in labels.items()}
    affines = {n: nib.load(path).affine for n, path in images.items()}
    label_map = read_label_map(labels[1])
    write_label_map(label_map.reoriented("SPR"), labels[1])
    fine = np.repeat(np.repeat(np.repeat(values[2], 2, 0), 2, 1), 2, 2)
    _store(labels[2], fine, read_grid(images[2]).resized(fine.shape).affine)
    _store(labels[3], values[3].astype(np.float32), affines[3])
    _store(labels[4], np.where(values[4] == 2, 255, values[4]).astype(np.uint8), affines[4])
    pixels[5] = pixels[5].copy()
    pixels[5][:2, 3, 4] = np.nan, np.inf
    _store(images[5], pixels[5], affines[5])
    for number, share in ((6, 0.01), (16, 0.2)):
        sheared = affines[number].copy()
        sheared[:3, 0] += share * sheared[:3, 1]
        _store(images[number], pixels[number], sheared)
        _store(labels[number], values[number], sheared)
    elsewhere = affines[7].copy()
    elsewhere[:3, 3] += 30
    _store(images[7], pixels[7], affines[7], elsewhere)
    _store(images[8], np.stack([pixels[8], pixels[8]], -1), affines[8])
    images[9].write_bytes(images[9].read_bytes()[:-300])
    _store(labels[10], values[10], np.eye(4))
    _store(labels[11], values[11] * np.float32(0.5), affines[11])
    elsewhere = affines[12].copy()
    elsewhere[:3, 3] += 300
    _store(labels[12], values[12], elsewhere)
    _store(labels[13], values[13] * 0, affines[13])
    _store(images[14], pixels[14] * 0, affines[14])
    rounded = affines[15].copy()
    rounded[:3, 3] += 0.1
    _store(labels[15], values[15], rounded)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_toy(tmp_path_factory.mktemp("damaged") / "toys", len(DAMAGES))
    _damage(folder)
    (folder / "imagesTs").mkdir()
    shutil.copyfile(folder / "images" / "toy_0.nii.gz", folder / "imagesTs" / "toy_0.nii.gz")  # one name twice
    movie = np.stack([toy_case(n)[0].array[0] for n in (20, 26)], -1)  # same orientation
    _store(folder / "imagesTs" / "movie.nii.gz", movie, toy_case(20)[0].grid.affine)
    (folder / "groups.csv").write_text("case,group\ntoy_3,ann\ntoy_5,ann\n")
    return folder


@pytest.fixture(scope="module")
def copy(damaged: Path) -> Path:
    result = repair(damaged, damaged.parent / "copy", remap=["255=box_small"], jobs=1)
    assert result.exit_code == 2
    assert {case for case, _ in result.left_out} == {f"toy_{n}" for n in LEFT_OUT}
    return result.out


def test_the_copy_has_no_repairable_problem(damaged: Path, copy: Path) -> None:
    before = check(damaged, jobs=1)
    assert {problem.code for problem in before.problems} >= {
        *("affine", "forms", "label_grid", "labels", "unknown_labels", "not_finite", "dimensions", "duplicate_id"),
        *("truncated", "constant", "no_labels"),
    }
    after = check(copy, jobs=1)
    assert after.exit_code == 0
    codes = {problem.code for problem in after.problems}
    assert codes.isdisjoint(REPAIRABLE)
    assert codes <= {"no_labels", "unlabelled", "duplicate_content", "odd_orientation"}
    assert after.dataset == before.dataset


def test_every_repaired_label_map_is_the_original_one(copy: Path) -> None:
    for number in sorted(set(DAMAGES) - LEFT_OUT - {13}):
        image, expected = toy_case(number)
        found = read_label_map(copy / "labels" / f"toy_{number}.nii.gz")
        np.testing.assert_array_equal(found.array, expected.array, DAMAGES[number])
        grid = read_grid(copy / "images" / f"toy_{number}.nii.gz")
        assert found.grid.matches(grid)
        if number != 6:
            assert grid.matches(image.grid)


def test_what_is_sound_is_copied_byte_by_byte_and_the_original_is_untouched(damaged: Path, copy: Path) -> None:
    for number in (0, 13):
        for kind in ("images", "labels"):
            name = f"{kind}/toy_{number}.nii.gz"
            assert (copy / name).read_bytes() == (damaged / name).read_bytes()
    log = json.loads((copy / "fixes.json").read_text())
    assert log["copied"] == ["toy_13"]  # toy_0 shares its name with a held-out case
    assert sorted(path.name for path in damaged.iterdir()) == [
        "groups.csv",
        "images",
        "imagesTs",
        "labels",
        "labels.json",
    ]


def test_names_groups_and_held_out_cases_are_carried_over(damaged: Path, copy: Path) -> None:
    original, repaired = open_dataset(damaged), open_dataset(copy)
    assert (repaired.name, repaired.channels, repaired.labels) == (original.name, original.channels, original.labels)
    assert repaired.layout == "datalist"
    groups = {case.id: case.group for case in (*repaired.cases, *repaired.tests)}
    assert {case: group for case, group in groups.items() if group} == {
        "toy_0": "toy_0",
        "toy_0_2": "toy_0",
        "toy_3": "ann",
        "toy_5": "ann",
        "movie_1": "movie",
        "movie_2": "movie",
    }
    assert [case.id for case in repaired.tests] == ["movie_1", "movie_2", "toy_0_2"]
    np.testing.assert_array_equal(read_image(copy / "images" / "movie_2.nii.gz").array, toy_case(26)[0].array)


def test_every_change_is_logged(copy: Path) -> None:
    with (copy / "fixes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["case", "file", "problem", "done", "before", "after"]
    found = {(row["case"], row["problem"]) for row in rows}
    assert found == {
        *((f"toy_{n}", "label_grid") for n in (1, 2, 15)),
        *((f"toy_{n}", "") for n in LEFT_OUT),
        ("toy_0", "duplicate_id"),
        ("toy_0_2", "duplicate_id"),
        ("toy_3", "float_labels"),
        ("toy_4", "unknown_labels"),
        ("toy_5", "not_finite"),
        ("toy_6", "affine"),
        ("toy_7", "forms"),
        ("movie_1", "dimensions"),
        ("movie_2", "dimensions"),
    }
    nan = next(row for row in rows if row["problem"] == "not_finite")
    assert nan["file"].endswith("toys/images/toy_5.nii.gz")
    assert nan["before"] == "1 NaN and 1 infinite of 7680 voxels"
    log = json.loads((copy / "fixes.json").read_text())
    assert log["remap"] == {"255": 2}
    assert len(log["changes"]) + len(log["left_out"]) == len(rows)


def test_a_second_run_does_only_what_is_missing(damaged: Path, copy: Path) -> None:
    lost, other = copy / "labels" / "toy_4.nii.gz", copy / "labels" / "toy_1.nii.gz"
    content, stamp = lost.read_bytes(), other.stat().st_mtime_ns
    lost.unlink()
    result = repair(damaged, copy, remap=["255=box_small"], jobs=1)
    assert (lost.read_bytes(), other.stat().st_mtime_ns) == (content, stamp)
    assert (result.kept, len(result.repaired) + len(result.copied)) == (12, 13)
    assert result.report is not None
    assert result.report.exit_code == 0


def test_workers_give_the_same_copy(damaged: Path, copy: Path, tmp_path: Path) -> None:
    result = repair(damaged, tmp_path / "copy", remap=["255=2"], jobs=2)
    assert (tmp_path / "copy" / "fixes.csv").read_bytes() == (copy / "fixes.csv").read_bytes()
    for path in copy.glob("*/*.nii.gz"):
        assert (tmp_path / "copy" / path.relative_to(copy)).read_bytes() == path.read_bytes()
    assert len(repair_lines(result)) > len(LEFT_OUT)


def test_folders_that_are_not_the_copys_own_are_refused(damaged: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out in (damaged, damaged / "fixed", damaged.parent):
        with pytest.raises(VolsegError, match=r"expected a folder outside the dataset, got one of the dataset"):
            repair(damaged, out)
    for out in (tmp_path / "other", tmp_path / "file"):
        with pytest.raises(VolsegError, match=r"expected a new folder, or an earlier repair of this dataset"):
            repair(damaged, out)
    toys = write_toy(tmp_path / "toys", 2)
    with pytest.raises(VolsegError, match=r"expected a new folder, or an earlier repair of this dataset"):
        repair(toys, copy)
    with pytest.raises(VolsegError, match=r"expected a label value \(0 background, 1 box_left, 2 box_small\)"):
        repair(toys, tmp_path / "new", remap=["1=9"])
    assert not (tmp_path / "new").exists()


def test_a_case_that_cannot_be_written_leaves_nothing_of_it(tmp_path: Path, monkeypatch) -> None:
    toys = write_toy(tmp_path / "toys", 2)

    def full(file: Path, target: Path, **_: object) -> None:
        if "labels" in target.parts:
            raise VolsegError(f"{target}: the disk is full, nothing was written. Free some space and run again.")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)

    monkeypatch.setattr("pipeline.data.header_text.copy_file", full)
    result = repair(toys, tmp_path / "copy", jobs=1)
    assert (result.exit_code, result.report, len(result.left_out)) == (3, None, 2)
    assert list((tmp_path / "copy" / "images").iterdir()) == []
    monkeypatch.undo()
    assert repair_module.repair(toys, tmp_path / "copy", jobs=1).exit_code == 0


def _run(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return int(stop.value.code or 0), " ".join(out.split()), " ".join(err.split())


def test_on_the_command_line(capfd: pytest.CaptureFixture[str], damaged: Path, tmp_path: Path) -> None:
    code, out, _ = _run(capfd, "check", damaged, "-j", 1)
    assert code == 2
    assert f"Some of these can be repaired: volseg check {damaged} --fix FOLDER writes a repaired copy" in out
    arguments = ("--fix", tmp_path / "copy", "--remap", "255=2", "--image-grid", "-j", 1)
    code, out, _ = _run(capfd, "check", damaged, *arguments, "--json", tmp_path / "report.json")
    assert code == 2
    assert "fixed label_grid: put onto the image's grid, as asked (3 cases)" in out
    assert "left out case toy_9: " in out
    assert f"14 cases repaired, 1 copied as they are, 5 left out: {tmp_path / 'copy'}." in out
    assert "can be repaired" not in out
    assert json.loads((tmp_path / "report.json").read_text())["errors"] == 0
    assert _run(capfd, "check", tmp_path / "copy", "-j", 1)[0] == 0


def test_wrong_options(capfd: pytest.CaptureFixture[str], damaged: Path, tmp_path: Path) -> None:
    code, _, err = _run(capfd, "check", damaged, "--remap", "255=2")
    assert code == 1
    assert "give --fix and a folder as well" in err
    code, _, err = _run(capfd, "check", damaged, "--fix", tmp_path / "copy", "--remap", "nowhere.csv")
    assert code == 1
    assert "--remap nowhere.csv: expected from=to or an existing file" in err
    code, _, err = _run(capfd, "check", tmp_path / "gone", "--fix", tmp_path / "copy")
    assert code == 1
    assert "expected a folder, or a JSON or CSV file, got nothing there" in err
    assert not (tmp_path / "copy").exists()
