"""The fastest way that works is taken and remembered."""

from pathlib import Path

import pytest
import torch

from pipeline.config import TrainSettings
from pipeline.core.errors import VolsegError
from pipeline.model.execution import PLAIN, Execution
from pipeline.model.factory import build_network
from pipeline.train import tuning
from pipeline.train.tuning import Measured, fastest, measured_ways, remember, remembered


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
    assert found[2].line(1.0) == "channels last, fused: not possible here (RuntimeError)"
    assert fastest(found) in (PLAIN, Execution(channels_last=False))


def test_the_fewest_seconds_win() -> None:
    found = [Measured(PLAIN, 2.0), Measured(Execution(compiled="fused"), 1.0), Measured(Execution(False), None, "x")]
    assert fastest(found) == Execution(compiled="fused")
    assert found[1].line(2.0) == "channels last, fused: 1.000 s per step, 2.00 times as fast"
    with pytest.raises(VolsegError, match="autotune: expected a way to train this network, got none: too little"):
        fastest([Measured(PLAIN, None, "too little memory")])


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
