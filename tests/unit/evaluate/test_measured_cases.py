"""Cases with everything measured, and what their statistics make of misses."""

import math

import numpy as np
import pytest

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.volumes import write_label_map, write_voxels
from pipeline.evaluate.case import diagonal_mm, score_case, score_without_prediction
from pipeline.evaluate.metrics import METRICS, Measures
from pipeline.evaluate.probability_files import read_probabilities
from pipeline.evaluate.scoring import evaluate, score_pairs
from pipeline.evaluate.summary import summarize

TABLE = LabelTable({1: "liver", 2: "lesion"})
GRID = Grid.from_spacing((20, 16, 12), (1.0, 1.5, 2.0))
EVERYTHING = Measures(compat=("monai", "medpy", "surface-distance"), lesions=("lesion",))


def label_map(liver=(4, 12), lesion=(0, 2), grid=GRID):
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[liver[0] : liver[1], 3:12, 2:10] = 1
    array[lesion[0] : lesion[1], :3, :3] = 2
    return LabelMap(array, grid)


def test_columns_of_a_case():
    liver, lesion = score_case(label_map((5, 13)), label_map(), TABLE, "a", EVERYTHING)
    assert liver.more["hd_mm"] == pytest.approx(1.0)
    assert liver.more["nsd"] == 1.0
    assert (liver.more["tolerance_mm"], liver.more["diagonal_mm"]) == (2.0, pytest.approx(math.sqrt(400 + 576 + 576)))
    assert "lesion_f1" not in liver.more
    assert (lesion.more["lesion_f1"], lesion.more["lesions_reference"]) == (1.0, 1.0)
    assert {column for tool in EVERYTHING.compat for column in EVERYTHING.columns("liver")} <= set(liver.more)


def test_a_missed_organ_gets_the_worst_of_everything():
    missed = score_case(label_map(lesion=(0, 0)), label_map(), TABLE, "a", EVERYTHING)[1]
    nothing = score_without_prediction(label_map(), TABLE, "a", measures=EVERYTHING)[1]
    for row in (missed, nothing):
        for column in EVERYTHING.columns("lesion"):
            if column in METRICS:
                assert row.value(column) == METRICS[column].worst
        assert row.entry("hd95_mm") == pytest.approx(diagonal_mm(label_map()))
    absent = score_case(label_map(lesion=(0, 0)), label_map(lesion=(0, 0)), TABLE, "a", EVERYTHING)[1]
    assert all(math.isnan(absent.value(column)) for column in EVERYTHING.columns("lesion"))


def test_ignored_voxels_change_nothing():
    table = LabelTable({1: "liver", 2: "lesion"}, 9)
    reference, prediction = label_map(), label_map((5, 13))
    reference.array[:, :, 10:] = 9
    other = LabelMap(prediction.array.copy(), GRID)
    other.array[:, :, 10:] = 77  # not in the table, but where nothing is known
    expected = score_case(prediction, reference, table, "a", EVERYTHING)
    assert [row.more for row in score_case(other, reference, table, "a", EVERYTHING)] == [row.more for row in expected]


def test_regions_are_measured_as_unions():
    table = LabelTable({1: "liver", 2: "lesion"}, None, {"whole": (1, 2), "lesion": (2,)})
    both = label_map(lesion=(4, 6))
    whole, _ = score_case(LabelMap((both.array > 0).astype(np.uint8), GRID), both, table, "a", Measures())
    assert (whole.name, whole.dice, whole.more["hd_mm"]) == ("whole", 1.0, 0.0)


def test_labels_in_another_order_give_the_same_scores():
    swapped = LabelTable({1: "lesion", 2: "liver"})
    reference, prediction = label_map(), label_map((5, 13), (0, 1))
    turned = [LabelMap(np.array([0, 2, 1], dtype=np.uint8)[one.array], GRID) for one in (prediction, reference)]
    expected = {row.name: row.more for row in score_case(prediction, reference, TABLE, "a", EVERYTHING)}
    found = {row.name: row.more for row in score_case(*turned, swapped, "a", EVERYTHING)}
    assert found == expected


