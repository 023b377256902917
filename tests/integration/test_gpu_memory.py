"""A GPU that is nearly full, by its stand-in: what does not fit is refused, or done elsewhere with the same result."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from members import member, smooth_scan
from toy import toy_settings

from pipeline.core.errors import VolsegError
from pipeline.infer import trained_model
from pipeline.infer.segment import labels_on
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.device import to_device
from pipeline.stages.predict import Predictor
from pipeline.stages.train import PlannedTraining, train
from pipeline.train import trainer
from pipeline.train.distributed import SINGLE
from pipeline.validation import make_validation, validation_bytes

pytestmark = pytest.mark.stand_in

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
KIB = 2**10
AUGMENT = {"augment": {"flip_axes": ("LR", "AP", "SI")}}


def on(model: TrainedModel, device: torch.device, most_bytes: int | None = None, **infer: Any) -> Predictor:
    """A predictor of the model's networks on a device."""
    networks = [to_device(copy.deepcopy(network), device) for network in model.networks]
    settings = model.card.settings.infer.model_copy(update=infer)
    return Predictor([TrainedModel(model.card, networks, device, settings, most_bytes)])


@pytest.mark.parametrize(
    ("infer", "room"),
    [
        ({}, 10**9),
        ({}, 240 * KIB),
        ({"mirror": True}, 240 * KIB),
        ({"roi": "organs", "roi_margin_mm": 4.0}, 240 * KIB),
    ],
    ids=["sums on the GPU", "sums on the CPU", "mirrored", "roi"],
)
def test_masks_are_the_same_wherever_the_sums_lie(infer: dict[str, Any], room: int) -> None:
    import stand_in

    model, scan = member(settings=AUGMENT), smooth_scan()
    expected = on(model, CPU, **infer).predict(scan).array
    gpu = on(model, CUDA, **infer)
    before = stand_in.allocated()
    stand_in.reset_peak()
    with stand_in.gpu_memory(before + room):
        found = gpu.predict(scan).array
    assert np.mean(found != expected) < 1e-3
    assert stand_in.peak() - before <= room


def test_a_gpu_that_runs_out_on_the_way_leaves_the_sums_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import stand_in

    model, scan = member(), smooth_scan()
    expected, gpu = on(model, CPU).predict(scan).array, on(model, CUDA)
    monkeypatch.setattr(trained_model, "free_bytes", lambda device: 10**9)  # as if the room had been there when asked
    with stand_in.gpu_memory(stand_in.allocated() + 120 * KIB):
        assert np.mean(gpu.predict(scan).array != expected) < 1e-3
    said = r"memory of cuda:0: .*infer\.window_size"
    with stand_in.gpu_memory(stand_in.allocated() + KIB), pytest.raises(VolsegError, match=said):
        gpu.predict(scan)


def test_the_first_stage_of_a_cascade_leaves_its_sums_to_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, generator = member(settings=AUGMENT), np.random.default_rng(0)
    image = generator.normal(size=(1, 12, 12, 12)).astype(np.float32)
    expected = labels_on(model, image, (20, 18, 16))
    gpu, planes = on(model, CUDA).models[0], TrainedModel.label_planes

    def full(self: TrainedModel, *given: Any) -> Any:
        if not self.sums_on_cpu:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return planes(self, *given)

    monkeypatch.setattr(TrainedModel, "label_planes", full)
    assert np.mean(labels_on(gpu, image, (20, 18, 16)) != expected) < 1e-2


def test_a_limit_of_memory_holds_on_a_gpu() -> None:
    model, image = on(member(), CUDA, most_bytes=100_000).models[0], np.zeros((1, 20, 20, 20), np.float32)
    with pytest.raises(VolsegError, match=r"memory: expected at least .* for 5 classes x 8 planes of 20 x 20 voxels"):
        model.label_planes(image, (20, 20, 20))


# Training


def test_a_training_that_does_not_fit_is_refused_before_it_begins(prepared: Path, tmp_path: Path) -> None:
    import stand_in

    said = r"memory of cuda:0: expected at least \d+ MB for a step with 2 patches of 16 x 16 x 16, got .* Lower sample"
    with stand_in.gpu_memory(stand_in.allocated() + 2**20), pytest.raises(VolsegError, match=said):
        train(prepared, tmp_path / "m", toy_settings(), device="cuda:0")
    assert not (tmp_path / "m" / "fold_0").exists()


def test_a_step_that_runs_out_says_what_to_change(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(*_: object) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(trainer, "update", update)
    with pytest.raises(VolsegError, match=r"memory of cuda:0: .*sample\.batch_size .*train\.recompute"):
        train(prepared, tmp_path / "m", toy_settings(), device="cuda:0")


def test_validation_in_a_full_gpu_scores_the_same(prepared: Path) -> None:
    import stand_in

    planned = PlannedTraining.of(prepared, Path("unused"), toy_settings(), 0, None)
    network, cases = planned.first_network(), planned.split.validation
    scores = make_validation(prepared, cases, planned.card, CPU).score(network.eval(), True)
    gpu = to_device(copy.deepcopy(network), CUDA)
    validation = make_validation(prepared, cases, planned.card, CUDA)
    full = validation_bytes(prepared, cases, planned.card, network)
    # Four fifths are not enough for the sums on the GPU, but for a window.
    for room in (full, 10**9):
        with stand_in.gpu_memory(stand_in.allocated() + room):
            found = validation.score(gpu.eval(), True)
        assert found.mean_dice == pytest.approx(scores.mean_dice, abs=1e-3)


def test_the_whole_training_stays_within_its_estimate_and_caches_in_the_rest(prepared: Path, tmp_path: Path) -> None:
    import stand_in

    changes = {"epochs": 1, "iterations_per_epoch": 4, "validate_every": 1}
    settings = toy_settings()
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=changes)})
    planned = PlannedTraining.of(prepared, tmp_path / "m", settings, 0, None)
    before = stand_in.allocated()
    total = 64 * 2**20
    with stand_in.gpu_memory(before + total):
        room = planned.room_for_cases(planned.first_network(), CUDA, SINGLE)
        stand_in.reset_peak()
        train(prepared, tmp_path / "m", settings, device="cuda:0")
    # All four cases are cached: what is not theirs was enough for everything else.
    cases = 4 * 5 * 20 * 18 * 20
    assert cases / 2 < room < total
    assert stand_in.peak() - before <= total - room + 2 * cases
