"""An MLflow run beside a training: settings, every epoch, curves. A broken server never stops a training."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, Stopped, sentence
from pipeline.core.files import read_record, write_json
from pipeline.train.log import EpochRecord, scalars
from pipeline.train.state import Callbacks, ValidationScores

RUN_FILE = "mlflow.json"
"""In the fold's folder: server and run, so that a training that is continued continues its run."""

_PARAMS_PER_BATCH = 100  # MLflow takes no more
_METRICS_PER_BATCH = 1000
_LONGEST_VALUE = 500  # of a parameter in its older versions
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""By default MLflow tries for many minutes, while a training would stand still. It reads these from nowhere else."""


def require_mlflow(uri: str | None) -> None:
    """Refuse a tracking URI where MLflow is not installed."""
    if uri is not None and find_spec("mlflow") is None:
        advice = "Install it with `pip install 'volseg[mlflow]'`, or leave train.mlflow out"
        raise ConfigError([sentence("train.mlflow", "MLflow to be installed", "no package of that name", advice)])


class Tracker:
    """Mutable state of an MLflow run: it ends for this training with the first call that fails.

    Args:
        uri: Tracking URI; None tracks nothing.
        folder: Folder of the fold.
        callbacks: Those of the training; its log gets one line if tracking fails.
    """

    # MLflow's client, not its fluent API: that keeps one active run in global state, which a server that breaks down
    # would leave open for the next fold, and which may be the caller's own; and it sends the user's name and script.

    def __init__(self, uri: str | None, folder: Path, callbacks: Callbacks) -> None:
        self.uri, self.folder, self.training = uri, folder, callbacks
        self.client: Any = None
        self.run_id = ""
        self.continued = False

    @property
    def callbacks(self) -> Callbacks:
        """What the training calls: its own callbacks, and then this run."""
        if self.uri is None:
            return self.training
        return replace(self.training, on_start=self.on_start, on_epoch=self.on_epoch)

    def begin(self, experiment: str, parameters: Mapping[str, Any]) -> None:
        """Start a run, or continue that of an earlier run of this training; arguments as for :func:`tracking`."""
        if self.uri is not None:
            uri = self.uri
            self._try(lambda: self._begin(uri, experiment, parameters))

    def on_start(self, records: Sequence[EpochRecord], epochs: int) -> None:
        """Send epochs of earlier runs of this training, unless MLflow has them."""
        self.training.on_start(records, epochs)
        if self.client is not None and not self.continued:
            self._try(lambda: self._send_metrics([(each.epoch, scalars(each)) for each in records]))

    def on_epoch(self, record: EpochRecord, epochs: int) -> None:
        """Send an epoch and, after a validation, the curves."""
        self.training.on_epoch(record, epochs)
        if self.client is not None:
            self._try(lambda: self._send_epoch(record))

    def finish(self, scores: ValidationScores) -> None:
        """Send the scores of the best weights on all validation cases and close the run."""
        final = {"final/mean_dice": scores.mean_dice, **{f"final/{organ}": dice for organ, dice in scores.dice.items()}}
        if self.client is not None:
            self._try(lambda: self._send_metrics([(0, final)]))
        self.end("FINISHED")

    def end(self, status: str) -> None:
        """Close the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        if self.client is not None:
            self._try(lambda: self.client.set_terminated(self.run_id, status))

    def _begin(self, uri: str, experiment: str, parameters: Mapping[str, Any]) -> None:
        for key, value in _PATIENCE.items():
            os.environ.setdefault(key, value)
        client = import_module("mlflow").MlflowClient(tracking_uri=uri)
        earlier = self._earlier_run()
        if earlier is not None:
            client.update_run(earlier, status="RUNNING")
            self.client, self.run_id, self.continued = client, earlier, True
            return
        known = client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known is not None else client.create_experiment(experiment)
        self.run_id = client.create_run(experiment_id, tags={"mlflow.runName": str(parameters["run"])}).info.run_id
        make = import_module("mlflow.entities").Param
        params = [make(key, text[:_LONGEST_VALUE]) for key, text in _flat(parameters)]
        for first in range(0, len(params), _PARAMS_PER_BATCH):
            client.log_batch(self.run_id, params=params[first : first + _PARAMS_PER_BATCH])
        # Last: a run whose settings did not arrive is not continued.
        write_json(self.folder / RUN_FILE, {"uri": uri, "run": self.run_id})
        self.client = client

    def _earlier_run(self) -> str | None:
        """The run of this fold on the same server, if there is one."""
        known = read_record(self.folder / RUN_FILE, dict[str, str])
        return known.get("run") if known.get("uri") == self.uri else None

    def _send_epoch(self, record: EpochRecord) -> None:
        self._send_metrics([(record.epoch, scalars(record))])
        curves = self.folder / "curves.png"
        if record.mean_dice is not None and curves.is_file():
            self.client.log_artifact(self.run_id, str(curves))

    def _send_metrics(self, steps: Sequence[tuple[int, Mapping[str, float | None]]]) -> None:
        make, now = import_module("mlflow.entities").Metric, int(time.time() * 1000)
        metrics = [
            make(_key(name), float(value), now, step)
            for step, values in steps
            for name, value in values.items()
            if value is not None
        ]
        for first in range(0, len(metrics), _METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[first : first + _METRICS_PER_BATCH])

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever a server or its library comes up with, the training goes on
            self.client = None
            got = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            rule, advice = "a server that takes this training's numbers", "The training goes on and sends no more"
            self.training.log(f"note  {sentence('train.mlflow', rule, got, advice, file=self.uri)}")


@contextmanager
def tracking(
    uri: str | None, folder: Path, callbacks: Callbacks, experiment: str, parameters: Mapping[str, Any]
) -> Iterator[Tracker]:
    """Track what happens in the block; if it is left by an error or Ctrl-C, the run says so.

    Args:
        uri: Tracking URI; None tracks nothing.
        folder: Folder of the fold.
        callbacks: Those of the training; the run's ``callbacks`` call them too.
        experiment: Name of the experiment; created if there is none.
        parameters: ``run``, its name, and nested settings.
    """
    tracker = Tracker(uri, folder, callbacks)
    tracker.begin(experiment, parameters)
    try:
        yield tracker
    except (KeyboardInterrupt, Stopped):
        tracker.end("KILLED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as ``section.key`` and text; lists as JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield _key(f"{prefix}{key}"), value if isinstance(value, str) else json.dumps(value)


def _key(name: str) -> str:
    """A name without what MLflow refuses: letters, digits, ``_``, ``-``, ``.``, spaces and ``/`` stay."""
    return re.sub(r"[^\w.\-/ ]", "_", name)
