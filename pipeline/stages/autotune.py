"""Choosing how to execute a network, by a short measurement that is made once per machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from pipeline.config import Settings
from pipeline.core.files import text_hash
from pipeline.model.device import device_name
from pipeline.model.execution import PLAIN, Execution
from pipeline.model.spec import NetworkSpec, patches_per_batch
from pipeline.preprocess.plan import Plan
from pipeline.stages.trial import noise_batch
from pipeline.train.loss import supervised_loss
from pipeline.train.tuning import fastest, measured_ways, remember, remembered

__all__ = ["autotune"]


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
