"""From prepared cases to a model folder: one training of one fold."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.settings import Settings
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import signature, text_hash, write_json
from pipeline.core.machine import keep_freed_memory, large_pages
from pipeline.core.tables import number_cell
from pipeline.data.store import read_class_voxels
from pipeline.infer.trained_model import check_inference
from pipeline.model.automatic import Choice, choice_lines, decide
from pipeline.model.base import SegmentationNetwork, is_output, start_outputs_at
from pipeline.model.cost import count_parameters
from pipeline.model.device import PLAIN, choose_device, choose_dtype, free_gpu
from pipeline.model.folder import (
    ModelCard,
    fold_folder,
    load_weights,
    provenance,
    read_card,
    require_numbers,
    trained_folds,
)
from pipeline.model.spec import NetworkSpec, design_network, patches_per_batch
from pipeline.model.zoo import model_folder
from pipeline.preprocess.plan_file import PLAN_FILE, Plan, read_plan
from pipeline.report.page import Picture, Table, write_picture_page
from pipeline.sample.augment import PatchGeometry, directions
from pipeline.sample.folds import Fold
from pipeline.stages.cascade import FirstStage, first_stage
from pipeline.stages.model_files import (
    PAGE,
    PreparedFolds,
    alone_in,
    earlier_card,
    keep_card,
    remove_training,
    require_same_model,
    training_hash,
)
from pipeline.stages.tune import autotune
from pipeline.train.checkpoint import require_same_training
from pipeline.train.distributed import Processes, joined
from pipeline.train.loader import PatchSource
from pipeline.train.log import EpochRecord
from pipeline.train.loss import planned_loss, require_class_weights, sampling_weights
from pipeline.train.mlflow import require_mlflow, tracking
from pipeline.train.state import NO_CALLBACKS, Callbacks, TrainRun
from pipeline.train.step_memory import require_memory, room_for_cases, training_memory
from pipeline.train.trainer import TrainResult, train_fold
from pipeline.validation import make_validation, validation_bytes

_WEIGHTS = "model.safetensors"
_VALIDATIONS_SHOWN = 30
_RESHAPED_NAMED = 3


def train(
    prepared: Path | str,
    out: Path | str,
    settings: Settings | None = None,
    *,
    fold: int = 0,
    device: str | None = None,
    restart: bool = False,
    start: Path | str | None = None,
    tune: bool = False,
    callbacks: Callbacks = NO_CALLBACKS,
) -> TrainResult:
    """Train one fold, or continue it where an earlier run stopped; one of several processes if ``torchrun`` starts it.

    Writes ``model.json`` and ``fold_<k>/`` with the weights, scores, the history, its curves and a page of them.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        out: Model folder.
        settings: Sections ``sample``, ``augment``, ``model``, ``loss``, ``train``, ``infer``; by default all defaults.
        fold: Which fold validates.
        device: Name of the device; by default the best there is.
        restart: Throw away what an earlier run of this fold left.
        start: Model folder, or a fold's folder in it, whose weights to begin with; the output layers begin anew.
        tune: Measure first which way of executing the network is fastest here, once per machine.
        callbacks: Called while the training goes on.

    Returns:
        Scores of the model's weights on all validation cases, and the history.

    Raises:
        VolsegError: If there is no prepared dataset or no such fold, the patch does not fit the network or the class
            weights the organs, the model folder holds another model or is being trained in, the memory is too small, or
            the training diverges.
    """
    prepared, out, settings = Path(prepared), Path(out), settings or Settings()
    large_pages(False)
    with keep_freed_memory(), joined() as processes:
        place = _own_device(device, processes)
        began = time.monotonic()
        if not processes.first:  # of several processes only the first one talks
            callbacks = NO_CALLBACKS
        if settings.train.mlflow:
            require_mlflow(settings.train.mlflow)
        _write_stage_maps(prepared, out, settings, device, processes, callbacks)
        planned = PlannedTraining.of(prepared, out, settings, fold, None if start is None else Path(start))
        require_same_model(out, planned.card, fold, earlier_card(out))
        network = planned.first_network()
        # On a GPU the training comes first, and cases get what it leaves.
        room, maps, count = planned.room_for_cases(network, place, processes), planned.stage_maps, processes.count
        source = patch_source(prepared, planned.split, planned.card, network.margin, place, count, room, maps)
        # On a processor cases are loaded before the memory is asked for: what they take is no longer free.
        require_memory(network, source, planned.card.settings.train)
        with alone_in(planned.folder, processes):
            # Only now, when no other training can be at work in the folder.
            if restart and processes.first:
                remove_training(planned.folder)
            processes.wait()
            require_same_training(planned.folder, planned.training_hash)
            if processes.first:
                keep_card(out, planned.card_of(place))
            run = planned.run(processes, began)
            return _train(planned, run, network, source, tune, callbacks)


def _write_stage_maps(
    prepared: Path, out: Path, settings: Settings, device: str | None, processes: Processes, callbacks: Callbacks
) -> None:
    """For the second stage of a cascade, let the first process bring up to date what the first stage found."""
    plan = read_plan(prepared / PLAN_FILE)
    first = first_stage(plan, prepared, out)
    if first is None:
        return
    checked_card(plan, settings)  # before minutes of work
    problem = ""
    if processes.first:
        try:
            first.write_maps(plan, device, callbacks.log)
        except VolsegError as error:
            problem = str(error)
    problem = processes.gathered({str(processes.rank): problem})["0"]  # the others would wait for one that has left
    if problem:
        raise VolsegError(problem)


def _train(
    planned: PlannedTraining,
    run: TrainRun,
    network: SegmentationNetwork,
    source: PatchSource,
    tune: bool,
    callbacks: Callbacks,
) -> TrainResult:
    """Say what is trained, train it, and write what became of it."""
    spec, plan, settings = planned.card.network, planned.card.plan, run.settings
    place, processes, log = source.device, run.processes, callbacks.log
    maps = planned.stage_maps
    validation = make_validation(planned.prepared, planned.split.validation, planned.card, place, processes, maps)
    transferred = planned.start.copy_into(network, plan, planned.fold) if planned.start else []
    notes = _notes(plan, planned.card.settings)
    if not any(read_class_voxels(planned.prepared, case) for case in planned.split.validation):
        kept = "The weights that are kept are the last ones that found nothing there."
        notes.append(f"validation: none of its {len(planned.split.validation)} cases has an organ. {kept}")
    for line in (*choice_lines(planned.choices), _description(spec, source, network), *notes, *transferred):
        log(line)
    # Processes measure each for itself, and may differ; the first one decides.
    own = autotune(spec, plan, settings, place, log) if tune else PLAIN
    run = replace(run, how=processes.gathered({str(processes.rank): own})["0"])
    described = {"run": f"{planned.out.resolve().name} fold {planned.fold}", "fold": planned.fold}
    described |= planned.card.settings.model_dump(mode="json", exclude={"train": {"mlflow"}})
    uri = settings.train.mlflow if processes.first else None
    with tracking(uri, run.folder, callbacks, plan.dataset, described) if uri else nullcontext() as tracker:
        result = train_fold(run, network, source, validation, tracker.callbacks if tracker else callbacks)
        if tracker:
            tracker.finish(result.scores)
    if processes.first:
        write_outcome(planned, result)
    return result


def _own_device(device: str | None, processes: Processes) -> torch.device:
    """The device of one process: of several on GPUs, each has its own."""
    chosen = choose_device(device)
    if processes.count == 1 or chosen.type != "cuda":
        return chosen
    own = torch.device("cuda", processes.local)
    with free_gpu(own):
        torch.cuda.set_device(own)
    return own


@dataclass(frozen=True)
class PlannedTraining:
    """One training before it begins: what decides it, checked, and the folders it reads and writes.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        out: Model folder.
        fold: Which fold validates.
        split: Its cases.
        card: Network, plan and settings, decided.
        choices: What was decided of the settings, for the user to read.
        start: The model to begin with, or None.
        contents: Content hash of the cases of the split, and of what the first stage of a cascade found in them.
    """

    prepared: Path
    out: Path
    fold: int
    split: Fold
    card: ModelCard
    choices: tuple[Choice, ...]
    start: StartModel | None
    contents: str

    @classmethod
    def of(cls, prepared: Path, out: Path, settings: Settings, fold: int, start: Path | None) -> PlannedTraining:
        """The training of one fold; arguments and errors as for :func:`train`."""
        plan = read_plan(prepared / PLAN_FILE)
        folds = PreparedFolds.read(prepared)
        split, (card, choices) = folds.fold(fold, plan), checked_card(plan, settings)
        contents = _contents(folds, split, first_stage(plan, prepared, out))
        return cls(prepared, out, fold, split, card, choices, StartModel.read(start) if start else None, contents)

    @classmethod
    def all_folds(
        cls, prepared: Path, out: Path, settings: Settings, start: Path | None
    ) -> tuple[PlannedTraining, ...]:
        """The trainings of all folds; arguments and errors as for :func:`train`."""
        plan = read_plan(prepared / PLAN_FILE)
        card, choices = checked_card(plan, settings)
        folds = PreparedFolds.read(prepared)
        model, first = StartModel.read(start) if start else None, first_stage(plan, prepared, out)
        return tuple(
            cls(prepared, out, fold, split, card, choices, model, _contents(folds, split, first))
            for fold, split in enumerate(folds.for_training(plan))
        )

    @property
    def folder(self) -> Path:
        """Folder of the fold."""
        return fold_folder(self.out, self.fold)

    @property
    def stage_maps(self) -> Path | None:
        """For the second stage of a cascade, the folder of what the first found."""
        first = first_stage(self.card.plan, self.prepared, self.out)
        return None if first is None else first.maps

    @cached_property
    def training_hash(self) -> str:
        """Content hash of everything that must not change while the training goes on."""
        start = self.start.weights(self.fold) if self.start else None
        return training_hash(self.card, self.split, start, self.contents)

    @property
    def finished_hash(self) -> str:
        """Content hash that ``validation.json`` has once it is finished: also of how long it was."""
        settings, _, contents = self.training_hash.partition("-")
        train = self.settings.train
        # Without the best weights' name, as before there was a choice.
        length = train.model_dump_json(exclude={"select"} if train.select == "best" else None)
        return f"{text_hash(settings, length)}-{contents}"

    @property
    def settings(self) -> Settings:
        """The settings, with the plan's class weights in place of ``plan``."""
        loss = planned_loss(self.card.settings.loss, self.card.plan, self.card.network.dims)
        return self.card.settings.model_copy(update={"loss": loss})

    def card_of(self, device: torch.device) -> ModelCard:
        """Content of ``model.json``, with where and when it is trained."""
        began_with = {"began with": str(self.start.folder)} if self.start else {}
        return self.card.model_copy(update={"provenance": provenance(device) | began_with})

    def run(self, processes: Processes, began: float) -> TrainRun:
        """The training as the trainer takes it."""
        geometry = patch_geometry(self.card.network, self.card.plan)
        return TrainRun(self.folder, self.training_hash, self.settings, geometry, processes, began=began)

    def room_for_cases(self, network: SegmentationNetwork, device: torch.device, processes: Processes) -> int:
        """Bytes of a GPU that cached cases may take beside the training; a training that does not fit is refused."""
        if device.type != "cuda":
            return 0
        spec, plan = self.card.network, self.card.plan
        channels = len(plan.channels) + plan.cascade  # what a first stage found is one, until the network sees it
        shape = (patches_per_batch(plan, spec, self.settings.sample), channels, *spec.patch_size)
        dtype, regions = choose_dtype(device, self.settings.train.precision), plan.label_table.region_classes()
        memory = training_memory(network, shape, self.settings, dtype, regions=regions, processes=processes)
        validation = validation_bytes(self.prepared, self.split.validation, self.card, network)
        return room_for_cases(memory, shape, device, validation)

    def first_network(self) -> SegmentationNetwork:
        """The network with its first weights."""
        model = self.card.settings.model
        network = self.card.network.build(self.card.settings.train.seed, model.initialization)
        if model.foreground_prior is not None:
            if not self.card.plan.label_table.regions:
                rule, advice = "null where organs share a softmax", "Leave it out, or describe the organs as regions"
                raise ConfigError([sentence("model.foreground_prior", rule, model.foreground_prior, advice)])
            start_outputs_at(network, model.foreground_prior)
        return network


