"""A toy dataset and a model trained on it once for all integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import toy_settings, write_toy

from pipeline.stages.prepare import preprocess
from pipeline.stages.train import train


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"), 6)


@pytest.fixture(scope="session")
def prepared(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    batch = preprocess(dataset, out, toy_settings(), jobs=1)
    assert (len(batch.done), batch.failed) == (6, ())
    return out


@pytest.fixture(scope="session")
def model(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    result = train(prepared, out, toy_settings(), device="cpu")
    assert (result.scores.mean_dice or 0) > 0.8
    return out
