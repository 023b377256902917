"""What is shown while a command works, in terminals and in pipes."""

from __future__ import annotations

from functools import partial
from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress

from pipeline.console import bars as module
from pipeline.console import terminal
from pipeline.train.history import EpochRecord


def record(epoch: int, dice: float | None = None) -> EpochRecord:
    scores = {} if dice is None else {"liver": dice}
    return EpochRecord(epoch, epoch, 0.5, 1e-3, 1.0, 2.0, 0.0, epoch / 3, 0.0 if dice is None else 1.0, scores, dice)


def console(monkeypatch: pytest.MonkeyPatch, *, terminal_width: int | None) -> StringIO:
    """Print to a terminal of some width, or to a file."""
    stream = StringIO()
    terminal_like = terminal_width is not None
    made = Console(file=stream, force_terminal=terminal_like, width=terminal_width, soft_wrap=True, highlight=False)
    monkeypatch.setattr(module, "CONSOLE", made)
    monkeypatch.setattr(terminal, "CONSOLE", made)
    return stream


def test_time_left_is_told_of_cases_that_take_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shown = [0.0], console(monkeypatch, terminal_width=200)
    monkeypatch.setattr(module, "Progress", partial(Progress, get_time=lambda: now[0], auto_refresh=False))
    with module.progress_bars() as bars:
        for done in (1, 2, 3):  # two minutes each: 7 are left
            bars.update(done, 10, "prepare")
            now[0] += 120.0
    assert "3/10" in shown.getvalue()
    assert "0:14:00" in shown.getvalue()


def test_pipes_get_a_line_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = console(monkeypatch, terminal_width=None)
    with module.progress_bars() as bars:
        bars.update(1, 2, "prepare")
        bars.on_start((), 3)
        for each in (record(1), record(2, 0.75), record(3)):
            bars.on_step(each.progress, 0.5)
            bars.on_epoch(each, 3)
    assert shown.getvalue().splitlines() == [
        "epoch 1/3  loss 0.500  lr 1.0e-03  2.0 patches/s  data wait 0%",
        "epoch 2/3  loss 0.500  lr 1.0e-03  2.0 patches/s  data wait 0%  validation Dice 0.750 (1.0 s)",
        "epoch 3/3  loss 0.500  lr 1.0e-03  2.0 patches/s  data wait 0%",
    ]


def test_terminals_keep_a_line_per_validation_and_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = console(monkeypatch, terminal_width=120)
    with module.progress_bars() as bars:
        bars.on_start((), 3)
        for each in (record(1), record(2, 0.75), record(3)):
            bars.on_epoch(each, 3)
        bars.update(1, 2, "predict")  # ends the view
    text = shown.getvalue()
    assert "epoch 1/3  loss" not in text
    assert "predict" in text
    assert text.count("validation Dice 0.750 (1.0 s)") == 1
    last = text[text.rindex("train") :]
    assert "epoch 3/3" in last
    assert "liver" not in last


def test_after_an_interruption_the_view_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = console(monkeypatch, terminal_width=120)

    def train() -> None:
        with module.progress_bars() as bars:
            bars.on_start((), 3)
            bars.on_epoch(record(1, 0.75), 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    text = shown.getvalue()
    assert "liver" in text[text.rindex("train") :]
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is given back
