"""What a training takes of a GPU, by arithmetic; beside it what the stand-in for a GPU counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_bytes import CONFIGURATIONS, GPU, estimated_and_counted, settings

from pipeline.config.settings import AugmentSettings
from pipeline.core.errors import VolsegError
from pipeline.model.cost import count_parameters
from pipeline.model.spec import build_network
from pipeline.train import step_memory
from pipeline.train.distributed import Processes
from pipeline.train.step_memory import TrainingMemory, batches_bytes, room_for_cases, training_memory

NONE = AugmentSettings(enabled=False)


@pytest.mark.parametrize(
    ("train", "copies"),
    [
        ({"optimizer": "sgd", "momentum": 0.0}, 1),
        ({"optimizer": "sgd"}, 2),  # weights and momentum
        ({"optimizer": "adamw"}, 3),  # two moments
        ({"optimizer": "adam", "ema_decay": 0.9}, 4),
    ],
)
def test_what_is_there_all_the_time_is_so_many_copies_of_the_weights(train: dict[str, Any], copies: int) -> None:
    network = build_network("unet", 2, 1, 3, features=(4, 8))
    found = training_memory(network, (2, 1, 16, 16), settings(train=train), torch.float32)
    # Of a GPU, every tensor takes a multiple of 512 bytes. The average has its own batch norms' means and counters.
    copies_of = [tensor for tensor in network.parameters() for _ in range(copies)]
    copies_of += [buffer for buffer in network.buffers() for _ in range(2 if train.get("ema_decay") else 1)]
    norms = 512 * sum(1 for _ in network.parameters())  # a number for each gradient
    assert found.state == sum(-(-tensor.nbytes // 512) * 512 for tensor in copies_of) + norms


def test_several_processes_hold_their_gradients_once_more() -> None:
    network = build_network("unet", 2, 1, 3, features=(4, 8))
    one, four = (
        training_memory(network, (2, 1, 16, 16), settings(), torch.float32, processes=Processes(0, count))
        for count in (1, 4)
    )
    assert four.state - one.state == 4 * count_parameters(network)


def test_the_loss_of_many_classes_is_several_copies_of_the_logits() -> None:
    few, many = (
        training_memory(
            build_network("unet", 2, 1, classes, features=(4, 8)), (2, 1, 32, 32), settings(), torch.bfloat16
        )
        for classes in (3, 103)
    )
    logits = 2 * 32 * 32 * 4 * 100  # of 100 further classes, float32
    assert 2 * logits < many.step - few.step < 3 * logits  # probabilities and gradients


def test_recomputing_takes_less_and_the_network_is_left_alone() -> None:
    network = build_network("unet", 2, 1, 2, features=(4, 8, 16), norm="instance")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    kept, again = (
        training_memory(network, (2, 1, 64, 64), settings(train={"recompute": recompute}), torch.bfloat16)
        for recompute in (False, True)
    )
    assert again.step < 0.8 * kept.step
    assert again.state == kept.state
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_batches_made_ahead_by_hand() -> None:
    assert batches_bytes((2, 3, 8, 8), NONE) == 128 * 2 * (4 * 3 + 8)  # one finished, one in the making
    assert batches_bytes((2, 3, 8, 8), NONE, parts=4) == 128 * 8 * (4 * 3 + 8)
    moved = AugmentSettings(elastic_p=0.5)
    # One finished, one that is cut; of a patch eight times its voxels with labels three times, then places and results.
    assert batches_bytes((1, 1, 8, 8, 8), moved) == 512 * (12 + 12 + 8 * 16 + 24 + 16)
    assert batches_bytes((1, 4, 8, 8, 8), moved) == 512 * (24 + 24 + 8 * 28 + 24 + 40)
    # Of many patches, the changes of all at once take more than the move of one.
    assert batches_bytes((9, 1, 8, 8, 8), moved) == 9 * 512 * (12 + 24 + 33)


# Cases get what is left.

MEMORY, SHAPE = TrainingMemory(state=100, step=700, scratch=100, batches=100), (2, 1, 16, 16)


@pytest.mark.parametrize(
    ("validation", "room"),
    [(0, 2000 - 1100), (700, 2000 - 1100), (1300, 2000 - 1500), (1900, 2000 - 1100)],  # the last fits in no case
)
def test_cases_get_what_training_and_validation_leave(
    monkeypatch: pytest.MonkeyPatch, validation: int, room: int
) -> None:
    monkeypatch.setattr(step_memory, "free_bytes", lambda device: 2000)
    assert room_for_cases(MEMORY, SHAPE, GPU, validation) == room
    assert room_for_cases(MEMORY, SHAPE, torch.device("cpu"), validation) == 0


def test_a_training_that_does_not_fit_is_refused_before_a_case_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_memory, "free_bytes", lambda device: 1_099_000_000)
    large = TrainingMemory(100_000_000, 700_000_000, 100_000_000, 100_000_000)
    said = (
        r"memory of cuda:0: expected at least 1\.1 GB for a step with 2 patches of 16 x 16, got 1\.1 GB\. Lower sample"
    )
    with pytest.raises(VolsegError, match=said):
        room_for_cases(large, SHAPE, GPU)


# The estimate and what the stand-in counts.


@pytest.mark.stand_in
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_estimate_is_what_a_step_allocates(name: str) -> None:
    estimated, kept, peak = estimated_and_counted(name)
    # 15 % would do for whoever plans; both follow the same code, so that less points to a mistake.
    assert estimated.state == pytest.approx(kept, rel=0.05)
    assert estimated.state + estimated.step == pytest.approx(peak, rel=0.05)
