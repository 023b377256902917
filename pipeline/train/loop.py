"""The training loop: one fold of one network, resumable at every epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from pipeline.config import Settings
from pipeline.core.errors import VolsegError
from pipeline.model.base import SegmentationNetwork
from pipeline.model.device import choose_dtype, out_of_memory
from pipeline.model.execution import PLAIN, Execution
from pipeline.model.folder import load_weights, save_weights
from pipeline.train.batches import TrainingBatches
from pipeline.train.curves import plot_history
from pipeline.train.history import EpochRecord, log_epoch
from pipeline.train.processes import ALONE, Processes
from pipeline.train.source import PatchSource
from pipeline.train.state import Progress
from pipeline.train.stop import STOPS, StopRequest, stoppable
from pipeline.train.trainer import Trainer
from pipeline.train.usage import Usage
from pipeline.train.values import Frame, OnStep, Validation, ValidationScores

__all__ = ["TrainResult", "train_fold"]


@dataclass(frozen=True)
class TrainResult:
    """What a finished training leaves.

    Args:
        scores: Full validation of the best weights.
        progress: Final state, with all epochs.
    """

    scores: ValidationScores
    progress: Progress


def train_fold(
    network: SegmentationNetwork,
    source: PatchSource,
    frame: Frame,
    validation: Validation,
    settings: Settings,
    folder: Path,
    identity: str,
    on_epoch: Callable[[EpochRecord, int], None],
    began: float | None = None,
    processes: Processes = ALONE,
    how: Execution = PLAIN,
    *,
    on_start: Callable[[Sequence[EpochRecord], int], None] = lambda records, epochs: None,
    on_step: OnStep = lambda share, loss: None,
) -> TrainResult:
    """Train one fold to its end, or continue where an earlier run stopped.

    The folder receives ``last.safetensors`` every epoch and every few minutes, ``best.safetensors`` at every better
    validation, ``history.csv``, ``curves.png``, TensorBoard events, and at the end ``model.safetensors``, the best
    weights. Torch's global random state, which dropout uses, is seeded for the training and given back as it was.

    Args:
        network: With its initial weights.
        source: Training patches.
        frame: Axes and left/right pairs, for augmentation, and regions, for the loss.
        validation: Full-volume validation.
        settings: All settings.
        folder: Folder of the fold.
        identity: Hash of everything that must not change before continuing.
        on_epoch: Called after every epoch with its record and the expected number of epochs.
        on_start: Called once with the epochs of earlier runs and the expected number of epochs.
        on_step: Called after every step with the share of the training that is done and the epoch's mean loss so far.
        began: ``time.monotonic()`` when this sitting started, if loading should count towards the budget.
        processes: Those that train together, each on its parts of the source's batches.
        how: How the network is executed.

    Returns:
        Scores of the best weights on all validation cases, and the history.

    Raises:
        ConfigError: If there are more or fewer class weights than outputs of the network.
        VolsegError: If the training diverges, the memory is too small, or the folder holds another training.
        KeyboardInterrupt, Stopped: If Ctrl-C or SIGTERM asked for it; what was done is saved.
    """
    began = time.monotonic() if began is None else began
    with (
        torch.random.fork_rng([source.device] if source.device.type == "cuda" else []),
        stoppable() as stop,
        TrainingBatches(
            source, frame, settings.augment, range(processes.rank, source.parts, processes.count)
        ) as batches,
    ):
        torch.manual_seed(settings.train.seed)
        usage = Usage(network, source, choose_dtype(source.device, settings.train.precision))
        trainer = Trainer(network, batches, validation, settings, folder, identity, began, processes, how)
        try:
            epochs = trainer.budget.epochs(len(trainer.progress.records), trainer.share, settings.train.epochs)
            on_start(trainer.progress.records, epochs)
            _run(trainer, usage, on_epoch, on_step, stop)
            with stop.at_once():
                return _finish(trainer)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise VolsegError(
                f"memory of {source.device}: expected enough for the network and {source.batch_size} patches of "
                f"{source.patch_size}, got too little. Lower sample.batch_size, sample.patch_size or sample.cache_mb."
            ) from None


def _run(
    trainer: Trainer,
    usage: Usage,
    on_epoch: Callable[[EpochRecord, int], None],
    on_step: OnStep,
    stop: StopRequest,
) -> None:
    """Epochs until the training is finished.

    Raises:
        KeyboardInterrupt, Stopped: If a signal asked for it; the checkpoint is written.
    """
    first = trainer.processes.first
    with SummaryWriter(str(trainer.folder / "events")) if first else nullcontext() as writer:
        while not trainer.progress.finished:
            record = trainer.epoch(stop, on_step)
            if record is None:
                stop.stop()
            if trainer.validation_is_due(record.epoch):
                record = _validated(trainer, record, stop)
            record = usage.complete(record)
            trainer.note_epoch(record)
            if writer is None:
                continue
            log_epoch(writer, record)
            if record.mean_dice is not None:
                plot_history(trainer.progress.records, trainer.folder / "curves.png")
            epochs = trainer.budget.epochs(record.epoch, record.progress, trainer.settings.train.epochs)
            on_epoch(record, epochs)


def _validated(trainer: Trainer, record: EpochRecord, stop: StopRequest) -> EpochRecord:
    """Validate; a signal that comes meanwhile leaves a checkpoint from which the validation begins again."""
    try:
        with stop.at_once():
            return trainer.note_validation(record)
    except STOPS:
        trainer.save()
        raise


def _finish(trainer: Trainer) -> TrainResult:
    """Score the best weights on all validation cases and make them the model."""
    trainer.processes.wait()  # until the first one has written
    best = load_weights(trainer.folder / "best.safetensors")
    scores = trainer.best_scores or trainer.validate(True, best)
    if trainer.processes.first:
        save_weights(trainer.folder / "model.safetensors", best)
    return TrainResult(scores, trainer.progress)
