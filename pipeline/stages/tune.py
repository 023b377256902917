"""A few training steps, measured: what a plan costs on this device, and which way of executing a network is fastest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import torch
from torch import Tensor

from pipeline.config.settings import Settings, TrainSettings, decided, parse_duration_s
from pipeline.core.documents import conform
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import read_record, text_hash, write_json
from pipeline.model.automatic import decide
from pipeline.model.base import SegmentationNetwork
from pipeline.model.cost import count_parameters, watch_memory
from pipeline.model.device import (
    PLAIN,
    Execution,
    choose_device,
    choose_dtype,
    device_name,
    enough_memory,
    execute,
    out_of_memory,
)
from pipeline.model.sizes import SizeRule
from pipeline.model.spec import NetworkSpec, design_network, patches_per_batch
from pipeline.preprocess.plan_file import PLAN_FILE, Plan, read_plan
from pipeline.train.loss import planned_loss, supervised_loss
from pipeline.train.state import Objective, first_state, update
from pipeline.train.step_memory import STEP_ADVICE

_STEPS = 4  # the first chooses algorithms, compiles and reserves memory; the fastest of the others counts


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


def trial(folder: Path, settings: Settings, device: str | None = None) -> Trial:
    """Train a few steps on noise with the network, patch and batch that a training would have.

    Args:
        folder: Folder with the ``plan.yaml``.
        settings: Sections ``model``, ``sample``, ``loss`` and ``train``, as the user gave them.
        device: Name of the device; by default the best there is.

    Raises:
        VolsegError: If the patch does not fit the network, or network and patches do not fit into memory.
    """
    plan, place = read_plan(folder / PLAN_FILE), choose_device(device)
    settings, _ = decide(plan, settings)
    spec = design_network(plan, settings.model, settings.sample)
    batch_size = patches_per_batch(plan, spec, settings.sample)
    network = spec.build(settings.train.seed, settings.model.initialization)
    parameters = count_parameters(network)
    what = f"the network and {batch_size} patches of {' x '.join(map(str, spec.patch_size))}"
    with enough_memory(place, what, "Lower preprocess.memory_gb"), watch_memory(place) as peak:
        batch = noise_batch(network.sizes, plan, spec.patch_size, batch_size, place)
        step_s = measure_step(network, batch, _objective(plan, settings), settings.train, PLAIN)
        most = peak()
    name = f"{spec.name} {spec.dims}D"
    budget_s = None if settings.train.budget is None else parse_duration_s(settings.train.budget)
    return Trial(name, parameters, tuple(spec.patch_size), batch_size, str(place), step_s, most, budget_s)


def autotune(
    spec: NetworkSpec, plan: Plan, settings: Settings, device: torch.device, log: Callable[[str], None]
) -> Execution:
    """The fastest way to train a network here: measured, or as measured before on this machine.

    Raises:
        VolsegError: If no way works.
    """
    batch_size, train = patches_per_batch(plan, spec, settings.sample), settings.train
    # Everything that decides how long a step takes.
    content_hash = text_hash(
        spec.model_dump_json(),
        str(batch_size),
        device_name(device),
        torch.__version__,
        str(torch.get_num_threads()),
        train.precision,
        train.optimizer,
        str(train.recompute),
        settings.loss.model_dump_json(),
    )
    known = remembered(content_hash)
    if known is not None:
        log(f"autotune: {known}, as measured before")
        return known
    ways = [PLAIN, Execution(channels_last=False), Execution(compiled="fused")]
    if device.type == "cuda":
        ways.append(Execution(compiled="graphs"))
    # Each way gets a network of its own: compiling changes a network for good.
    build = partial(spec.build, train.seed, settings.model.initialization)
    with enough_memory(device, f"{batch_size} patches of {' x '.join(map(str, spec.patch_size))}", STEP_ADVICE):
        batch = noise_batch(spec.sizes(), plan, spec.patch_size, batch_size, device)
    found = measured_ways(build, batch, _objective(plan, settings), train, ways)
    best = fastest(found)
    for entry in found:
        log(f"autotune: {way_line(entry, found[0].step_s)}{'  <- taken' if entry.how == best else ''}")
    remember(content_hash, best)
    return best


def _objective(plan: Plan, settings: Settings) -> Objective:
    loss = planned_loss(settings.loss, plan, decided(settings.model.dims))
    return partial(supervised_loss, settings=loss, regions=plan.label_table.region_classes())


def noise_batch(
    sizes: SizeRule, plan: Plan, patch_size: Sequence[int], batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Images (B, C, *S) of noise, and labels of the size of the network's output, to measure with."""
    # Noise does: no step takes longer for what the images show.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((batch_size, len(plan.channels), *patch_size), generator=generator)
    if plan.cascade:  # what the first stage found
        found = torch.randint(plan.label_table.classes, (batch_size, 1, *patch_size), generator=generator)
        images = torch.cat([images, found.float()], dim=1)
    size = (batch_size, *sizes.output_size(patch_size))
    return images.to(device), torch.randint(plan.label_table.classes, size, generator=generator).to(device)


