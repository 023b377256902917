"""Learning rates and budgets by hand."""

import pytest
import torch
from torch import nn

from pipeline.config import TrainSettings
from pipeline.train.schedule import Budget, build_optimizer, learning_rate, make_budget


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("poly", 0.0, 1.0),
        ("poly", 0.5, 0.5**0.9),
        ("poly", 1.0, 0.0),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("onecycle", 0.0, 1 / 25),
        ("onecycle", 0.25, 1.0),
        ("onecycle", 0.625, 0.5),
        ("onecycle", 1.0, 0.0),
        ("constant", 0.7, 1.0),
        ("poly", 1.3, 0.0),
    ],
)
def test_schedules(schedule: str, progress: float, expected: float) -> None:
    settings = TrainSettings.model_validate({"learning_rate": 1.0, "schedule": schedule})
    assert learning_rate(progress, settings) == pytest.approx(expected, abs=1e-12)


def test_warm_up_rises_from_zero_and_the_rest_starts_at_the_peak() -> None:
    settings = TrainSettings(learning_rate=2.0, schedule="poly", warmup_share=0.1)
    assert learning_rate(0.05, settings) == pytest.approx(1.0)
    assert learning_rate(0.1, settings) == pytest.approx(2.0)


def test_budget_by_iterations() -> None:
    budget = make_budget(TrainSettings(epochs=4), iterations_per_epoch=25)
    assert budget.progress(50, elapsed_s=1e6, reserve_s=0.0) == 0.5
    assert budget.epochs(2, 0.5, 4) == 4


def test_budget_by_time_keeps_the_reserve() -> None:
    budget = make_budget(TrainSettings(budget="10m"), iterations_per_epoch=25)
    assert budget.progress(1, elapsed_s=285.0, reserve_s=30.0) == 0.5
    assert budget.epochs(10, 0.5, 100) == 20
    assert Budget(100, 10.0).progress(0, 0.0, 20.0) == 0.0


def test_norms_and_biases_are_not_decayed() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimizer = build_optimizer(network, TrainSettings(optimizer="adamw", weight_decay=0.1))
    decayed, plain = optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 1, 3, 3)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert len(plain["params"]) == 3


def test_sgd_is_nesterov() -> None:
    optimizer = build_optimizer(nn.Conv2d(1, 1, 1), TrainSettings(optimizer="sgd"))
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["nesterov"]
    assert optimizer.defaults["momentum"] == 0.99
