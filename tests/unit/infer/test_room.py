"""Predictions that cannot fit are refused with the numbers, before the first window."""

import pytest
import torch

from pipeline.core.errors import VolsegError
from pipeline.infer import room
from pipeline.infer.room import device_with_room

CPU = torch.device("cpu")


def test_enough_memory_is_on_the_device_of_the_network(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda: 2_000)
    assert device_with_room(2_000, "logits", CPU) == CPU
    assert device_with_room(2_000, "logits", CPU, 3_000) == CPU


@pytest.mark.parametrize(("most", "got"), [(None, "4.0 GB"), (30_000_000, "30 MB")])
def test_too_little_memory_is_refused_with_the_numbers(monkeypatch, most, got):
    monkeypatch.setattr(room, "available_bytes", lambda: 4_000_000_000)
    with pytest.raises(VolsegError, match=rf"memory: expected at least 4.1 GB for 105 classes, got {got}\. Set infer"):
        device_with_room(4_100_000_000, "105 classes", CPU, most)


def test_where_nothing_is_known_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda: None)
    assert device_with_room(10**15, "logits", CPU) == CPU


def test_a_gpu_with_too_little_memory_leaves_the_sums_to_the_cpu(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda: 10**12)
    monkeypatch.setattr(room, "free_bytes", lambda device: 10_000)
    cuda = torch.device("cuda", 0)
    assert device_with_room(8_000, "logits", cuda) == cuda  # 0.8 of what is free
    assert device_with_room(8_001, "logits", cuda) == CPU
