"""What benchmarks/accuracy.py counts by: scores of its own, splits without test cases, intervals; all by hand."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import adapted_rand_error, variation_of_information

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture
def scores() -> Any:
    return importlib.import_module("helpers.scores")


@pytest.fixture
def splits() -> Any:
    return importlib.import_module("helpers.splits")


def test_dice_and_iou_of_overlapping_and_of_empty_masks(scores: Any) -> None:
    one, other, none = [1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0] * 5
    assert (scores.dice(one, other), scores.iou(one, other)) == (2 / 5, 1 / 4)
    assert (scores.dice(one, none), scores.iou(one, none)) == (0.0, 0.0)  # missed
    assert math.isnan(scores.dice(none, none))
    assert math.isnan(scores.iou(none, none))


def test_organs_and_what_lies_on_the_other_side(scores: Any) -> None:
    names = {1: "eye_left", 2: "eye_right", 3: "nose", 5: "ear_left"}
    reference = np.array([[1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 0, 0]])
    prediction = np.array([[1, 1, 2, 0], [2, 2, 1, 1], [3, 0, 0, 3]])
    found = scores.organ_scores(prediction, reference, names)
    assert found["eye_left"] == 2 * 2 / (4 + 4)
    assert found["eye_right"] == 2 * 2 / (3 + 4)
    assert found["nose"] == 2 * 1 / (2 + 2)
    assert math.isnan(found["ear_left"])
    # Two of four voxels called left are of the right eye, one of three called right is of the left eye.
    assert scores.exchanged(prediction, reference, names) == {"eye_left": 0.5, "eye_right": 1 / 3}
    assert scores.exchanged(0 * prediction, reference, names) == {"eye_left": 0.0, "eye_right": 0.0}
    with pytest.raises(ValueError, match=r"expected the reference's shape \(3, 4\), got \(2, 4\)"):
        scores.organ_scores(prediction[:2], reference, names)


def test_cells_that_touch_at_a_corner_are_two(scores: Any) -> None:
    cells = np.array([[1, 1, 0], [0, 0, 1]], bool)
    assert scores.components(cells).tolist() == [[1, 1, 0], [0, 0, 2]]


def test_thinned_membranes_are_one_pixel_wide(scores: Any) -> None:
    cells = np.zeros((4, 9), np.int32)
    cells[:, :2], cells[:, 7:] = 1, 2  # a membrane of five pixels
    thin = scores.thinned(cells)
    assert (thin == [[1, 1, 1, 1, 0, 2, 2, 2, 2]] * 4).all()
    dead_end = np.ones((5, 5), np.int32)
    dead_end[2, :3] = 0  # a membrane that divides nothing
    assert (scores.thinned(dead_end) == 1).all()
    assert not scores.thinned(np.zeros((3, 3), np.int32)).any()  # all membrane, no cell to grow


def test_a_merged_cell_by_hand(scores: Any) -> None:
    # Two reference cells of 6 and 2 pixels, predicted as one of 8.
    reference = np.array([[1] * 6 + [2] * 2], np.int32)
    table = scores.joint(np.ones_like(reference), reference)
    pairs = (6**2 + 2**2) / 64
    assert scores.rand_score(*table) == pytest.approx(pairs / (0.5 * 1 + 0.5 * pairs))
    assert scores.information_score(*table) == pytest.approx(0.0)  # one cell tells nothing
    assert scores.rand_score(*scores.joint(reference, reference)) == pytest.approx(1.0)
    assert scores.information_score(*scores.joint(reference, reference)) == pytest.approx(1.0)


def test_a_divided_cell_by_hand(scores: Any) -> None:
    # One reference cell of 8 pixels and one of 4; the first is halved, and the second lost to membrane.
    reference = np.array([[1] * 8 + [2] * 4 + [0] * 2], np.int32)
    cells = np.array([[1] * 4 + [2] * 4 + [0] * 4 + [2] * 2], np.int32)
    table = scores.joint(cells, reference)
    both = (4**2 + 4**2 + 4 * 1) / 144  # the four lost pixels are four cells
    assert scores.rand_score(*table) == pytest.approx(both / (0.5 * both + 0.5 * (8**2 + 4**2) / 144))
    entropy = -sum(n / 12 * math.log(n / 12) for n in (4, 4, 1, 1, 1, 1))
    own = -sum(n / 12 * math.log(n / 12) for n in (8, 4))
    # What is predicted tells the reference cell of every pixel: their information is the reference's entropy.
    assert scores.information_score(*table) == pytest.approx(own / (0.5 * entropy + 0.5 * own))


def test_scores_agree_with_scikit_image_where_no_pixel_is_lost(scores: Any) -> None:
    random = np.random.default_rng(3)
    reference = np.repeat(np.repeat(random.integers(0, 5, (12, 12)), 8, 0), 8, 1).astype(np.int32)
    cells = np.roll(reference, 5, axis=0) + 1
    table = scores.joint(cells, reference)
    error, _, _ = adapted_rand_error(reference, cells, ignore_labels=[0])
    # scikit-image leaves out the pairs of a pixel with itself: 1 / pixels of all.
    both, own = float(np.sum(table[0] ** 2)), 1 / table[2]
    assert (both - own) / (both / scores.rand_score(*table) - own) == pytest.approx(1 - error)
    inside = reference > 0
    split, merge = variation_of_information(reference[inside], cells[inside])
    entropies = [
        -sum(p * math.log2(p) for p in np.unique(a[inside], return_counts=True)[1] / inside.sum())
        for a in (cells, reference)
    ]
    mutual = (sum(entropies) - split - merge) / 2
    assert scores.information_score(*table) == pytest.approx(mutual / (0.5 * sum(entropies)))


def test_membranes_that_are_wider_than_the_references_cost_nothing(scores: Any) -> None:
    reference = np.zeros((20, 21), np.int64)
    reference[:, 10] = 1
    probability = np.full((20, 21), 0.05, np.float32)
    probability[:, 8:13] = 0.65
    found = scores.membrane_scores((probability > 0.5).astype(np.int64), probability, reference)
    assert found["dice"] == pytest.approx(2 * 20 / (20 + 100))
    assert found["iou"] == pytest.approx(20 / 100)
    assert found["pixel_error"] == pytest.approx(80 / 420)
    assert found["rand 0.5"] == pytest.approx(1.0)
    assert found["information 0.5"] == pytest.approx(1.0)
    # From 0.7 on there is no membrane, and both cells of 200 pixels are one.
    assert found["rand 0.7"] == pytest.approx(0.5 / (0.5 * 1 + 0.5 * 0.5))
    assert found["information 0.7"] == pytest.approx(0.0)
    assert scores.best_threshold([found, found], "rand") == (0.1, pytest.approx(1.0))


def test_pictures_and_volumes_are_read_as_they_are_stored(scores: Any, tmp_path: Path) -> None:
    values = np.array([[0, 3], [7, 1], [2, 2]], np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (scores.read_labels(tmp_path / "a.png") == values).all()
    nibabel.save(nibabel.Nifti1Image(values[..., None], np.eye(4)), tmp_path / "a.nii.gz")
    assert (scores.read_labels(tmp_path / "a.nii.gz") == values[..., None]).all()


def test_values_that_a_tool_calls_otherwise_are_changed_at_once(scores: Any) -> None:
    labels = np.array([[0, 1, 22], [23, 2, 22]])
    assert scores.renumbered(labels, {22: 23, 23: 24}).tolist() == [[0, 1, 23], [24, 2, 23]]
    assert scores.renumbered(labels, {}).tolist() == labels.tolist()
    assert scores.renumbered(labels[:, :2] * 0, {22: 23}).tolist() == [[0, 0], [0, 0]]


def test_a_mask_elsewhere_or_probabilities_of_another_mask_are_refused(scores: Any, tmp_path: Path) -> None:
    for name, shift in (("mask", 0.5), ("reference", 0.0)):
        affine = np.eye(4)
        affine[0, 3] = shift
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), affine), tmp_path / f"{name}.nii.gz")
    with pytest.raises(ValueError, match="expected the reference's affine"):
        scores.require_same_grid(tmp_path / "mask.nii.gz", tmp_path / "reference.nii.gz")
    reference = np.eye(4, dtype=np.int64)
    with pytest.raises(ValueError, match="expected those that the mask was made of"):
        scores.membrane_scores(reference, np.zeros((4, 4), np.float32), reference)


def test_probabilities_of_either_tool_have_rows_first(scores: Any, tmp_path: Path) -> None:
    rows = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)
    np.savez(tmp_path / "a.npz", probabilities=np.stack([1 - rows, rows])[:, None])
    (tmp_path / "probabilities" / "b").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(rows.T[..., None], np.eye(4)), tmp_path / "probabilities" / "b" / "m.nii.gz")
    assert (scores.read_probability(tmp_path, "a") == rows).all()
    assert (scores.read_probability(tmp_path, "b") == rows).all()


def write_pairs(folder: Path, sizes: list[tuple[int, int]], greys: list[int]) -> Path:
    """Pictures of one grey level each, ``case_00`` on, and what describes them."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number, (size, grey) in enumerate(zip(sizes, greys, strict=True)):
        for name in ("images", "labels"):
            Image.new("L", size, grey).save(folder / name / f"case_{number:02}.png")
    (folder / "labels.json").write_text("{}")
    return folder