def _contents(folds: PreparedFolds, split: Fold, first: FirstStage | None) -> str:
    """Content hash of the cases of a split."""
    own = folds.contents(split)
    return own if first is None else text_hash(own, first.contents(split))


def checked_card(plan: Plan, settings: Settings) -> tuple[ModelCard, tuple[Choice, ...]]:
    """The settings decided, their network, and what was decided; what cannot be right for this plan is refused."""
    settings, choices = decide(plan, settings)
    spec = design_network(plan, settings.model, settings.sample)
    outputs = tuple(plan.label_table.regions) or ("background", *plan.label_table.organs)
    require_class_weights(settings.loss, outputs)
    card = ModelCard(network=spec, plan=plan, settings=settings, provenance={})
    check_inference(card, settings.infer)
    return card, choices


def patch_source(
    prepared: Path,
    split: Fold,
    card: ModelCard,
    margin: Sequence[int],
    device: torch.device,
    processes: int = 1,
    gpu_bytes: int = 0,
    stage_maps: Path | None = None,
) -> PatchSource:
    """Where the patches of a training come from.

    ``gpu_bytes`` of a GPU are for cached cases; ``stage_maps`` is the folder of what a cascade's first stage found.
    """
    spec, plan, settings = card.network, card.plan, card.settings
    # A 2D network sees one voxel along the slice axis, without a margin.
    size, lost = [1, 1, 1], [0, 0, 0]
    for axis, length, voxels in zip(plan.axes(spec.dims), spec.patch_size, margin, strict=True):
        size[axis], lost[axis] = length, voxels
    return PatchSource(
        prepared,
        split.train,
        (size[0], size[1], size[2]),
        patches_per_batch(plan, spec, settings.sample),
        settings.sample,
        device,
        squeeze_axis=plan.slice_axis if spec.dims == 2 else None,
        margin=(lost[0], lost[1], lost[2]),
        class_weights=sampling_weights(settings.sample, plan),
        seed=settings.train.seed,
        parts=settings.train.accumulate * processes,
        gpu_bytes=gpu_bytes,
        stage=None if stage_maps is None else (stage_maps, plan.stage_classes),
    )


