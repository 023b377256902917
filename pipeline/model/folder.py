"""The model folder: ``model.json`` beside one folder per trained fold. No pickle, so that loading it runs no code.

``model.json`` holds the network, the plan, the settings and where it came from. ``fold_<k>/model.safetensors`` are the
weights, ``fold_<k>/validation.json`` the scores. These name cases and machines; ``volseg share`` leaves all names out.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from pipeline.config.settings import Settings
from pipeline.core.documents import conform, cut, read_json, require_regular, short
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import own_version, write_bytes, write_json
from pipeline.core.labels import LabelTable
from pipeline.core.paths import absence, is_broken_link, is_named
from pipeline.model.device import device_name
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan_file import Plan

_LONGEST_NAME = 255  # bytes, of any file system
ENSEMBLE_FILE = "ensemble.json"
"""Names the members of an ensemble, model folders beside it."""
PARTS_FILE = "parts.json"
"""Names the parts of a model that finds its organs one part after the other, model folders beside it."""


class ModelCard(BaseModel):
    """Content of ``model.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    network: NetworkSpec
    plan: Plan
    settings: Settings
    provenance: dict[str, str]


class ModelParts(BaseModel):
    """Content of ``parts.json``: a model whose parts each find some of its organs.

    Args:
        parts: Folders of the parts in the order in which they run; later ones are painted over earlier ones.
        labels: ``LabelTable.to_json()`` of all organs; those of a part are its organs of the same names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    parts: tuple[str, ...] = Field(min_length=1)
    labels: dict[str, Any]

    @field_validator("parts")
    @classmethod
    def _beside(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := next((name for name in names if not _is_plain(name)), None):
            raise ValueError(sentence("names", "folders beside this file", short(wrong), "Correct them"))
        return names

    @field_validator("labels")
    @classmethod
    def _label_table(cls, value: dict[str, Any]) -> dict[str, Any]:
        if LabelTable.from_json(value).regions:
            raise ValueError(sentence("organs", "none that overlap", "regions", "Correct them"))
        return value

    @property
    def label_table(self) -> LabelTable:
        """All organs."""
        return LabelTable.from_json(self.labels)


def read_parts(folder: Path) -> ModelParts | None:
    """The parts of a model; None if it has none.

    Raises:
        VolsegError: If ``parts.json`` is damaged.
    """
    path = folder / PARTS_FILE
    if not is_named(path):
        return None
    found: ModelParts = conform(read_json(path), ModelParts, path, "Write or copy the model again")
    return found


def labels_of(folder: Path, cards: Sequence[ModelCard]) -> LabelTable:
    """What a model finds, of which the descriptions of its members or parts are given.

    Raises:
        VolsegError: If a part finds organs that the model does not name, or sees other channels than the first.
    """
    parts = read_parts(folder)
    if parts is None:
        return cards[0].plan.label_table
    known = parts.label_table
    for name, card in zip(parts.parts, cards, strict=True):
        table, channels = card.plan.label_table, cards[0].plan.channels
        strange = (
            "regions" if table.regions else next((organ for organ in table.organs if organ not in known.organs), "")
        )
        if strange:
            rule = "organs that the labels name"
            raise VolsegError(sentence(name, rule, strange, "Copy the model again", file=folder / PARTS_FILE))
        if card.plan.channels != channels:
            got = ", ".join(card.plan.channels)
            raise VolsegError(
                sentence(name, ", ".join(channels), got, "Copy the model again", file=folder / PARTS_FILE)
            )
    return known


def provenance(device: torch.device) -> dict[str, str]:
    """Versions, device and date, for ``model.json``."""
    return {
        "volseg": own_version(),
        "torch": torch.__version__,
        "monai": version("monai"),
        "python": platform.python_version(),
        "device": f"{device.type} ({device_name(device)})",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


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
    card: ModelCard = conform(read_json(path), ModelCard, path, "Use the volseg version that wrote the model")
    network, plan = card.network, card.plan
    # What the plan names, the network must take and give: else masks would have organs that nobody trained.
    for key, there, wanted in (
        ("patch_size", len(network.patch_size), network.dims),
        ("stage_classes", network.stage_classes, plan.stage_classes),
        ("in_channels", network.in_channels, len(plan.channels) + plan.stage_classes),
        ("out_channels", network.out_channels, plan.label_table.outputs),
    ):
        if there != wanted:
            rule = f"{wanted}, as dims, channels and labels have it"
            raise VolsegError(sentence(f"network.{key}", rule, there, "Copy or train the model again", file=path))
    return card


def member_folders(folder: Path) -> tuple[Path, ...]:
    """The model folders in a folder: those that ``ensemble.json`` or ``parts.json`` names, else the folder itself.

    Raises:
        VolsegError: If one of the two is damaged, or was not finished.
    """
    if parts := read_parts(folder):
        return tuple(folder / name for name in parts.parts)
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
        raise VolsegError(sentence("ensemble", "a list of members", short(names), advice, file=path))
    return tuple(names)


def _is_plain(name: str) -> bool:
    """Whether a name leads nowhere but to a folder beside the file that it is in."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0") and len(name.encode()) <= _LONGEST_NAME


