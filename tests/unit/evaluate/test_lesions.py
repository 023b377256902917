"""Lesions one by one, and calibration."""

import math
from dataclasses import astuple

import numpy as np
import pytest

from pipeline.core.grid import Box
from pipeline.evaluate.case import calibration, dilated_box
from pipeline.evaluate.lesions import lesion_scores


def lesions(*boxes):
    mask = np.zeros((20, 10, 10), dtype=bool)
    for start, stop in boxes:
        mask[start:stop, 2:4, 2:4] = True
    return mask


def test_hand_computed_lesions():
    """Of three lesions two are found; one predicted lesion lies nowhere. IoU of the pairs: 12/16 and 4/12."""
    reference = lesions((0, 4), (6, 8), (15, 18))
    prediction = lesions((0, 3), (7, 9), (11, 12))
    found = lesion_scores(reference, prediction, 0.001)
    assert (found.reference, found.prediction) == (3, 3)
    assert found.f1 == pytest.approx(2 / 3)
    assert (found.rq, found.sq, found.pq) == pytest.approx((1 / 3, 0.75, 0.25))


def test_precision_counts_predicted_lesions_and_recall_those_of_the_reference():
    """One lesion predicted in two parts: recall 1, precision 1; a lesion of its own beside them: precision 2/3."""
    reference, prediction = lesions((0, 9)), lesions((0, 2), (5, 6), (12, 14))
    assert lesion_scores(reference, prediction, 0.001).f1 == pytest.approx(2 * (2 / 3) / (5 / 3))


def test_corners_connect():
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert lesion_scores(mask, mask, 0.001).reference == 1


def test_small_lesions_are_taken_out_of_both():
    reference, prediction = lesions((0, 4), (8, 9)), lesions((0, 4), (12, 13))
    found = lesion_scores(reference, prediction, 0.5, minimum_ml=4.0)  # 16 voxels are 8 mL, 4 voxels 2 mL
    assert astuple(found) == (1, 1, 1.0, 1.0, 1.0, 1.0)
    assert lesion_scores(reference, prediction, 0.5, minimum_ml=2.0).f1 == pytest.approx(0.5)


def test_empty_masks():
    nothing, some = lesions(), lesions((0, 2))
    assert astuple(lesion_scores(some, nothing, 1.0))[2:] == (0.0, 0.0, 0.0, 0.0)
    assert astuple(lesion_scores(nothing, some, 1.0))[:3] == (0, 1, 0.0)
    assert all(math.isnan(value) for value in astuple(lesion_scores(nothing, nothing, 1.0))[2:])


def test_calibration_by_hand():
    """Bins of 1/15: 0.2 and 0.21 share one (mean 0.205, organ 1/2), 0.9 is alone (organ 1)."""
    probability = np.array([[0.2, 0.21], [0.9, 0.5]])
    reference = np.array([[True, False], [True, True]])
    counted = np.array([[True, True], [True, False]])
    found = calibration(probability, reference, counted)
    assert found["ece"] == pytest.approx((2 * abs(0.205 - 0.5) + 0.1) / 3)
    assert found["brier"] == pytest.approx((0.8**2 + 0.21**2 + 0.1**2) / 3)
    assert calibration(np.ones((2, 2)), np.ones((2, 2), dtype=bool)) == {"ece": 0.0, "brier": 0.0}
    assert math.isnan(calibration(probability, reference, np.zeros((2, 2), dtype=bool))["ece"])


def test_the_box_reaches_10_mm_further_within_the_volume():
    box = dilated_box(Box((1, 20, 4), (3, 30, 5)), (5, 40, 100), (2.5, 1.0, 4.0))
    assert box == Box((0, 10, 1), (5, 40, 8))


@pytest.mark.parametrize("shape", [(1, 1, 5), (1, 5, 1), (5, 1, 1)])
def test_lesions_of_a_single_line_of_voxels(shape: tuple[int, int, int]) -> None:
    reference = np.array([True, False, True, False, True]).reshape(shape)
    prediction = np.array([True, False, True, False, False]).reshape(shape)
    scores = lesion_scores(reference, prediction, 1.0)
    assert (scores.reference, scores.prediction, scores.rq) == (3, 2, 0.8)