def measure_step(
    network: SegmentationNetwork,
    batch: tuple[Tensor, Tensor],
    objective: Objective,
    settings: TrainSettings,
    how: Execution,
) -> float:
    """Seconds of the fastest of a few steps (forward, loss, backward and update) on a batch that is on the device."""
    device = batch[0].device
    execute(network, device, how)
    network.train()
    state = first_state(network, settings, choose_dtype(device, settings.precision), how)
    seconds = []
    for _ in range(_STEPS):
        began = time.monotonic()
        float(update(state, [batch], objective, settings, 1e-6))  # waits for the device
        seconds.append(time.monotonic() - began)
    return min(seconds[1:])


@dataclass(frozen=True)
class MeasuredWay:
    """What became of one way of executing a network.

    Args:
        how: The way.
        step_s: Seconds of the fastest step; None if it failed.
        error: Why it failed, in one line.
    """

    how: Execution
    step_s: float | None
    error: str = ""


def way_line(found: MeasuredWay, base_s: float | None) -> str:
    """One way for reading, its speed as a multiple of another's."""
    if found.step_s is None:
        return f"{found.how}: not possible here ({found.error})"
    faster = "" if base_s is None else f", {base_s / found.step_s:.2f} times as fast"
    return f"{found.how}: {found.step_s:.3f} s per step{faster}"


def measured_ways(
    build: Callable[[], SegmentationNetwork],
    batch: tuple[Tensor, Tensor],
    objective: Objective,
    settings: TrainSettings,
    ways: Sequence[Execution],
) -> list[MeasuredWay]:
    """Train a few steps in each way; one that fails has an error instead of seconds."""
    found = []
    for how in ways:
        try:
            found.append(MeasuredWay(how, measure_step(build(), batch, objective, settings, how)))
        except Exception as error:  # compilers fail in many ways, and there is always the plain one
            reason = "too little memory" if out_of_memory(error) else type(error).__name__
            found.append(MeasuredWay(how, None, reason))
        torch.compiler.reset()  # what one way compiled must not help or harm the next
    return found


def fastest(found: Sequence[MeasuredWay]) -> Execution:
    """The way of the fewest seconds; if all failed, the training cannot begin."""
    done = [(entry.step_s, number) for number, entry in enumerate(found) if entry.step_s is not None]
    if not done:
        raise VolsegError(
            sentence("autotune", "a way to train this network", f"none: {found[0].error}", "Lower sample.batch_size")
        )
    return found[min(done)[1]].how


def remember(content_hash: str, how: Execution) -> None:
    """Keep the choice for later trainings on this machine; where nothing can be kept it is measured again."""
    try:
        write_json(_memory_file(), {**read_record(_memory_file()), content_hash: asdict(how)})
    except VolsegError:
        return


def remembered(content_hash: str) -> Execution | None:
    """The choice that was kept; None if there is none."""
    path = _memory_file()
    given = read_record(path).get(content_hash)
    try:
        known: Execution | None = conform(given, Execution | None, path)
    except VolsegError:  # damaged: measured again
        return None
    return None if known is None or asdict(known) != given else known


def _memory_file() -> Path:
    try:
        home = Path.home()
    except RuntimeError:  # a user whom the system does not know, as in containers
        home = Path(gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "volseg" / "autotune.json"
