"""One training in progress: epochs of steps, validations, checkpoints, and where it stands."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config import Settings
from pipeline.model.base import SegmentationNetwork
from pipeline.model.device import choose_dtype
from pipeline.model.execution import PLAIN, Execution, execute, recompute_activations
from pipeline.model.folder import save_weights
from pipeline.sample.randomness import seeded
from pipeline.train.balance import class_weights
from pipeline.train.batches import TrainingBatches
from pipeline.train.checkpoint import load_checkpoint, save_checkpoint
from pipeline.train.divergence import diverged, has_exploded
from pipeline.train.history import EpochRecord, write_history
from pipeline.train.loss import supervised_loss
from pipeline.train.processes import ALONE, Orders, Processes
from pipeline.train.schedule import learning_rate, make_budget
from pipeline.train.state import EpochPart, first_state
from pipeline.train.step import other_weights, update, update_average, without_margin
from pipeline.train.stop import StopRequest
from pipeline.train.values import OnStep, Validation, ValidationScores

__all__ = ["Trainer"]

_RESERVE = 1.1  # validations take a little longer now and then
_FIRST_VALIDATION = 0.1  # with a time budget, the first comes after this share: its duration is needed
_LOOK_EVERY = 50  # steps between looks at the losses on a GPU, which each wait for it


class Trainer:
    """Mutable state of one training; :func:`pipeline.train.loop.train_fold` drives it.

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
        processes: Processes = ALONE,
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
        self.orders = Orders(self.share, 0, False)

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
        self.orders = self.processes.agree(Orders(self.share, stop.signal if stop else 0, due))
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
