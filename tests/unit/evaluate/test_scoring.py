import json
import math
import pickle
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.volumes import read_label_map, write_label_map
from pipeline.evaluate.case import score_case
from pipeline.evaluate.metrics import OVERLAP_ONLY, Measures
from pipeline.evaluate.overlap import overlaps
from pipeline.evaluate.scoring import _score_pair, evaluate

TABLE = LabelTable({1: "liver", 2: "spleen"})
GRID = Grid.from_spacing((4, 4, 4), (10.0, 10.0, 10.0))  # one voxel is 1 mL


def label_map(*boxes, grid=GRID):
    """Label n + 1 fills ``boxes[n]`` slices from the bottom along k, one after the other."""
    array, start = np.zeros(grid.shape, dtype=np.uint8), 0
    for value, thickness in enumerate(boxes, start=1):
        array[:, :, start : start + thickness] = value
        start += thickness
    return LabelMap(array, grid)


@pytest.fixture
def folders(tmp_path):
    prediction, reference = tmp_path / "pred", tmp_path / "ref"
    for name in ("a", "b"):
        write_label_map(label_map(1, 1), reference / f"{name}.nii.gz")
        write_label_map(label_map(2), prediction / f"{name}.nii.gz")
    (prediction / "labels.json").write_text(json.dumps(TABLE.to_json()))
    return prediction, reference


def test_rows_of_a_case():
    liver, spleen = score_case(label_map(2), label_map(1, 1), TABLE, "c")
    assert (liver.case, liver.label, liver.name, liver.status) == ("c", (1,), "liver", "scored")
    assert liver.dice == pytest.approx(2 * 16 / 48)
    assert liver.iou == pytest.approx(0.5)
    assert (liver.volume_reference_ml, liver.volume_prediction_ml) == pytest.approx((16.0, 32.0))
    assert (spleen.status, spleen.dice, spleen.volume_prediction_ml) == ("missed", 0.0, 0.0)


def test_mismatched_grids_name_the_difference():
    shifted = GRID.affine.copy()
    shifted[0, 3] += 2.5
    with pytest.raises(DataError, match=r"^case c: prediction grid: .*the reference grid.* a difference of 2\.5 mm"):
        score_case(label_map(1, grid=Grid(GRID.shape, shifted)), label_map(1), TABLE, "c")
    other = Grid.from_spacing((4, 4, 5), (10.0, 10.0, 10.0))
    with pytest.raises(DataError, match=r"got shapes \(4, 4, 4\) and \(4, 4, 5\)"):
        score_case(label_map(1, grid=other), label_map(1), TABLE, "c")


def test_missing_prediction_is_a_miss(folders):
    prediction, reference = folders
    write_label_map(label_map(1), reference / "c.nii.gz")
    found = {(row.case, row.name): row for row in evaluate(prediction, reference).rows}
    assert len(found) == 6
    liver, spleen = found["c", "liver"], found["c", "spleen"]
    assert (liver.status, liver.dice, liver.iou) == ("missing_prediction", 0.0, 0.0)
    assert liver.volume_reference_ml == pytest.approx(16.0)
    assert math.isnan(liver.volume_prediction_ml)
    assert (spleen.status, math.isnan(spleen.dice)) == ("missing_prediction", True)


def test_prediction_without_reference_is_a_note(folders):
    prediction, reference = folders
    shutil.copy(prediction / "a.nii.gz", prediction / "z.nii.gz")
    evaluation = evaluate(prediction, reference)
    assert evaluation.notes == ("z.nii.gz: no reference of that name, not scored.",)
    assert [case.id for case in evaluation.cases] == ["a", "b"]


def test_unusable_prediction_fails_and_scores_0(folders):
    prediction, reference = folders
    (prediction / "a.nii.gz").write_bytes(b"no volume")
    write_label_map(label_map(1, grid=Grid.from_spacing((4, 4, 5), (10.0,) * 3)), prediction / "b.nii.gz")
    evaluation = evaluate(prediction, reference)
    assert [case for case, _ in evaluation.failures] == ["a", "b"]
    assert "a.nii.gz" in evaluation.failures[0][1]
    assert "shapes (4, 4, 4) and (4, 4, 5)" in evaluation.failures[1][1]
    assert [(row.status, row.dice) for row in evaluation.rows] == [("failed", 0.0)] * 4


