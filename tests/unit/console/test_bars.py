"""What is shown while a command works, in terminals and in pipes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress

from pipeline.console import bars as module
from pipeline.console import bars as terminal
from pipeline.console.bars import TrainingView, sparkline
from pipeline.train.log import EpochRecord


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
    monkeypatch.setattr(module, "RichProgress", partial(Progress, get_time=lambda: now[0], auto_refresh=False))
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


# The view of a training, printed to recorded consoles of several sizes.


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def view_record(epoch: int, dice: dict[str, float | None] | None = None, mean: float | None = None) -> EpochRecord:
    seconds = 0.0 if dice is None else 2.5
    return EpochRecord(
        epoch, 10 * epoch, 1.0 / epoch, 6.1e-3, 30.0, 118.24, 0.031, epoch / 10, seconds, dice or {}, mean
    )


def shown(view: TrainingView, width: int = 100, height: int = 40, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, record=True, width=width, height=height, force_terminal=True, color_system=None)
    console.print(view)
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    return "\n".join(line.rstrip() for line in lines)


def trained(*records: EpochRecord, clock: Clock | None = None) -> TrainingView:
    view = TrainingView(clock or Clock())
    view.on_start((), 10)
    for each in records:
        view.on_epoch(each, 10)
    return view


def test_facts_of_a_training() -> None:
    found = shown(
        trained(
            view_record(1),
            view_record(2, {"liver": 0.9, "spleen": 0.7}, 0.8),
            view_record(3),
            view_record(4, {"liver": 0.85, "spleen": 0.55}, 0.7),
            view_record(5),
        )
    )
    assert "epoch 6/10" in found
    assert "0.200 in epoch 5" in found
    assert "6.1e-03" in found
    assert "118.2 patches/s, 3% of the time waiting for data" in found
    assert "mean Dice 0.700 in epoch 4, best 0.800 in epoch 2" in found
    rows = [line.split() for line in found.splitlines()[-3:]]
    assert rows == [["organ", "last", "best"], ["liver", "0.850", "0.900"], ["spleen", "0.550", "0.700"]]


def test_within_an_epoch_the_loss_is_read_once_a_second() -> None:
    clock, read = Clock(), []

    class Loss:
        def __float__(self) -> float:
            read.append(clock.now)
            return 0.5 + clock.now

    view = trained(clock=clock)
    for tenth in range(25):
        clock.now = tenth / 10
        view.on_step(tenth / 250, Loss())
    assert read == [0.0, 1.0, 2.0]
    assert "2.500 so far" in shown(view)
    view.on_epoch(view_record(1), 10)
    assert "so far" not in shown(view)


def test_time_left_follows_from_the_share_done() -> None:
    clock = Clock()
    view = TrainingView(clock)
    view.on_start([view_record(1), view_record(2)], 10)  # of an earlier run, which does not count
    assert view.left_s is None
    clock.now = 100.0
    view.on_step(0.2, 1.0)
    clock.now = 160.0
    view.on_step(0.3, 1.0)
    assert view.left_s == pytest.approx(420.0)  # 60 s for a tenth, and 7 tenths to go
    assert "0:07:00 left" in shown(view)
    clock.now = 180.0  # counts down between steps
    assert view.left_s == pytest.approx(400.0)
    clock.now = 1000.0
    assert view.left_s == 0.0


def test_of_equal_validations_the_last_is_the_best() -> None:
    view = trained(*(view_record(n, {"liver": dice}, dice) for n, dice in enumerate((0.8, 0.8, 0.7), start=1)))
    assert "best 0.800 in epoch 2" in shown(view)


def test_earlier_runs_hold_the_best() -> None:
    view = TrainingView(Clock())
    view.on_start([view_record(1, {"liver": 0.9}, 0.9)], 10)
    view.on_epoch(view_record(2, {"liver": 0.6}, 0.6), 10)
    assert "mean Dice 0.600 in epoch 2, best 0.900 in epoch 1" in shown(view)
    assert view.line().endswith("validation Dice 0.600 (2.5 s), best 0.900 in epoch 1")


def test_of_many_organs_the_worst_are_shown() -> None:
    dice: dict[str, float | None] = {f"organ_{n}": 0.5 + n / 250 for n in range(100)}
    view = trained(view_record(1, {**dice, "absent": None}, 0.7))
    found = shown(view)
    assert "Dice, the worst 12 of 101 organs" in found
    assert "organ_0 " in found
    assert "organ_11 " in found
    assert "organ_12 " not in found
    assert "absent" not in found
    assert "the others 0.548 to 0.896" in found
    assert len(found.splitlines()) <= 20


def test_low_terminals_show_fewer_organs() -> None:
    view = trained(view_record(1, {f"organ_{n}": n / 100 for n in range(100)}, 0.5))
    assert "the worst 3 of 100" in shown(view, height=10)
    assert len(shown(view, height=18).splitlines()) <= 18


def test_narrow_terminals_wrap() -> None:
    view = trained(view_record(1), view_record(2, {"left_kidney_and_adrenal_gland": 0.5}, 0.5))
    for width in (34, 60):
        found = shown(view, width=width, height=30)
        assert "epoch 3/10" in found
        assert "0.500    0.500" in found
        assert "▁" not in found
    assert "…" in found or "left_kidney_and_adrenal_gland" in found


def test_organs_that_could_not_be_scored_have_a_dash() -> None:
    found = shown(trained(view_record(1, {"liver": None, "spleen": float("nan")}, None)))
    assert [line.split() for line in found.splitlines()[-2:]] == [["liver", "-", "-"], ["spleen", "-", "-"]]
    assert "validation" not in found


def test_terminals_without_blocks_get_numbers() -> None:
    view = trained(*(view_record(epoch) for epoch in range(1, 6)))
    assert "▁" in shown(view)
    assert shown(view, encoding="ascii").isascii()


def test_names_are_shown_as_they_are() -> None:
    assert "[red]liver[/]" in shown(trained(view_record(1, {"[red]liver[/]": 0.5}, 0.5)))


def test_at_the_end_the_bar_is_left_and_its_time_stands() -> None:
    clock = Clock()
    view = trained(*(view_record(epoch) for epoch in range(1, 11)), clock=clock)
    clock.now = 75.0
    view.finish()
    clock.now = 500.0
    view.finish()
    assert shown(view).split() == ["train", "━" * 40, "epoch", "10/10", "0:01:15"]


def test_a_line_per_epoch() -> None:
    view = trained(view_record(1))
    assert view.line() == "epoch 1/10  loss 1.000  lr 6.1e-03  118.2 patches/s  data wait 3%"
    view.on_epoch(view_record(2, {"liver": 0.5}, 0.5), 10)
    assert view.line().endswith("data wait 3%  validation Dice 0.500 (2.5 s)")


def test_sparklines() -> None:
    assert sparkline([1.0, 2.0]) == ""
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0, 2.0]) == "▁▁▁"
    assert sparkline([0.0, float("nan"), 7.0, float("inf"), 3.0]) == "▁█▄"
    assert sparkline([float(n) for n in range(100)], width=5) == "▁▃▅▆█"