def patch_geometry(spec: NetworkSpec, plan: Plan) -> PatchGeometry:
    """What augmentation and loss need to know of the axes that a network sees."""
    directions_of, axes = directions(plan.orientation), plan.axes(spec.dims)
    return PatchGeometry(
        tuple(directions_of[axis] for axis in axes),
        tuple(plan.spacing_mm[axis] for axis in axes),
        plan.label_table.side_pairs(),
        plan.label_table.region_classes(),
    )


def _description(spec: NetworkSpec, source: PatchSource, network: SegmentationNetwork) -> str:
    """What is trained, in one line."""
    size, logits = (" x ".join(map(str, n)) for n in (spec.patch_size, network.output_size(spec.patch_size)))
    seen = f"patch {size}" if size == logits else f"patch {size}, logits {logits}"
    return f"{spec.name} {spec.dims}D: {count_parameters(network):,} parameters, {seen}, batch {source.batch_size}"


def _notes(plan: Plan, settings: Settings) -> list[str]:
    """What the user should know before hours are spent."""
    notes = []
    # Mirrored, an organ of one side would be seen on the other side under its own name.
    one_sided = plan.label_table.one_sided()
    if one_sided and settings.augment.enabled and "LR" in settings.augment.flip_axes:
        advice = "Take LR out of augment.flip_axes, or mirrored they are wrong."
        notes.append(f"labels: {', '.join(one_sided)}: on one side only. {advice}")
    if "plan" in (settings.loss.class_weights, settings.sample.class_weights) and plan.class_weights is None:
        notes.append(f"class_weights: the plan proposes none, so all weigh the same. {PLAN_FILE} may say why.")
    return notes


