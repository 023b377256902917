"""Saving and continuing a training: one safetensors file with its JSON inside, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.core.documents import conform, require_regular
from pipeline.core.errors import VolsegError
from pipeline.core.files import copy_file
from pipeline.model.folder import load_weights, save_weights
from pipeline.train.state import TrainingProgress, TrainState

CHECKPOINT = "last.safetensors"
"""The state to continue from."""

_NUMBERED = "step_"
_ADVICE = "Begin anew with --restart"
_LONGEST_REASON = 300  # PyTorch lists every tensor


def save_checkpoint(
    folder: Path, progress: TrainingProgress, training_hash: str, state: TrainState, keep: int = 1
) -> None:
    """Write ``last.safetensors`` in one atomic step: tensors, and everything else as JSON in the file's metadata.

    Of more than one checkpoint to keep, each is also there under its step's number.
    """
    tensors = {f"network.{name}": tensor for name, tensor in state.network.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    for index, entries in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entries.items() if isinstance(value, Tensor)}
    tensors |= {f"random.{name}": value for name, value in _dropout_state(state).items()}
    # Keys are those of the first version: checkpoints of older versions can be continued.
    content = {
        "identity": training_hash,
        "progress": {
            **vars(progress),
            "records": [record.to_json() for record in progress.records],
            "part": vars(progress.part),
        },
        "scaler": state.scaler.state_dict(),
    }
    save_weights(folder / CHECKPOINT, tensors, {"state": json.dumps(content)})
    if keep > 1:
        # a second name for the same file where the system can: checkpoints of large networks take gigabytes
        copy_file(folder / CHECKPOINT, folder / f"{_NUMBERED}{progress.iteration:08d}.safetensors", link=True)
        for old in sorted(folder.glob(f"{_NUMBERED}*.safetensors"))[:-keep]:
            old.unlink(missing_ok=True)


def require_same_training(folder: Path, training_hash: str) -> Any:
    """Content of the checkpoint beside tensors, None without one; that of another training is refused.

    Raises:
        VolsegError: If settings, plan, split or the cases' contents changed since, or the file is damaged.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    content = _content(path)
    if not is_same_training(content["identity"], training_hash):
        what, got = "settings, plan and split this training began with", "others"
        if str(content["identity"]).partition("-")[0] == training_hash.partition("-")[0]:
            what, got = "cases this training began with", "some that were changed and prepared again since"
        raise VolsegError(
            f"{path}: expected the {what}, got {got}. Choose another model folder, or begin anew with --restart."
        )
    return content


def is_same_training(noted: object, training_hash: str) -> bool:
    """Whether an earlier training noted this content hash; older versions noted it without that of the cases."""
    return noted in (training_hash, training_hash.partition("-")[0])


def load_checkpoint(folder: Path, training_hash: str, state: TrainState) -> TrainingProgress:
    """Restore everything :func:`save_checkpoint` wrote, in place.

    Returns:
        Where the training stood; a fresh start if there is no checkpoint.

    Raises:
        VolsegError: As :func:`require_same_training`.
    """
    content = require_same_training(folder, training_hash)
    if content is None:
        return TrainingProgress()
    path = folder / CHECKPOINT
    parts = _parts(load_weights(path))
    try:
        state.network.load_state_dict(parts["network"])
        # In place: the average keeps its device and memory format.
        for name, tensor in state.average.items():
            tensor.copy_(parts["average"][name])
        _restore_optimizer(state.optimizer, parts.get("optimizer", {}))
        if content["scaler"]:  # empty where another device trained without a loss scale
            state.scaler.load_state_dict(content["scaler"])
        _set_dropout_state(state, parts["random"])
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        got = " ".join(str(error).split())[:_LONGEST_REASON]
        raise VolsegError(f"{path}: expected a checkpoint of this network, got {got}. {_ADVICE}.") from None
    progress: TrainingProgress = conform(content["progress"], TrainingProgress, path, _ADVICE)
    return replace(progress, records=tuple(progress.records))


@dataclass(frozen=True)
class _Content:
    """A checkpoint beside its tensors."""

    identity: str
    progress: TrainingProgress
    scaler: dict[str, Any]


def _content(path: Path) -> Any:
    require_regular(path)
    try:
        with safe_open(path, "pt") as file:
            content = json.loads(file.metadata()["state"])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise VolsegError(f"{path}: expected a checkpoint, got {error}. {_ADVICE}.") from None
    conform(content, _Content, path, _ADVICE)
    return content


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = tensor
    return parts


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    entries = {int(index): values for index, values in _parts(tensors).items()}
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    # The file holds moments in plain order; they get the memory format of their parameter (channels last) again.
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _device(state: TrainState) -> torch.device:
    return next(state.network.parameters()).device


# Patches and augmentation depend on the number of a step alone; only dropout draws from Torch's global state.


def _dropout_state(state: TrainState) -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if _device(state).type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(_device(state))
    return found


def _set_dropout_state(state: TrainState, found: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(found["cpu"])
    if "cuda" in found and _device(state).type == "cuda":
        torch.cuda.set_rng_state(found["cuda"], _device(state))
