"""Paired differences, by hand."""

import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from pipeline.evaluate.metrics import Row
from pipeline.evaluate.significance import holm, paired_difference, paired_tests, rankings


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


def rows(scores, name="liver", hd=None):
    """One row per case; ``hd`` gives distances, infinite ones with a diagonal of 100 mm."""
    more = [{} if hd is None else {"hd_mm": value, "diagonal_mm": 100.0} for value in hd or [0.0] * len(scores)]
    return [
        Row(f"c{n:02d}", (1,), name, "scored", score, score, 10.0, 10.0, extra)
        for n, (score, extra) in enumerate(zip(scores, more, strict=True))
    ]


def test_holm_by_hand():
    assert holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_paired_tests_agree_with_scipy_and_count_wins():
    one, other = [0.9, 0.8, 0.85, 0.7, 0.95, 0.6], [0.8, 0.82, 0.7, 0.6, 0.95, 0.3]
    found = {(t.metric, t.organ): t for t in paired_tests({"A": rows(one), "B": rows(other)})}
    test = found["dice", "liver"]
    assert (test.wins, test.ties, test.losses, test.cases) == (4, 1, 1, 6)
    assert test.difference == pytest.approx(np.mean(np.subtract(one, other)))
    assert test.p == pytest.approx(wilcoxon(np.subtract(one, other)).pvalue)
    assert test.p_holm == pytest.approx(min(1.0, 2 * test.p))  # of liver, and of all organs together
    low, high = test.interval_95
    assert low < test.difference < high


def test_distances_are_better_when_they_are_smaller_and_misses_cost_the_diagonal():
    a, b = rows([0.5, 0.5], hd=[1.0, 2.0]), rows([0.5, 0.5], hd=[3.0, math.inf])
    found = {(t.metric, t.organ): t for t in paired_tests({"A": a, "B": b})}["hd_mm", "liver"]
    assert (found.wins, found.losses, found.difference) == (2, 0, pytest.approx(-50.0))
    equal = {(t.metric, t.organ): t for t in paired_tests({"A": a, "B": a})}["dice", "liver"]
    assert (equal.p, equal.ties) == (1.0, 2)
    alone = paired_tests({"A": rows([0.5]), "B": rows([0.6])})[0]
    assert (alone.p, alone.interval_95, alone.p_holm) == (None, None, None)


def test_ranks_and_how_stable_they_are():
    """A is better than B in one of two cases by more than it is worse in the other: 1/4 of the resamples disagree."""
    found = rankings({"B": rows([0.5, 0.5]), "A": rows([0.9, 0.3]), "C": rows([0.1, 0.1])})
    ranking = next(ranking for ranking in found if ranking.metric == "dice")
    assert ranking.models == ("A", "B", "C")
    assert ranking.means == pytest.approx((0.6, 0.5, 0.1))
    assert ranking.same_order == pytest.approx(0.75, abs=0.02)
    assert ranking.shares[0][0] == pytest.approx(0.75, abs=0.02)
    assert ranking.shares[2] == (0.0, 0.0, 1.0)
