"""One training step of a plan, measured: how long it takes and how much memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Settings, parse_duration_s
from pipeline.core.errors import VolsegError
from pipeline.model.cost import count_parameters
from pipeline.model.device import autocast, choose_device, choose_dtype, out_of_memory, to_device
from pipeline.model.memory import watch_memory
from pipeline.model.spec import design_network, patches_per_batch
from pipeline.preprocess.plan_file import PLAN_FILE, read_plan
from pipeline.train.loss import supervised_loss
from pipeline.train.schedule import build_optimizer

__all__ = ["Trial", "trial"]

_STEPS = 3  # the first chooses algorithms and reserves memory; the fastest of the others counts


@dataclass(frozen=True)
class Trial:
    """What a training step took.

    Args:
        network: Its name and dimensions.
        parameters: Its parameters.
        patch_size: Voxels of a patch.
        batch_size: Patches in the step.
        device: Where it ran.
        step_s: Seconds of the fastest step: forward, loss, backward and update, without loading and augmentation.
        peak_bytes: Highest use of memory of network, optimizer and step; None where the device does not tell.
        budget_s: Seconds of the settings' time budget, if there is one.
    """

    network: str
    parameters: int
    patch_size: tuple[int, ...]
    batch_size: int
    device: str
    step_s: float
    peak_bytes: int | None
    budget_s: float | None = None

    def lines(self) -> tuple[str, ...]:
        """The result for reading, and how many steps the time budget holds."""
        size = " x ".join(map(str, self.patch_size))
        memory = "" if self.peak_bytes is None else f", {self.peak_bytes / 2**30:.2f} GiB"
        found = f"trial  {self.network}: {self.parameters:,} parameters, {self.batch_size} patches of {size}"
        lines = [f"{found} on {self.device}: {self.step_s:.2f} s per step{memory}"]
        if self.budget_s is not None:
            lines.append(f"trial  {self.budget_s:.0f} s hold about {int(self.budget_s / self.step_s)} steps")
        return tuple(lines)


def trial(folder: Path, settings: Settings, device: str | None = None) -> Trial:
    """Train a few steps on noise with the network, patch and batch that a training would have.

    Args:
        folder: Folder with the ``plan.yaml``.
        settings: Sections ``model``, ``sample``, ``loss`` and ``train``.
        device: Name of the device; by default the best there is.

    Raises:
        VolsegError: If the patch does not fit the network, or network and patches do not fit into memory.
    """
    plan, place = read_plan(folder / PLAN_FILE), choose_device(device)
    spec = design_network(plan, settings.model, settings.sample)
    batch = patches_per_batch(plan, spec, settings.sample)
    network = spec.build(settings.train.seed, settings.model.initialization)
    parameters, generator = count_parameters(network), torch.Generator().manual_seed(settings.train.seed)
    images = torch.randn((batch, len(plan.channels), *spec.patch_size), generator=generator)
    labels = torch.randint(
        plan.label_table.classes, (batch, *network.output_size(spec.patch_size)), generator=generator
    )
    loss = partial(supervised_loss, settings=settings.loss, regions=plan.label_table.region_classes())
    try:
        with watch_memory(place) as peak:
            step_s = _fastest_step(network, images, labels, loss, settings, place)
            most = peak()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        rule, got = "enough for the network and a batch", f"too little for {batch} patches of {spec.patch_size}"
        raise VolsegError(f"memory of {place}: expected {rule}, got {got}. Lower preprocess.memory_gb.") from None
    name = f"{spec.name} {spec.dims}D"
    budget_s = None if settings.train.budget is None else parse_duration_s(settings.train.budget)
    return Trial(name, parameters, tuple(spec.patch_size), batch, str(place), step_s, most, budget_s)


def _fastest_step(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss_of: Callable[[Any, Tensor], Tensor],
    settings: Settings,
    place: torch.device,
) -> float:
    to_device(network, place).train()
    images, labels = images.to(place), labels.to(place)
    optimizer, dtype = build_optimizer(network, settings.train), choose_dtype(place, settings.train.precision)
    seconds = []
    for _ in range(_STEPS):
        began = time.monotonic()
        optimizer.zero_grad(set_to_none=True)
        with autocast(place, dtype):
            heads = network(images)
        loss = loss_of(heads, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        float(loss.detach())  # waits for the device
        seconds.append(time.monotonic() - began)
    return min(seconds[1:])
