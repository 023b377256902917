import json
import math

import numpy as np
import pytest

from pipeline.console.printing import TABLE_COLUMNS, table_rows
from pipeline.evaluate.metrics import Row
from pipeline.evaluate.summary import summarize

NAN = float("nan")


def row(case, name, dice, status="scored"):
    iou = dice / (2 - dice) if not math.isnan(dice) else NAN
    return Row(case, {"liver": (1,), "spleen": (2,)}[name], name, status, dice, iou, 10.0, 10.0)


ROWS = [
    row("a", "liver", 0.9),
    row("b", "liver", 0.8),
    row("c", "liver", 0.0, "missing_prediction"),
    row("a", "spleen", 0.5),
    row("b", "spleen", NAN, "true_negative"),
    row("c", "spleen", NAN, "missing_prediction"),
    row("d", "liver", 0.0, "missed"),
    row("d", "spleen", 0.0, "hallucinated"),
]


def test_hand_computed_statistics():
    summary = summarize(ROWS)
    liver, spleen = summary["organs"]["liver"], summary["organs"]["spleen"]
    assert liver["dice"]["mean"] == pytest.approx(1.7 / 4)
    assert liver["dice"]["median"] == pytest.approx(0.4)
    assert liver["dice"]["sd"] == pytest.approx(np.std([0.9, 0.8, 0.0, 0.0], ddof=1))
    assert liver["dice"]["min"] == 0.0
    assert liver["iou"]["mean"] == pytest.approx((0.9 / 1.1 + 0.8 / 1.2) / 4)
    counts = ("n", "n_scored", "n_missed", "n_hallucinated", "n_missing_prediction", "n_failed", "n_true_negative")
    assert [liver[name] for name in counts] == [4, 2, 1, 0, 1, 0, 0]
    assert [spleen[name] for name in counts] == [2, 1, 0, 1, 0, 0, 1]
    overall = summary["overall"]
    assert (overall["n_cases"], overall["n_organs"], overall["n"]) == (4, 2, 6)
    assert overall["dice"]["mean"] == pytest.approx((1.7 / 4 + 0.25) / 2)
    assert overall["dice"]["over_cases"]["mean"] == pytest.approx((0.7 + 0.8 + 0.0 + 0.0) / 4)
    assert overall["dice"]["over_cases"]["median"] == pytest.approx(0.35)
    assert [entry["case"] for entry in summary["cases"]] == ["c", "d", "a", "b"]
    assert summary["cases"][2] == {"case": "a", "dice": 0.7, "worst_organ": "spleen", "worst_dice": 0.5}
    assert summary["worst_cases"] == ["c", "d", "a", "b"]


def test_bootstrap_interval_of_two_cases():
    """Two cases give means 0, 0.5, 1 with probabilities 1/4, 1/2, 1/4: the 95 % interval is [0, 1]."""
    summary = summarize([row("a", "liver", 0.0), row("b", "liver", 1.0)])
    assert summary["organs"]["liver"]["dice"]["interval_95"] == [0.0, 1.0]


def test_bootstrap_interval_is_near_the_normal_one_and_seeded():
    scores = np.random.default_rng(1).normal(0.8, 0.05, 200)
    rows = [row(f"c{n:03d}", "liver", float(score)) for n, score in enumerate(scores)]
    low, high = summarize(rows, seed=3)["overall"]["dice"]["interval_95"]
    half = 1.96 * scores.std() / math.sqrt(200)
    assert low == pytest.approx(scores.mean() - half, abs=0.0006)
    assert high == pytest.approx(scores.mean() + half, abs=0.0006)
    assert summarize(rows, seed=3) == summarize(list(reversed(rows)), seed=3)
    assert summarize(rows, seed=4)["overall"]["dice"]["interval_95"] != [low, high]


def test_undefined_numbers_are_null_in_json():
    summary = summarize([row("a", "liver", 0.5), row("a", "spleen", NAN, "true_negative")])
    json.dumps(summary, allow_nan=False)
    assert summary["organs"]["liver"]["dice"] == {
        "mean": 0.5,
        "median": 0.5,
        "sd": None,
        "min": 0.5,
        "max": 0.5,
        "interval_95": None,
    }
    assert set(summary["organs"]["spleen"]["dice"].values()) == {None}
    empty = summarize([])
    assert (empty["overall"]["n_cases"], empty["overall"]["dice"]["mean"], empty["cases"]) == (0, None, [])
    assert any("missed" in line for line in empty["conventions"])


def aggregates(summary):
    """Every number that says how good the predictions are."""
    blocks = [entry[metric] for entry in summary["organs"].values() for metric in ("dice", "iou")]
    for metric in ("dice", "iou"):
        blocks += [summary["overall"][metric], summary["overall"][metric]["over_cases"]]
    found = [block[key] for block in blocks for key in ("mean", "median", "min") if key in block]
    return [*found, *(value for block in blocks for value in block["interval_95"])]


@pytest.mark.parametrize("status", ["missed", "missing_prediction", "failed"])
def test_missing_an_organ_is_never_better_than_finding_it_badly(status):
    cases = [f"c{n}" for n in range(8)]
    spleen = [
        row(case, "spleen", 0.9 if n % 3 else NAN, "scored" if n % 3 else "true_negative")
        for n, case in enumerate(cases)
    ]
    bad = [*spleen, *(row(case, "liver", 0.05 + 0.01 * n) for n, case in enumerate(cases))]
    missing = [row(r.case, "liver", 0.0, status) if r.name == "liver" and int(r.case[1:]) % 2 else r for r in bad]
    pairs = list(zip(aggregates(summarize(missing)), aggregates(summarize(bad)), strict=True))
    assert len(pairs) > 20
    assert all(lost <= found for lost, found in pairs)
    assert summarize(missing)["organs"]["liver"]["dice"]["mean"] < summarize(bad)["organs"]["liver"]["dice"]["mean"]


def test_table_rows():
    lines = table_rows(summarize(ROWS))
    assert {len(line) for line in lines} == {len(TABLE_COLUMNS)}
    assert [line[0] for line in lines] == ["liver", "spleen", "all organs"]
    assert lines[0][1:3] == ("4", "0.425")
    assert lines[0][-2:] == ("2", "0")
    assert lines[2][:3] == ("all organs", "4", "0.338")
