"""What a model folder must agree with before a training writes to it, and what it says of its origin."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from pipeline.config import Settings
from pipeline.core.errors import VolsegError
from pipeline.core.files import file_hash, text_hash
from pipeline.model.device import device_name
from pipeline.model.folder import ModelCard, read_card, trained_folds, write_card
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan import Plan
from pipeline.sample.folds import Fold
from pipeline.stages.pretrained import GivenWeights
from pipeline.stages.signature import own_version
from pipeline.train.balance import sampling_weights
from pipeline.train.tracking import RUN_FILE

__all__ = ["keep_card", "provenance", "remove_training", "require_same_model", "training_identity"]


def training_identity(
    spec: NetworkSpec, plan: Plan, settings: Settings, split: Fold, given: GivenWeights | None
) -> str:
    """Hash of what must not change while a training goes on; how long it lasts and who is told may."""
    length = {"epochs", "budget", "patience", "validate_every", "validation_cases"}
    length |= {"checkpoint_minutes", "keep_checkpoints", "mlflow"}
    train = settings.train.model_dump(mode="json", exclude=length)
    sample = settings.sample.model_dump(mode="json", exclude={"cache_mb", "folds", "split_seed", "class_weights"})
    sample["first weights"] = settings.model.model_dump(include={"initialization", "foreground_prior"})
    drawn = sampling_weights(settings.sample, plan)
    if drawn is not None:
        sample["class_weights"] = sorted(drawn.items())
    parts = [sample, settings.augment.model_dump(mode="json"), settings.loss.model_dump(mode="json"), train]
    planned = plan.model_dump_json(exclude={"reasons", "class_weights"})  # proposals; what is used is in the settings
    begun = () if given is None else (file_hash(given.path),)
    return text_hash(spec.model_dump_json(), planned, json.dumps(parts), json.dumps(vars(split)), *begun)


def require_same_model(out: Path, card: ModelCard, fold: int) -> None:
    """Refuse a folder in which other folds were trained with another network or plan."""
    if set(trained_folds(out)) <= {fold} or not (out / "model.json").is_file():
        return
    passive = {"plan": {"reasons", "class_weights"}}
    there, here = (value.model_dump(mode="json", exclude=passive) for value in (read_card(out), card))
    if (there["network"], there["plan"]) != (here["network"], here["plan"]):
        raise VolsegError(
            f"{out}: expected the network and plan of the folds trained there, got others. Choose another model folder."
        )


def keep_card(out: Path, card: ModelCard) -> None:
    """Write ``model.json``, unless it says the same already, whenever and wherever that was written."""
    if (out / "model.json").is_file():
        there, here = (value.model_dump(mode="json", exclude={"provenance"}) for value in (read_card(out), card))
        if there == here:
            return
    write_card(out, card)


def remove_training(home: Path) -> None:
    """Throw away what an earlier training of a fold left."""
    for pattern in ("*.safetensors", "validation.json", "history.csv", RUN_FILE):
        for path in home.glob(pattern):
            path.unlink()
    for events in (home / "events").glob("events.*"):
        events.unlink()


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
