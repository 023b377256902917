"""The training loop: one fold of one network, resumable at every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter

from pipeline.config import Settings
from pipeline.core.errors import VolsegError
from pipeline.model.device import autocast, choose_dtype, to_device
from pipeline.model.folder import load_weights, save_weights
from pipeline.sample.augment import Direction, augment
from pipeline.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipeline.train.history import EpochRecord, log_epoch, plot_history, write_history
from pipeline.train.loss import supervised_loss
from pipeline.train.schedule import Budget, build_optimizer, learning_rate, make_budget
from pipeline.train.source import PatchSource

__all__ = ["Frame", "TrainResult", "ValidationScores", "train_fold"]


@dataclass(frozen=True)
class ValidationScores:
    """Result of a full-volume validation.

    Args:
        dice: Organ → mean Dice over the cases that have it; None where no case has it.
        mean_dice: Mean over organs, None if no case has any.
        cases: Per case, organ → Dice.
    """

    dice: Mapping[str, float | None]
    mean_dice: float | None
    cases: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Frame:
    """What the loop needs to know of the axes a network sees.

    Args:
        directions: Anatomical direction of each axis: ``LR``, ``AP`` or ``SI``.
        spacing_mm: Spacing of each axis.
        side_pairs: Class indices of left/right organ pairs.
    """

    directions: tuple[Direction, ...]
    spacing_mm: tuple[float, ...]
    side_pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TrainResult:
    """What a finished training leaves.

    Args:
        scores: Full validation of the best weights.
        progress: Final state, with all epochs.
    """

    scores: ValidationScores
    progress: Progress


Validate = Callable[[nn.Module, bool], ValidationScores]
"""Scores a network on full volumes; the flag asks for all validation cases instead of the quick subset."""


class _Trainer:
    """Mutable state of one training; :func:`train_fold` is the way in."""

    def __init__(
        self, network: nn.Module, source: PatchSource, frame: Frame, settings: Settings, folder: Path, identity: str
    ) -> None:
        self.settings, self.source, self.frame, self.folder, self.identity = settings, source, frame, folder, identity
        self.device = source.device
        self.dtype = choose_dtype(self.device, settings.train.precision)
        self.network = to_device(network, self.device)
        self.optimizer = build_optimizer(self.network, settings.train)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.generators = (
            np.random.default_rng(settings.train.seed),
            torch.Generator().manual_seed(settings.train.seed),
        )
        decay = settings.train.ema_decay
        self.average = {n: t.detach().clone() for n, t in self.network.state_dict().items()} if decay else {}
        self.batches = source.batches_per_epoch(settings.train.iterations_per_epoch)
        self.budget: Budget = make_budget(settings.train, self.batches)
        self.progress = load_checkpoint(folder, identity, self.network, self.average, self.optimizer, self.generators)
        self.started = time.monotonic() - self.progress.elapsed_s

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        """Share of the training that is done; time for the final validation is kept back."""
        reserve = 1.1 * self.progress.validation_s * (3 if self.settings.train.validation_cases else 1)
        return self.budget.progress(self.progress.iteration, self.elapsed_s, reserve)

    def epoch(self) -> EpochRecord:
        began, waited, losses, patches = time.monotonic(), 0.0, torch.zeros((), device=self.device), 0
        self.network.train()
        steps = 0
        for images, labels, wait in self._batches():
            rate = learning_rate(self.share, self.settings.train)
            losses += self._step(images, labels, rate)
            waited += wait
            steps += 1
            patches += images.shape[0]
            self.progress = replace(self.progress, iteration=self.progress.iteration + 1)
            if self.budget.seconds is not None and self.share >= 1.0:
                break
        seconds = time.monotonic() - began
        loss = float(losses) / max(steps, 1)
        if not math.isfinite(loss):
            raise VolsegError(
                f"training loss: expected a finite number, got {loss} in epoch {len(self.progress.records) + 1}. "
                "Lower train.learning_rate; the checkpoint of the epoch before is kept."
            )
        return EpochRecord(
            epoch=len(self.progress.records) + 1,
            iteration=self.progress.iteration,
            loss=loss,
            learning_rate=learning_rate(self.share, self.settings.train),
            seconds=seconds,
            patches_per_s=patches / max(seconds, 1e-9),
            data_share=waited / max(seconds, 1e-9),
            progress=min(self.share, 1.0),
        )

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Augmented batches of one epoch and the time each took to make."""
        batches = self.source.epoch(self.batches, self.generators[0])
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            images, labels = augment(
                *batch,
                self.settings.augment,
                self.generators[1],
                side_pairs=self.frame.side_pairs,
                directions=self.frame.directions,
                spacing_mm=self.frame.spacing_mm,
            )
            yield images, labels, time.monotonic() - began

    def _step(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        form = torch.channels_last_3d if images.ndim == 5 else torch.channels_last
        with autocast(self.device, self.dtype):
            heads = self.network(images.contiguous(memory_format=form) if self.device.type != "mps" else images)
        loss = supervised_loss(heads, labels, self.settings.train)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.settings.train.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.network.parameters(), self.settings.train.gradient_clip, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._update_average()
        return loss.detach()

    def _update_average(self) -> None:
        if not self.average:
            return
        # the bias of the first steps is avoided by a shorter memory: after n steps at most n/(n+10)
        steps = self.progress.iteration + 1
        decay = min(self.settings.train.ema_decay, steps / (steps + 10))
        state = self.network.state_dict()
        with torch.no_grad():
            floating = [name for name, tensor in self.average.items() if tensor.is_floating_point()]
            torch._foreach_lerp_([self.average[n] for n in floating], [state[n] for n in floating], 1 - decay)
            for name in self.average.keys() - set(floating):
                self.average[name].copy_(state[name])

    def validate(self, validate: Validate, everything: bool, weights: Mapping[str, Tensor]) -> ValidationScores:
        """Scores of the given weights; the training weights are put back afterwards."""
        kept = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(dict(weights) or kept)
        self.network.eval()
        try:
            return validate(self.network, everything)
        finally:
            self.network.load_state_dict(kept)

    def note_validation(self, record: EpochRecord, validate: Validate) -> EpochRecord:
        """Validate, keep the weights if they are the best so far, and complete the epoch's record."""
        began = time.monotonic()
        scores = self.validate(validate, False, self.average)
        seconds = time.monotonic() - began
        best, dice = self.progress.best_dice, scores.mean_dice
        better = best is None or (dice is not None and dice > best)
        if better:
            save_weights(self.folder / "best.safetensors", dict(self.average) or self.network.state_dict())
        self.progress = replace(
            self.progress,
            best_dice=dice if better else best,
            stale=0 if better else self.progress.stale + 1,
            validation_s=seconds,
        )
        return replace(record, validation_s=seconds, dice=scores.dice, mean_dice=dice)

    def save(self) -> None:
        self.progress = replace(self.progress, elapsed_s=self.elapsed_s)
        save_checkpoint(
            self.folder, self.progress, self.identity, self.network, self.average, self.optimizer, self.generators
        )
        write_history(self.progress.records, self.folder / "history.csv")


def train_fold(
    network: nn.Module,
    source: PatchSource,
    frame: Frame,
    settings: Settings,
    folder: Path,
    identity: str,
    validate: Validate,
    on_epoch: Callable[[EpochRecord, int], None],
) -> TrainResult:
    """Train one fold to its end, or continue where an earlier run stopped.

    The folder receives ``last.safetensors`` every epoch, ``best.safetensors`` at every better validation,
    ``history.csv``, ``curves.png``, TensorBoard events, and at the end ``model.safetensors``, the best weights.

    Args:
        network: With its initial weights.
        source: Training patches.
        frame: Axes and left/right pairs, for augmentation.
        settings: All settings.
        folder: Folder of the fold.
        identity: Hash of everything that must not change before continuing.
        validate: Full-volume validation.
        on_epoch: Called after every epoch with its record and the expected number of epochs.

    Returns:
        Scores of the best weights on all validation cases, and the history.

    Raises:
        VolsegError: If the loss is not finite, or the folder holds another training.
    """
    trainer = _Trainer(network, source, frame, settings, folder, identity)
    patience = settings.train.patience
    with SummaryWriter(str(folder / "events")) as writer:
        while not trainer.progress.finished:
            record = trainer.epoch()
            ends = trainer.share >= 1.0
            if ends or record.epoch % settings.train.validate_every == 0:
                record = trainer.note_validation(record, validate)
            stopped = patience is not None and trainer.progress.stale >= patience
            records = (*trainer.progress.records, record)
            trainer.progress = replace(trainer.progress, records=records, finished=ends or stopped)
            trainer.save()
            log_epoch(writer, record)
            if record.mean_dice is not None:
                plot_history(records, folder / "curves.png")
            on_epoch(record, trainer.budget.epochs(record.epoch, record.progress, settings.train.epochs))
    return _finish(trainer, validate)


def _finish(trainer: _Trainer, validate: Validate) -> TrainResult:
    best = load_weights(trainer.folder / "best.safetensors")
    scores = trainer.validate(validate, True, best)
    save_weights(trainer.folder / "model.safetensors", best)
    return TrainResult(scores, trainer.progress)
