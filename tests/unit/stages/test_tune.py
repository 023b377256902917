"""The fastest way that works is taken and remembered."""

from pathlib import Path

import pytest
import torch
from toy import toy_settings, write_toy

from pipeline.config.settings import Settings, TrainSettings
from pipeline.console.printing import print_trial
from pipeline.core.errors import VolsegError
from pipeline.model.device import PLAIN, Execution
from pipeline.model.spec import build_network, design_network
from pipeline.preprocess.plan_file import read_plan
from pipeline.stages import tune as module
from pipeline.stages import tune as tuning
from pipeline.stages.prepare import plan
from pipeline.stages.tune import (
    MeasuredWay,
    Trial,
    autotune,
    fastest,
    measured_ways,
    remember,
    remembered,
    trial,
    way_line,
)


def test_ways_are_measured_and_one_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tuning.execute

    def execute(network: object, device: object, how: Execution) -> None:
        if how.compiled == "fused":
            raise RuntimeError("no compiler")
        real(network, device, how)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "execute", execute)
    batch = torch.randn(2, 1, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int64)
    found = measured_ways(
        lambda: build_network("unet", 2, 1, 2, seed=0, features=(4, 8), deep_supervision=False),
        batch,
        lambda heads, labels: heads.square().mean(),  # type: ignore[union-attr]
        TrainSettings(precision="fp32"),
        [PLAIN, Execution(channels_last=False), Execution(compiled="fused")],
    )
    assert [entry.step_s is None for entry in found] == [False, False, True]
    assert way_line(found[2], 1.0) == "channels last, fused: not possible here (RuntimeError)"
    assert fastest(found) in (PLAIN, Execution(channels_last=False))


def test_the_fewest_seconds_win() -> None:
    found = [
        MeasuredWay(PLAIN, 2.0),
        MeasuredWay(Execution(compiled="fused"), 1.0),
        MeasuredWay(Execution(False), None, "x"),
    ]
    assert fastest(found) == Execution(compiled="fused")
    assert way_line(found[1], 2.0) == "channels last, fused: 1.000 s per step, 2.00 times as fast"
    with pytest.raises(VolsegError, match="autotune: expected a way to train this network, got none: too little"):
        fastest([MeasuredWay(PLAIN, None, "too little memory")])


def test_a_choice_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remembered("a") is None
    remember("a", Execution(compiled="graphs"))
    remember("b", PLAIN)
    assert (remembered("a"), remembered("b")) == (Execution(compiled="graphs"), PLAIN)
    (tmp_path / "volseg" / "autotune.json").write_text("damaged")
    assert remembered("a") is None
    remember("a", PLAIN)
    assert remembered("a") == PLAIN
    (tmp_path / "volseg" / "autotune.json").write_text('{"a": {"fast": true}}')
    assert remembered("a") is None


# A training step of a plan, measured.


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


def test_the_result_says_how_many_steps_a_budget_holds(capsys: pytest.CaptureFixture[str]) -> None:
    found = Trial("unet 3D", 1000, (16, 16, 8), 2, "cpu", 0.5, 3 * 2**29, 600.0)
    print_trial(found)
    assert capsys.readouterr().out.splitlines() == [
        "trial  unet 3D: 1,000 parameters, 2 patches of 16 x 16 x 8 on cpu: 0.50 s per step, 1.50 GiB",
        "trial  600 s hold about 1200 steps",
    ]


def test_too_little_memory_is_said(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "measure_step", full)
    with pytest.raises(VolsegError, match=r"memory of cpu: expected enough .* Lower preprocess\.memory_gb\."):
        trial(planned, toy_settings(), "cpu")


def test_a_gpu_without_room_for_a_batch_to_measure_with_is_told(
    planned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "noise_batch", full)
    own, settings = read_plan(planned / "plan.yaml"), toy_settings()
    spec = design_network(own, settings.model, settings.sample)
    said = r"memory of cpu: expected enough for 2 patches of 16 x 16 x 16, got too little\. Lower sample\.batch_size"
    with pytest.raises(VolsegError, match=said):
        autotune(spec, own, settings, torch.device("cpu"), lambda line: None)


def test_a_budget_of_the_settings_is_used(planned: Path) -> None:
    settings = toy_settings()
    train = settings.train.model_copy(update={"budget": "10m"})
    assert trial(planned, settings.model_copy(update={"train": train}), "cpu").budget_s == 600
    assert isinstance(settings, Settings)
