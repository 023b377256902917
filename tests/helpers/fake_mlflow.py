"""A stand-in for the package mlflow: keeps what it is told in memory, and fails on request."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest


class Param(NamedTuple):
    key: str
    value: str


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


@dataclass
class Run:
    experiment: str
    name: str
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    status: str = "RUNNING"

    def steps(self, key: str) -> list[int]:
        return [metric.step for metric in self.metrics if metric.key == key]


@dataclass
class Server:
    """Everything that was sent, and a countdown to the call that fails."""

    runs: dict[str, Run] = field(default_factory=dict)
    experiments: list[str] = field(default_factory=list)
    uris: list[str | None] = field(default_factory=list)
    calls_left: int = 10**9

    def call(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise ConnectionError("HTTPConnectionPool: max retries exceeded\nlong explanation")


def install(monkeypatch: pytest.MonkeyPatch) -> Server:
    """Make ``import mlflow`` give the stand-in; returns its server."""
    server = Server()

    class MlflowClient:
        def __init__(self, tracking_uri: str | None = None) -> None:
            server.uris.append(tracking_uri)

        def get_experiment_by_name(self, name: str) -> Any:
            server.call()
            known = name in server.experiments
            return SimpleNamespace(experiment_id=str(server.experiments.index(name))) if known else None

        def create_experiment(self, name: str) -> str:
            server.call()
            server.experiments.append(name)
            return str(len(server.experiments) - 1)

        def create_run(self, experiment_id: str, tags: dict[str, str]) -> Any:
            server.call()
            run = Run(server.experiments[int(experiment_id)], tags["mlflow.runName"])
            server.runs[f"run{len(server.runs)}"] = run
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(server.runs) - 1}"))

        def update_run(self, run_id: str, status: str) -> None:
            server.call()
            server.runs[run_id].status = status

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            server.call()
            assert len(params) <= 100
            assert len(metrics) <= 1000
            run = server.runs[run_id]
            assert not {param.key for param in params} & set(run.params), "parameters cannot be changed"
            run.params |= {param.key: param.value for param in params}
            run.metrics += metrics

        def log_artifact(self, run_id: str, local_path: str) -> None:
            server.call()
            server.runs[run_id].artifacts.append(local_path)

        def set_terminated(self, run_id: str, status: str) -> None:
            server.call()
            server.runs[run_id].status = status

    package, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    package.__spec__ = ModuleSpec("mlflow", None)
    package.MlflowClient = MlflowClient  # type: ignore[attr-defined]
    entities.Metric, entities.Param = Metric, Param  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return server
