"""One training step of a plan, measured: how long it takes and how much memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config import Settings, parse_duration_s
from pipeline.core.errors import VolsegError
from pipeline.model.base import SegmentationNetwork
from pipeline.model.cost import count_parameters
from pipeline.model.device import choose_device, out_of_memory
from pipeline.model.execution import PLAIN
from pipeline.model.memory import watch_memory
from pipeline.model.spec import design_network, patches_per_batch
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.plan_file import PLAN_FILE, read_plan
from pipeline.train.loss import supervised_loss
from pipeline.train.tuning import measure_step

__all__ = ["Trial", "noise_batch", "trial"]


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
    parameters = count_parameters(network)
    try:
        with watch_memory(place) as peak:
            images, labels = noise_batch(network, plan, spec.patch_size, batch, place)
            loss = partial(supervised_loss, settings=settings.loss, regions=plan.label_table.region_classes())
            step_s = measure_step(network, (images, labels), loss, settings.train, PLAIN)
            most = peak()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        rule, got = "enough for the network and a batch", f"too little for {batch} patches of {spec.patch_size}"
        raise VolsegError(f"memory of {place}: expected {rule}, got {got}. Lower preprocess.memory_gb.") from None
    name = f"{spec.name} {spec.dims}D"
    budget_s = None if settings.train.budget is None else parse_duration_s(settings.train.budget)
    return Trial(name, parameters, tuple(spec.patch_size), batch, str(place), step_s, most, budget_s)


def noise_batch(
    network: SegmentationNetwork, plan: Plan, patch_size: Sequence[int], batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Images (B, C, *S) of noise, and labels of the size of the network's output, to measure with."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((batch_size, len(plan.channels), *patch_size), generator=generator)
    size = (batch_size, *network.output_size(patch_size))
    return images.to(device), torch.randint(plan.label_table.classes, size, generator=generator).to(device)