def test_another_grid_is_refused_or_resampled():
    shifted = GRID.affine.copy()
    shifted[0, 3] += 1.0  # one voxel
    moved = label_map((3, 11), grid=Grid(GRID.shape, shifted))
    with pytest.raises(DataError, match=r"a difference of 1 mm .* or score it with --resample\."):
        score_case(moved, label_map(), TABLE, "a")
    liver, _ = score_case(moved, label_map(), TABLE, "a", Measures(resample=True))
    assert liver.dice == 1.0
    smaller = Grid.from_spacing((20, 16, 10), (1.0, 1.5, 2.0))
    with pytest.raises(DataError, match=r"shapes \(20, 16, 12\) and \(20, 16, 10\), corners up to 4 mm apart"):
        score_case(label_map(grid=smaller), label_map(), TABLE, "a")


def test_values_can_stand_for_others():
    prediction = LabelMap(np.where(label_map().array == 1, 5, 0).astype(np.int16), GRID)
    liver, _ = score_case(prediction, label_map(), TABLE, "a", Measures(surface="none", remap={5: 1}))
    assert liver.dice == 1.0
    with pytest.raises(DataError, match=r"case a: prediction values: expected .* got \[5\]"):
        score_case(prediction, label_map(), TABLE, "a")


def test_calibration_needs_probabilities(tmp_path):
    measures = Measures(surface="none", probabilities=tmp_path)
    reference = label_map()
    array = np.stack([reference.array == value for value in range(3)]).astype(np.float32)
    np.savez(tmp_path / "a.npz", probabilities=array.transpose(0, 3, 2, 1))
    kept = read_probabilities(tmp_path, "a", GRID, TABLE)
    liver, _ = score_case(reference, reference, TABLE, "a", measures, kept)
    assert (liver.more["ece"], liver.more["brier"]) == (0.0, 0.0)
    assert read_probabilities(tmp_path, "b", GRID, TABLE) is None
    assert score_case(reference, reference, TABLE, "b", measures)[0].more == {"ece": 1.0, "brier": 1.0}
    np.savez(tmp_path / "c.npz", probabilities=array)
    with pytest.raises(DataError, match=r"case c: .*probabilities: expected 3 channels of shape \(20, 16, 12\)"):
        read_probabilities(tmp_path, "c", GRID, TABLE)


def test_probabilities_in_a_file_per_organ_are_read_one_by_one(tmp_path):
    reference = label_map()
    write_voxels((reference.array == 1) * np.float32(0.5), GRID, tmp_path / "a" / "liver.nii.gz")
    kept = read_probabilities(tmp_path, "a", GRID, TABLE)
    assert (list(kept), len(kept), "liver" in kept, "lesion" in kept) == (["liver"], 1, True, False)
    liver, other = score_case(reference, reference, TABLE, "a", Measures(surface="none", probabilities=tmp_path), kept)
    inside = (reference.array == 1).sum()
    box = np.argwhere(reference.array == 1)
    margins = [math.ceil(10 / spacing) for spacing in GRID.spacing_mm]
    low, high = np.maximum(box.min(0) - margins, 0), np.minimum(box.max(0) + margins + 1, GRID.shape)
    assert liver.more["brier"] == pytest.approx(0.25 * inside / np.prod(high - low))
    assert other.more == {"ece": 1.0, "brier": 1.0}
    with pytest.raises(DataError, match=r"case a: .*probabilities: expected the reference's grid, got shape"):
        read_probabilities(tmp_path, "a", Grid((3, 3, 3), np.eye(4)), TABLE)


@pytest.mark.parametrize("mask", ["a", "a_0000", "A_pred"])
@pytest.mark.parametrize("kept", ["the reference", "the mask"])
def test_probabilities_are_found_by_the_name_of_reference_or_mask(tmp_path, mask, kept):
    reference = label_map()
    write_label_map(reference, tmp_path / "ref" / "a.nii.gz")
    write_label_map(reference, tmp_path / "pred" / f"{mask}.nii.gz")
    folder = tmp_path / "soft" / ("a" if kept == "the reference" else mask)
    for value, organ in TABLE.names.items():
        write_voxels((reference.array == value) * np.float32(1), GRID, folder / f"{organ}.nii.gz")
    measures = Measures(surface="none", probabilities=tmp_path / "soft")
    found = evaluate(tmp_path / "pred", tmp_path / "ref", TABLE, measures=measures)
    assert [row.more["brier"] for row in found.rows] == [0.0, 0.0]


