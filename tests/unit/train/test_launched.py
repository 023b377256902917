"""Which variables make a training one of several processes."""

import pytest

from pipeline.stages.train_folds import _require_one_process
from pipeline.train.distributed import SINGLE, is_first, joined, launched

OF_A_BATCH_SYSTEM = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("variables", [OF_A_BATCH_SYSTEM, {"WORLD_SIZE": "", "RANK": "x"}, {}])
def test_a_batch_system_alone_starts_no_common_training(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (launched(), is_first()) == (1, True)
    with joined() as processes:
        assert processes == SINGLE
    _require_one_process()


def test_torchrun_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**OF_A_BATCH_SYSTEM, "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)
    assert (launched(), is_first()) == (4, False)
    monkeypatch.setenv("RANK", "0")
    assert is_first()
