"""Which level is good enough, and how scores are averaged."""

from __future__ import annotations

import pytest

from pipeline.core.errors import VolsegError
from pipeline.export.pruning import LevelRow
from pipeline.stages.levels import mean_scores
from pipeline.stages.prune import smallest_level


def row(level: int | None, mean: float | None) -> LevelRow:
    return LevelRow(level, mean, {}, 1, 1, 1.0, None)


@pytest.mark.parametrize(
    ("dice", "points", "level"),
    [
        ((0.7, 0.895, 0.9), 0.5, 2),  # on the limit counts
        ((0.7, 0.8949, 0.9), 0.5, 3),
        ((0.7, 0.9, 0.9), 0.0, 2),
        ((0.9, 0.895, 0.9), 0.0, 1),
        ((None, 0.2, 0.9), 100.0, 2),  # a level without a score is never chosen
    ],
)
def test_the_smallest_level_within_the_tolerance(dice: tuple[float | None, ...], points: float, level: int) -> None:
    rows = [row(n, value) for n, value in enumerate(dice, start=1)]
    assert smallest_level([*rows, row(None, 0.99)], points) == level  # the average is no level


def test_without_any_organ_there_is_nothing_to_choose() -> None:
    with pytest.raises(VolsegError, match="validation cases: expected at least one organ, got none"):
        smallest_level([row(1, None), row(None, 0.5)], 0.5)


def test_means_over_cases_and_organs_by_hand() -> None:
    rows = [{"a": 0.5, "b": None, "c": None}, {"a": 1.0, "b": 0.25, "c": None}]
    assert mean_scores(rows) == (0.5, {"a": 0.75, "b": 0.25, "c": None})
    assert mean_scores([{"a": None}]) == (None, {"a": None})
