"""What a device has to offer."""

from __future__ import annotations

import pytest
import torch

from pipeline.model import device


def test_free_memory_counts_what_pytorch_holds_but_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (8_000, 16_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda place: 3_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda place: 1_000)
    assert device.free_bytes(torch.device("cuda", 0)) == 10_000
    monkeypatch.setattr(device, "available_bytes", lambda: 5)
    assert device.free_bytes(torch.device("cpu")) == 5
    assert device.free_bytes(torch.device("mps")) is None