@dataclass(frozen=True)
class StartModel:
    """A trained model whose weights a training begins with: everything that fits, except the layers that give logits.

    Args:
        folder: Model folder, or the folder of one of its folds, as the user gave it.
        card: Description of the model.
        folds: Its trained folds; empty where one fold's folder was given.
    """

    folder: Path
    card: ModelCard
    folds: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> StartModel:
        """Find the model, perhaps one that comes with volseg; one without a trained fold is refused."""
        folder = model_folder(folder)
        if (folder / _WEIGHTS).is_file():
            return cls(folder, read_card(folder.parent), ())
        card, folds = read_card(folder), trained_folds(folder)
        if not folds:
            raise VolsegError(
                f"{folder}: expected a trained fold, got none. Train it to its end, or give another model."
            )
        return cls(folder, card, folds)

    def weights(self, fold: int) -> Path:
        """Weights for the training of a fold: those of the same fold if there is one, else of the first."""
        if not self.folds:
            return self.folder / _WEIGHTS
        return fold_folder(self.folder, fold if fold in self.folds else self.folds[0]) / _WEIGHTS

    def copy_into(self, network: SegmentationNetwork, plan: Plan, fold: int) -> list[str]:
        """Take over the weights that fit; returns what the user should know of it, line by line.

        Raises:
            VolsegError: If nothing fits.
        """
        path, other = self.weights(fold), self.card.plan
        weights = load_weights(path)
        require_numbers(weights, path)
        result = transfer_weights(network, weights)
        if not result.kernels:
            rule, advice = "weights that fit the network", "Train the same network, or another model with its options"
            raise VolsegError(f"{path}: expected {rule}, got those of {self.card.network.name}. {advice}.")
        lines = [f"{path}: {line}." for line in transfer_lines(result)]
        if other.spacing_mm != plan.spacing_mm:
            here, there = (" x ".join(f"{mm:g}" for mm in spacing) for spacing in (plan.spacing_mm, other.spacing_mm))
            lines.append(
                f"Cases were prepared with {here} mm, those of the other model with {there} mm: shapes look unlike."
            )
        if [entry.scheme for entry in other.normalization] != [entry.scheme for entry in plan.normalization]:
            lines.append("Cases were normalized otherwise than those of the other model: intensities look unlike.")
        return lines


