"""The comparison of levels as CSV, as Markdown and as a picture."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from pipeline.core.errors import VolsegError
from pipeline.core.tables import write_csv
from pipeline.evaluate.summary import organ_means
from pipeline.stages.prune import (
    LevelRow,
    PruningResult,
    pruning_markdown,
    pruning_plot,
    pruning_rows,
    smallest_level,
    verdict,
)


def row(level: int | None, mean: float | None, peak: int | None = 3 * 2**20) -> LevelRow:
    return LevelRow(level, mean, {"a|b": mean, "spleen": None}, 1_500 * (level or 4), 25_000_000, 1.25, peak)


def result(rows: list[LevelRow], level: int) -> PruningResult:
    return PruningResult("big", rows, level, 0.5, (0, 2), 7, (64, 32), "cpu (2 threads)", "what was resident")


ROWS = [row(1, 0.7), row(2, 0.8951), row(3, 0.9), row(None, 0.95, None)]


def test_the_verdict_compares_with_the_best_level() -> None:
    found = result(ROWS, 2)
    assert (found.best.name, found.chosen.name, ROWS[3].name) == ("L3", "L2", "average")
    expected = "L2 is the smallest level within 0.5 Dice points of the best, L3 (mean Dice 0.895 and 0.900)."
    assert verdict(found) == expected
    best = "L3 is the best level (mean Dice 0.900); no smaller one is within 0.5 Dice points of it."
    assert verdict(result(ROWS, 3)) == best


def test_csv_has_all_digits_and_markdown_a_readable_table(tmp_path: Path) -> None:
    found = result(ROWS, 2)
    write_csv(tmp_path / "pruning.csv", pruning_rows(found), digits=6)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "pruning.csv").read_text())))
    assert [line["level"] for line in lines] == ["L1", "L2", "L3", "average"]
    assert [line["chosen"] for line in lines] == ["no", "yes", "no", "no"]
    assert lines[1]["dice_a|b"] == lines[1]["mean_dice"] == "0.8951"
    assert (lines[1]["dice_spleen"], lines[3]["peak_bytes"], lines[0]["peak_bytes"]) == ("", "", "3145728")
    text = re.sub(" +", " ", pruning_markdown(found))  # columns are as wide as their longest cell
    assert "| L2 | 0.895 | 3,000 | 0.03 G | 1.25 | 3 MiB |" in text
    assert "| average | 0.950 | 6,000 | 0.03 G | 1.25 | - |" in text
    assert "| a\\|b | 0.700 | 0.895 | 0.900 | 0.950 |" in text
    assert "Measured on the 7 validation cases of folds 0, 2 with cpu (2 threads)." in text
    assert "patch of 64 x 32" in text
    assert json.loads(json.dumps(found.to_json()))["rows"][3]["level"] is None


def test_the_picture_is_drawn_with_and_without_scores() -> None:
    for rows in (ROWS, [row(1, 0.5), row(None, 0.5)], [row(1, 0.5), row(2, None), row(None, None)]):
        picture = imread(io.BytesIO(pruning_plot(result(rows, 1))))
        assert picture.shape[:2] == (600, 1440)
        assert np.ptp(picture[..., :3]) > 0.5


# Which level is good enough, and how scores are averaged.


def levels_row(level: int | None, mean: float | None) -> LevelRow:
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
    rows = [levels_row(n, value) for n, value in enumerate(dice, start=1)]
    assert smallest_level([*rows, levels_row(None, 0.99)], points) == level  # the average is no level


def test_without_any_organ_there_is_nothing_to_choose() -> None:
    with pytest.raises(VolsegError, match="validation cases: expected at least one organ, got none"):
        smallest_level([levels_row(1, None), levels_row(None, 0.5)], 0.5)


def test_means_over_cases_and_organs_by_hand() -> None:
    rows = [{"a": 0.5, "b": None, "c": None}, {"a": 1.0, "b": 0.25, "c": None}]
    assert organ_means(rows) == (0.5, {"a": 0.75, "b": 0.25, "c": None})
    assert organ_means([{"a": None}]) == (None, {"a": None})
