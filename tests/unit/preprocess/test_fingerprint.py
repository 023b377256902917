"""What a dataset is like, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.labels import LabelTable
from pipeline.data.dataset import Dataset
from pipeline.preprocess.fingerprint import CaseFingerprint, dataset_fingerprint, intensity_histogram, samples_per_case

LABELS = LabelTable({1: "kidney_left", 4: "kidney_right", 9: "rare"})


def case(name: str, spacing: tuple[float, float, float], voxels: tuple[int, ...], value: float) -> CaseFingerprint:
    intensities = np.full((1, 4), value, np.float32) if sum(voxels[1:]) else np.zeros((1, 0), np.float32)
    return CaseFingerprint(name, (10, 20, 30), (10, 10, 30), spacing, intensities, voxels)


def test_spacings_volumes_and_pairs() -> None:
    cases = [case("a", (1, 1, 5), (90, 100, 200, 0), 10), case("b", (2, 2, 2), (90, 50, 0, 0), 30)]
    found = dataset_fingerprint(Dataset("toy", Path(), "pairs", ("CT",), LABELS, ()), cases)
    assert found["number_of_cases"] == 2
    assert found["spacing_mm"] == {"median": [1.5, 1.5, 3.5], "smallest": [1, 1, 2], "largest": [2, 2, 5]}
    assert found["kept_by_crop"] == 0.5
    assert found["anisotropy"] == 3.0  # the median of 5 and 1
    assert found["channels"]["CT"]["mean"] == 20
    assert found["side_pairs"] == [["kidney_left", "kidney_right"]]
    left, right, rare = (found["organs"][name] for name in LABELS.organs)
    assert left["volume_ml"] == {"smallest": 0.4, "median": 0.45, "largest": 0.5}  # 50 x 8 and 100 x 5 mm3
    assert (left["cases"], right["cases"], rare["cases"]) == (2, 1, 0)
    assert right["share_of_foreground"] == 1.0 / 1.9
    assert rare == {
        "cases": 0,
        "volume_ml": {"smallest": None, "median": None, "largest": None},
        "share_of_foreground": 0,
    }
    assert found["cases"]["b"]["voxels"] == {"kidney_left": 50, "kidney_right": 0, "rare": 0}
    assert json.loads(json.dumps(found)) == found


def test_a_dataset_without_foreground_has_no_statistics() -> None:
    found = dataset_fingerprint(
        Dataset("toy", Path(), "pairs", ("CT",), LABELS, ()), [case("a", (1, 1, 1), (9, 0, 0, 0), 0)]
    )
    assert found["channels"]["CT"]["percentile_99_5"] is None
    assert found["organs"]["rare"]["share_of_foreground"] == 0


def test_intensities_of_many_cases_stay_bounded() -> None:
    assert samples_per_case(1) == samples_per_case(400) == 10_000
    assert samples_per_case(20_000) * 20_000 == 4_000_000
    assert samples_per_case(10**6) == 100


# Histograms of intensities, counted by hand.


def test_bins_of_integers_hold_equally_many_of_them() -> None:
    parts = [np.arange(0, 100, dtype=np.float32), np.zeros(0, np.float32), np.arange(100, 200, dtype=np.float32)]
    found = intensity_histogram(parts, 0.0, 199.0)
    assert found == {"start": -0.5, "width": 4.0, "counts": [4] * 50, "below": 0, "above": 0}


def test_what_lies_far_beyond_the_limits_is_only_counted() -> None:
    values = np.array([-1000, *range(100), 5000, 9000], np.float32)
    found = intensity_histogram([values], 0.0, 100.0)
    assert found is not None
    assert (found["below"], found["above"], sum(found["counts"])) == (1, 2, 100)
    assert found["start"] == -15.5  # 15 % below the lower limit


def test_fractions_fill_64_bins_of_which_the_last_holds_its_edge() -> None:
    values = np.linspace(0.0, 1.0, 6401, dtype=np.float32)
    found = intensity_histogram([values], 0.0, 1.0)
    assert found is not None
    assert (len(found["counts"]), sum(found["counts"]), found["above"]) == (64, 6401, 0)
    assert max(found["counts"]) <= 102


@pytest.mark.parametrize("value", [7.0, 0.7, -3.2])
def test_a_single_intensity_is_one_bin(value: float) -> None:
    found = intensity_histogram([np.full(5, value, np.float32)], value, value)
    assert found is not None
    assert (found["counts"], found["below"], found["above"]) == ([5], 0, 0)


def test_nothing_to_count() -> None:
    assert intensity_histogram([np.zeros(0, np.float32)], -np.inf, np.inf) is None
