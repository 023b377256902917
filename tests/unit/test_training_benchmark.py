"""The parts of benchmarks/train.py that need neither nnU-Net nor minutes: clock, tables, picture, ceiling."""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

HISTORY = """epoch,iteration,loss,learning_rate,seconds,patches_per_s,data_share,progress,validation_s,mean_dice,dice_a
1,2,2.5,0.1,10.0,1.0,0.5,0.1,0,,
2,4,2.0,0.1,10.0,1.0,0.5,0.3,0,,
3,6,1.5,0.1,5.0,2.0,0.5,0.4,3.0,0.7,0.7
4,8,1.0,0.1,2.0,4.0,0.1,0.5,0,,
5,10,0.5,0.1,6.0,4.0,0.3,0.6,3.0,0.81,0.81
"""


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture
def results() -> Any:
    return importlib.import_module("helpers.training_results")


@pytest.fixture
def nnunet_run(tmp_path: Path) -> Path:
    """Five iterations of batch 7: three slow ones, then two of 2 s and 3 s, of which 0.5 s and 0.25 s are waited."""
    steps = [(10, 9, 0.5), (20, 9, 0.3), (30, 9, 0.1), (32, 0.5, -0.1), (35, 0.25, -0.3)]
    lines, before = ["iteration,trained_s,step_s,wait_s,loss"], 0.0
    for number, (at, waited, loss) in enumerate(steps, start=1):
        lines.append(f"{number},{at},{at - before},{waited},{loss}")
        before = at
    (tmp_path / "iterations.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.json").write_text(json.dumps({"batch": 7, "parameters": 5, "patch": [8, 8, 8]}))
    return tmp_path


def test_speed_of_nnunet_leaves_the_first_iterations_out(results: Any, nnunet_run: Path) -> None:
    speed = results.nnunet_speed(nnunet_run)
    assert speed == results.Speed(14 / 5, 0.75 / 5, 14)


