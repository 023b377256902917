"""One fold trained to its end: steps, epochs, validations and checkpoints, resumable at every step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipeline.core.errors import VolsegError
from pipeline.core.signals import STOPS, StopRequest, stoppable
from pipeline.model.base import SegmentationNetwork
from pipeline.model.device import choose_dtype, enough_memory, execute, recompute_activations, tried_kernels
from pipeline.model.folder import load_weights, save_weights
from pipeline.sample.randomness import seeded
from pipeline.train.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from pipeline.train.distributed import Commands
from pipeline.train.loader import PatchSource, TrainingBatches
from pipeline.train.log import Curves, EpochRecord, Resources, log_epoch, write_history
from pipeline.train.loss import border_weights, class_weights, supervised_loss
from pipeline.train.schedule import learning_rate, make_budget
from pipeline.train.state import (
    NO_CALLBACKS,
    Callbacks,
    EpochPart,
    TrainingProgress,
    TrainRun,
    Validation,
    ValidationScores,
    first_state,
    other_weights,
    update,
    update_average,
    without_margin,
)
from pipeline.train.step_memory import STEP_ADVICE

BATCH_FILE = "diverged.safetensors"
"""The batch with which a training diverged: ``images`` (B, C, *S) and ``labels`` (B, *S)."""

_RESERVE = 1.1  # validations take a little longer now and then
_FIRST_VALIDATION = 0.1  # with a time budget, the first comes after this share: its duration is needed
_LOOK_EVERY = 50  # steps between looks at the losses on a GPU, which each wait for it
_EXPLODED = 20.0  # times the best epoch's loss
_SMALLEST_LOSS = 0.05  # below this the best loss says nothing about the scale
_STRANGE = 100.0  # SD; normalized intensities this large are not tissue


@dataclass(frozen=True)
class TrainResult:
    """What a finished training leaves.

    Args:
        scores: Full validation of the weights that are the model.
        progress: Final state, with all epochs.
        weights: Which these are: ``best`` or ``last``.
    """

    scores: ValidationScores
    progress: TrainingProgress
    weights: Literal["best", "last"] = "best"

    @property
    def caution(self) -> str:
        """A sentence where the scored cases have also chosen the weights, else nothing."""
        validations = sum(record.validation_s > 0 for record in self.progress.records)
        if self.weights == "last" or validations < 2:
            return ""
        return f"These cases also chose the best of {validations} validations: expect a little less of other cases."


def train_fold(
    run: TrainRun,
    network: SegmentationNetwork,
    source: PatchSource,
    validation: Validation,
    callbacks: Callbacks = NO_CALLBACKS,
) -> TrainResult:
    """Train one fold to its end, or continue where an earlier run stopped.

    The folder receives ``last.safetensors`` every epoch and every few minutes, ``best.safetensors`` at every better
    validation, ``history.csv``, ``curves.png``, TensorBoard events, and at the end ``model.safetensors``, the
    weights that ``train.select`` asks for. Torch's global random state, which dropout uses, is seeded for the training
    and given back as it was.

    Args:
        run: What is trained, and where.
        network: With its initial weights.
        source: Training patches; its batches are divided into parts, which the run's processes share.
        validation: Full-volume validation.
        callbacks: Called while the training goes on.

    Returns:
        Scores of these weights on all validation cases, and the history.

    Raises:
        ConfigError: If there are more or fewer class weights than outputs of the network.
        VolsegError: If the training diverges, the memory is too small, or the folder holds another training.
        KeyboardInterrupt, Stopped: If Ctrl-C or SIGTERM asked for it; what was done is saved.
    """
    processes, train = run.processes, run.settings.train
    own_parts = range(processes.rank, source.parts, processes.count)

    def border(labels: Tensor) -> Tensor | None:
        covered = without_margin(labels, network.margin)
        return border_weights(covered, run.settings.loss, run.geometry.regions)

    with (
        torch.random.fork_rng([source.device] if source.device.type == "cuda" else []),
        stoppable() as stop,
        TrainingBatches(source, run.geometry, run.settings.augment, own_parts, border) as batches,
    ):
        torch.manual_seed(train.seed)
        what = f"the network and {source.batch_size} patches of {' x '.join(map(str, source.patch_size))}"
        with enough_memory(source.device, what, f"{STEP_ADVICE}, or lower sample.cache_mb"):
            # Before the trainer moves and wraps the network: multiply-adds are counted on its plain layers.
            resources = Resources(network, source, choose_dtype(source.device, train.precision))
            trainer = Trainer(run, network, batches, validation)
            callbacks.on_start(trainer.progress.records, trainer.expected_epochs(trainer.share))
            _train_epochs(trainer, resources, callbacks, stop)
            with stop.at_once():
                return trainer.finish()


def _train_epochs(trainer: Trainer, resources: Resources, callbacks: Callbacks, stop: StopRequest) -> None:
    """Epochs until the training is finished; a signal ends it when the checkpoint is written."""
    first, curves = trainer.run.processes.first, Curves(trainer.run.folder / "curves.png")
    with SummaryWriter(str(trainer.run.folder / "events")) if first else nullcontext() as writer:
        while not trainer.progress.finished:
            record = trainer.epoch(stop, callbacks)
            if record is None:
                stop.stop()
            if trainer.validation_is_due(record.epoch):
                try:
                    with stop.at_once():
                        record = trainer.note_validation(record)
                except STOPS:
                    trainer.save()  # the validation begins again from this checkpoint
                    raise
            record = resources.complete(record)
            trainer.note_epoch(record)
            if writer is None:
                continue
            log_epoch(writer, record)
            curves.note(trainer.progress.records, trainer.progress.finished)
            callbacks.on_epoch(record, trainer.expected_epochs(record.progress))


class Trainer:
    """Mutable state of one training; :func:`train_fold` drives it.

    Raises:
        ConfigError: If there are more or fewer class weights than outputs of the network.
        VolsegError: If the checkpoint is of another training, or damaged.
    """

    def __init__(
        self, run: TrainRun, network: SegmentationNetwork, batches: TrainingBatches, validation: Validation
    ) -> None:
        self.run, self.batches, self.validation = run, batches, validation
        source, train, processes = batches.source, run.settings.train, run.processes
        self.device = source.device
        labels = (label for _, label in source.volumes.values())
        weights = class_weights(run.settings.loss, network.out_channels, labels, regions=run.geometry.regions)
        self.class_weights = None if weights is None else weights.to(self.device)
        execute(network, self.device, run.how)
        if train.recompute:
            recompute_activations(network)
        # The optimizer takes the parameters as they are: only when the network is where it computes, and wrapped.
        self.state = first_state(network, train, choose_dtype(self.device, train.precision), run.how, processes)
        self.steps = source.batches_per_epoch(train.iterations_per_epoch)  # of an epoch
        self.budget = make_budget(train, self.steps)
        self.progress = load_checkpoint(run.folder, run.training_hash, self.state)
        if not processes.first:  # dropout of its own; the first one's is in the checkpoint
            torch.manual_seed(int(seeded(train.seed, self.progress.iteration, processes.rank).integers(2**62)))
        self.best_scores: ValidationScores | None = None  # of all cases, if every validation takes all
        self.last_scores: ValidationScores | None = None
        self.began = run.began - self.progress.elapsed_s
        # A finished training goes on if it is given another length, unless that is over already.
        length = f"{self.budget}, patience {train.patience}"
        finished = self.progress.finished and (self.progress.length == length or self.share >= 1.0)
        self.progress = replace(self.progress, finished=finished, length=length)
        # Losses stay on the device: reading one after every step would make the processor wait for a GPU.
        self.losses = torch.tensor(self.progress.part.loss, device=self.device)  # sum of the epoch that has begun
        self.first_bad = torch.tensor(-1, device=self.device)  # step whose loss or gradient was not finite
        self.bad = torch.zeros(0, device=self.device)  # its loss, then the norms of its gradients
        self.saved = time.monotonic()
        self.commands = Commands(self.share, 0, False)

    @property
    def elapsed_s(self) -> float:
        """Time spent, over all runs."""
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """Share of the training that is done; time for the last validations is kept back."""
        # A last validation of the quick subset, and then one of all cases unless the subset is all of them.
        rounds = 1.0 if self.validation.complete else 1.0 + self.validation.longer
        reserve_s = _RESERVE * self.progress.validation_s * rounds
        return self.budget.progress(self.progress.iteration, self.elapsed_s, reserve_s)

    def expected_epochs(self, share: float) -> int:
        """Expected number of epochs in all, when so large a share of the training is done."""
        return self.budget.epochs(len(self.progress.records), share, self.run.settings.train.epochs)

    def epoch(self, stop: StopRequest, callbacks: Callbacks) -> EpochRecord | None:
        """Train to the end of the epoch, from wherever it stands; with a time budget it may end early.

        Returns:
            The epoch's record; None if the training was asked to stop, and the checkpoint is written.

        Raises:
            VolsegError: If a loss or gradient is not finite, or the loss many times that of earlier epochs.
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
            part = replace(part, ended=self.budget.seconds is not None and self.commands.share >= 1.0)
            self.progress = replace(self.progress, part=part)
            callbacks.on_step(min(self.commands.share, 1.0), self.losses / part.steps)
            if self.device.type == "cpu" or part.steps % _LOOK_EVERY == 0:
                self._require_finite()
            if stop.signal or self.commands.save:
                self.save(time.monotonic() - began)
            if stop.signal:
                return None
        self._require_finite()  # waits for the device, so that the seconds are true
        return self._record(part, max(time.monotonic() - began, 1e-9))

    def agree(self, stop: StopRequest | None = None) -> None:
        """Settle with the other processes how far the training is, and whether to stop or to save."""
        # Clocks differ a little: if each process decided by its own, one would wait for others that have ended.
        due = time.monotonic() - self.saved > self.run.settings.train.checkpoint_minutes * 60
        self.commands = self.run.processes.agree(Commands(self.share, stop.signal if stop else 0, due))
        if stop is not None:
            stop.signal = self.commands.signal

    def validation_is_due(self, epoch: int) -> bool:
        """Whether to validate after this epoch: every few, at the end, and early enough to know how long it takes."""
        share, validation_s = self.commands.share, self.progress.validation_s
        first = self.budget.seconds is not None and not validation_s and share > _FIRST_VALIDATION
        return first or share >= 1.0 or epoch % self.run.settings.train.validate_every == 0

    def note_validation(self, record: EpochRecord) -> EpochRecord:
        """Validate, keep the weights if they are the best so far, and complete the epoch's record."""
        began = time.monotonic()
        # The average is scored and kept where there is one: it is what will predict.
        scores = self._validate(False, self.state.average)
        best, dice = self.progress.best_dice, scores.mean_dice
        # Where no case has an organ, there is a Dice (of 0) only if one was hallucinated: no Dice is the best.
        clean = best is None and any(record.validation_s > 0 for record in self.progress.records)
        better = dice is None or (not clean and (best is None or dice > best))
        # Of equal scores the later: the weights are no worse for having learnt more.
        kept = better or dice == best
        if kept and self.run.processes.first:
            save_weights(self.run.folder / "best.safetensors", self.state.average or self.state.network.state_dict())
        self.last_scores = scores if self.validation.complete else None
        self.best_scores = self.last_scores if kept else self.best_scores
        self.progress = replace(
            self.progress,
            best_dice=dice if better else best,
            stale=0 if better else self.progress.stale + 1,
            validation_s=time.monotonic() - began,
        )
        return replace(record, validation_s=self.progress.validation_s, dice=scores.dice, mean_dice=dice)

    def note_epoch(self, record: EpochRecord) -> None:
        """Add the record, decide whether this was the last epoch, and write the checkpoint."""
        patience = self.run.settings.train.patience
        validated = record.validation_s > 0  # the last weights are always scored
        self.agree()
        finished = validated and (
            self.commands.share >= 1.0 or (patience is not None and self.progress.stale >= patience)
        )
        records = (*self.progress.records, record)
        self.progress = replace(self.progress, records=records, finished=finished, part=EpochPart())
        self.losses.zero_()
        self.save()
        if self.run.processes.first:
            write_history(records, self.run.folder / "history.csv")

    def save(self, seconds: float | None = None) -> None:
        """Write the checkpoint; ``seconds`` is how long the epoch that has begun has taken, None where that is known.

        Raises:
            VolsegError: If a loss or gradient is not finite: the checkpoint before it is kept.
        """
        self._require_finite()  # a checkpoint of weights that are not finite could not be continued
        part = replace(self.progress.part, loss=float(self.losses))
        part = replace(part, seconds=part.seconds if seconds is None else seconds)
        self.progress = replace(self.progress, elapsed_s=self.elapsed_s, part=part)
        run = self.run
        if run.processes.first:
            save_checkpoint(
                run.folder, self.progress, run.training_hash, self.state, run.settings.train.keep_checkpoints
            )
        self.saved = time.monotonic()

    def finish(self) -> TrainResult:
        """Score the best weights, or the last, on all validation cases and make them the model."""
        self.run.processes.wait()  # until the first one has written
        select = self.run.settings.train.select
        if select == "best":
            weights, scores = load_weights(self.run.folder / "best.safetensors"), self.best_scores
        else:
            weights, scores = self.state.average or self.state.network.state_dict(), self.last_scores
        scores = scores or self._validate(True, weights)
        if self.run.processes.first:
            save_weights(self.run.folder / "model.safetensors", weights)
        return TrainResult(scores, self.progress, select)

    def _step(self) -> tuple[int, float]:
        """Update the weights once; returns the patches it saw and the seconds it waited for them."""
        parts, wait_s = self.batches.step(self.progress.iteration)
        train = self.run.settings.train
        with tried_kernels(self.device):  # all batches are of one size
            loss = update(self.state, parts, self._objective, train, learning_rate(self.commands.share, train))
        self.losses += loss
        values = torch.stack([loss, *self.state.norms.values()])
        self.bad = values if self.bad.shape != values.shape else torch.where(self.first_bad < 0, values, self.bad)
        first_bad = torch.where(torch.linalg.vector_norm(values).isfinite(), -1, self.progress.iteration)
        self.first_bad = torch.where(self.first_bad < 0, first_bad, self.first_bad)
        update_average(self.state, train.ema_decay, self.progress.iteration + 1)
        return sum(len(part[0]) for part in parts), wait_s

    def _objective(self, heads: Tensor | Mapping[str, Tensor], labels: Tensor, border: Tensor | None = None) -> Tensor:
        return supervised_loss(
            heads,
            without_margin(labels, self.state.network.margin),
            self.run.settings.loss,
            regions=self.run.geometry.regions,
            class_weights=self.class_weights,
            processes=self.run.processes,
            border=border,
        )

    def _validate(self, everything: bool, weights: Mapping[str, Tensor]) -> ValidationScores:
        """Scores of the given weights (none: the current ones); the training weights are put back afterwards."""
        with other_weights(self.state.network, weights) as network:
            return self.validation.score(network, everything)

    def _record(self, part: EpochPart, seconds: float) -> EpochRecord:
        """The epoch that ends here; its part becomes what a checkpoint before the validation needs."""
        processes, share = self.run.processes, self.commands.share
        losses = processes.gathered({str(processes.rank): float(self.losses)})
        loss = sum(losses.values()) / len(losses) / max(part.steps, 1)
        earlier = [record.loss for record in self.progress.records]
        if earlier and loss > _EXPLODED * max(min(earlier), _SMALLEST_LOSS):
            raise self._diverged("training loss", loss, self.progress.iteration - 1)
        self.progress = replace(self.progress, part=replace(part, ended=True, seconds=seconds))
        return EpochRecord(
            epoch=len(self.progress.records) + 1,
            iteration=self.progress.iteration,
            loss=loss,
            learning_rate=learning_rate(share, self.run.settings.train),
            seconds=seconds,
            patches_per_s=part.patches * processes.count / seconds,
            data_share=part.waited_s / seconds,
            progress=min(share, 1.0),
        )

    def _require_finite(self) -> None:
        if (step := int(self.first_bad)) < 0:
            return
        loss, *norms = self.bad.tolist()
        if not math.isfinite(loss):
            raise self._diverged("training loss", loss, step)
        layers = dict(zip(self.state.norms, norms, strict=True))
        # What is wrong behind a layer's output is wrong in all layers before it: the last is the nearest to the cause.
        broken = [layer for layer, norm in layers.items() if not math.isfinite(norm)]
        layer = broken[-1] if broken else max(layers, key=layers.__getitem__)
        more = f" (and {len(broken) - 1} others)" if len(broken) > 1 else ""
        raise self._diverged(f"gradient of {layer}{more}", layers[layer], step, loss)

    def _diverged(self, what: str, got: float, step: int, loss: float | None = None) -> VolsegError:
        """The error to raise, with the likely cause; the batch of the step is saved.

        Args:
            what: Loss or gradient.
            got: Its value or norm.
            step: Counted from 0.
            loss: The step's loss, if that was a number and the gradient was none.
        """
        (images, labels), cases = self.batches.again(step)
        path, train = self.run.folder / BATCH_FILE, self.run.settings.train
        save_weights(path, {"images": images.contiguous(), "labels": labels.contiguous()})
        classes = [value for value in torch.unique(labels).tolist() if value >= 0]
        strange = int((~images.isfinite()).sum())
        low, high = (float(value) for value in torch.aminmax(images.nan_to_num()))
        if strange:
            cause = (
                f"{strange} of its intensities are not finite. Look for them with `volseg check`, and preprocess again"
            )
        elif max(-low, high) > _STRANGE:
            cause = "Its intensities are far from 0. Look at these cases: an outlier may have escaped the normalization"
        else:
            clip = "" if train.gradient_clip else ", or set train.gradient_clip: 12"
            cause = f"Its intensities look right. Lower train.learning_rate ({train.learning_rate:g}){clip}"
            if loss is not None:
                cause = f"Its intensities and its loss ({loss:g}) look right. "
                cause += (
                    "Set train.precision: fp32" if self.state.dtype != torch.float32 else "Lower train.learning_rate"
                )
        kept = (self.run.folder / CHECKPOINT).is_file()
        rest = "The checkpoint before it is kept." if kept else "There is no checkpoint yet."
        return VolsegError(
            f"{what}: expected a finite number like those before, got {got:g} in step {step + 1}. Its batch is "
            f"in {path}: cases {', '.join(dict.fromkeys(cases))}; intensities {low:.3g} to {high:.3g}; classes "
            f"{', '.join(map(str, classes)) or 'none'}. {cause}. {rest}"
        )
