"""From prepared cases to a model folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Settings
from pipeline.core.errors import ConfigError, sentence
from pipeline.core.heap import keep_freed_memory
from pipeline.infer.member import check_inference
from pipeline.model.base import SegmentationNetwork, start_outputs_at
from pipeline.model.cost import count_parameters
from pipeline.model.device import choose_device
from pipeline.model.execution import PLAIN
from pipeline.model.folder import ModelCard, fold_folder
from pipeline.model.spec import NetworkSpec, design_network
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.plan_file import PLAN_FILE, read_plan
from pipeline.stages.autotune import autotune
from pipeline.stages.pretrained import begin_with, given_weights
from pipeline.stages.training_data import axes_frame, patch_source, training_folds, training_split
from pipeline.stages.training_folder import alone_in, keep_card, remove_training, require_same_model
from pipeline.stages.training_identity import provenance, training_identity, with_length
from pipeline.stages.training_outcome import write_outcome
from pipeline.train.balance import planned_weights, require_class_weights
from pipeline.train.checkpoint import require_identity
from pipeline.train.history import EpochRecord
from pipeline.train.loop import TrainResult, train_fold
from pipeline.train.processes import Processes, joined
from pipeline.train.room import require_room
from pipeline.train.source import PatchSource
from pipeline.train.tracking import require_mlflow, tracking
from pipeline.train.values import OnStep
from pipeline.validation import make_validation

__all__ = ["train", "training_hashes"]


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
    home, identity = fold_folder(out, fold), training_identity(spec, plan, settings, split, given)
    require_same_model(out, card, fold)
    source = patch_source(prepared, split, spec, plan, settings, place, processes.count)
    network = _first_network(spec, plan, settings)
    require_room(network, source, settings.train)
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
        hashes.append(with_length(training_identity(spec, plan, used, split, given), used))
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
