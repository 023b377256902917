"""A step that cannot fit is refused before it is tried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pipeline.config import TrainSettings
from pipeline.core.errors import VolsegError
from pipeline.model import build_network
from pipeline.model.cost import kept_bytes
from pipeline.train import room
from pipeline.train.room import require_room

NETWORK = build_network("unet", 2, 1, 3, features=(4, 8))
NEEDED = kept_bytes(NETWORK, (6, 1, 64, 32))


def source(squeeze_axis: int | None = 2) -> Any:
    return cast(
        Any,
        SimpleNamespace(device=torch.device("cpu"), patch_size=(64, 32, 1), batch_size=6, squeeze_axis=squeeze_axis),
    )


def test_a_batch_larger_than_the_memory_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(precision="fp32")
    monkeypatch.setattr(room, "free_bytes", lambda device: NEEDED)
    require_room(NETWORK, source(), settings)
    monkeypatch.setattr(room, "free_bytes", lambda device: NEEDED - 1)
    said = r"memory of cpu: expected at least \d MB for a step with 6 patches of 64 x 32, got \d MB\. Lower sample"
    with pytest.raises(VolsegError, match=said):
        require_room(NETWORK, source(), settings)
    require_room(NETWORK, source(), settings.model_copy(update={"recompute": True}))


def test_where_the_memory_is_unknown_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: None)
    require_room(NETWORK, source(), TrainSettings())