def test_notes_and_unknown_organs(tmp_path):
    for folder in ("pred", "ref"):
        write_label_map(label_map(), tmp_path / folder / "a.nii.gz")
    found = evaluate(tmp_path / "pred", tmp_path / "ref", TABLE, measures=Measures(tolerance_mm=1.0))
    assert found.notes[0].startswith("The tolerance of NSD (1 mm) is below the largest spacing in 1 of 1 cases")
    with pytest.raises(
        VolsegError, match=r"--tolerance-mm: expected organs of the label table \(liver, lesion\), got l"
    ):
        evaluate(tmp_path / "pred", tmp_path / "ref", TABLE, measures=Measures(tolerances_mm={"lever": 1.0}))
    every = evaluate(tmp_path / "pred", tmp_path / "ref", TABLE, measures=Measures(lesions=("all",)))
    assert every.measures.lesions == ("liver", "lesion")
    assert score_pairs([], TABLE).rows == ()


def aggregates(entry, path=()):
    """(path, value) of every number in the statistics of an organ or of all, where_found and counts left out."""
    for name, value in entry.items():
        if isinstance(value, dict) and name not in ("where_found", "volume"):
            yield from aggregates(value, (*path, name))
        elif isinstance(value, list):
            yield from (((*path, name, str(n)), part) for n, part in enumerate(value))
        elif name in ("mean", "median", "min", "max") and value is not None:
            yield (*path, name), value


@pytest.mark.parametrize("how", ["missed", "missing_prediction", "failed"])
def test_missing_an_organ_is_never_better_than_finding_it_badly(how):
    """Half of the lesions are missed, or found badly: no statistic of any column is better for who missed them."""
    bad, lost = [], []
    for number in range(6):
        case, reference = f"c{number}", label_map(lesion=(0, 3))
        poor = score_case(label_map((6, 13), (2, 9)), reference, TABLE, case, EVERYTHING)
        bad += poor
        if number % 2:
            lost += poor
        elif how == "missed":
            lost += [poor[0], score_case(label_map((6, 13), (0, 0)), reference, TABLE, case, EVERYTHING)[1]]
        else:
            lost += [poor[0], score_without_prediction(reference, TABLE, case, how, EVERYTHING)[1]]
    one, other = (summarize(rows, measures=EVERYTHING) for rows in (lost, bad))
    compared = 0
    for place in ("overall", "organs"):
        entries = (one[place], other[place]) if place == "overall" else (one[place]["lesion"], other[place]["lesion"])
        for (path, worse), (_, better) in zip(*map(aggregates, entries), strict=True):
            higher = METRICS[path[0]].higher
            assert worse <= better + 1e-12 if higher else worse >= better - 1e-12, (place, path)
            compared += 1
    assert compared > 200
    assert one["organs"]["lesion"]["hd95_mm"]["mean"] > other["organs"]["lesion"]["hd95_mm"]["mean"] + 10
    assert one["organs"]["lesion"]["hd95_mm"]["where_found"]["n"] == 3
    assert abs(one["organs"]["lesion"]["volume"]["bias_percent"]) > 0


def test_probabilities_that_are_not_there(tmp_path) -> None:
    (tmp_path / "a.npz").symlink_to("/not/fetched")
    with pytest.raises(DataError, match=r"a\.npz: probabilities: .*got a link to /not/fetched, which is not there"):
        read_probabilities(tmp_path, "a", GRID, TABLE)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / f"{next(iter(TABLE.targets))}.nii.gz").symlink_to("/not/fetched")
    with pytest.raises(DataError, match=r"nii\.gz: file: expected an existing file, got a link to /not/fetched"):
        read_probabilities(tmp_path, "b", GRID, TABLE)
