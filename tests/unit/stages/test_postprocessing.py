"""Which cleaning is kept: hand-computed tables, and label maps whose best cleaning is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import VolsegError
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap
from pipeline.data.volumes import write_label_map
from pipeline.engine.local import open_engine
from pipeline.evaluate.pairing import FilePair
from pipeline.infer.cleaning import Cleaning, read_cleaning
from pipeline.stages.postprocessing import (
    SIZES_ML,
    CaseEffects,
    EffectTask,
    Postprocessing,
    Step,
    best_sizes,
    choose_postprocessing,
    judge,
    measure_effects,
    postprocessing_lines,
    read_postprocessing,
    size_effects,
    write_postprocessing,
)

TABLE = LabelTable({1: "a", 2: "b"})
LARGEST, SMALL, FILL = Step("keep_largest", "a"), Step("remove_small", "a", 0.5), Step("fill_holes", "a")


def pair(folder: Path, case: str, prediction: np.ndarray, reference: np.ndarray) -> FilePair:
    """Files of two label maps with voxels of 1 ml."""
    files = []
    for name, array in (("p", prediction), ("r", reference)):
        files.append(folder / name / f"{case}.nii.gz")
        write_label_map(LabelMap(array.astype(np.uint8), Grid.from_spacing(array.shape, (10, 10, 10))), files[-1])
    return FilePair(case, files[0], files[1])


def choose(pairs: list[FilePair], table: LabelTable = TABLE) -> Postprocessing:
    with open_engine(1) as run:
        return choose_postprocessing(pairs, table, run, lambda done, total, what: None)


def row(*values: int) -> np.ndarray:
    return np.array(values).reshape(-1, 1, 1)


def by_size(changes: Mapping[float, float | None], before: float) -> tuple[float | None, ...]:
    """Dice for each size: from each of these sizes on it is another one."""
    values: list[float | None] = []
    now: float | None = before
    for size in SIZES_ML:
        now = changes.get(size, now)
        values.append(now)
    return tuple(values)


def test_sizes_are_1_2_and_5_of_every_decade() -> None:
    assert SIZES_ML[:5] == (0.001, 0.002, 0.005, 0.01, 0.02)
    assert SIZES_ML[-3:] == (1000, 2000, 5000)


def test_the_smallest_of_the_best_sizes_is_taken() -> None:
    cases = [
        ({"a": 0.5, "b": 0.9}, {"a": by_size({0.1: 0.7, 5: 0.0}, 0.5), "b": by_size({1: 0.2}, 0.9)}),
        ({"a": 0.8, "b": None}, {"a": by_size({2: 0.6, 20: 0.0}, 0.8)}),
    ]  # means of a: 0.65, from 0.1 ml 0.75, from 2 ml 0.65, from 5 ml 0.3
    assert best_sizes(cases, ["a", "b"]) == {"a": 0.1}


def test_sizes_count_cases_in_which_an_organ_vanishes_rightly() -> None:
    hallucinated = ({"a": 0.0}, {"a": tuple(None if size >= 1 else 0.0 for size in SIZES_ML)})
    found = ({"a": 0.8}, {"a": by_size({50: 0.0}, 0.8)})
    assert best_sizes([hallucinated, found], ["a"]) == {"a": 1}  # 0.4, then 0.8 of the one case left
    assert best_sizes([hallucinated], ["a"]) == {}  # nothing would be left to score
    assert best_sizes([({"a": None}, {})], ["a"]) == {}


def test_a_step_is_kept_where_its_organ_gains_and_the_mean_does_not_lose() -> None:
    effects = [
        CaseEffects("x", {"a": 0.5, "b": 0.8}, ({"a": 0.7}, {"a": 0.4}, {"a": 0.6, "b": 0.6}, {})),
        CaseEffects("y", {"a": 0.9, "b": None}, ({"a": 0.8}, {"a": 1.0}, {}, {})),
    ]
    steps = [Step("keep_largest", "a"), SMALL, FILL, Step("fill_holes", "b")]
    found = judge(effects, steps, follow=False)
    # a: 0.7 → 0.75; 0.7; 0.75 with b at 0.6; b: 0.8. Means over organs: 0.75 → 0.775; 0.75; 0.675; 0.75
    assert [(d.before, d.after) for d in found] == [
        pytest.approx(pair) for pair in ((0.7, 0.75), (0.7, 0.7), (0.7, 0.75), (0.8, 0.8))
    ]
    assert [(d.mean_before, d.mean_after) for d in found] == [
        pytest.approx(pair) for pair in ((0.75, 0.775), (0.75, 0.75), (0.75, 0.675), (0.75, 0.75))
    ]
    assert [d.kept for d in found] == [True, False, False, False]


def test_steps_that_follow_one_another_are_judged_from_where_they_begin() -> None:
    effects = [CaseEffects("x", {"a": 0.5}, ({"a": 0.7}, {"a": 0.6}, {"a": 0.65}))]
    found = judge(effects, [LARGEST, SMALL, FILL], follow=True)
    assert [(d.before, d.after, d.kept) for d in found] == [(0.5, 0.7, True), (0.7, 0.6, False), (0.6, 0.65, True)]
    assert judge([], [LARGEST], follow=True) == []
    absent = [CaseEffects("x", {"a": None, "b": 0.5}, ({},))]
    assert judge(absent, [LARGEST], follow=False) == []


def test_effects_of_one_case_are_those_of_scoring_it_again(tmp_path: Path) -> None:
    prediction = row(1, 1, 0, 1, 0, 2, 2, 2, 0, 2, 1)  # a: parts of 2, 1 and 1 voxels; b: 3 and 1
    reference = row(1, 1, 0, 0, 0, 2, 2, 2, 2, 2, 0)
    task = EffectTask(pair(tmp_path, "x", prediction, reference), TABLE, (LARGEST, Step("keep_largest", "b"), FILL))
    found = measure_effects(task)
    assert found.before == {"a": 2 * 2 / (2 + 4), "b": 2 * 4 / (5 + 4)}
    assert found.after == ({"a": 1.0}, {"b": 2 * 3 / (5 + 3)}, {"a": 2 * 2 / (2 + 7)})
    case, before, sizes = size_effects(task)
    assert (case, before) == ("x", found.before)
    at = dict(zip(SIZES_ML, zip(sizes["a"], sizes["b"], strict=True), strict=True))
    assert at[1.0] == (4 / 6, 8 / 9)  # of 1 ml: a component of 1 ml stays
    assert at[2.0] == (1.0, 6 / 8)
    assert at[5.0] == (0.0, 0.0)


def test_ignored_voxels_count_for_nothing_but_the_size_of_a_component(tmp_path: Path) -> None:
    table = LabelTable({1: "a"}, ignore_label=9)
    task = EffectTask(pair(tmp_path, "x", row(1, 1, 1, 0, 1), row(1, 9, 9, 0, 0)), table, (LARGEST,))
    found = measure_effects(task)
    assert found.before == {"a": 2 / 3}
    assert found.after == ({"a": 1.0},)
    sizes = dict(zip(SIZES_ML, size_effects(task)[2]["a"], strict=True))
    assert (sizes[1.0], sizes[2.0], sizes[5.0]) == (2 / 3, 1.0, 0.0)


def test_later_steps_begin_where_earlier_ones_ended(tmp_path: Path) -> None:
    ring = np.zeros((9, 5, 1), int)
    ring[0:5, 0:5] = 1
    reference = ring.copy()
    ring[1:4, 1:4] = 0
    ring[2, 2] = 1  # a speck in the hole of the ring; both are part of the organ
    ring[7:9, 0] = 1
    task = EffectTask(
        pair(tmp_path, "x", ring, reference), TABLE, (LARGEST, FILL, Step("keep_largest", "b")), follow=True
    )
    found = measure_effects(task)
    assert found.before["a"] == 2 * 17 / (25 + 19)
    assert found.after == ({"a": 2 * 16 / (25 + 16)}, {"a": 1.0}, {})


def test_what_is_wrong_with_label_maps_is_found_and_put_right(tmp_path: Path) -> None:
    reference = np.zeros((16, 9, 9), int)
    reference[1:7, 1:7, 1:7] = 1
    reference[10:15, 1:4, 1:4] = 2
    reference[10:15, 6:8, 6:8] = 2  # b comes in two parts
    prediction = reference.copy()
    prediction[4, 4, 4] = 0  # a hole in a
    prediction[0, 8, 8] = 1  # a speck of a, and one of b
    prediction[15, 8, 0] = 2
    found = choose([pair(tmp_path, case, prediction, reference) for case in "xy"])
    assert found.cleaning == Cleaning(("a",), {"b": 2.0}, ("a",))
    assert found.mean_after == 1.0
    assert found.mean_before == pytest.approx((2 * 215 / (216 + 216) + 2 * 65 / (65 + 66)) / 2)
    refused = {(d.step.kind, d.step.organ) for d in found.decisions if not d.kept}
    assert refused == {("keep_largest", "b"), ("remove_small", "a"), ("fill_holes", "b")}
    small = next(d for d in found.decisions if (d.step.kind, d.step.organ) == ("remove_small", "a"))
    assert small.after == small.before  # helps alone, not after keep_largest


def test_perfect_predictions_are_left_alone_and_nothing_can_be_chosen_from_nothing(tmp_path: Path) -> None:
    perfect = choose([pair(tmp_path, "x", row(1, 0, 2), row(1, 0, 2))])
    assert (perfect.cleaning, perfect.mean_before, perfect.mean_after) == (Cleaning(), 1.0, 1.0)
    nothing = choose([])
    assert (nothing.decisions, nothing.cases, nothing.mean_before) == ((), 0, None)
    assert postprocessing_lines(nothing) == ("post-processing: 0 of 0 steps kept, mean Dice - to - (cases: 0)",)


def test_a_region_that_gains_at_the_cost_of_others_is_not_cleaned(tmp_path: Path) -> None:
    table = LabelTable({1: "rim", 2: "core"}, None, {"whole": (1, 2), "core": (2,)})
    wrong = pair(tmp_path, "x", row(1, 1, 1, 0, 1, 1), row(1, 1, 1, 0, 0, 0))
    assert choose([wrong], table).cleaning.keep_largest == ("whole",)
    found = choose([pair(tmp_path, "z", row(1, 1, 1, 1, 0, 1, 1, 2), row(1, 1, 1, 1, 0, 0, 0, 2))], table)
    # whole: 2·5/(5+7) = 0.833, without its second part 2·4/(5+4) = 0.889; the core falls from 1 to 0
    decision = next(d for d in found.decisions if d.step == Step("keep_largest", "whole"))
    assert (decision.before, decision.after) == (pytest.approx(10 / 12), pytest.approx(8 / 9))
    assert (decision.mean_before, decision.mean_after) == (pytest.approx(11 / 12), pytest.approx(4 / 9))
    assert not decision.kept
    assert not found.cleaning


def test_decisions_come_back_from_their_file(tmp_path: Path) -> None:
    prediction, reference = row(1, 1, 0, 1), row(1, 1, 0, 0)
    found = choose([pair(tmp_path, "x", prediction, reference)])
    write_postprocessing(found, tmp_path / "m")
    assert read_postprocessing(tmp_path / "m") == found
    assert read_cleaning(tmp_path / "m", TABLE) == found.cleaning == Cleaning(("a",))
    text = (tmp_path / "m" / "postprocessing.md").read_text()
    assert "| a     |            keep largest |      0.8000 | 1.0000 |      0.8000 | 1.0000 |  yes |" in text
    assert "1 of 3 steps kept, mean Dice 0.8000 to 1.0000 (cases: 1)" in text
    (tmp_path / "m" / "postprocessing.json").write_text('{"decisions": [{}], "cases": 1, "mean_dice": {}}')
    with pytest.raises(VolsegError, match=r"Write it again with `volseg cross-validate`"):
        read_postprocessing(tmp_path / "m")