def test_speed_of_volseg_weighs_epochs_by_their_seconds(results: Any, tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text(HISTORY)
    speed = results.volseg_speed(tmp_path / "history.csv")
    assert speed.patches_per_s == pytest.approx((2 * 4 + 6 * 4) / 8)
    assert speed.wait_share == pytest.approx((2 * 0.1 + 6 * 0.3) / 8)
    assert speed.patches == 32


def test_too_short_runs_are_refused_in_a_sentence(results: Any, tmp_path: Path, nnunet_run: Path) -> None:
    (tmp_path / "history.csv").write_text("\n".join(HISTORY.splitlines()[:3]))
    with pytest.raises(ValueError, match=r"expected more than 3 lines, got fewer\. Let it train for longer\."):
        results.volseg_speed(tmp_path / "history.csv")
    with pytest.raises(ValueError, match="expected more than 6 lines"):
        results.nnunet_speed(nnunet_run, epoch=2)


def test_rounds_are_pooled_by_time_not_by_mean_speed(results: Any) -> None:
    slow, fast = results.Speed(1.0, 0.5, 10), results.Speed(5.0, 0.0, 10)  # 10 s and 2 s
    assert results.pooled([slow, fast]) == results.Speed(20 / 12, 5 / 12, 20)


def test_curves_and_the_time_to_a_dice(results: Any, tmp_path: Path, nnunet_run: Path) -> None:
    (tmp_path / "history.csv").write_text(HISTORY)
    own = results.volseg_curve(tmp_path / "history.csv")
    assert own.dice == ((25.0, 0.7), (33.0, 0.81))  # validation is not counted
    assert own.loss[-1] == (33.0, 0.5)
    assert own.patches == 10 + 10 + 10 + 8 + 24
    assert results.time_to(own, 0.8) == 33.0
    assert results.time_to(own, 0.9) is None
    theirs = results.nnunet_curve(nnunet_run, {35.0: 0.4, 20.0: 0.6}, points=2)  # two iterations make a point
    assert theirs.dice == ((20.0, 0.6), (35.0, 0.4))
    assert [seconds for seconds, _ in theirs.loss] == [20.0, 32.0, 35.0]
    assert [loss for _, loss in theirs.loss] == pytest.approx([1.4, 1.0, 0.7])


def test_tables_give_ratios_to_nnunets_best(results: Any) -> None:
    found = {
        "nnU-Net, 0 workers": results.Speed(1.0, 0.02, 100),
        "nnU-Net, 2 workers": results.Speed(1.25, 0.001, 100),
        "volseg, auto": results.Speed(2.5, 0.01, 100),
    }
    assert results.speed_table(found).splitlines()[2:] == [
        "| nnU-Net, 0 workers | 1.00 | 2.0% | 0.80 |",
        "| nnU-Net, 2 workers | 1.25 | 0.1% | 1.00 |",
        "| volseg, auto | 2.50 | 1.0% | 2.00 |",
    ]
    assert results.speed_table({"phantom": found["volseg, auto"]}).endswith("| phantom | 2.50 | 1.0% |  |")
    cost = importlib.import_module("helpers.commands").Cost(0.0, 200.0, 1500.0)
    curves = {
        "nnU-Net": results.Curve(((1200.0, 0.5),), ((600.0, 0.7), (1200.0, 0.82)), 400),
        "short": results.Curve(((1200.0, 0.5),), ((1200.0, 0.7),), 400),
        "volseg": results.Curve(((240.0, 0.5),), ((240.0, 0.83),), 100),
    }
    assert results.curves_table(curves, dict.fromkeys(curves, cost), 0.8).splitlines()[2:] == [
        "| nnU-Net | 20.0 | 400 | 20.0 | 1.0 | 0.820 | 0.50 | 1500 |",
        "| short | 20.0 | 400 | not reached |  | 0.700 | 0.50 | 1500 |",
        "| volseg | 4.0 | 100 | 4.0 | 5.0 | 0.830 | 2.00 | 1500 |",
    ]


def test_picture_is_written(results: Any, tmp_path: Path) -> None:
    curve = results.Curve(((60.0, 2.0), (120.0, 1.0)), ((120.0, 0.5),), 10)
    results.plot({"nnU-Net": curve, "volseg": curve}, 0.8, tmp_path / "train.png")
    assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG")


def test_flops_of_a_stack_and_a_tiny_ceiling() -> None:
    ceiling = importlib.import_module("ceiling")
    # 2 layers, 2 patches of 4 * 5 * 6 voxels, 3 x 3 channels, 27 places; forward and two gradients; multiply and add
    assert ceiling.stack_flops(3, (4, 5, 6), 2, 2) == 2 * 3 * 2 * (2 * 120) * 9 * 27
    found = ceiling.ceilings(torch.device("cpu"), widths=(2, 4), voxels=64, seconds=0.0)
    assert list(found) == [2, 4]
    assert all(rate > 0 for rate in found.values())
    assert ceiling.table({2: 1e12, 4: 3e12}).splitlines()[2:] == ["| 2 | 1 |", "| 4 | 3 |", "| ceiling | 3 |"]


def test_commands_say_what_they_took_and_end_the_script_when_they_fail() -> None:
    commands = importlib.import_module("helpers.commands")
    work = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\ntime.sleep(0.3)"
    cost = commands.run([sys.executable, "-c", work], dict(os.environ), every_s=0.1)
    assert cost.wall_s > 0.8
    assert cost.cpu_s > 0.4
    assert cost.peak_mb > 1
    with pytest.raises(SystemExit, match="no such case"):
        commands.run([sys.executable, "-c", "import sys; sys.exit('no such case')"], dict(os.environ))


class Trainer:
    """Stands for nnU-Net's trainer: two epochs of two steps, which take no time."""

    num_iterations_per_epoch, num_val_iterations_per_epoch, num_epochs, current_epoch = 2, 50, 2, 0

    def __init__(self, folder: Path) -> None:
        self.output_folder, self.batch_size, self.ended, self.saves = str(folder), 7, False, [""]
        self.network, self.initial_lr, self.rates = torch.nn.Linear(2, 1), 0.1, [1.0]
        self.optimizer = types.SimpleNamespace(param_groups=[{"lr": 0.1}])
        self.configuration_manager = types.SimpleNamespace(patch_size=[4, 4, 4])
        self.logger = types.SimpleNamespace(get_value=lambda name, step: 0.25)

    def run_training(self) -> None:
        self.on_train_start()
        for epoch in range(self.num_epochs):
            self.current_epoch = epoch
            self.on_train_epoch_start()
            for _ in range(self.num_iterations_per_epoch):
                self.train_step({})
            self.on_validation_epoch_end([])
        self.on_train_end()

    def on_train_start(self) -> None: ...

    def on_train_epoch_start(self) -> None: ...

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return {"loss": -0.5}

    def on_validation_epoch_end(self, outputs: list[Any]) -> None: ...

    def on_train_end(self) -> None:
        self.ended = True

    def save_checkpoint(self, path: str) -> None:
        self.saves.append(Path(path).name)


@pytest.mark.parametrize(
    ("limits", "steps"),
    [({"steps": 3}, 3), ({"steps": 9}, 4), ({"seconds": 0.0}, 1), ({"steps": 3, "fall": True}, 3)],
)
def test_clock_notes_every_iteration_and_ends_the_training(
    results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], steps: int
) -> None:
    home = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    names = ["nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer", home, "nnunetv2.paths"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[home], "nnUNetTrainer", Trainer, raising=False)
    monkeypatch.setattr(sys.modules["nnunetv2.paths"], "nnUNet_preprocessed", tmp_path, raising=False)
    monkeypatch.delitem(sys.modules, "helpers.nnunet_training", raising=False)
    timed = importlib.import_module("helpers.nnunet_training").TimedTrainer
    monkeypatch.setattr(timed, "clock", {"folder": str(tmp_path), "every_s": 0.0, **limits})
    trainer = timed(tmp_path)
    trainer.run_training()
    assert trainer.ended
    left = (1, 2 / 3, 1 / 3) if "fall" in limits else (1, 1, 1, 1)
    assert trainer.rates[1:] == pytest.approx([0.1 * share**0.9 for share in left[:steps]])
    noted = results.rows(tmp_path / "iterations.csv")
    assert [row["iteration"] for row in noted] == [str(number) for number in range(1, steps + 1)]
    assert {row["loss"] for row in noted} == {"-0.50000"}
    assert all(0 <= float(row["wait_s"]) <= float(row["step_s"]) for row in noted)
    assert json.loads((tmp_path / "run.json").read_text()) == {"parameters": 3, "patch": [4, 4, 4], "batch": 7}
    pseudo = [(row["epoch"], row["pseudo_dice"]) for row in results.rows(tmp_path / "epochs.csv")]
    assert pseudo == [("1", "0.2500"), ("2", "0.2500")][: steps // 2]
    monkeypatch.delitem(sys.modules, "helpers.nnunet_training")