def test_unusable_reference_fails_without_rows(folders):
    prediction, reference = folders
    (reference / "a.nii.gz").write_bytes(b"no volume")
    write_label_map(label_map(1, 1, 1), reference / "b.nii.gz")
    evaluation = evaluate(prediction, reference)
    assert evaluation.rows == ()
    assert [case for case, _ in evaluation.failures] == ["a", "b"]
    assert "reference values" in evaluation.failures[1][1]
    assert "got [3]" in evaluation.failures[1][1]


def test_without_a_label_table_values_are_named(folders):
    prediction, reference = folders
    (prediction / "labels.json").unlink()
    write_label_map(label_map(0, 0, 1), prediction / "a.nii.gz")
    evaluation = evaluate(prediction, reference)
    assert evaluation.labels.names == {1: "label_1", 2: "label_2", 3: "label_3"}
    assert any("No label table" in note for note in evaluation.notes)
    assert {row.name: row.status for row in evaluation.rows if row.case == "a"}["label_3"] == "hallucinated"


def test_any_map_will_do(folders):
    expected = evaluate(*folders)

    def backwards(function, pairs):
        return [pickle.loads(pickle.dumps(function))(pair) for pair in reversed(pairs)]

    assert evaluate(*folders, map_cases=backwards) == expected
    lossy = evaluate(*folders, map_cases=lambda function, pairs: [function(pairs[0])])
    assert [case for case, _ in lossy.failures] == ["b"]
    assert pickle.loads(pickle.dumps(partial(_score_pair, TABLE, OVERLAP_ONLY))).args == (TABLE, OVERLAP_ONLY)


def test_nothing_to_score_is_one_sentence(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolsegError, match=r"empty: prediction folder: expected label maps \(.*\), got none\."):
        evaluate(tmp_path / "empty", folders[1])
    with pytest.raises(VolsegError, match=r"nowhere: reference: expected a file or folder, got nothing there\."):
        evaluate(folders[0], tmp_path / "nowhere")


def test_evaluation_imports_neither_torch_nor_monai():
    code = "import sys, pipeline.evaluate, pipeline.report.report; print({'torch', 'monai'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@pytest.mark.realdata
def test_shipped_label_maps_agree_with_numpy(real_data):
    folder = real_data / "ct_multiorgan"
    names = json.loads((folder / "ct_label_names.json").read_text())
    table = LabelTable({int(value): name for value, name in names.items()})
    reference = read_label_map(folder / "example_ct_sm_labels.nii.gz")
    prediction = read_label_map(folder / "example_ct_sm_fast_labels.nii.gz")
    present = 0
    for found in overlaps(reference.array, prediction.array, table):
        r, p = reference.array == found.label[0], prediction.array == found.label[0]
        if not r.any() and not p.any():
            assert found.status == "true_negative"
            continue
        present += 1
        assert found.dice == pytest.approx(2 * (r & p).sum() / (r.sum() + p.sum()), abs=1e-12)
        assert found.iou == pytest.approx((r & p).sum() / (r | p).sum(), abs=1e-12)
    assert present >= 41


@pytest.mark.realdata
def test_volumes_agree_with_shipped_statistics(real_data):
    folder = real_data / "ct_multiorgan"
    names = json.loads((folder / "ct_label_names.json").read_text())
    table = LabelTable({int(value): name for value, name in names.items()})
    found = read_label_map(folder / "example_ct_sm_fast_labels.nii.gz")
    statistics = json.loads((folder / "example_ct_sm_statistics.json").read_text())
    volumes = {row.name: row.volume_prediction_ml for row in score_case(found, found, table, "ct")}
    checked = [name for name in volumes if statistics.get(name, {}).get("volume", 0) > 0]
    assert len(checked) >= 30
    for name in checked:
        assert volumes[name] == pytest.approx(statistics[name]["volume"] / 1000, rel=0.03)


def test_probabilities_that_are_not_there_are_noted(folders, tmp_path):
    (tmp_path / "soft" / "a").mkdir(parents=True)
    measures = Measures(surface="none", probabilities=tmp_path / "soft")
    found = evaluate(*folders, measures=measures)
    assert {row.value("ece") for row in found.rows} == {1.0}
    assert [note.split(":")[0] for note in found.notes] == ["2 of 2 cases have no probabilities of some organs, e.g. a"]
    soft = np.full((3, *GRID.shape[::-1]), 1 / 3, dtype=np.float32)
    np.savez(tmp_path / "soft" / "a.npz", probabilities=soft)
    (note,) = evaluate(*folders, measures=measures).notes
    assert note.startswith("1 of 2 cases have no probabilities of some organs, e.g. b: there ECE and Brier score are 1")
    np.savez(tmp_path / "soft" / "b.npz", probabilities=soft)
    assert evaluate(*folders, measures=measures).notes == ()
