"""From prepared cases to a model folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pipeline.config import Settings
from pipeline.core.errors import VolsegError
from pipeline.core.files import text_hash, write_json
from pipeline.data.store import prepared_ids, read_info
from pipeline.model.device import choose_device
from pipeline.model.folder import ModelCard, fold_folder, read_card, trained_folds, write_card
from pipeline.model.spec import NetworkSpec, design_network
from pipeline.preprocess.plan import Plan, read_plan
from pipeline.sample.augment import directions
from pipeline.sample.folds import Fold, read_splits
from pipeline.train.history import EpochRecord
from pipeline.train.loop import Frame, TrainResult, train_fold
from pipeline.train.source import PatchSource
from pipeline.validation import make_validation

__all__ = ["train"]


def train(
    prepared: Path,
    out: Path,
    settings: Settings,
    *,
    fold: int = 0,
    device: str | None = None,
    restart: bool = False,
    on_epoch: Callable[[EpochRecord, int], None] = lambda record, epochs: None,
) -> TrainResult:
    """Train one fold, or continue it where an earlier run stopped.

    Writes ``model.json`` and ``fold_<k>/`` with the best weights, the scores, the history and its curves.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        out: Model folder.
        settings: Sections ``sample``, ``augment``, ``model``, ``train`` and ``infer``.
        fold: Which fold validates.
        device: Name of the device; by default the best there is.
        restart: Throw away what an earlier run of this fold left.
        on_epoch: Called after every epoch with its record and the expected number of epochs.

    Returns:
        Scores of the best weights on all validation cases, and the history.

    Raises:
        VolsegError: If there is no prepared dataset or no such fold, the patch does not fit the network, the model
            folder holds another model, or the training diverges.
    """
    plan = read_plan(prepared / "plan.json")
    split = _split(prepared, fold)
    spec = design_network(plan, settings.model, settings.sample)
    place = choose_device(device)
    home = fold_folder(out, fold)
    if restart:
        _remove_training(home)
    _keep_card(out, ModelCard(network=spec, plan=plan, settings=settings, provenance=_provenance(place)))
    result = train_fold(
        spec.build(seed=settings.train.seed),
        _patch_source(prepared, split, spec, plan, settings, place),
        _frame(spec, plan),
        settings,
        home,
        _identity(spec, plan, settings, split),
        make_validation(prepared, split.validation, spec, plan, settings, place),
        on_epoch,
    )
    scores = result.scores
    content = {"mean_dice": scores.mean_dice, "organs": dict(scores.dice), "cases": dict(scores.cases)}
    write_json(home / "validation.json", {"grid": "prepared", "weights": "best", **content})
    return result


def _split(prepared: Path, fold: int) -> Fold:
    cases = prepared_ids(prepared)
    groups = {case: read_info(prepared, case)["group"] for case in cases}
    folds = read_splits(prepared / "splits.json", cases, groups=groups)
    if not 0 <= fold < len(folds):
        raise VolsegError(f"fold: expected 0 to {len(folds) - 1}, got {fold}. splits.json has {len(folds)} folds.")
    return folds[fold]


def _patch_source(
    prepared: Path, split: Fold, spec: NetworkSpec, plan: Plan, settings: Settings, device: torch.device
) -> PatchSource:
    size = [1, 1, 1]
    for axis, length in zip(plan.axes(spec.dims), spec.patch_size, strict=True):
        size[axis] = length
    planned = plan.patch_3d if spec.dims == 3 else plan.patch_2d
    return PatchSource(
        prepared,
        split.train,
        (size[0], size[1], size[2]),
        settings.sample.batch_size or planned.batch_size,
        settings.sample,
        device,
        squeeze_axis=plan.slice_axis if spec.dims == 2 else None,
    )


def _frame(spec: NetworkSpec, plan: Plan) -> Frame:
    named = directions(plan.orientation)
    axes = plan.axes(spec.dims)
    return Frame(
        tuple(named[axis] for axis in axes),
        tuple(plan.spacing_mm[axis] for axis in axes),
        plan.label_table.side_pairs(),
    )


def _identity(spec: NetworkSpec, plan: Plan, settings: Settings, split: Fold) -> str:
    """Hash of what must not change while a training goes on; how long it lasts may."""
    train = settings.train.model_dump(mode="json", exclude={"epochs", "budget", "patience", "validate_every"})
    parts = [settings.sample.model_dump(mode="json"), settings.augment.model_dump(mode="json"), train]
    return text_hash(spec.model_dump_json(), plan.model_dump_json(), json.dumps(parts), json.dumps(vars(split)))


def _keep_card(out: Path, card: ModelCard) -> None:
    """Write ``model.json``, unless trained folds of another model are there."""
    if (out / "model.json").is_file() and trained_folds(out):
        there, here = (value.model_dump(mode="json") for value in (read_card(out), card))
        if (there["network"], there["plan"]) != (here["network"], here["plan"]):
            raise VolsegError(
                f"{out}: expected the network and plan of the folds trained there, got others. "
                "Choose another model folder."
            )
    write_card(out, card)


def _remove_training(home: Path) -> None:
    for name in ("last.safetensors", "best.safetensors", "model.safetensors", "validation.json", "history.csv"):
        (home / name).unlink(missing_ok=True)
    for events in (home / "events").glob("events.*"):
        events.unlink()


def _provenance(device: torch.device) -> dict[str, str]:
    try:
        own = version("volseg")
    except PackageNotFoundError:
        own = "source"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "volseg": own,
        "torch": torch.__version__,
        "monai": version("monai"),
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
