"""The picture of a training, from one epoch to many and from one organ to a hundred."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image as pictures
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.train import log
from pipeline.train.log import Curves, EpochRecord, convolution_ceiling, history_figure, plot_history

NAN = float("nan")


Dice = dict[str, float | None]


def record(epoch: int, dice: Dice | None = None, mean: float | None = None, **other: float) -> EpochRecord:
    given = {"loss": 1.0 / epoch, "seconds": 50.0, "patches_per_s": 4.0, "data_share": 0.25, **other}
    given |= {"learning_rate": 0.01, "progress": 0.1, "validation_s": 0.0 if dice is None else 10.0}
    return EpochRecord(epoch, epoch, dice=dice or {}, mean_dice=mean, **given)


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_ylabel(): axes for axes in figure.axes}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in panels(figure)["Dice"].get_legend().get_texts()]


TRAINED = [
    record(1),
    record(2, {"liver": 0.6, "spleen": 0.8}, 0.7),
    record(3),
    record(4, {"liver": 0.9, "spleen": 0.9}, 0.9),
    record(5),
    record(6, {"liver": 0.7, "spleen": None}, 0.7),
]


def test_four_panels_and_their_second_axes() -> None:
    found = panels(history_figure(TRAINED))
    assert set(found) == {"loss", "learning rate", "Dice", "patches/s", "data wait"}
    assert list(found["loss"].lines[0].get_ydata()) == [1 / n for n in range(1, 7)]
    assert list(found["data wait"].lines[0].get_ydata()) == [0.25] * 6
    assert all(axes.get_xlim() == (0.5, 6.5) for axes in found.values())


def test_validations_are_dots_at_their_epochs() -> None:
    dice = panels(history_figure(TRAINED))["Dice"]
    curves = {line.get_label(): line for line in dice.lines}
    assert list(curves["mean"].get_xdata()) == [2, 4, 6]
    assert list(curves["mean"].get_ydata()) == [0.7, 0.9, 0.7]
    assert curves["liver"].get_marker() == "."
    assert np.isnan(np.asarray(curves["spleen"].get_ydata())[-1])


def test_the_best_epoch_is_marked_in_every_panel() -> None:
    found = panels(history_figure(TRAINED))
    assert [text.get_text() for text in found["Dice"].texts] == ["best: 0.900, epoch 4"]
    for name in ("loss", "learning rate", "Dice", "patches/s"):
        assert [list(line.get_xdata()) for line in found[name].lines if line.get_linestyle() == ":"] == [[4, 4]]


def test_the_legend_has_the_last_values_highest_first() -> None:
    assert legend(history_figure(TRAINED)) == ["liver  0.700", "mean  0.700", "spleen  -"]


def test_time_is_told_along_the_upper_edge() -> None:
    loss = panels(history_figure(TRAINED))["loss"]
    upper = loss.child_axes[0]
    assert upper.get_xlabel() == "time (min)"
    assert [label.get_text() for label in upper.get_xticklabels()] == ["0.8", "1.8", "2.7", "3.7", "4.5", "5.5"]


@pytest.mark.parametrize(
    ("seconds", "unit", "label"), [(100.0, "s", "100"), (4000.0, "min", "67"), (40_000.0, "h", "11")]
)
def test_time_has_a_unit_that_fits(seconds: float, unit: str, label: str) -> None:
    upper = panels(history_figure([record(1, seconds=seconds)]))["loss"].child_axes[0]
    assert upper.get_xlabel() == f"time ({unit})"
    assert [text.get_text() for text in upper.get_xticklabels()] == [label]


def test_of_many_organs_the_worst_are_named() -> None:
    dice: dict[str, float | None] = {f"organ_{n}": 0.5 + n / 250 for n in range(100)}
    figure = history_figure([record(1, dice, 0.7), record(2, {**dice, "organ_50": 0.1}, 0.7)])
    names = [text.split()[0] for text in legend(figure)]
    assert names == ["mean", "organ_4", "organ_3", "organ_2", "organ_1", "organ_0", "organ_50"]
    assert "94 better organs in grey" in panels(figure)["Dice"].get_legend().get_title().get_text()
    assert len(panels(figure)["Dice"].lines) == 100 + 1 + 1  # mean and mark


def test_high_dice_gets_the_upper_half() -> None:
    assert panels(history_figure(TRAINED))["Dice"].get_ylim() == (0.5, 1.0)
    assert panels(history_figure([record(1, {"liver": 0.2}, 0.2)]))["Dice"].get_ylim() == (0.0, 1.0)


@pytest.mark.parametrize(
    "records",
    [
        [record(1)],
        [record(1, {"liver": 0.5}, 0.5)],
        [record(1, {"liver": None}, None), record(2, {"liver": NAN}, NAN)],
        [record(1), record(2, loss=NAN), record(3, {"$x^": 0.5}, 0.5)],
        [record(7, {"liver": 0.9}, 0.9), record(8, {"liver": 0.8}, 0.8)],
        TRAINED,
    ],
)
def test_any_training_can_be_drawn(records: list[EpochRecord], tmp_path: Path) -> None:
    plot_history(records, tmp_path / "curves.png")
    picture = pictures.imread(tmp_path / "curves.png")
    assert picture.shape[:2] == (672, 1560)
    assert 0.01 < (picture[..., :3].min(axis=-1) < 0.9).mean() < 0.3


def test_the_picture_is_drawn_twice_a_minute_at_most_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, drawn = [100.0], list[tuple[float, int]]()
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(log, "plot_history", lambda records, path: drawn.append((now[0], len(records))))
    curves = Curves(tmp_path / "curves.png")
    for number in range(1, 9):  # an epoch every 12 s, every second one with a validation
        now[0] += 12.0
        mean = 0.5 if number % 2 == 0 else None
        curves.note([record(n, mean=mean) for n in range(1, number + 1)], finished=number == 8)
    assert drawn == [(136.0, 3), (172.0, 6), (196.0, 8)]
    curves.note([record(1)], finished=True)  # nothing was validated since
    assert len(drawn) == 3


def test_without_a_validation_the_panel_says_so() -> None:
    dice = panels(history_figure([record(1)]))["Dice"]
    assert [text.get_text() for text in dice.texts] == ["no validation yet"]


def test_the_ceiling_is_the_speed_of_a_convolution() -> None:
    cpu = torch.device("cpu")
    found = convolution_ceiling(cpu, torch.float32, 3), convolution_ceiling(cpu, torch.float32, 2)
    assert all(1e8 < speed < 1e14 for speed in found)
