"""Measuring which way of executing a network is fastest on a machine, and remembering it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import TrainSettings
from pipeline.core.errors import VolsegError
from pipeline.core.files import read_json, write_json
from pipeline.model.base import SegmentationNetwork
from pipeline.model.device import choose_dtype, out_of_memory
from pipeline.model.execution import Execution, execute
from pipeline.train.state import first_state
from pipeline.train.step import update

__all__ = ["Measured", "fastest", "measure_step", "measured_ways", "remember", "remembered"]

_STEPS = 4  # the first chooses algorithms, compiles and reserves memory; the fastest of the others counts


@dataclass(frozen=True)
class Measured:
    """What became of one way.

    Args:
        how: The way.
        step_s: Seconds of the fastest step; None if it failed.
        error: Why it failed, in one line.
    """

    how: Execution
    step_s: float | None
    error: str = ""

    def line(self, base_s: float | None) -> str:
        """For reading, its speed as a multiple of another's."""
        if self.step_s is None:
            return f"{self.how}: not possible here ({self.error})"
        faster = "" if base_s is None else f", {base_s / self.step_s:.2f} times as fast"
        return f"{self.how}: {self.step_s:.3f} s per step{faster}"


def measured_ways(
    build: Callable[[], SegmentationNetwork],
    batch: tuple[Tensor, Tensor],
    objective: Callable[[Tensor | Mapping[str, Tensor], Tensor], Tensor],
    settings: TrainSettings,
    ways: Sequence[Execution],
) -> list[Measured]:
    """Train a few steps in each way.

    Args:
        build: Makes the network anew.
        batch: Images (B, C, *S) and labels (B, *S), on the device.
        objective: The loss of the network's output and labels.
        settings: Section ``train``.
        ways: What to measure; one that fails is told and left out.
    """
    found = []
    for how in ways:
        try:
            found.append(Measured(how, measure_step(build(), batch, objective, settings, how)))
        except Exception as error:  # compilers fail in many ways, and there is always the plain one
            reason = "too little memory" if out_of_memory(error) else type(error).__name__
            found.append(Measured(how, None, reason))
        torch.compiler.reset()
    return found


def measure_step(
    network: SegmentationNetwork,
    batch: tuple[Tensor, Tensor],
    objective: Callable[[Tensor | Mapping[str, Tensor], Tensor], Tensor],
    settings: TrainSettings,
    how: Execution,
) -> float:
    """Seconds of the fastest of a few steps: forward, loss, backward and update; arguments as above."""
    device = batch[0].device
    execute(network, device, how)
    network.train()
    dtype = choose_dtype(device, settings.precision)
    state = first_state(network, settings, dtype)
    seconds = []
    for _ in range(_STEPS):
        began = time.monotonic()
        float(update(state, network, [batch], objective, settings, dtype, 1e-6, how))  # waits for the device
        seconds.append(time.monotonic() - began)
    return min(seconds[1:])


def fastest(found: Sequence[Measured]) -> Execution:
    """The way of the fewest seconds.

    Raises:
        VolsegError: If all failed.
    """
    done = [(entry.step_s, number) for number, entry in enumerate(found) if entry.step_s is not None]
    if not done:
        raise VolsegError(
            f"autotune: expected a way to train this network, got none: {found[0].error}. Lower sample.batch_size."
        )
    return found[min(done)[1]].how


def remember(key: str, how: Execution) -> None:
    """Keep the choice for later trainings on this machine; where nothing can be kept it is measured again."""
    try:
        write_json(_place(), {**_all(), key: asdict(how)})
    except VolsegError:
        return


def remembered(key: str) -> Execution | None:
    """The choice that was kept under a key; None if there is none."""
    try:
        return Execution(**_all()[key])
    except (KeyError, TypeError):
        return None


def _all() -> dict[str, Any]:
    try:
        found = read_json(_place())
    except VolsegError:
        return {}
    return found if isinstance(found, dict) else {}


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "volseg" / "autotune.json"
