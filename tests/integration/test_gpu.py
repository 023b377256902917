"""Training, resuming and predicting on a GPU, beside the CPU. Run where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_case, toy_settings

from pipeline.config.settings import Settings
from pipeline.model.folder import load_weights
from pipeline.preprocess.interpolation import resample
from pipeline.preprocess.resample import resample_labels
from pipeline.stages.predict import Predictor
from pipeline.stages.train import train

pytestmark = pytest.mark.gpu


# The stand-in takes half a minute for each; that steps of all three are right there, test_gpu_waits shows in three.
@pytest.mark.parametrize(
    "precision",
    [
        pytest.param("fp32", marks=pytest.mark.gpu(real=True)),
        "bf16",
        pytest.param("fp16", marks=pytest.mark.gpu(real=True)),
    ],
)
def test_training_on_a_gpu_learns(prepared: Path, tmp_path: Path, precision: str) -> None:
    settings = toy_settings()
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"precision": precision})})
    result = train(prepared, tmp_path / "m", settings, device="cuda")
    assert (result.scores.mean_dice or 0) > 0.8


def test_a_model_predicts_the_same_on_both_devices(model: Path) -> None:
    image, _ = toy_case(7)
    masks = [Predictor.load(model, device=device).predict(image).array for device in ("cpu", "cuda")]
    assert np.mean(masks[0] != masks[1]) < 1e-3


def test_soft_outputs_are_the_same_on_both_devices_and_spread_over_all_gpus(model: Path) -> None:
    image, _ = toy_case(7)
    organs = ("box_left", "box_small")
    cpu, gpu, spread = (
        Predictor.load(model, device=device).predict_soft(image, organs) for device in ("cpu", "cuda", "cuda:all")
    )
    assert cpu.entropy is not None
    assert gpu.entropy is not None
    np.testing.assert_allclose(gpu.entropy, cpu.entropy, atol=0.02)
    for organ in organs:
        np.testing.assert_allclose(gpu.probabilities[organ], cpu.probabilities[organ], atol=0.02)
        np.testing.assert_allclose(spread.probabilities[organ], gpu.probabilities[organ], atol=1e-3)
        assert gpu.confidence[organ] == pytest.approx(cpu.confidence[organ], abs=0.01)


def test_a_checkpoint_continues_on_the_gpu(prepared: Path, tmp_path: Path) -> None:
    settings = toy_settings()

    def epochs(number: int) -> Settings:
        changes = {"epochs": number, "iterations_per_epoch": 5}
        return settings.model_copy(update={"train": settings.train.model_copy(update=changes)})

    train(prepared, tmp_path / "m", epochs(1), device="cuda")
    result = train(prepared, tmp_path / "m", epochs(2), device="cuda")
    assert [(record.epoch, record.iteration) for record in result.progress.records] == [(1, 5), (2, 10)]
    weights = load_weights(tmp_path / "m" / "fold_0" / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values() if tensor.is_floating_point())


def test_resampling_is_the_same_on_both_devices() -> None:
    generator = torch.Generator().manual_seed(0)
    image, label = (
        torch.randn(2, 20, 30, 25, generator=generator),
        torch.randint(-1, 5, (20, 30, 25), generator=generator),
    )
    torch.testing.assert_close(resample(image.cuda(), (30, 20, 40), 3).cpu(), resample(image, (30, 20, 40), 3))
    moved = resample_labels(label.cuda(), (30, 20, 40))
    assert moved.device.type == "cuda"
    assert float((moved.cpu() != resample_labels(label, (30, 20, 40))).float().mean()) < 1e-4
