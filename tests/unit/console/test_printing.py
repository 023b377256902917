"""What is printed: names and messages appear as they are, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.console.printing import print_batch, print_check, print_demo
from pipeline.data.check import CheckReport, Problem
from pipeline.engine.local import Batch

ODD = "scan [t1].nii.gz [/x] [red]:smile:[/red] \\"


def flat(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_names_and_messages_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem("[/b]", "error", "unreadable", ODD)
    print_check(CheckReport("toy", "pairs", ("[/b]",), (problem,), {}))
    found = flat(capsys)
    assert ODD in found
    assert "error [/b] scan" in found
    assert "1 cases: 1 errors, 0 warnings, 0 notes" in found
    print_batch(Batch(("a",), (), (("b", ODD),)), "prepared", Path("[out]"))
    found = flat(capsys)
    assert f"failed case b: {ODD}" in found
    assert "1 prepared, 0 up to date, 1 failed: [out]" in found


def test_no_name_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b]0;title\x07\x1b[2J\r\x9b31m"
    problem = Problem(evil, "error", "unreadable", evil)
    print_check(CheckReport("toy", "pairs", (evil,), (problem,), {}))
    print_batch(Batch((evil,), (), ((evil, evil),), (evil,)), "prepared", Path(evil))
    print_demo({"cases": 1, "organs": {evil: {"dice": 0.5, "iou": 0.3}}, "mean_dice": 0.5}, Path(evil))
    found = capsys.readouterr().out
    assert not set(found) & set("\x1b\x07\r\x9b")
    assert "a\\x1b]0;title" in found


def test_organs_without_a_score_get_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    organs = {"liver [/l]": {"dice": 0.5, "iou": 1 / 3}, "spleen": {"dice": None, "iou": None}}
    print_demo({"cases": 2, "organs": organs, "mean_dice": 0.5}, Path("demo"))
    found = flat(capsys)
    assert "liver [/l] 0.500 0.333 spleen - - mean 0.500" in found
    print_demo({"cases": 0, "organs": {"spleen": {"dice": None, "iou": None}}, "mean_dice": None}, Path("demo"))
    assert "spleen - - mean -" in flat(capsys)
