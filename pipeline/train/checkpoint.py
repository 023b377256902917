"""Saving and continuing a training: one safetensors file with its JSON inside, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.core.errors import VolsegError
from pipeline.model.folder import load_weights, save_weights
from pipeline.train.history import EpochRecord

__all__ = ["Progress", "load_checkpoint", "save_checkpoint"]


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Args:
        elapsed_s: Time spent, over all sittings.
        iteration: Iterations done.
        best_dice: Best validation mean Dice so far, or None.
        stale: Validations since the best one.
        validation_s: Duration of the last validation.
        finished: Whether the training has ended.
        records: All epochs.
    """

    elapsed_s: float = 0.0
    iteration: int = 0
    best_dice: float | None = None
    stale: int = 0
    validation_s: float = 0.0
    finished: bool = False
    records: Sequence[EpochRecord] = field(default_factory=tuple)


def save_checkpoint(
    folder: Path,
    progress: Progress,
    settings_hash: str,
    network: nn.Module,
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generators: tuple[np.random.Generator, torch.Generator],
) -> None:
    """Write ``last.safetensors``: tensors, and everything else as JSON in the file's metadata, in one atomic step.

    Args:
        folder: Folder of the fold.
        progress: Where the training stands.
        settings_hash: Hash of everything that must not change before continuing.
        network: Its weights and buffers.
        average: Moving average of the weights; empty if there is none.
        optimizer: Its state.
        generators: Sampling and augmentation randomness.
    """
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    state = optimizer.state_dict()
    for index, entries in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entries.items() if isinstance(value, Tensor)}
    tensors["generator"] = generators[1].get_state()
    content = {
        "settings": settings_hash,
        "progress": {**vars(progress), "records": [record.to_json() for record in progress.records]},
        "numpy_generator": generators[0].bit_generator.state,
    }
    save_weights(folder / "last.safetensors", tensors, {"state": json.dumps(content)})


def load_checkpoint(
    folder: Path,
    settings_hash: str,
    network: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generators: tuple[np.random.Generator, torch.Generator],
) -> Progress:
    """Restore everything :func:`save_checkpoint` wrote, in place.

    Returns:
        Where the training stood; a fresh start if there is no checkpoint.

    Raises:
        VolsegError: If settings, plan or split changed since, or the files do not fit.
    """
    path = folder / "last.safetensors"
    if not path.is_file():
        return Progress()
    tensors = load_weights(path)
    with safe_open(path, "pt") as file:
        content = json.loads((file.metadata() or {})["state"])
    if content["settings"] != settings_hash:
        raise VolsegError(
            f"{path}: expected the settings, plan and split this training began with, got others. "
            "Choose another model folder, or begin anew with --restart."
        )
    parts: dict[str, dict[str, Any]] = {"network": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = tensor
    network.load_state_dict(parts["network"])
    for name, tensor in average.items():
        tensor.copy_(parts["average"][name])
    _restore_optimizer(optimizer, parts["optimizer"])
    generators[1].set_state(tensors["generator"])
    generators[0].bit_generator.state = content["numpy_generator"]
    progress = content["progress"]
    records = tuple(EpochRecord(**record) for record in progress.pop("records"))
    return Progress(**progress, records=records)


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state = optimizer.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, entry = name.partition(".")
        entries.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})
