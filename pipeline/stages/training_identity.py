"""What a training depends on, as a hash, and what its model says of its origin."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from pipeline.config import Settings
from pipeline.core.files import file_hash, text_hash
from pipeline.model.device import device_name
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan import Plan
from pipeline.sample.folds import Fold
from pipeline.stages.pretrained import GivenWeights
from pipeline.stages.signature import own_version
from pipeline.train.balance import sampling_weights

__all__ = ["provenance", "training_identity", "with_length"]


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


def with_length(identity: str, settings: Settings) -> str:
    """Hash of what a finished training depends on: its identity, and how long it was."""
    return text_hash(identity, settings.train.model_dump_json())


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
