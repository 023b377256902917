"""A training step on a GPU never waits for it: the host gives it the next step while it computes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gpu_tensor import watch
from toy import toy_settings

from pipeline.config.settings import AugmentSettings, Settings
from pipeline.stages.train import train
from pipeline.train.state import Callbacks

pytestmark = pytest.mark.stand_in

EVERYTHING = {name: 1.0 for name in AugmentSettings.model_fields if name.endswith("_p")}

SCALER = "train/state.py:update: value read"
"""Whether fp16's gradients were finite decides on the host whether the weights are updated."""

BATCHES = {
    "train/border_weights.py:border_map: copied to the CPU",  # objects are found there
    "train/border_weights.py:border_map: copied to the GPU",
}
"""Where the thread that makes batches may wait, which the training does not see while batches are ahead."""


def steps_seen(prepared: Path, out: Path, **changes: Any) -> tuple[list[Counter[str]], Counter[str]]:
    """Waits between steps after the first, in the training's thread; and all of the thread that makes batches."""
    settings = toy_settings()
    given = {"augment": EVERYTHING, **changes}
    given["train"] = {"epochs": 1, "iterations_per_epoch": 4, **given.get("train", {})}
    merged = {name: {**getattr(settings, name).model_dump(), **values} for name, values in given.items()}
    settings = Settings.model_validate(settings.model_dump() | merged)
    counts: list[Counter[str]] = []
    with watch() as seen:
        note = Callbacks(on_step=lambda share, loss: counts.append(Counter(seen.waits_of())))
        train(prepared, out, settings, device="cuda", callbacks=note)
    assert len(counts) == 4
    return [after - before for before, after in pairwise(counts)], Counter(seen.waits_of("batches"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": {"precision": "bf16"}}, {}),
        ({"train": {"precision": "fp32", "gradient_clip": None}}, {}),
        ({"train": {"precision": "fp16"}}, {SCALER: 1}),
        ({"train": {"precision": "bf16", "ema_decay": 0.9, "accumulate": 2, "optimizer": "sgd"}}, {}),
        ({"loss": {"class_weights": "balanced", "focal_gamma": 2.0, "batch_dice": True}}, {}),
        ({"model": {"deep_supervision": True, "options": {"features": (4, 8, 8), "norm": "batch"}}}, {}),
        ({"sample": {"cache_mb": 0}}, {}),
        ({"train": {"recompute": True}}, {}),
    ],
    ids=["bf16", "fp32", "fp16", "average", "weights", "heads", "from disk", "recomputed"],
)
def test_no_training_step_waits_for_the_gpu(
    prepared: Path, tmp_path: Path, changes: dict[str, Any], expected: dict[str, int]
) -> None:
    steps, batches = steps_seen(prepared, tmp_path / "m", **changes)
    assert steps == [Counter(expected)] * 3
    assert set(batches) == set()


def test_border_weights_are_waited_for_where_batches_are_made(prepared: Path, tmp_path: Path) -> None:
    steps, batches = steps_seen(prepared, tmp_path / "m", loss={"border_weight": 10.0})
    assert steps == [Counter()] * 3
    assert set(batches) == BATCHES