def test_test_cases_leave_the_dataset(splits: Any, tmp_path: Path) -> None:
    dataset = write_pairs(tmp_path / "all", [(4, 4)] * 5, [0] * 5)
    splits.hold_out(dataset, ["case_01", "case_04"], tmp_path / "without")
    found = {
        folder.name: sorted(file.stem for file in folder.iterdir())
        for folder in (tmp_path / "without").iterdir()
        if folder.is_dir()
    }
    kept, held = ["case_00", "case_02", "case_03"], ["case_01", "case_04"]
    assert found == {"images": kept, "labels": kept, "imagesTs": held, "labelsTs": held}
    assert list(splits.case_files(tmp_path / "without")) == kept


def test_a_listed_dataset_lists_its_test_images_apart(splits: Any, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
        for case in "abc":
            (folder / name / f"{case}.nii.gz").write_text(case)
    entries = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in "cab"]
    (folder / "dataset.json").write_text(json.dumps({"name": "x", "training": entries, "test": [], "numTest": 0}))
    splits.hold_out(folder, ["b"], tmp_path / "without")
    content = json.loads((tmp_path / "without" / "dataset.json").read_text())
    assert [Path(entry["image"]).name for entry in content["training"]] == ["a.nii.gz", "c.nii.gz"]
    assert content["test"] == ["imagesTs/b.nii.gz"]
    assert (content["name"], content["numTraining"], content["numTest"]) == ("x", 2, 1)
    assert (tmp_path / "without" / "labelsTs" / "b.nii.gz").read_text() == "b"


