"""The model folder: ``model.json`` beside one folder per trained fold. No pickle, so it is safe to share.

``model.json`` holds the network, the plan, the settings and where it came from. ``fold_<k>/model.safetensors`` are the
weights, ``fold_<k>/validation.json`` the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from pipeline.config.settings import Settings
from pipeline.core.documents import read_json
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import write_bytes, write_json
from pipeline.core.paths import absence, is_named
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan_file import Plan

ENSEMBLE_FILE = "ensemble.json"
"""Names the members of an ensemble, model folders beside it."""


class ModelCard(BaseModel):
    """Content of ``model.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    network: NetworkSpec
    plan: Plan
    settings: Settings
    provenance: dict[str, str]


def write_card(folder: Path, card: ModelCard) -> None:
    """Write ``model.json``."""
    write_json(folder / "model.json", card.model_dump(mode="json"))


def read_card(folder: Path) -> ModelCard:
    """Read ``model.json``.

    Raises:
        VolsegError: If the folder is not a model folder or was written by another format version.
    """
    path = folder / "model.json"
    if not is_named(path):
        raise VolsegError(
            f"{folder}: expected a model folder with model.json, got none. Train one with `volseg train`."
        )
    try:
        return ModelCard.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VolsegError(f"{path}: {where}: {first['msg']}. Use the volseg version that wrote the model.") from None


def member_folders(folder: Path) -> tuple[Path, ...]:
    """The model folders in a folder: those that ``ensemble.json`` names, else the folder itself.

    Raises:
        VolsegError: If ``ensemble.json`` is damaged, or was not finished.
    """
    if not is_named(folder / ENSEMBLE_FILE):
        return (folder,)
    names = ensemble_members(folder)
    if not names:
        advice = "Let `volseg choose` finish"
        raise VolsegError(sentence("ensemble", "at least one member", "none", advice, file=folder / ENSEMBLE_FILE))
    return tuple(folder / name for name in names)


def ensemble_members(folder: Path) -> tuple[str, ...]:
    """Names of the folders of an ensemble's members; none while it is made.

    Raises:
        VolsegError: If ``ensemble.json`` is missing or damaged, or names anything but folders beside it.
    """
    path = folder / ENSEMBLE_FILE
    content = read_json(path)
    names = content.get("members") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and _is_plain(name) for name in names):
        advice = "Write it again with `volseg choose`"
        raise VolsegError(sentence("ensemble", "a list of members", repr(names), advice, file=path))
    return tuple(names)


def _is_plain(name: str) -> bool:
    """Whether a name leads nowhere but to a folder beside the file that it is in."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:")


def fold_folder(folder: Path, fold: int) -> Path:
    """Folder of one fold."""
    return folder / f"fold_{fold}"


def trained_folds(folder: Path) -> tuple[int, ...]:
    """Folds that have weights, ascending."""
    # Named, not there: of weights that were not fetched, reading them says so; an ensemble must not shrink in silence.
    found = (path.name.removeprefix("fold_") for path in folder.glob("fold_*") if is_named(path / "model.safetensors"))
    return tuple(sorted(int(name) for name in found if name.isdigit()))


def wanted_folds(folder: Path, folds: Sequence[int] | None = None) -> tuple[int, ...]:
    """Folds to work with: those asked for, in their order; None or none for all that are trained.

    Raises:
        VolsegError: If one is not trained, or none is.
    """
    trained = trained_folds(folder)
    wanted = tuple(folds or trained)
    missing = sorted(set(wanted) - set(trained))
    if missing or not wanted:
        asked = f"fold {', '.join(map(str, missing))} to be trained" if missing else "a trained fold"
        got = ", ".join(map(str, trained)) or "none"
        raise VolsegError(sentence("folds", asked, got, "Let `volseg train` finish, or choose --fold", file=folder))
    return wanted


def save_weights(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file atomically."""
    contiguous = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous, metadata))  # not save_file, whose errors do not say that a disk is full


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        VolsegError: If it is missing, truncated or of another format.
    """
    if gone := absence(path):
        raise VolsegError(sentence("weights", "a safetensors file", *gone, file=path))
    try:
        tensors: dict[str, Any] = load(path.read_bytes())  # not load_file: Windows cannot replace a mapped file
    except (OSError, SafetensorError) as error:
        raise VolsegError(
            f"{path}: expected safetensors weights, got {error}. Copy or train the model again."
        ) from None
    return tensors


def load_network(folder: Path, card: ModelCard, fold: int) -> nn.Module:
    """The trained network of one fold, on the CPU in evaluation mode.

    Raises:
        VolsegError: If the weights are missing or do not fit the network.
    """
    path = fold_folder(folder, fold) / "model.safetensors"
    network, weights = card.network.build(), load_weights(path)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != wanted:
        # Compared by hand, because PyTorch lists every name in its message.
        other = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        got = f"{len(other)} tensors that are missing, surplus or of another shape, such as {other[0]}"
        advice = "Train it again, or restore the options in model.json"
        raise VolsegError(sentence("weights", f"those of {card.network.name}", got, advice, file=path))
    network.load_state_dict(weights)
    return network.eval()
