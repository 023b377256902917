"""From prepared cases to a model folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.settings import Settings
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import signature, write_json
from pipeline.core.machine import keep_freed_memory
from pipeline.data.store import prepared_ids, read_info
from pipeline.infer.trained_model import check_inference
from pipeline.model.base import SegmentationNetwork, is_output, start_outputs_at
from pipeline.model.cost import count_parameters
from pipeline.model.device import PLAIN, choose_device
from pipeline.model.folder import ModelCard, fold_folder, load_weights, read_card, trained_folds
from pipeline.model.spec import NetworkSpec, design_network, patches_per_batch
from pipeline.preprocess.plan_file import PLAN_FILE, Plan, read_plan
from pipeline.report.page import Picture, Table, write_picture_page
from pipeline.sample.augment import directions
from pipeline.sample.folds import Fold, read_splits
from pipeline.stages.model_files import (
    PAGE,
    alone_in,
    keep_card,
    provenance,
    remove_training,
    require_same_model,
    training_identity,
    with_length,
)
from pipeline.stages.tune import autotune
from pipeline.train.checkpoint import require_identity
from pipeline.train.class_weights import planned_weights, require_class_weights, sampling_weights
from pipeline.train.distributed import Processes, joined
from pipeline.train.loader import PatchSource
from pipeline.train.log import EpochRecord
from pipeline.train.mlflow import require_mlflow, tracking
from pipeline.train.state import OnStep, PatchGeometry
from pipeline.train.trainer import TrainResult, require_memory, train_fold
from pipeline.validation import make_validation

# Beginning with the weights of another model: everything that fits, except the layers that give logits.


@dataclass(frozen=True)
class Transfer:
    """What became of a network's tensors.

    Args:
        loaded: Parameters (numbers, not tensors) that were taken over, and of how many.
        parameters: All parameters of the network.
        kernels: Number of kernels that were taken over, whole tensors.
        outputs: Tensors of the layers that give logits; they keep their first weights.
        missing: Tensors that the other model has not.
        reshaped: Name → shape here and shape there, of tensors that differ.
    """

    loaded: int
    parameters: int
    kernels: int
    outputs: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def lines(self) -> list[str]:
        """Sentences for the user."""
        told = [f"{self.loaded:,} of {self.parameters:,} parameters begin as in the other model; the outputs anew"]
        if self.missing:
            told.append(
                f"{len(self.missing)} tensors are not in the other model and begin anew, e.g. {self.missing[0]}"
            )
        for name, (here, there) in list(self.reshaped.items())[:3]:
            told.append(f"{name} begins anew: its shape is {here}, in the other model {there}")
        if len(self.reshaped) > 3:
            told.append(f"{len(self.reshaped) - 3} further tensors have another shape")
        return told


def transfer_weights(network: SegmentationNetwork, weights: Mapping[str, Tensor]) -> Transfer:
    """Take over every tensor of the same name and shape, except those of output layers.

    Args:
        network: Changed in place.
        weights: State of another network.

    Returns:
        What was taken over.
    """
    loaded, kernels, outputs, missing = 0, 0, [], []
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    own = network.state_dict()
    parameters = {name for name, _ in network.named_parameters()}
    with torch.no_grad():
        for name, tensor in own.items():
            if is_output(name):
                outputs.append(name)
            elif name not in weights:
                missing.append(name)
            elif weights[name].shape != tensor.shape:
                reshaped[name] = tuple(tensor.shape), tuple(weights[name].shape)
            else:
                tensor.copy_(weights[name])
                loaded += tensor.numel() if name in parameters else 0
                kernels += tensor.ndim > 1
    total = sum(own[name].numel() for name in parameters)
    return Transfer(loaded, total, kernels, tuple(outputs), tuple(missing), reshaped)


# The weights of another model that a training begins with.

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class GivenWeights:
    """A trained fold.

    Args:
        path: Its weights.
        card: Description of its model.
    """

    path: Path
    card: ModelCard


def given_weights(start: Path, fold: int) -> GivenWeights:
    """Find the weights to begin with.

    Args:
        start: Model folder, or the folder of one of its folds.
        fold: The fold that is trained: that of the model is taken if there is one, else its first.

    Raises:
        VolsegError: If there is no trained model.
    """
    if (start / _WEIGHTS).is_file():
        return GivenWeights(start / _WEIGHTS, read_card(start.parent))
    card, folds = read_card(start), trained_folds(start)
    if not folds:
        raise VolsegError(f"{start}: expected a trained fold, got none. Train it to its end, or give another model.")
    return GivenWeights(fold_folder(start, fold if fold in folds else folds[0]) / _WEIGHTS, card)


def begin_with(network: SegmentationNetwork, given: GivenWeights, plan: Plan) -> list[str]:
    """Take over the weights that fit.

    Args:
        network: Changed in place.
        given: The trained fold.
        plan: How the new training's cases were prepared.

    Returns:
        What the user should know of it, line by line.

    Raises:
        VolsegError: If nothing fits.
    """
    result = transfer_weights(network, load_weights(given.path))
    if not result.kernels:
        rule, advice = "weights that fit the network", "Train the same network, or another model with its options"
        raise VolsegError(f"{given.path}: expected {rule}, got those of {given.card.network.name}. {advice}.")
    lines = [f"{given.path}: {line}." for line in result.lines()]
    other = given.card.plan
    if other.spacing_mm != plan.spacing_mm:
        here, there = (" x ".join(f"{mm:g}" for mm in spacing) for spacing in (plan.spacing_mm, other.spacing_mm))
        lines.append(
            f"Cases were prepared with {here} mm, those of the other model with {there} mm: shapes look unlike."
        )
    if [entry.scheme for entry in other.normalization] != [entry.scheme for entry in plan.normalization]:
        lines.append("Cases were normalized otherwise than those of the other model: intensities look unlike.")
    return lines


# Which cases train, where their patches come from, and how they lie: the same for a training and for looking at it.


def training_split(prepared: Path, fold: int, plan: Plan) -> Fold:
    """The cases of a fold.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        fold: Which fold validates.
        plan: Its plan.

    Raises:
        VolsegError: If there is no such fold, or cases were prepared by another plan.
    """
    folds = training_folds(prepared, plan)
    if not 0 <= fold < len(folds):
        raise VolsegError(f"fold: expected 0 to {len(folds) - 1}, got {fold}. splits.json has {len(folds)} folds.")
    return folds[fold]


def training_folds(prepared: Path, plan: Plan) -> tuple[Fold, ...]:
    """All folds of ``splits.json``; arguments and errors as above."""
    infos = {case: read_info(prepared, case) for case in prepared_ids(prepared)}
    folds = read_splits(prepared / "splits.json", infos, groups={case: info["group"] for case, info in infos.items()})
    used = {case for part in folds for case in (*part.train, *part.validation)}
    other = sorted(case for case in used if infos[case].get("recipe") != plan.content_hash)
    if other:
        raise VolsegError(
            f"{prepared}: expected cases prepared by plan.yaml, got {len(other)} prepared otherwise, e.g. {other[0]}. "
            "Run `volseg preprocess` again; in plan.yaml only patch and batch sizes may be edited."
        )
    return tuple(folds)


def patch_source(
    prepared: Path,
    split: Fold,
    spec: NetworkSpec,
    plan: Plan,
    settings: Settings,
    device: torch.device,
    processes: int = 1,
) -> PatchSource:
    """Where the patches of a training come from.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        split: The fold; its training cases are read.
        spec: The network's description, for the patch.
        plan: The dataset's plan.
        settings: Sections ``sample`` and ``train``.
        device: Where batches live.
        processes: How many share every batch.

    Raises:
        DataError: If a case is damaged.
    """
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
        parts=settings.train.accumulate * processes,
    )


def axes_frame(spec: NetworkSpec, plan: Plan) -> PatchGeometry:
    """What augmentation needs to know of the axes that a network sees."""
    named = directions(plan.orientation)
    axes = plan.axes(spec.dims)
    return PatchGeometry(
        tuple(named[axis] for axis in axes),
        tuple(plan.spacing_mm[axis] for axis in axes),
        plan.label_table.side_pairs(),
        plan.label_table.region_classes(),
    )


# What a finished training leaves beside its weights: the scores, and a page of its curves.

"""In the fold's folder."""

