"""From prepared cases to a model folder."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from pipeline.config import Settings
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import file_hash, text_hash, write_json
from pipeline.data.store import prepared_ids, read_info
from pipeline.infer.predictor import check_inference
from pipeline.model.base import SegmentationNetwork, start_outputs_at
from pipeline.model.cost import count_parameters
from pipeline.model.device import choose_device
from pipeline.model.folder import ModelCard, fold_folder, read_card, trained_folds, write_card
from pipeline.model.spec import NetworkSpec, design_network, patches_per_batch
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.plan_file import PLAN_FILE, read_plan
from pipeline.sample.augment import directions
from pipeline.sample.folds import Fold, read_splits
from pipeline.stages.pretrained import GivenWeights, begin_with, given_weights
from pipeline.stages.signature import own_version
from pipeline.train.balance import planned_weights, require_class_weights, sampling_weights
from pipeline.train.checkpoint import require_identity
from pipeline.train.history import EpochRecord
from pipeline.train.loop import TrainResult, train_fold
from pipeline.train.source import PatchSource
from pipeline.train.values import Frame
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
    start: Path | None = None,
    on_epoch: Callable[[EpochRecord, int], None] = lambda record, epochs: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> TrainResult:
    """Train one fold, or continue it where an earlier run stopped.

    Writes ``model.json`` and ``fold_<k>/`` with the best weights, the scores, the history and its curves.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        out: Model folder.
        settings: Sections ``sample``, ``augment``, ``model``, ``loss``, ``train`` and ``infer``.
        fold: Which fold validates.
        device: Name of the device; by default the best there is.
        restart: Throw away what an earlier run of this fold left.
        start: Model folder, or a fold's folder in it, whose weights to begin with; the output layers begin anew.
        on_epoch: Called after every epoch with its record and the expected number of epochs.
        say: Told before it begins what is trained.

    Returns:
        Scores of the best weights on all validation cases, and the history.

    Raises:
        VolsegError: If there is no prepared dataset or no such fold, the patch does not fit the network or the class
            weights the organs, the model folder holds another model, or the training diverges.
    """
    began = time.monotonic()
    plan = read_plan(prepared / PLAN_FILE)
    split = _split(prepared, fold, plan)
    spec = design_network(plan, settings.model, settings.sample)
    named = tuple(plan.label_table.regions) or ("background", *plan.label_table.organs)
    require_class_weights(settings.loss, named)
    place = choose_device(device)
    provenance = _provenance(place) | ({} if start is None else {"began with": str(start)})
    card = ModelCard(network=spec, plan=plan, settings=settings, provenance=provenance)
    settings = settings.model_copy(update={"loss": planned_weights(settings.loss, plan)})
    given = None if start is None else given_weights(start, fold)
    home, identity = fold_folder(out, fold), _identity(spec, plan, settings, split, given)
    check_inference(card, settings.infer)
    _require_same_model(out, card, fold)
    source = _patch_source(prepared, split, spec, plan, settings, place)
    if restart:
        _remove_training(home)
    require_identity(home, identity)
    _keep_card(out, card)
    validation = make_validation(prepared, split.validation, spec, plan, settings, place)
    network = _first_network(spec, plan, settings)
    say(_description(spec, source, network))
    for note in _notes(plan, card.settings):
        say(note)
    if given is not None:
        for line in begin_with(network, given, plan):
            say(line)
    frame = _frame(spec, plan)
    result = train_fold(network, source, frame, validation, settings, home, identity, on_epoch, began)
    scores = result.scores
    content = {"mean_dice": scores.mean_dice, "organs": dict(scores.dice), "cases": dict(scores.cases)}
    write_json(home / "validation.json", {"grid": "prepared", "weights": "best", **content})
    return result


def _split(prepared: Path, fold: int, plan: Plan) -> Fold:
    infos = {case: read_info(prepared, case) for case in prepared_ids(prepared)}
    folds = read_splits(prepared / "splits.json", infos, groups={case: info["group"] for case, info in infos.items()})
    used = {case for part in folds for case in (*part.train, *part.validation)}
    other = sorted(case for case in used if infos[case].get("recipe") != plan.recipe)
    if other:
        raise VolsegError(
            f"{prepared}: expected cases prepared by plan.yaml, got {len(other)} prepared otherwise, e.g. {other[0]}. "
            "Run `volseg preprocess` again; in plan.yaml only patch and batch sizes may be edited."
        )
    if not 0 <= fold < len(folds):
        raise VolsegError(f"fold: expected 0 to {len(folds) - 1}, got {fold}. splits.json has {len(folds)} folds.")
    return folds[fold]


def _patch_source(
    prepared: Path, split: Fold, spec: NetworkSpec, plan: Plan, settings: Settings, device: torch.device
) -> PatchSource:
    size, margin = [1, 1, 1], [0, 0, 0]
    for axis, length, lost in zip(plan.axes(spec.dims), spec.patch_size, spec.sizes().margin, strict=True):
        size[axis], margin[axis] = length, lost
    return PatchSource(
        prepared,
        split.train,
        (size[0], size[1], size[2]),
        patches_per_batch(plan, spec, settings.sample),
        settings.sample,
        device,
        squeeze_axis=plan.slice_axis if spec.dims == 2 else None,
        margin=(margin[0], margin[1], margin[2]),
        class_weights=sampling_weights(settings.sample, plan),
        seed=settings.train.seed,
        parts=settings.train.accumulate,
    )


def _description(spec: NetworkSpec, source: PatchSource, network: SegmentationNetwork) -> str:
    """What is trained, in one line."""
    size, logits = (" x ".join(map(str, n)) for n in (spec.patch_size, network.output_size(spec.patch_size)))
    seen = f"patch {size}" if size == logits else f"patch {size}, logits {logits}"
    return f"{spec.name} {spec.dims}D: {count_parameters(network):,} parameters, {seen}, batch {source.batch_size}"


def _notes(plan: Plan, settings: Settings) -> list[str]:
    """What the user should know before hours are spent."""
    notes = []
    one_sided = plan.label_table.one_sided()
    if one_sided and settings.augment.enabled and "LR" in settings.augment.flip_axes:
        advice = "Take LR out of augment.flip_axes, or mirrored they are wrong."
        notes.append(f"labels: {', '.join(one_sided)}: on one side only. {advice}")
    if "plan" in (settings.loss.class_weights, settings.sample.class_weights) and plan.class_weights is None:
        notes.append(f"class_weights: the plan proposes none, so all weigh the same. {PLAN_FILE} may say why.")
    return notes


def _frame(spec: NetworkSpec, plan: Plan) -> Frame:
    named = directions(plan.orientation)
    axes = plan.axes(spec.dims)
    return Frame(
        tuple(named[axis] for axis in axes),
        tuple(plan.spacing_mm[axis] for axis in axes),
        plan.label_table.side_pairs(),
        plan.label_table.region_classes(),
    )


def _first_network(spec: NetworkSpec, plan: Plan, settings: Settings) -> SegmentationNetwork:
    """The network with its first weights."""
    network = spec.build(settings.train.seed, settings.model.initialization)
    if settings.model.foreground_prior is not None:
        if not plan.label_table.regions:
            rule, advice = "null where organs share a softmax", "Leave it out, or describe the organs as regions"
            raise ConfigError([sentence("model.foreground_prior", rule, settings.model.foreground_prior, advice)])
        start_outputs_at(network, settings.model.foreground_prior)
    return network


def _identity(spec: NetworkSpec, plan: Plan, settings: Settings, split: Fold, given: GivenWeights | None) -> str:
    """Hash of what must not change while a training goes on; how long it lasts may."""
    length = {"epochs", "budget", "patience", "validate_every", "validation_cases"}
    length |= {"checkpoint_minutes", "keep_checkpoints"}
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


def _require_same_model(out: Path, card: ModelCard, fold: int) -> None:
    """Refuse a folder in which other folds were trained with another network or plan."""
    if set(trained_folds(out)) <= {fold} or not (out / "model.json").is_file():
        return
    passive = {"plan": {"reasons", "class_weights"}}
    there, here = (value.model_dump(mode="json", exclude=passive) for value in (read_card(out), card))
    if (there["network"], there["plan"]) != (here["network"], here["plan"]):
        raise VolsegError(
            f"{out}: expected the network and plan of the folds trained there, got others. Choose another model folder."
        )


def _keep_card(out: Path, card: ModelCard) -> None:
    """Write ``model.json``, unless it says the same already, whenever and wherever that was written."""
    if (out / "model.json").is_file():
        there, here = (value.model_dump(mode="json", exclude={"provenance"}) for value in (read_card(out), card))
        if there == here:
            return
    write_card(out, card)


def _remove_training(home: Path) -> None:
    for pattern in ("*.safetensors", "validation.json", "history.csv"):
        for path in home.glob(pattern):
            path.unlink()
    for events in (home / "events").glob("events.*"):
        events.unlink()


def _provenance(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "volseg": own_version(),
        "torch": torch.__version__,
        "monai": version("monai"),
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
