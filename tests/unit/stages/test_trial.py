"""A training step of a plan, measured."""

from pathlib import Path

import pytest
import torch
from toy import toy_settings, write_toy

from pipeline.config import Settings
from pipeline.core.errors import VolsegError
from pipeline.stages import trial as module
from pipeline.stages.plan import plan
from pipeline.stages.trial import Trial, trial


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    plan(write_toy(folder / "data", 3), folder / "plan", toy_settings(), jobs=1)
    return folder / "plan"


@pytest.mark.parametrize("name", ["unet", "unet2015"])  # the second gives logits of less than the patch
def test_a_step_is_measured(planned: Path, name: str) -> None:
    settings = toy_settings(name=name)
    sample = settings.sample.model_copy(update={"patch_size": None, "batch_size": 3})
    found = trial(planned, settings.model_copy(update={"sample": sample}), "cpu")
    assert (found.network, found.batch_size, found.device) == (f"{name} 3D", 3, "cpu")
    assert found.step_s > 0
    assert found.peak_bytes is None or found.peak_bytes > 0
    assert found.budget_s is None


def test_the_result_says_how_many_steps_a_budget_holds() -> None:
    found = Trial("unet 3D", 1000, (16, 16, 8), 2, "cpu", 0.5, 3 * 2**29, 600.0)
    assert found.lines() == (
        "trial  unet 3D: 1,000 parameters, 2 patches of 16 x 16 x 8 on cpu: 0.50 s per step, 1.50 GiB",
        "trial  600 s hold about 1200 steps",
    )


def test_too_little_memory_is_said(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "measure_step", full)
    with pytest.raises(VolsegError, match=r"memory of cpu: expected enough .* Lower preprocess\.memory_gb\."):
        trial(planned, toy_settings(), "cpu")


def test_a_budget_of_the_settings_is_used(planned: Path) -> None:
    settings = toy_settings()
    train = settings.train.model_copy(update={"budget": "10m"})
    assert trial(planned, settings.model_copy(update={"train": train}), "cpu").budget_s == 600
    assert isinstance(settings, Settings)
