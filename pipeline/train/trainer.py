"""One training in progress: epochs of steps, validations, checkpoints, and where it stands."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipeline.config.settings import Settings, TrainSettings
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.machine import bytes_in_words
from pipeline.core.signals import STOPS, StopRequest, stoppable
from pipeline.model.base import SegmentationNetwork
from pipeline.model.cost import kept_bytes
from pipeline.model.device import (
    PLAIN,
    Execution,
    choose_dtype,
    execute,
    free_bytes,
    out_of_memory,
    recompute_activations,
)
from pipeline.model.folder import load_weights, save_weights
from pipeline.sample.randomness import seeded
from pipeline.train.checkpoint import load_checkpoint, save_checkpoint
from pipeline.train.class_weights import class_weights
from pipeline.train.distributed import SINGLE, Commands, Processes
from pipeline.train.loader import PatchSource, TrainingBatches
from pipeline.train.log import EpochRecord, log_epoch, plot_history, write_history
from pipeline.train.loss import supervised_loss
from pipeline.train.schedule import learning_rate, make_budget
from pipeline.train.state import (
    EpochPart,
    OnStep,
    PatchGeometry,
    TrainingProgress,
    Validation,
    ValidationScores,
    first_state,
    other_weights,
    update,
    update_average,
    without_margin,
)
from pipeline.train.usage import Usage

# When a training diverges: what its batch held, and what to do.

BATCH_FILE = "diverged.safetensors"
"""The batch with which a training diverged: ``images`` (B, C, *S) and ``labels`` (B, *S)."""

_EXPLODED = 20.0  # times the best epoch's loss
_SMALLEST_LOSS = 0.05  # below this the best loss says nothing about the scale
_STRANGE = 100.0  # SD; normalized intensities this large are not tissue


def has_exploded(loss: float, earlier: Sequence[float]) -> bool:
    """Whether an epoch's loss is out of all proportion to those before it.

    Args:
        loss: Mean loss of the epoch.
        earlier: Those of the epochs before.
    """
    return bool(earlier) and loss > _EXPLODED * max(min(earlier), _SMALLEST_LOSS)


def diverged(
    folder: Path,
    loss: float,
    iteration: int,
    batch: tuple[Tensor, Tensor],
    cases: Sequence[str],
    settings: TrainSettings,
) -> VolsegError:
    """Save the batch and put together the error to raise.

    Args:
        folder: Folder of the fold; receives :data:`BATCH_FILE`.
        loss: The loss that was not finite or too large.
        iteration: Number of the step, from 1.
        batch: The images and labels of this step.
        cases: Ids of their cases.
        settings: Section ``train``.
    """
    images, labels = batch
    save_weights(folder / BATCH_FILE, {"images": images.contiguous(), "labels": labels.contiguous()})
    classes = [value for value in torch.unique(labels).tolist() if value >= 0]
    strange = int((~images.isfinite()).sum())
    low, high = (float(value) for value in torch.aminmax(images.nan_to_num()))
    if strange:
        cause = f"{strange} of its intensities are not finite. Look for them with `volseg check`, and preprocess again"
    elif max(-low, high) > _STRANGE:
        cause = "Its intensities are far from 0. Look at these cases: an outlier may have escaped the normalization"
    else:
        clip = "" if settings.gradient_clip else ", or set train.gradient_clip: 12"
        cause = f"Its intensities look right. Lower train.learning_rate ({settings.learning_rate:g}){clip}"
    named = ", ".join(dict.fromkeys(cases))
    return VolsegError(
        f"training loss: expected a finite number like those before, got {loss:g} in step {iteration}. Its batch is in "
        f"{folder / BATCH_FILE}: cases {named}; intensities {low:.3g} to {high:.3g}; classes "
        f"{', '.join(map(str, classes)) or 'none'}. {cause}. The checkpoint before it is kept."
    )


# Whether a training step has room: asked before the first one, so that the system does not kill the training.


def require_memory(network: SegmentationNetwork, source: PatchSource, settings: TrainSettings) -> None:
    """Refuse a batch whose activations alone are more than the device's free memory.

    What passes may still be too much, by gradients, optimizer and scratch space. Nothing is asked where activations
    are recomputed.

    Args:
        network: What is trained.
        source: Its patches, the cached cases loaded.
        settings: Section ``train``.

    Raises:
        VolsegError: If the memory is too small, with the numbers.
    """
    free = free_bytes(source.device)
    if free is None or settings.recompute:
        return
    size = [length for axis, length in enumerate(source.patch_size) if axis != source.squeeze_axis]
    dtype = choose_dtype(source.device, settings.precision)
    needed = kept_bytes(network, (source.batch_size, network.in_channels, *size), dtype)
    if needed > free:
        patches = f"{source.batch_size} patches of {' x '.join(map(str, size))}"
        rule = f"at least {bytes_in_words(needed)} for a step with {patches}"
        advice = (
            "Lower sample.batch_size (train.accumulate makes up for it) or sample.patch_size, or set train.recompute"
        )
        raise VolsegError(sentence(f"memory of {source.device}", rule, bytes_in_words(free), advice))


_RESERVE = 1.1  # validations take a little longer now and then
_FIRST_VALIDATION = 0.1  # with a time budget, the first comes after this share: its duration is needed
_LOOK_EVERY = 50  # steps between looks at the losses on a GPU, which each wait for it


class Trainer:
    """Mutable state of one training; :func:`pipeline.train.trainer.train_fold` drives it.

    Args:
        network: With its initial weights.
        batches: What it trains on.
        validation: Full-volume validation.
        settings: All settings.
        folder: Folder of the fold; a checkpoint there is continued.
        identity: Hash of everything that must not change before continuing.
        began: ``time.monotonic()`` at the start of this sitting, loading included.
        processes: Those that train together; the first one writes.
        how: How the network is executed.

    Raises:
        ConfigError: If there are more or fewer class weights than outputs of the network.
        VolsegError: If the checkpoint is of another training, or damaged.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        batches: TrainingBatches,
        validation: Validation,
        settings: Settings,
        folder: Path,
        identity: str,
        began: float,
        processes: Processes = SINGLE,
        how: Execution = PLAIN,
    ) -> None:
        self.settings, self.batches, self.validation, self.processes = settings, batches, validation, processes
        source, regions = batches.source, batches.frame.regions
        self.folder, self.identity, self.device = folder, identity, source.device
        self.dtype = choose_dtype(self.device, settings.train.precision)
        labels = (label for _, label in source.volumes.values())
        weights = class_weights(settings.loss, network.out_channels, labels, regions=regions)
        self.class_weights = None if weights is None else weights.to(self.device)
        execute(network, self.device, how)
        if settings.train.recompute:
            recompute_activations(network)
        self.model, self.how = processes.wrapped(network), how
        self.state = first_state(network, settings.train, self.dtype)
        self.steps = source.batches_per_epoch(settings.train.iterations_per_epoch)  # of an epoch
        self.budget = make_budget(settings.train, self.steps)
        self.progress = load_checkpoint(folder, identity, self.state)
        if not processes.first:  # dropout of its own; the first one's is in the checkpoint
            torch.manual_seed(int(seeded(settings.train.seed, self.progress.iteration, processes.rank).integers(2**62)))
        self.best_scores: ValidationScores | None = None  # of all cases, if every validation takes all
        self.began = began - self.progress.elapsed_s
        length = f"{self.budget}, patience {settings.train.patience}"
        finished = self.progress.finished and (self.progress.length == length or self.share >= 1.0)
        self.progress = replace(self.progress, finished=finished, length=length)
        self.losses = torch.tensor(self.progress.part.loss, device=self.device)  # sum of the epoch that has begun
        self.first_bad = torch.tensor(-1, device=self.device)  # step whose loss was not finite
        self.saved = time.monotonic()
        self.orders = Commands(self.share, 0, False)

    @property
    def elapsed_s(self) -> float:
        """Time spent, over all sittings."""
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """Share of the training that is done; time for the last validations is kept back."""
        rounds = 1.0 if self.validation.complete else 1.0 + self.validation.longer
        reserve_s = _RESERVE * self.progress.validation_s * rounds
        return self.budget.progress(self.progress.iteration, self.elapsed_s, reserve_s)

    def epoch(self, stop: StopRequest, on_step: OnStep) -> EpochRecord | None:
        """Train to the end of the epoch, from wherever it stands; with a time budget it may end early.

        Args:
            stop: Asked after every step.
            on_step: Told of every step.

        Returns:
            The epoch's record; None if the training was asked to stop, and the checkpoint is written.

        Raises:
            VolsegError: If the loss is not finite, or many times that of earlier epochs.
        """
        part = self.progress.part
        began = time.monotonic() - part.seconds
        self.state.network.train()
        self.agree(stop)
        while part.steps < self.steps and not part.ended:
            patches, wait_s = self._step()
            part = replace(part, steps=part.steps + 1, patches=part.patches + patches, waited_s=part.waited_s + wait_s)
            self.progress = replace(self.progress, iteration=self.progress.iteration + 1)
            self.agree(stop)
            part = replace(part, ended=self.budget.seconds is not None and self.orders.share >= 1.0)
            self.progress = replace(self.progress, part=part)
            on_step(min(self.orders.share, 1.0), self.losses / part.steps)
            if self.device.type == "cpu" or part.steps % _LOOK_EVERY == 0:
                self._require_finite()
            if stop.signal or self.orders.save:
                self.save(time.monotonic() - began)
            if stop.signal:
                return None
        self._require_finite()  # waits for the device, so that the seconds are true
        return self._record(part, max(time.monotonic() - began, 1e-9))

    def agree(self, stop: StopRequest | None = None) -> None:
        """Settle with the other processes how far the training is, and whether to stop or to save."""
        due = time.monotonic() - self.saved > self.settings.train.checkpoint_minutes * 60
        self.orders = self.processes.agree(Commands(self.share, stop.signal if stop else 0, due))
        if stop is not None:
            stop.signal = self.orders.signal

    def validation_is_due(self, epoch: int) -> bool:
        """Whether to validate after this epoch: every few, at the end, and early enough to know how long it takes."""
        first = (
            self.budget.seconds is not None and not self.progress.validation_s and self.orders.share > _FIRST_VALIDATION
        )
        return first or self.orders.share >= 1.0 or epoch % self.settings.train.validate_every == 0

    def validate(self, everything: bool, weights: Mapping[str, Tensor]) -> ValidationScores:
        """Scores of the given weights (none: the current ones); the training weights are put back afterwards."""
        with other_weights(self.state.network, weights) as network:
            return self.validation.score(network, everything)

    def note_validation(self, record: EpochRecord) -> EpochRecord:
        """Validate, keep the weights if they are the best so far, and complete the epoch's record."""
        began = time.monotonic()
        scores = self.validate(False, self.state.average)
        best, dice = self.progress.best_dice, scores.mean_dice
        better = best is None or (dice is not None and dice > best)
        if better and self.processes.first:
            save_weights(self.folder / "best.safetensors", self.state.average or self.state.network.state_dict())
        self.best_scores = self.best_scores if not better else scores if self.validation.complete else None
        self.progress = replace(
            self.progress,
            best_dice=dice if better else best,
            stale=0 if better else self.progress.stale + 1,
            validation_s=time.monotonic() - began,
        )
        return replace(record, validation_s=self.progress.validation_s, dice=scores.dice, mean_dice=dice)

    def note_epoch(self, record: EpochRecord) -> None:
        """Add the record, decide whether this was the last epoch, and write the checkpoint."""
        patience = self.settings.train.patience
        validated = record.validation_s > 0  # the last weights are always scored
        self.agree()
        finished = validated and (
            self.orders.share >= 1.0 or (patience is not None and self.progress.stale >= patience)
        )
        records = (*self.progress.records, record)
        self.progress = replace(self.progress, records=records, finished=finished, part=EpochPart())
        self.losses.zero_()
        self.save()
        if self.processes.first:
            write_history(records, self.folder / "history.csv")

    def save(self, seconds: float | None = None) -> None:
        """Write the checkpoint; ``seconds`` is how long the epoch that has begun has taken, None where that is known.

        Raises:
            VolsegError: If the loss is not finite: the checkpoint before it is kept.
        """
        self._require_finite()
        part = replace(self.progress.part, loss=float(self.losses))
        part = replace(part, seconds=part.seconds if seconds is None else seconds)
        self.progress = replace(self.progress, elapsed_s=self.elapsed_s, part=part)
        if self.processes.first:
            save_checkpoint(self.folder, self.progress, self.identity, self.state, self.settings.train.keep_checkpoints)
        self.saved = time.monotonic()

    def _step(self) -> tuple[int, float]:
        """Update the weights once; returns the patches it saw and the seconds it waited for them."""
        parts, wait_s = self.batches.step(self.progress.iteration)
        train = self.settings.train
        rate = learning_rate(self.orders.share, train)
        loss = update(self.state, self.model, parts, self._objective, train, self.dtype, rate, self.how)
        self.losses += loss
        first_bad = torch.where(loss.isfinite(), -1, self.progress.iteration)
        self.first_bad = torch.where(self.first_bad < 0, first_bad, self.first_bad)
        update_average(self.state, train.ema_decay, self.progress.iteration + 1)
        return sum(len(images) for images, _ in parts), wait_s

    def _objective(self, heads: Tensor | Mapping[str, Tensor], labels: Tensor) -> Tensor:
        return supervised_loss(
            heads,
            without_margin(labels, self.state.network.margin),
            self.settings.loss,
            regions=self.batches.frame.regions,
            class_weights=self.class_weights,
            processes=self.processes,
        )

    def _require_finite(self) -> None:
        if (step := int(self.first_bad)) >= 0:
            raise self._diverged(math.nan, step)

    def _diverged(self, loss: float, step: int) -> Exception:
        batch, cases = self.batches.again(step)
        return diverged(self.folder, loss, step + 1, batch, cases, self.settings.train)

    def _record(self, part: EpochPart, seconds: float) -> EpochRecord:
        """The epoch that ends here; its part becomes what a checkpoint before the validation needs."""
        found = self.processes.gathered({str(self.processes.rank): float(self.losses)})
        loss = sum(found.values()) / len(found) / max(part.steps, 1)
        if has_exploded(loss, [record.loss for record in self.progress.records]):
            raise self._diverged(loss, self.progress.iteration - 1)
        self.progress = replace(self.progress, part=replace(part, ended=True, seconds=seconds))
        rate, share = learning_rate(self.orders.share, self.settings.train), min(self.orders.share, 1.0)
        speed = part.patches * self.processes.count / seconds
        number = len(self.progress.records) + 1
        return EpochRecord(number, self.progress.iteration, loss, rate, seconds, speed, part.waited_s / seconds, share)


# The training loop: one fold of one network, resumable at every epoch.


@dataclass(frozen=True)
class TrainResult:
    """What a finished training leaves.

    Args:
        scores: Full validation of the best weights.
        progress: Final state, with all epochs.
    """

    scores: ValidationScores
    progress: TrainingProgress


def train_fold(
    network: SegmentationNetwork,
    source: PatchSource,
    frame: PatchGeometry,
    validation: Validation,
    settings: Settings,
    folder: Path,
    identity: str,
    on_epoch: Callable[[EpochRecord, int], None],
    began: float | None = None,
    processes: Processes = SINGLE,
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
