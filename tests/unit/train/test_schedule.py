"""Learning rates and budgets by hand."""

import pytest
import torch
from torch import nn

from pipeline.config.settings import TrainSettings
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


def test_fifty_epochs_in_five_steps() -> None:
    settings = TrainSettings(learning_rate=1e-4, schedule="step", step_share=0.2, step_factor=0.1, epochs=50)
    budget = make_budget(settings, iterations_per_epoch=7)
    for epoch in range(50):
        for batch in (0, 6):  # the first and the last of every epoch
            rate = learning_rate(budget.progress(7 * epoch + batch, 0.0, 0.0), settings)
            assert rate == pytest.approx(1e-4 * 0.1 ** (epoch // 10), rel=1e-12)


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


def test_sgd_without_nesterov() -> None:
    optimizer = build_optimizer(nn.Conv2d(1, 1, 1), TrainSettings(optimizer="sgd", nesterov=False))
    assert not optimizer.defaults["nesterov"]
    still = build_optimizer(nn.Conv2d(1, 1, 1), TrainSettings(optimizer="sgd", momentum=0.0))
    assert not still.defaults["nesterov"]  # Nesterov needs a momentum


@pytest.mark.parametrize(("name", "expected"), [("adam", -0.01), ("adamw", -0.01 - 0.01 * 0.1 * 2.0)])
def test_the_decay_of_adam_is_l2_and_that_of_adamw_decoupled(name: str, expected: float) -> None:
    layer = nn.Conv2d(1, 1, 1)
    nn.init.constant_(layer.weight, 2.0)
    settings = TrainSettings.model_validate({"optimizer": name, "learning_rate": 0.01, "weight_decay": 0.1})
    optimizer = build_optimizer(layer, settings)
    layer.weight.sum().backward()
    optimizer.step()
    # either way the first step is the learning rate along the gradient's sign, and L2 cannot change that
    assert layer.weight.item() - 2.0 == pytest.approx(expected, abs=1e-6)