@dataclass(frozen=True)
class Transfer:
    """What became of a network's tensors when those of another model were taken over.

    Args:
        loaded: Parameters (numbers, not tensors) that were taken over.
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


def transfer_weights(network: SegmentationNetwork, weights: Mapping[str, Tensor]) -> Transfer:
    """Take over every tensor of the same name and shape, except those of output layers."""
    loaded, kernels, outputs, missing = 0, 0, [], []
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    own = network.state_dict()
    parameters = {name for name, _ in network.named_parameters()}
    with torch.no_grad():
        for name, tensor in own.items():
            if is_output(name):  # another model's outputs stand for other organs
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


def transfer_lines(found: Transfer) -> list[str]:
    """Sentences for the user."""
    lines = [f"{found.loaded:,} of {found.parameters:,} parameters begin as in the other model; the outputs anew"]
    if found.missing:
        lines.append(f"{len(found.missing)} tensors are not in the other model and begin anew, e.g. {found.missing[0]}")
    for name, (here, there) in list(found.reshaped.items())[:_RESHAPED_NAMED]:
        lines.append(f"{name} begins anew: its shape is {here}, in the other model {there}")
    if len(found.reshaped) > _RESHAPED_NAMED:
        lines.append(f"{len(found.reshaped) - _RESHAPED_NAMED} further tensors have another shape")
    return lines


def write_outcome(planned: PlannedTraining, result: TrainResult) -> None:
    """Write ``training.html``, and then ``validation.json``, which says that the training has ended."""
    scores, records, spec = result.scores, result.progress.records, planned.card.network
    curves = planned.folder / "curves.png"
    alt = "Loss, learning rate, Dice per organ and speed over the epochs; the table has the validations."
    write_picture_page(
        planned.folder / PAGE,
        f"Training on {planned.card.plan.dataset}, fold {planned.fold}",
        pictures=[Picture("Learning curves", curves.read_bytes(), alt)] if curves.is_file() else [],
        numbers=[
            ("Mean foreground Dice", number_cell(scores.mean_dice), f"{result.weights} weights, prepared grid"),
            ("Network", spec.name, f"{spec.dims}D, patch {' × '.join(map(str, spec.patch_size))}"),
            ("Epochs", str(len(records)), f"{result.progress.iteration:,} iterations"),
            ("Time", f"{result.progress.elapsed_s / 60:.0f} min", "over all runs"),
        ],
        tables=[_organs(result), *_validations(records)],
        **signature(),
    )
    content: dict[str, Any] = {"grid": "prepared", "weights": result.weights, "training": planned.finished_hash}
    content |= {"caution": result.caution} if result.caution else {}
    content |= {"mean_dice": scores.mean_dice, "organs": dict(scores.dice), "cases": dict(scores.cases)}
    write_json(planned.folder / "validation.json", content)  # last: its hash says that the training is finished


def _organs(result: TrainResult) -> Table:
    rows = tuple((organ, number_cell(dice)) for organ, dice in result.scores.dice.items())
    cases = len(result.scores.cases)
    return Table(
        "Organs",
        f"Dice of the {result.weights} weights on {cases} validation cases. {result.caution}",
        ("Organ", "Dice"),
        rows,
    )


def _validations(records: Sequence[EpochRecord]) -> list[Table]:
    """Every validation, of many evenly spread ones and the last."""
    validated = [record for record in records if record.validation_s > 0]
    every = max(1, -(-len(validated) // _VALIDATIONS_SHOWN))
    shown = validated[::-1][::every][::-1]
    rows = tuple(
        (str(record.epoch), f"{record.loss:.4f}", f"{record.learning_rate:.2e}", number_cell(record.mean_dice))
        for record in shown
    )
    caption = "All validations." if every == 1 else f"One of {every} validations; history.csv has all."
    return [Table("Validations", caption, ("Epoch", "Loss", "Learning rate", "Mean Dice"), rows)] if rows else []
