import math

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.labels import LabelTable
from pipeline.evaluate import overlap
from pipeline.evaluate.overlap import joint_histogram, overlaps

TABLE = LabelTable({1: "liver", 2: "spleen"})


def test_joint_histogram_counts_pairs_and_other_values():
    reference = np.array([0, 0, 1, 1, 1, 7], dtype=np.uint8)
    prediction = np.array([0, 1, 1, 1, 0, 1], dtype=np.int16)
    assert joint_histogram(reference, prediction, [1, 0]).tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]


def test_joint_histogram_of_large_label_values_and_memory_orders():
    reference = np.asfortranarray(np.array([[0, 3_000_000], [5, 5]], dtype=np.int64))
    prediction = np.array([[0, 3_000_000], [5, 6]], dtype=np.uint32)
    assert joint_histogram(reference, prediction, [0, 5, 3_000_000]).tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 1],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
    ]


def test_joint_histogram_works_in_pieces(monkeypatch):
    generator = np.random.default_rng(0)
    reference, prediction = generator.integers(0, 3, (2, 7, 5, 4))
    whole = joint_histogram(reference, prediction, [0, 1, 2])
    monkeypatch.setattr(overlap, "_PIECE_VOXELS", 30)
    assert joint_histogram(reference, prediction, [0, 1, 2]).tolist() == whole.tolist()


def test_joint_histogram_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"equal shapes, got \(2,\) and \(3,\)"):
        joint_histogram(np.zeros(2, int), np.zeros(3, int), [0])


def test_cubes_shifted_by_two_voxels():
    reference, prediction = np.zeros((2, 50, 50, 50), dtype=np.uint8)
    reference[2:42, 5:45, 5:45] = 1
    prediction[4:44, 5:45, 5:45] = 1
    liver, spleen = overlaps(reference, prediction, TABLE)
    assert (liver.reference_voxels, liver.prediction_voxels, liver.intersection_voxels) == (64000, 64000, 60800)
    assert liver.dice == pytest.approx(0.95)
    assert liver.iou == pytest.approx(60800 / 67200)
    assert (spleen.status, math.isnan(spleen.dice), math.isnan(spleen.iou)) == ("true_negative", True, True)


@pytest.mark.parametrize(
    ("reference", "prediction", "status", "dice", "iou"),
    [
        ([1, 1, 0], [1, 0, 0], "scored", 2 / 3, 0.5),
        ([1, 0, 0], [0, 1, 0], "scored", 0.0, 0.0),
        ([1, 0, 0], [0, 0, 0], "missed", 0.0, 0.0),
        ([0, 0, 0], [1, 0, 0], "hallucinated", 0.0, 0.0),
    ],
)
def test_conventions(reference, prediction, status, dice, iou):
    liver = overlaps(np.array(reference), np.array(prediction), TABLE)[0]
    assert (liver.status, liver.dice, liver.iou) == (status, pytest.approx(dice), pytest.approx(iou))


def test_regions_are_unions_of_their_values():
    table = LabelTable({1: "rim", 2: "cup", 3: "vessel"}, 9, {"disc": (1, 2), "cup": (2,), "vessel": (3,)})
    reference = np.array([[1, 1, 2, 2, 0, 9], [1, 2, 0, 0, 0, 9]])
    prediction = np.array([[1, 2, 2, 1, 1, 2], [0, 0, 3, 0, 0, 9]])
    disc, cup, vessel = overlaps(reference, prediction, table)
    assert (disc.name, disc.label, disc.status) == ("disc", (1, 2), "scored")
    assert (disc.reference_voxels, disc.prediction_voxels, disc.intersection_voxels) == (6, 5, 4)
    assert disc.dice == pytest.approx(8 / 11)
    assert disc.iou == pytest.approx(4 / 7)
    assert (cup.reference_voxels, cup.prediction_voxels, cup.intersection_voxels) == (3, 2, 1)
    assert (vessel.status, vessel.dice) == ("hallucinated", 0.0)
    assert overlaps(reference, np.zeros_like(reference), table)[0].status == "missed"


def test_ignored_voxels_are_left_out_whatever_is_predicted_there():
    table = LabelTable({1: "liver"}, ignore_label=255)
    reference = np.array([1, 1, 0, 255, 255, 255])
    found = overlaps(reference, np.array([1, 0, 0, 1, 255, 99]), table)[0]
    assert (found.reference_voxels, found.prediction_voxels, found.intersection_voxels) == (2, 1, 1)


def test_values_outside_the_table_are_named():
    with pytest.raises(DataError, match=r"^case c: prediction values: expected 0 .*\(1, 2\), got \[7, 9\]\. "):
        overlaps(np.array([0, 1, 1]), np.array([9, 7, 1]), TABLE, case="c")
    with pytest.raises(DataError, match=r"^case c: reference values: expected 0 .*, got \[5\]\. "):
        overlaps(np.array([0, 5, 1]), np.array([0, 1, 1]), TABLE, case="c")
    with pytest.raises(DataError, match=r"prediction values: .*got \[255\]"):
        overlaps(np.array([0, 1]), np.array([255, 1]), LabelTable({1: "liver"}, 255))