_VALIDATIONS_SHOWN = 30


def write_outcome(home: Path, result: TrainResult, training: str, card: ModelCard, fold: int) -> None:
    """Write ``training.html``, and then ``validation.json``, which says that the training has ended.

    Args:
        home: Folder of the fold, with ``curves.png``.
        result: What was trained.
        training: Hash of everything it depends on.
        card: The model.
        fold: Its fold.

    Raises:
        VolsegError: If a file cannot be written.
    """
    scores, records = result.scores, result.progress.records
    curves = home / "curves.png"
    alt = "Loss, learning rate, Dice per organ and speed over the epochs; the table has the validations."
    pictures = [Picture("Learning curves", curves.read_bytes(), alt)] if curves.is_file() else []
    spec = card.network
    write_picture_page(
        home / PAGE,
        f"Training on {card.plan.dataset}, fold {fold}",
        pictures=pictures,
        numbers=[
            ("Mean foreground Dice", _number(scores.mean_dice), "best weights, prepared grid"),
            ("Network", spec.name, f"{spec.dims}D, patch {' × '.join(map(str, spec.patch_size))}"),
            ("Epochs", str(len(records)), f"{result.progress.iteration:,} iterations"),
            ("Time", f"{result.progress.elapsed_s / 60:.0f} min", "over all sittings"),
        ],
        tables=[*_organs(result), *_validations(records)],
        **signature(),
    )
    content = {"mean_dice": scores.mean_dice, "organs": dict(scores.dice), "cases": dict(scores.cases)}
    write_json(home / "validation.json", {"grid": "prepared", "weights": "best", "training": training, **content})


