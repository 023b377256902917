"""Paired differences, by hand."""

import pytest

from pipeline.evaluate.compare import paired_difference


def test_only_cases_with_two_scores_are_compared():
    one = {"a": 0.9, "b": 0.5, "c": 0.7, "d": None, "e": 0.1}
    other = {"a": 0.8, "b": 0.5, "c": 0.8, "d": 0.3, "f": 0.2}
    found = paired_difference(one, other)
    assert found.mean == pytest.approx(0.0)
    assert (found.better, found.equal, found.worse) == (1, 1, 1)
    assert found.interval_95 == (pytest.approx(-0.1), pytest.approx(0.1))


def test_a_constant_difference_has_no_width():
    found = paired_difference({"a": 0.9, "b": 0.5}, {"a": 0.7, "b": 0.3})
    assert found.interval_95 == (pytest.approx(0.2), pytest.approx(0.2))
    assert (found.better, found.equal, found.worse) == (2, 0, 0)


def test_one_case_has_no_interval_and_none_no_mean():
    assert paired_difference({"a": 0.9}, {"a": 0.7}).interval_95 is None
    nothing = paired_difference({"a": None}, {"b": 0.7})
    assert (nothing.mean, nothing.interval_95, nothing.better, nothing.equal, nothing.worse) == (None, None, 0, 0, 0)


def test_the_bootstrap_is_seeded():
    one, other = {str(n): n / 7 % 1 for n in range(20)}, {str(n): n / 5 % 1 for n in range(20)}
    assert paired_difference(one, other) == paired_difference(one, other)