def fold_folder(folder: Path, fold: int) -> Path:
    """Folder of one fold."""
    return folder / f"fold_{fold}"


def trained_folds(folder: Path) -> tuple[int, ...]:
    """Folds that have weights, ascending.

    Raises:
        VolsegError: If a folder has a number that another one may have, as ``fold_00`` has that of ``fold_0``.
    """
    # Named, not there: of weights that were not fetched, reading them says so; an ensemble must not shrink in silence.
    named = [fold for fold in folder.glob("fold_*") if is_named(fold / "model.safetensors") or is_broken_link(fold)]
    names = [name for fold in named if re.fullmatch(r"[0-9]{1,9}", name := fold.name.removeprefix("fold_"))]
    for name in names:
        if name != str(int(name)):
            got, advice = f"fold_{name}", "Remove it, or give it the name of its fold"
            raise VolsegError(sentence("folds", f"fold_{int(name)}", got, advice, file=folder))
    return tuple(sorted(map(int, names)))


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
    require_regular(path)
    try:
        tensors: dict[str, Any] = load(path.read_bytes())  # not load_file: Windows cannot replace a mapped file
    # KeyError and the rest: a header that names types or shapes which its content does not have
    except (OSError, MemoryError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        got = str(error) or type(error).__name__
        raise VolsegError(f"{path}: expected safetensors weights, got {got}. Copy or train the model again.") from None
    return tensors


def load_network(folder: Path, card: ModelCard, fold: int) -> nn.Module:
    """The trained network of one fold, on the CPU in evaluation mode.

    Raises:
        VolsegError: If the description is that of no network, or the weights are missing, no numbers, or do not fit it.
    """
    path, name = fold_folder(folder, fold) / "model.safetensors", card.network.name
    try:
        # No memory is taken that the file does not fill.
        wanted = {key: _kind(value) for key, value in card.network.structure().state_dict().items()}
    except ConfigError as error:
        raise VolsegError(f"{folder / 'model.json'}: network: {'; '.join(error.problems)}") from None
    weights = load_weights(path)
    found = {key: _kind(value) for key, value in weights.items()}
    if found != wanted:
        # Compared by hand, because PyTorch lists every name in its message.
        other = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
        got = f"{len(other)} tensors that are missing, surplus or of another shape or type, such as {cut(other[0])}"
        advice = "Train it again, or restore the options in model.json"
        raise VolsegError(sentence("weights", f"those of {name}", got, advice, file=path))
    require_numbers(weights, path)
    network = card.network.build()
    network.load_state_dict(weights)
    return network.eval()


def require_numbers(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that hold NaN or infinity, which every mask would be made of."""
    bad = next((key for key, value in weights.items() if not value.float().isfinite().all()), None)
    if bad is not None:
        got, advice = f"NaN or infinity in {cut(bad)}", "Copy or train the model again"
        raise VolsegError(sentence("weights", "numbers", got, advice, file=path))


def _kind(tensor: torch.Tensor) -> tuple[tuple[int, ...], bool]:
    """Shape of a tensor, and whether it holds fractions; their precision may differ."""
    return tuple(tensor.shape), tensor.is_floating_point()