def _organs(result: TrainResult) -> list[Table]:
    rows = tuple((organ, _number(dice)) for organ, dice in result.scores.dice.items())
    cases = len(result.scores.cases)
    return [Table("Organs", f"Dice of the best weights on {cases} validation cases.", ("Organ", "Dice"), rows)]


def _validations(records: Sequence[EpochRecord]) -> list[Table]:
    """Every validation, of many evenly spread ones and the last."""
    validated = [record for record in records if record.validation_s > 0]
    every = max(1, -(-len(validated) // _VALIDATIONS_SHOWN))
    shown = validated[::-1][::every][::-1]
    rows = tuple(
        (str(record.epoch), f"{record.loss:.4f}", f"{record.learning_rate:.2e}", _number(record.mean_dice))
        for record in shown
    )
    caption = "All validations." if every == 1 else f"One of {every} validations; history.csv has all."
    return [Table("Validations", caption, ("Epoch", "Loss", "Learning rate", "Mean Dice"), rows)] if rows else []


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def train(
    prepared: Path,
    out: Path,
    settings: Settings,
    *,
    fold: int = 0,
    device: str | None = None,
    restart: bool = False,
    start: Path | None = None,
    tune: bool = False,
    on_start: Callable[[Sequence[EpochRecord], int], None] = lambda records, epochs: None,
    on_step: OnStep = lambda share, loss: None,
    on_epoch: Callable[[EpochRecord, int], None] = lambda record, epochs: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> TrainResult:
    """Train one fold, or continue it where an earlier run stopped; one of several processes if ``torchrun`` starts it.

    Writes ``model.json`` and ``fold_<k>/`` with the best weights, scores, the history, its curves and a page of them.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        out: Model folder.
        settings: Sections ``sample``, ``augment``, ``model``, ``loss``, ``train`` and ``infer``.
        fold: Which fold validates.
        device: Name of the device; by default the best there is.
        restart: Throw away what an earlier run of this fold left.
        start: Model folder, or a fold's folder in it, whose weights to begin with; the output layers begin anew.
        tune: Measure first which way of executing the network is fastest here, once per machine.
        on_start: Called once with the epochs of earlier runs and the expected number of epochs.
        on_step: Called after every step with the share of the training that is done and the epoch's mean loss so far.
        on_epoch: Called after every epoch with its record and the expected number of epochs.
        say: Told before it begins what is trained.

    Returns:
        Scores of the best weights on all validation cases, and the history.

    Raises:
        VolsegError: If there is no prepared dataset or no such fold, the patch does not fit the network or the class
            weights the organs, the model folder holds another model or is being trained in, the memory is too small, or
            the training diverges.
    """
    with keep_freed_memory(), joined() as processes:
        heard = _Listener(on_start, on_step, on_epoch, say) if processes.first else _Listener()
        place = _own_device(device, processes)
        return _train(prepared, out, settings, fold, place, restart, start, tune, heard, processes)


@dataclass(frozen=True)
class _Listener:
    """Who is told; of several processes only the first one talks."""

    on_start: Callable[[Sequence[EpochRecord], int], None] = lambda records, epochs: None
    on_step: OnStep = lambda share, loss: None
    on_epoch: Callable[[EpochRecord, int], None] = lambda record, epochs: None
    say: Callable[[str], None] = lambda sentence: None


def _train(
    prepared: Path,
    out: Path,
    settings: Settings,
    fold: int,
    place: torch.device,
    restart: bool,
    start: Path | None,
    tune: bool,
    heard: _Listener,
    processes: Processes,
) -> TrainResult:
    """Train as one of several processes, or alone."""
    began = time.monotonic()
    require_mlflow(settings.train.mlflow)
    plan = read_plan(prepared / PLAN_FILE)
    split = training_split(prepared, fold, plan)
    spec = _checked_network(plan, settings)
    origin = provenance(place) | ({} if start is None else {"began with": str(start)})
    card = ModelCard(network=spec, plan=plan, settings=settings, provenance=origin)
    settings = settings.model_copy(update={"loss": planned_weights(settings.loss, plan)})
    given = None if start is None else given_weights(start, fold)
    home = fold_folder(out, fold)
    identity = training_identity(spec, plan, settings, split, given.path if given else None)
    require_same_model(out, card, fold)
    source = patch_source(prepared, split, spec, plan, settings, place, processes.count)
    network = _first_network(spec, plan, settings)
    require_memory(network, source, settings.train)
    with alone_in(home, processes):
        if restart and processes.first:
            remove_training(home)
        processes.wait()
        require_identity(home, identity)
        if processes.first:
            keep_card(out, card)
        validation = make_validation(prepared, split.validation, spec, plan, settings, place, processes)
        told = begin_with(network, given, plan) if given else []
        for line in (_description(spec, source, network), *_notes(plan, card.settings), *told):
            heard.say(line)
        mine = autotune(spec, plan, settings, place, heard.say) if tune else PLAIN
        how = processes.gathered({str(processes.rank): mine})["0"]  # the same for all
        uri = settings.train.mlflow if processes.first else None
        with tracking(uri, home, heard.say, plan.dataset, _tracked(out, fold, card)) as tracker:
            result = train_fold(
                network,
                source,
                axes_frame(spec, plan),
                validation,
                settings,
                home,
                identity,
                _both(heard.on_epoch, tracker.on_epoch),
                began,
                processes,
                how,
                on_start=_both(heard.on_start, tracker.on_start),
                on_step=heard.on_step,
            )
            tracker.finish(result.scores)
        if processes.first:
            write_outcome(home, result, with_length(identity, settings), card, fold)
    return result


def training_hashes(prepared: Path, settings: Settings, start: Path | None = None) -> tuple[str, ...]:
    """Hash of everything that the training of each fold depends on; ``validation.json`` of a finished one holds it.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        settings: As for :func:`train`.
        start: As for :func:`train`.

    Raises:
        VolsegError: If there is no prepared dataset, or the settings are none that any fold could be trained with.
    """
    plan = read_plan(prepared / PLAN_FILE)
    spec = _checked_network(plan, settings)
    used = settings.model_copy(update={"loss": planned_weights(settings.loss, plan)})
    hashes = []
    for fold, split in enumerate(training_folds(prepared, plan)):
        given = None if start is None else given_weights(start, fold)
        hashes.append(with_length(training_identity(spec, plan, used, split, given.path if given else None), used))
    return tuple(hashes)


def _checked_network(plan: Plan, settings: Settings) -> NetworkSpec:
    """The network of the settings; what in them cannot be right for this plan is refused."""
    spec = design_network(plan, settings.model, settings.sample)
    named = tuple(plan.label_table.regions) or ("background", *plan.label_table.organs)
    require_class_weights(settings.loss, named)
    check_inference(ModelCard(network=spec, plan=plan, settings=settings, provenance={}), settings.infer)
    return spec


def _both(first: Callable[[Any, int], None], then: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
    def call(told: Any, epochs: int) -> None:
        first(told, epochs)
        then(told, epochs)

    return call


def _tracked(out: Path, fold: int, card: ModelCard) -> dict[str, Any]:
    """What describes a training beside others."""
    settings = card.settings.model_dump(mode="json", exclude={"train": {"mlflow"}})
    return {"run": f"{out.resolve().name} fold {fold}", "fold": fold, **settings}


def _own_device(device: str | None, processes: Processes) -> torch.device:
    """The device of one process: of several on GPUs, each has its own."""
    chosen = choose_device(device)
    if processes.count == 1 or chosen.type != "cuda":
        return chosen
    own = torch.device("cuda", processes.local)
    torch.cuda.set_device(own)
    return own


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


def _first_network(spec: NetworkSpec, plan: Plan, settings: Settings) -> SegmentationNetwork:
    """The network with its first weights."""
    network = spec.build(settings.train.seed, settings.model.initialization)
    if settings.model.foreground_prior is not None:
        if not plan.label_table.regions:
            rule, advice = "null where organs share a softmax", "Leave it out, or describe the organs as regions"
            raise ConfigError([sentence("model.foreground_prior", rule, settings.model.foreground_prior, advice)])
        start_outputs_at(network, settings.model.foreground_prior)
    return network