def test_strata_are_shared_out_and_blocks_are_neighbours(splits: Any, tmp_path: Path) -> None:
    sizes = [(4, 4)] * 6 + [(8, 4)] * 4 + [(4, 4)] * 3
    greys = [10] * 6 + [10] * 4 + [200] * 3
    dataset = write_pairs(tmp_path, sizes, greys)
    parts = splits.in_strata(3)(dataset)
    assert sorted(case for part in parts for case in part) == list(splits.case_files(dataset))
    for first, last in ((0, 6), (6, 10), (10, 13)):
        stratum = {f"case_{n:02}" for n in range(first, last)}
        shares = [len(stratum.intersection(part)) for part in parts]
        assert max(shares) - min(shares) <= 1
    assert splits.in_blocks(6)(dataset)[:2] == (("case_00", "case_01", "case_02"), ("case_03", "case_04"))
    assert splits.every_fifth(dataset) == (("case_00", "case_05", "case_10"),)


def test_a_split_has_every_case_once(splits: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dataset = write_pairs(tmp_path / "set", [(4, 4)] * 8, [0] * 8)
    monkeypatch.setitem(splits.SETS, "set", splits.RealSet("set", splits.in_folds(4), 2, (0,), "images"))
    tested = []
    for fold in range(4):
        split = splits.split_of("set", dataset, fold)
        assert sorted((*split.train, *split.validation, *split.test)) == list(splits.case_files(dataset))
        assert (len(split.train), len(split.validation), len(split.test)) == (4, 2, 2)
        tested += split.test
    assert sorted(tested) == list(splits.case_files(dataset))
    splits.write_folds(split, tmp_path)
    (fold,) = json.loads((tmp_path / "splits.json").read_text())
    assert fold == {"train": list(split.train), "validation": list(split.validation)}


def test_intervals() -> None:
    intervals = importlib.import_module("helpers.intervals")
    seeds = intervals.over_seeds([0.1, 0.2, 0.3])
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's t of two degrees of freedom
    assert (seeds.mean, seeds.sd) == (pytest.approx(0.2), pytest.approx(0.1))
    assert (seeds.low, seeds.high) == (pytest.approx(0.2 - half, abs=1e-6), pytest.approx(0.2 + half, abs=1e-6))
    cases = intervals.over_cases([0.0, 1.0, float("nan")])
    # Means of two drawn from 0 and 1 are 0, 0.5 and 1, the outer ones with probability 1/4 each.
    assert (cases.mean, cases.low, cases.high) == (0.5, 0.0, 1.0)
    assert cases.sd == pytest.approx(math.sqrt(0.5))
    spread = intervals.over_cases(list(np.random.default_rng(0).normal(0.8, 0.1, 400)))
    assert spread.high - spread.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.1)  # the normal distribution's
    assert math.isnan(intervals.over_cases([0.5]).low)
    assert math.isnan(intervals.over_seeds([0.5]).sd)


@pytest.fixture
def tables() -> Any:
    return importlib.import_module("helpers.accuracy_tables")


