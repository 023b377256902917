"""How a missed, a hallucinated or an absent organ enters means and counts is decided in one place."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.evaluate.case import score_case, score_without_prediction
from pipeline.evaluate.metrics import ENTRIES, METRICS, STATUSES, Entry, Measures, Row, Status
from pipeline.evaluate.summary import summarize

TABLE = LabelTable({1: "liver", 2: "spleen"})
GRID = Grid.from_spacing((6, 6, 6), (1.0, 1.0, 1.0))
DIAGONAL = math.sqrt(3) * 6


def label_map(*values: int) -> LabelMap:
    array = np.zeros(GRID.shape, np.uint8)
    for value in values:
        array[value : value + 2, 1:3, 1:3] = value
    return LabelMap(array, GRID)


def rows() -> list[Row]:
    """Liver: found, missed, hallucinated, in neither map, and a case without a prediction."""
    measures = Measures()
    found: list[Row] = []
    for case, reference, prediction in (("a", (1,), (1,)), ("b", (1,), ()), ("c", (), (1,)), ("d", (2,), (2,))):
        found += score_case(label_map(*prediction), label_map(*reference), TABLE, case, measures)
    return [*found, *score_without_prediction(label_map(1), TABLE, "e", measures=measures)]


def liver(key: str = "dice") -> tuple[float, int]:
    entry = summarize(rows())["organs"]["liver"]
    return entry[key]["mean"], entry["n"]


def test_as_it_is_a_miss_and_a_hallucination_are_the_worst() -> None:
    assert set(ENTRIES) == set(STATUSES)
    assert liver() == (0.25, 4)
    mean, count = liver("hd95_mm")
    assert (mean, count) == (pytest.approx(3 * DIAGONAL / 4), 4)


@pytest.mark.parametrize(
    ("status", "entry", "dice", "distance", "count"),
    [
        ("hallucinated", "left out", 1 / 3, 2 / 3, 3),
        ("missed", "left out", 1 / 3, 2 / 3, 3),
        ("missing_prediction", "left out", 1 / 3, 2 / 3, 3),
        ("scored", "worst", 0.0, 1.0, 4),
        ("true_negative", "worst", 0.2, 0.8, 5),
    ],
)
def test_mean_and_count_follow_the_rule(
    monkeypatch: pytest.MonkeyPatch, status: Status, entry: Entry, dice: float, distance: float, count: int
) -> None:
    monkeypatch.setitem(ENTRIES, status, entry)
    assert liver() == (pytest.approx(dice), count)
    assert liver("hd95_mm") == (pytest.approx(distance * DIAGONAL), count)


def test_means_follow_the_worst_number_of_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    for column, worst, expected in (("dice", -1.0, (1 - 3) / 4), ("nsd", 0.5, (1 + 3 * 0.5) / 4)):
        monkeypatch.setitem(METRICS, column, replace(METRICS[column], worst=worst))
        assert liver(column) == (pytest.approx(expected), 4)


def row(status: Status, dice: float, **more: Any) -> Row:
    return Row("a", (1,), "liver", status, dice, dice, 1.0, 0.0, more)


def test_lesions_and_calibration_of_a_missed_organ_are_as_measured() -> None:
    missed = row("missed", 0.0, ece=0.25, lesion_f1=math.nan, hd_mm=math.inf, diagonal_mm=9.0)
    assert (missed.entry("ece"), missed.entry("hd_mm"), missed.entry("dice")) == (0.25, 9.0, 0.0)
    assert math.isnan(missed.entry("lesion_f1"))
    assert math.isnan(missed.entry("nsd"))  # not measured


def test_an_organ_that_a_reference_lacks_is_no_miss_without_a_prediction() -> None:
    absent = row("missing_prediction", math.nan)
    assert not absent.counts
    assert math.isnan(absent.entry("dice"))
