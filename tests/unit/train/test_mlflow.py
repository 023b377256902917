"""MLflow runs, with a stand-in for the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_mlflow import Server, install

from pipeline.config.settings import TrainSettings
from pipeline.core.errors import ConfigError
from pipeline.train import mlflow as module
from pipeline.train.log import EpochRecord
from pipeline.train.mlflow import Tracker, require_mlflow, tracking
from pipeline.train.state import Callbacks, ValidationScores

URI = "http://localhost:5000"
PARAMETERS = {"run": "m fold 0", "fold": 0, "train": {"seed": 3, "betas": [0.9, 0.99], "none": None}, "empty": {}}
SCORES = ValidationScores({"liver": 0.8, "spleen": None}, 0.8, {})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")  # put back afterwards
    return install(monkeypatch)


def record(epoch: int, dice: float | None = None) -> EpochRecord:
    scores = {} if dice is None else {"liver (left)": dice, "absent": None}
    return EpochRecord(epoch, epoch, 1.0 / epoch, 1e-3, 1.0, 2.0, 0.0, 0.1, float(bool(dice)), scores, dice)


def sitting(folder: Path, *records: EpochRecord, earlier: tuple[EpochRecord, ...] = (), uri: str = URI) -> list[str]:
    """One sitting of a training; returns what was said."""
    said: list[str] = []
    with tracking(uri, folder, Callbacks(log=said.append), "hearts", PARAMETERS) as tracker:
        tracker.on_start(earlier, 10)
        for each in records:
            tracker.on_epoch(each, 10)
        tracker.finish(SCORES)
    return said


def test_a_run_has_settings_epochs_curves_and_final_scores(server: Server, tmp_path: Path) -> None:
    (tmp_path / "curves.png").touch()
    assert sitting(tmp_path, record(1), record(2, 0.5)) == []
    run = server.runs["run0"]
    assert (run.experiment, run.name, run.status) == ("hearts", "m fold 0", "FINISHED")
    assert run.params == {
        "run": "m fold 0",
        "fold": "0",
        "train.seed": "3",
        "train.betas": "[0.9, 0.99]",
        "train.none": "null",
        "empty": "{}",
    }
    assert run.steps("train/loss") == [1, 2]
    assert run.steps("validation/mean_dice") == [2]
    assert {m.key: m.value for m in run.metrics if m.step == 2}["validation/liver _left_"] == 0.5
    assert {m.key: m.value for m in run.metrics if m.key.startswith("final")} == {
        "final/mean_dice": 0.8,
        "final/liver": 0.8,
    }
    assert run.artifacts == [str(tmp_path / "curves.png")]
    assert server.uris == [URI]


def test_a_continued_training_continues_its_run(server: Server, tmp_path: Path) -> None:
    sitting(tmp_path, record(1))
    sitting(tmp_path, record(2), earlier=(record(1),))
    assert len(server.runs) == 1
    assert server.runs["run0"].steps("train/loss") == [1, 2]
    assert json.loads((tmp_path / "mlflow.json").read_text()) == {"uri": URI, "run": "run0"}
    sitting(tmp_path, record(3), earlier=(record(1), record(2)), uri="http://other:5000")
    assert server.runs["run1"].steps("train/loss") == [1, 2, 3]  # another server gets everything
    assert server.experiments == ["hearts"]


def test_a_damaged_run_file_begins_a_new_run(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text("[1]")
    assert sitting(tmp_path, record(1)) == []
    assert list(server.runs) == ["run0"]


@pytest.mark.parametrize("calls", range(9))
def test_a_broken_server_is_told_once_and_left_alone(server: Server, tmp_path: Path, calls: int) -> None:
    (tmp_path / "curves.png").touch()
    server.calls_left = calls
    said = sitting(tmp_path, record(1), record(2, 0.5))
    assert said == [
        f"note  {URI}: train.mlflow: expected a server that takes this training's numbers, "
        "got HTTPConnectionPool: max retries exceeded. The training goes on and sends no more."
    ]
    assert server.calls_left == -1


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_interrupted_runs_say_so(server: Server, tmp_path: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracking(URI, tmp_path, Callbacks(), "hearts", PARAMETERS):
        raise error
    assert server.runs["run0"].status == status


def test_without_a_uri_nothing_is_tracked(server: Server, tmp_path: Path) -> None:
    with tracking(None, tmp_path, Callbacks(), "hearts", PARAMETERS) as tracker:
        assert isinstance(tracker, Tracker)
        tracker.on_start((), 1)
        tracker.on_epoch(record(1), 1)
        tracker.finish(SCORES)
    assert server.uris == []
    assert list(tmp_path.iterdir()) == []


def test_many_parameters_and_metrics_are_sent_in_parts(server: Server, tmp_path: Path) -> None:
    many = {"run": "m fold 0", "fold": 0, "loss": {f"key_{n}": "x" * 600 for n in range(250)}}
    with tracking(URI, tmp_path, Callbacks(), "hearts", many) as tracker:
        tracker.on_start([record(n) for n in range(1, 401)], 400)
    assert len(server.runs["run0"].params) == 252
    assert len(server.runs["run0"].params["loss.key_3"]) == 500
    assert len(server.runs["run0"].metrics) == 1600


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    require_mlflow(None)
    with pytest.raises(
        ConfigError, match=r"train\.mlflow: expected MLflow to be installed.*pip install 'volseg\[mlflow\]'"
    ):
        require_mlflow(URI)


@pytest.mark.parametrize("uri", [None, URI, "file:mlruns", "sqlite:///runs.db", "mlruns"])
def test_tracking_uris(uri: str | None) -> None:
    assert TrainSettings(mlflow=uri).mlflow == uri


def test_uris_with_passwords_are_refused_because_settings_are_kept() -> None:
    with pytest.raises(ValueError, match=r"without a password, got one with a password\. Set MLFLOW_TRACKING") as found:
        TrainSettings(mlflow="https://me:secret@host")
    assert "Write for example" not in str(found.value)
    with pytest.raises(ValueError, match=r"got none\. Write for example http://localhost:5000"):
        TrainSettings(mlflow=" ")