def test_measures_of_few_and_of_many_structures(tables: Any) -> None:
    few = {"a": {"dice x": 0.8, "dice y": 0.6}, "b": {"dice x": 0.6, "dice y": 0.8}}
    assert tables.measures("organs", few) == {
        "Dice": {"a": pytest.approx(0.7), "b": pytest.approx(0.7)},
        "Dice of x": {"a": 0.8, "b": 0.6},
        "Dice of y": {"a": 0.6, "b": 0.8},
    }
    names = ("p_left", "p_right", "q_left", "q_right", "r")
    many = {
        case: {f"dice {name}": value for name, value in zip(names, dice, strict=True)}
        | {f"exchanged {name}": value for name, value in zip(names, sides, strict=False)}
        for case, dice, sides in (
            ("a", (0.9, 0.5, 0.7, 0.8, 0.6), (0.0, 0.1, 0.0, 0.4)),
            ("b", (0.9, 0.6, 0.4, 0.8, 0.8), (0.0, 0.5, 0.0, 0.0)),
        )
    }
    found = tables.measures("organs", many)
    # Both p_right and q_left have 0.55 on average: the first of them.
    assert found["Dice of the worst structure"] == {"a": 0.5, "b": 0.6}
    assert found["largest share of a structure on the other side"] == {"a": 0.1, "b": 0.5}
    assert found["Dice"] == {"a": pytest.approx(0.7), "b": pytest.approx(0.7)}


def test_a_structure_that_is_in_no_case_is_no_measure_of_a_tool(tables: Any) -> None:
    cases = {"a": {"dice x": 0.8, "dice y": float("nan")}}
    assert tables.measures("organs", cases)["Dice"] == {"a": 0.8}


def test_the_challenges_scores_are_at_the_best_threshold_of_all_cases(tables: Any, scores: Any) -> None:
    cases = {}
    for case, best in (("a", 0.3), ("b", 0.4), ("c", 0.4)):
        levels = {f"{score} {n}": 0.9 - abs(n - best) for score in ("rand", "information") for n in scores.THRESHOLDS}
        cases[case] = {"dice": 0.8, "iou": 0.7, "pixel_error": 0.1} | levels
    found = tables.measures("membranes", cases)
    assert found["V_Rand after thinning"] == {case: cases[case]["rand 0.4"] for case in cases}
    assert found["V_Info after thinning, at 0.5"] == {case: cases[case]["information 0.5"] for case in cases}
    assert list(found)[:3] == ["IoU", "Dice", "pixel error"]


def test_tables_of_two_tools(tables: Any) -> None:
    arms = {
        "ours": {0: {"Dice": {"a": 0.8, "b": 0.9}}, 1: {"Dice": {"a": 0.9, "b": 1.0}}},
        "theirs": {0: {"Dice": {"a": 0.7, "b": 0.6}}, 1: {"Dice": {"a": 0.7, "b": 0.8}}, 2: {"Dice": {"a": 0, "b": 0}}},
    }
    lines = tables.means_table(arms, {"ours": 10.4, "theirs": 7.0}).splitlines()
    # Seeds 0.85 and 0.95; cases 0.85 and 0.95, whose means of two drawn are 0.85, 0.9 and 0.95.
    assert lines[2] == "| ours | Dice | 2 | 10 | 0.9000 (0.0707) | 0.265 to 1.535 | 0.071 | 0.850 to 0.950 |"
    assert lines[3].startswith("| theirs | Dice | 3 | 7 | 0.4667 (0.4072) |")  # 0.65, 0.75 and 0
    (line,) = tables.differences_table(arms).splitlines()[2:]
    # Cases 0.15 and 0.25, seeds 0.2 and 0.2; seed 2 has no partner.
    assert (
        line == "| ours - theirs | Dice | +0.2000 | +0.150 to +0.250 | 2 of 2 | +0.2000 (0.0000) | +0.200 to +0.200 |"
    )


def test_runs_are_kept_by_recipe_and_whole_seeds_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = importlib.import_module("helpers.real_runs")
    for fold, seed in ((0, 0), (1, 0), (0, 1)):
        folder = runs.run_folder(tmp_path / f"fold_{fold}", "5_minutes", "volseg, a.yaml", seed)
        assert not runs.is_finished(folder, "one")
        runs.keep(folder, "volseg, a.yaml", seed, fold, {"steps": 3, "cases": {f"case_{fold}": {"dice": 0.5}}})
        assert runs.is_finished(folder, "one")
    found = runs.finished(tmp_path, "5_minutes", [0, 1], str)
    assert {seed: runs.pooled(parts) for seed, parts in found["volseg, a.yaml"].items()} == {
        0: {"case_0": {"dice": 0.5}, "case_1": {"dice": 0.5}}
    }
    assert "volseg, a.yaml, seed 1: folds [1] are still to come" in capsys.readouterr().err
    assert runs.finished(tmp_path, "6_minutes", [0], str) == {}
    (folder / "model").mkdir()
    assert not runs.is_finished(folder, "another")  # the recipe has changed
    assert not (folder / "model").exists()
