"""Histograms of intensities, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.preprocess.histogram import intensity_histogram


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
