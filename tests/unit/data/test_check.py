"""``check_dataset``: each kind of problem, its severity and its sentence."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.labels import LabelTable
from pipeline.data.check import CheckReport, check_case, check_dataset
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.layouts import open_dataset

LABELS = LabelTable({1: "liver", 2: "spleen"})


def dataset(*cases: CaseFiles, tests: tuple[CaseFiles, ...] = (), channels: tuple[str, ...] = ("MRI",)) -> Dataset:
    return Dataset("toy", Path(), "pairs", channels, LABELS, cases, tests)


def found(report: CheckReport) -> set[tuple[str | None, str, str]]:
    return {(problem.case, problem.severity, problem.code) for problem in report.problems}


def message(report: CheckReport, code: str) -> str:
    return next(problem.message for problem in report.problems if problem.code == code)


@pytest.fixture
def good(nifti, ramp, blob):
    """A flawless case; each has other voxels."""

    def make(name: str, affine=None, offset: int = 0) -> CaseFiles:
        image = nifti(f"images/{name}.nii.gz", ramp + offset, affine)
        return CaseFiles(name, (image,), nifti(f"labels/{name}.nii.gz", blob, affine))

    return make


def test_flawless(good) -> None:
    report = check_dataset(dataset(good("a"), good("b", offset=1)))
    assert report.problems == ()
    assert report.exit_code == 0
    assert report.cases == ("a", "b")
    assert report.summary == {
        "cases": 2,
        "tests": 0,
        "channels": ["MRI"],
        "labels": {"names": {"1": "liver", "2": "spleen"}, "ignore_label": None},
        "cases_with_organ": {"liver": 2, "spleen": 2},
        "median_shape": [4.0, 5.0, 6.0],
        "median_spacing_mm": [1.0, 1.0, 1.0],
        "orientations": {"RAS": 2},
    }


def test_regions_count_the_cases_that_have_any_of_their_values(good, tmp_path) -> None:
    table = LabelTable({1: "rim", 2: "cup", 3: "vein", 4: "artery"}, None, {"disc": (1, 2), "vessel": (3, 4)}, (1, 3))
    report = check_dataset(replace(dataset(good("a"), good("b")), labels=table))
    assert report.summary["cases_with_organ"] == {"disc": 2, "vessel": 0}
    assert report.summary["labels"]["regions"] == {"disc": [1, 2], "vessel": [3, 4]}
    assert "organ vessel (label 3, 4): expected at least one case, got none." in message(report, "organ_missing")


def test_every_bad_file_is_reported_and_none_ends_the_check(good, nifti, tmp_path, ramp, blob) -> None:
    a = good("a")
    truncated = tmp_path / "cut.nii.gz"
    truncated.write_bytes(a.images[0].read_bytes()[:-60])
    shear = np.eye(4)
    shear[1, 0] = 0.5
    moved = np.eye(4)
    moved[2, 3] = 3
    nan = ramp.astype(np.float32)
    nan[0, 0, :4], nan[1, 1, 1] = np.nan, -np.inf
    bad = {
        "missing": replace(a, images=(tmp_path / "no.nii",)),
        "truncated": replace(a, images=(truncated,)),
        "dimensions": replace(a, images=(nifti("4d.nii.gz", np.stack([ramp] * 2, -1)),)),
        "affine": replace(a, images=(nifti("shear.nii.gz", ramp, shear),)),
        "label_grid": replace(a, label=nifti("moved.nii.gz", blob, moved)),
        "labels": replace(a, label=nifti("half.nii.gz", blob / 2)),
        "unknown_labels": replace(a, label=nifti("seven.nii.gz", blob * 7)),
        "not_finite": replace(a, images=(nifti("nan.nii.gz", nan),)),
        "constant": replace(a, images=(nifti("flat.nii.gz", ramp * 0 + 9),)),
        "channels": replace(a, images=(*a.images, *a.images)),
    }
    cases = [replace(case, id=code) for code, case in bad.items()]
    report = check_dataset(dataset(a, *cases))
    assert {(code, "error", code) for code in bad} <= found(report)
    assert report.exit_code == 2
    assert report.failed == tuple(bad)
    assert all(p.message.startswith(f"case {p.case}: ") for p in report.problems)
    assert "got a truncated gzip stream" in message(report, "truncated")
    assert "got a 4D file of 2 volumes" in message(report, "dimensions")
    assert "got a shear with cosine 0.4472" in message(report, "affine")
    assert "label map grid: expected the image grid within 0.001 mm, got a difference of 3 mm" in message(
        report, "label_grid"
    )
    assert "expected whole numbers, got 0.5 (1 fractional values)" in message(report, "labels")
    assert "expected only those of the label table, got 7, 14." in message(report, "unknown_labels")
    assert "image intensities: expected finite numbers, got 4 NaN and 1 infinite of 120" in message(
        report, "not_finite"
    )
    assert "expected more than one value, got 9 everywhere" in message(report, "constant")
    assert "image channels: expected 1 files, got 2" in message(report, "channels")
    assert check_dataset(dataset(*cases)).exit_code == 3


def test_channels(good, nifti, ramp) -> None:
    a = good("a")
    second, moved = nifti("t2.nii", ramp + 5), nifti("moved.nii", ramp, np.diag([1, 1, 1.1, 1]))
    empty = nifti("empty.nii", ramp * 0)
    cases = [
        replace(a, id=name, images=(a.images[0], t2)) for name, t2 in (("ok", second), ("no", moved), ("e", empty))
    ]
    report = check_dataset(dataset(*cases, channels=("T1", "T2")))
    assert ("no", "error", "channel_grid") in found(report)
    assert ("e", "warning", "constant") in found(report)
    assert report.failed == ("no",)
    assert "grid of channel 2: expected the grid of channel 1 within 0.001 mm" in message(report, "channel_grid")


def test_forms_that_contradict_each_other(good, nifti, ramp) -> None:
    """Half a voxel is forgiven: a quaternion of single precision may be off by some tenths of a millimetre."""
    shifted = np.eye(4)
    shifted[0, 3] = 0.4
    forgiven = replace(good("a"), images=(nifti("f.nii", ramp + 1, qform=shifted),))
    shifted[0, 3] = 0.6
    report = check_dataset(dataset(forgiven, replace(good("b"), images=(nifti("s.nii", ramp, qform=shifted),))))
    assert found(report) == {("b", "warning", "forms")}
    assert "sform and qform: expected one position for every voxel, got positions up to 0.6 mm" in message(
        report, "forms"
    )


def test_warnings_and_notes(good, nifti, ramp, blob) -> None:
    a = good("a")
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    oblique = CaseFiles("tilt", (nifti("t.nii", ramp + 1, turned),), nifti("tl.nii", blob, turned))
    formless = CaseFiles("form", (nifti("f.nii", ramp + 2, codes=(0, 0)),), nifti("fl.nii", blob, codes=(0, 0)))
    empty = replace(a, id="empty", images=(nifti("e.nii", ramp + 3),), label=nifti("el.nii", blob * 0))
    bare = CaseFiles("bare", (nifti("b.nii", ramp + 4),))
    report = check_dataset(dataset(a, oblique, formless, empty, tests=(bare,)))
    assert found(report) - {("form", "warning", "odd_orientation")} == {
        ("tilt", "note", "oblique"),
        ("form", "warning", "form_codes"),
        ("empty", "warning", "no_labels"),
        ("bare", "note", "unlabelled"),
    }
    assert report.exit_code == 0
    assert "axes tilted by 11.5 degrees" in message(report, "oblique")
    assert "sform_code and qform_code: expected one above 0, got 0 and 0." in message(report, "form_codes")
    assert "expected at least one labelled voxel, got background only" in message(report, "no_labels")
    assert report.summary["tests"] == 1


def test_duplicates(good, ramp) -> None:
    a, b, twin = good("a"), good("b", offset=1), replace(good("c"), id="twin")
    report = check_dataset(dataset(a, b, replace(b, images=a.images), twin))
    assert ("b", "error", "duplicate_id") in found(report)
    assert ("twin", "warning", "duplicate_content") in found(report)
    assert "case twin: image: expected voxels of its own, got the voxels of a. Drop one" in report.problems[-1].message
    assert "case b: case id: expected one case of this name, got 2." in message(report, "duplicate_id")
    assert report.exit_code == 2


def test_outliers(good) -> None:
    cases = [good(f"c{n}", np.diag([1, 1, 2, 1]), n) for n in range(4)]
    far = good("far", np.diag([1, 1, 20, 1]), 10)
    lps = good("lps", np.diag([-1, -1, 2, 1]), 11)
    report = check_dataset(dataset(*cases, far, lps))
    assert found(report) == {("far", "warning", "odd_spacing"), ("lps", "warning", "odd_orientation")}
    assert (
        "case far: spacing: expected about the dataset's median 1 x 1 x 2 mm along R, A, S, got 1 x 1 x 20 mm."
        in message(report, "odd_spacing")
    )
    assert "case lps: orientation: expected RAS as in 5 of 6 cases, got LPS." in message(report, "odd_orientation")
    assert check_dataset(dataset(cases[0], lps)).problems == ()


def test_organ_that_no_case_has(good, nifti, blob) -> None:
    a = good("a")
    report = check_dataset(dataset(replace(a, label=nifti("one.nii", (blob == 1).astype(np.uint8)))))
    assert found(report) == {(None, "warning", "organ_missing")}
    assert message(report, "organ_missing").startswith("organ spleen (label 2): expected at least one case, got none.")


def test_organ_masks(good, nifti, blob) -> None:
    a = good("a")
    first, second = (
        nifti("o/liver.nii", (blob > 0).astype(np.uint8)),
        nifti("o/spleen.nii", (blob == 2).astype(np.uint8)),
    )
    report = check_dataset(dataset(replace(a, label=None, organs=((1, first), (2, second)))))
    assert found(report) == {("a", "warning", "overlap")}
    assert "organ masks: expected no overlap, got 1 voxels in several masks" in message(report, "overlap")
    moved = nifti("o/moved.nii", blob * 0, np.diag([1, 2, 1, 1]))
    report = check_dataset(dataset(replace(a, label=None, organs=((1, first), (2, moved)))))
    assert ("a", "error", "label_grid") in found(report)


def test_json_and_workers(good, tmp_path) -> None:
    toy = dataset(good("a"), good("b"), CaseFiles("c", (tmp_path / "no.nii",), tmp_path / "no.nii"))
    report = check_dataset(toy)
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (content["errors"], content["warnings"], content["notes"]) == (2, 1, 0)
    assert content["failed"] == ["c"]
    assert content["problems"][0] == {
        "case": "b",
        "severity": "warning",
        "code": "duplicate_content",
        "message": report.problems[0].message,
    }
    with ThreadPoolExecutor(2) as pool:
        assert check_dataset(toy, map_cases=pool.map) == report
    check = pickle.loads(pickle.dumps(partial(check_case, labels=LABELS, channels=1)))
    assert pickle.loads(pickle.dumps(check(toy.cases[0]))).values == (1, 2)


@pytest.mark.realdata
def test_real_dataset_is_clean(real_data) -> None:
    whole = open_dataset(real_data / "Task04_Hippocampus")
    report = check_dataset(replace(whole, cases=whole.cases[:20]))
    assert report.count("error") == 0
    assert report.summary["cases_with_organ"] == {"Anterior": 20, "Posterior": 20}
    assert report.exit_code == 0
