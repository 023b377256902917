"""One training step of a plan, measured: how long it takes and how much memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.settings import Settings, TrainSettings, parse_duration_s
from pipeline.core.errors import VolsegError
from pipeline.core.files import read_json, text_hash, write_json
from pipeline.model.base import SegmentationNetwork
from pipeline.model.cost import count_parameters, watch_memory
from pipeline.model.device import PLAIN, Execution, choose_device, choose_dtype, device_name, execute, out_of_memory
from pipeline.model.spec import NetworkSpec, design_network, patches_per_batch
from pipeline.preprocess.plan_file import PLAN_FILE, Plan, read_plan
from pipeline.train.loss import supervised_loss
from pipeline.train.state import first_state, update

# Measuring which way of executing a network is fastest on a machine, and remembering it.

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


# Choosing how to execute a network, by a short measurement that is made once per machine.


def autotune(
    spec: NetworkSpec, plan: Plan, settings: Settings, device: torch.device, say: Callable[[str], None]
) -> Execution:
    """The fastest way to train a network here: measured, or as measured before on this machine.

    Args:
        spec: The network.
        plan: The dataset's plan.
        settings: Sections ``sample``, ``loss`` and ``train``.
        device: Where it is trained.
        say: Told what was measured, a line per way.

    Raises:
        VolsegError: If no way works.
    """
    batch_size, train = patches_per_batch(plan, spec, settings.sample), settings.train
    parts = (train.precision, train.optimizer, str(train.recompute), settings.loss.model_dump_json())
    key = text_hash(
        spec.model_dump_json(),
        str(batch_size),
        device_name(device),
        torch.__version__,
        str(torch.get_num_threads()),
        *parts,
    )
    known = remembered(key)
    if known is not None:
        say(f"autotune: {known}, as measured before")
        return known
    ways = [PLAIN, Execution(channels_last=False), Execution(compiled="fused")]
    if device.type == "cuda":
        ways.append(Execution(compiled="graphs"))
    build = partial(spec.build, train.seed, settings.model.initialization)
    batch = noise_batch(build(), plan, spec.patch_size, batch_size, device)
    objective = partial(supervised_loss, settings=settings.loss, regions=plan.label_table.region_classes())
    found = measured_ways(build, batch, objective, train, ways)
    best = fastest(found)
    for entry in found:
        say(f"autotune: {entry.line(found[0].step_s)}{'  <- taken' if entry.how == best else ''}")
    remember(key, best)
    return best
