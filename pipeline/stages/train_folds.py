"""All folds of a cross-validation, one after the other or one at a time on each GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from pipeline.config.settings import Settings
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.machine import large_pages, processors
from pipeline.engine.local import Outcome, open_engine
from pipeline.engine.places import run_at_places
from pipeline.model.automatic import choice_lines
from pipeline.model.device import choose_device
from pipeline.preprocess.plan_file import PLAN_FILE, read_plan
from pipeline.stages.cascade import first_stage
from pipeline.stages.model_files import earlier_card, finished_as, mean_dice_of, require_same_model
from pipeline.stages.train import PlannedTraining, StartModel, checked_card, train
from pipeline.train.distributed import launched
from pipeline.train.log import EpochRecord
from pipeline.train.state import Callbacks

OnEpoch = Callable[[EpochRecord, int, str], None]
"""Called with an epoch's record, the expected number of epochs, and which fold it was."""


@dataclass(frozen=True)
class FoldOutcome:
    """What became of one fold.

    Args:
        fold: Its number.
        status: ``trained`` now, ``kept`` because it was finished before, or ``failed``.
        mean_dice: Of its validation, on the prepared grid; None if it failed or nothing could be scored.
        error: Why it failed, one sentence, or None.
    """

    fold: int
    status: Literal["trained", "kept", "failed"]
    mean_dice: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class FoldsResult:
    """What became of all folds of splits.json, ascending."""

    folds: tuple[FoldOutcome, ...]

    @property
    def exit_code(self) -> int:
        """0 all fine, 2 some folds failed, 3 all failed."""
        failed = sum(entry.status == "failed" for entry in self.folds)
        return 0 if not failed else 2 if failed < len(self.folds) else 3


def outcome_line(outcome: FoldOutcome) -> str:
    """One line for reading."""
    if outcome.error is not None:
        return f"fold {outcome.fold}: failed  {outcome.error}"
    dice = "nothing to score" if outcome.mean_dice is None else f"validation Dice {outcome.mean_dice:.3f}"
    return f"fold {outcome.fold}: {'trained' if outcome.status == 'trained' else 'finished before'}, {dice}"


@dataclass(frozen=True)
class _FoldTask:
    """One fold to train, as it travels to a process."""

    planned: PlannedTraining
    restart: bool
    tune: bool
    on_epoch: OnEpoch
    log: Callable[[str], None]
    threads: int | None = None

    @property
    def name(self) -> str:
        return f"fold {self.planned.fold}"


def train_folds(
    prepared: Path,
    out: Path,
    settings: Settings,
    *,
    devices: Sequence[str] | None = None,
    restart: bool = False,
    start: Path | None = None,
    tune: bool = False,
    on_epoch: OnEpoch = lambda record, epochs, fold: None,
    log: Callable[[str], None] = lambda text: None,
) -> FoldsResult:
    """Train every fold of ``splits.json``, each as :func:`~pipeline.stages.train.train` does, into one model folder.

    A fold that was finished with the same data and settings is kept, one that was interrupted goes on, and one that
    fails does not stop the others. Of a cascade, all folds of the first stage are trained before those of the second,
    and if one of them fails, the result is that of the first stage.

    Args:
        prepared: Folder that ``preprocess`` wrote.
        out: Model folder.
        settings: As for one fold; a budget is that of each fold.
        devices: Names of devices; on several, folds are trained at once, one on each, in processes of their own. By
            default all GPUs, else the best device there is.
        restart: Throw away what earlier runs left.
        start: Model folder whose weights to begin with; a fold takes those of the same fold if there is one.
        tune: Measure first which way of executing the network is fastest here.
        on_epoch: Called after every epoch; with several devices it must be picklable.
        log: Called with lines for the user; with several devices it must be picklable.

    Returns:
        What became of each fold.

    Raises:
        VolsegError: If there is no prepared dataset or device, or no fold could be trained with these settings.
    """
    _require_one_process()
    large_pages(False)  # before processes are started, which inherit it
    places = tuple(devices) if devices else default_devices()
    for place in places:
        choose_device(place)
    plan = read_plan(prepared / PLAN_FILE)
    first = first_stage(plan, prepared, out)
    if first is not None:
        # What is wrong with the second stage is said before the first is trained.
        card, _ = checked_card(plan, settings)
        require_same_model(out, card, 0 if restart else None, earlier_card(out))
        if start is not None:
            StartModel.read(start)
        first.require_same_folds(plan)
        said, told = partial(_about_first, log), partial(_epoch_of_first, on_epoch)
        result = train_folds(
            first.data, first.model, settings, devices=places, restart=restart, tune=tune, on_epoch=told, log=said
        )
        if result.exit_code:
            return result
        first.write_maps(plan, places[0], log)
    # What is wrong for every fold is said once, before anything is trained.
    planned = PlannedTraining.all_folds(prepared, out, settings, start)
    kept = [each.fold for each in planned if not restart and finished_as(out, each.fold, each.finished_hash)]
    # Folds that are trained side by side on one machine share its processors.
    threads = max(1, processors() // len(places)) if len(places) > 1 else None
    for line in choice_lines(planned[0].choices):  # once for all: the folds get what was decided
        log(line)
    tasks = [_FoldTask(each, restart, tune, on_epoch, log, threads) for each in planned if each.fold not in kept]
    found = {fold: FoldOutcome(fold, "kept", mean_dice_of(out, fold)) for fold in kept}
    for outcome in _outcomes(tasks, places):
        fold = tasks[outcome.index].planned.fold
        status: Literal["trained", "failed"] = "trained" if outcome.error is None else "failed"
        found[fold] = FoldOutcome(fold, status, outcome.value, outcome.error)
        log(outcome_line(found[fold]))
    return FoldsResult(tuple(found[fold] for fold in sorted(found)))


def _about_first(log: Callable[[str], None], text: str) -> None:
    log(f"first stage, {text}")


def _epoch_of_first(on_epoch: OnEpoch, record: EpochRecord, epochs: int, fold: str) -> None:
    on_epoch(record, epochs, f"first stage, {fold}")


def _require_one_process() -> None:
    if launched() > 1:
        rule, advice = "one fold", "Leave torchrun out: every GPU gets a fold of its own, or give --fold 0"
        raise VolsegError(sentence("torchrun", rule, "all folds", advice))


def default_devices() -> tuple[str, ...]:
    """All GPUs; without one the best device there is."""
    return tuple(f"cuda:{n}" for n in range(torch.cuda.device_count())) or (choose_device().type,)


def _outcomes(tasks: Sequence[_FoldTask], places: Sequence[str]) -> Iterable[Outcome[float | None]]:
    # One device needs no further process, in which torch would be imported again.
    if len(places) > 1 and tasks:
        yield from run_at_places(_train, tasks, places)
        return
    with open_engine(1) as run:
        yield from run(partial(_train, device=places[0]), tasks)


def _train(task: _FoldTask, device: str) -> float | None:
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    planned = task.planned
    result = train(
        planned.prepared,
        planned.out,
        planned.card.settings,
        fold=planned.fold,
        device=device,
        restart=task.restart,
        start=planned.start.folder if planned.start else None,
        tune=task.tune,
        callbacks=Callbacks(
            on_epoch=lambda record, epochs: task.on_epoch(record, epochs, task.name),
            log=lambda text: task.log(f"{task.name}: {text}"),
        ),
    )
    return result.scores.mean_dice
