"""One training in progress: steps, epochs, validations, and where it stands."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pipeline.config import Settings
from pipeline.core.errors import VolsegError
from pipeline.model.base import SegmentationNetwork
from pipeline.model.device import autocast, choose_dtype, to_device
from pipeline.model.folder import save_weights
from pipeline.sample.augment import augment
from pipeline.train.balance import class_weights
from pipeline.train.checkpoint import TrainState, load_checkpoint, save_checkpoint
from pipeline.train.history import EpochRecord, write_history
from pipeline.train.loss import supervised_loss
from pipeline.train.schedule import build_optimizer, learning_rate, make_budget
from pipeline.train.source import PatchSource
from pipeline.train.values import Frame, Validation, ValidationScores

__all__ = ["Trainer"]

_RESERVE = 1.1  # validations take a little longer now and then
_FIRST_VALIDATION = 0.1  # with a time budget, the first comes after this share at the latest: its duration is needed


class Trainer:
    """Mutable state of one training; :func:`pipeline.train.loop.train_fold` drives it.

    Args:
        network: With its initial weights.
        source: Training patches.
        frame: Axes, left/right pairs and regions.
        validation: Full-volume validation.
        settings: All settings.
        folder: Folder of the fold; a checkpoint there is continued.
        identity: Hash of everything that must not change before continuing.
        began: ``time.monotonic()`` at the start of this sitting, loading included.

    Raises:
        ConfigError: If there are more or fewer class weights than outputs of the network.
        VolsegError: If the checkpoint is of another training, or damaged.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        source: PatchSource,
        frame: Frame,
        validation: Validation,
        settings: Settings,
        folder: Path,
        identity: str,
        began: float,
    ) -> None:
        self.settings, self.source, self.frame, self.validation = settings, source, frame, validation
        self.folder, self.identity, self.device = folder, identity, source.device
        self.dtype = choose_dtype(self.device, settings.train.precision)
        labels = (label for _, label in source.volumes.values())
        weights = class_weights(settings.loss, network.out_channels, labels, regions=frame.regions)
        self.class_weights = None if weights is None else weights.to(self.device)
        to_device(network, self.device)
        keeps_average = settings.train.ema_decay > 0
        self.state = TrainState(
            network,
            {name: tensor.detach().clone() for name, tensor in network.state_dict().items()} if keeps_average else {},
            build_optimizer(network, settings.train),
            torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16),
            np.random.default_rng(settings.train.seed),
            torch.Generator().manual_seed(settings.train.seed),
        )
        self.batches = source.batches_per_epoch(settings.train.iterations_per_epoch)
        self.budget = make_budget(settings.train, self.batches)
        self.progress = load_checkpoint(folder, identity, self.state)
        self.best_scores: ValidationScores | None = None  # of all cases, if every validation takes all
        self.began = began - self.progress.elapsed_s
        length = f"{self.budget}, patience {settings.train.patience}"
        finished = self.progress.finished and (self.progress.length == length or self.share >= 1.0)
        self.progress = replace(self.progress, finished=finished, length=length)

    @property
    def elapsed_s(self) -> float:
        """Time spent, over all sittings."""
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """Share of the training that is done; time for the last validations is kept back."""
        quick, everything = self.validation.quick, self.validation.all
        rounds = 1.0 + (everything / quick if everything > quick else 0.0)
        reserve_s = _RESERVE * self.progress.validation_s * rounds
        return self.budget.progress(self.progress.iteration, self.elapsed_s, reserve_s)

    def epoch(self) -> EpochRecord:
        """Train one epoch; with a time budget it may end early.

        Raises:
            VolsegError: If the loss is not finite.
        """
        began, waited, patches, steps = time.monotonic(), 0.0, 0, 0
        losses = torch.zeros((), device=self.device)
        self.state.network.train()
        for images, labels, wait_s in self._batches():
            losses += self._step(images, labels)
            waited, patches, steps = waited + wait_s, patches + images.shape[0], steps + 1
            self.progress = replace(self.progress, iteration=self.progress.iteration + 1)
            if self.budget.seconds is not None and self.share >= 1.0:
                break
        loss = float(losses) / max(steps, 1)  # waits for the device, so that the seconds are true
        seconds = max(time.monotonic() - began, 1e-9)
        number = len(self.progress.records) + 1
        if not math.isfinite(loss):
            raise VolsegError(
                f"training loss: expected a finite number, got {loss} in epoch {number}. "
                "Lower train.learning_rate; the checkpoint of the epoch before is kept."
            )
        rate = learning_rate(self.share, self.settings.train)
        share = min(self.share, 1.0)
        return EpochRecord(
            number, self.progress.iteration, loss, rate, seconds, patches / seconds, waited / seconds, share
        )

    def validation_is_due(self, epoch: int) -> bool:
        """Whether to validate after this epoch: every few, at the end, and early enough to know how long it takes."""
        first = self.budget.seconds is not None and not self.progress.validation_s and self.share > _FIRST_VALIDATION
        return first or self.share >= 1.0 or epoch % self.settings.train.validate_every == 0

    def validate(self, everything: bool, weights: Mapping[str, Tensor]) -> ValidationScores:
        """Scores of the given weights (none: the current ones); the training weights are put back afterwards."""
        network = self.state.network
        kept = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(dict(weights) or kept)
        network.eval()
        try:
            return self.validation.score(network, everything)
        finally:
            network.load_state_dict(kept)

    def note_validation(self, record: EpochRecord) -> EpochRecord:
        """Validate, keep the weights if they are the best so far, and complete the epoch's record."""
        began = time.monotonic()
        scores = self.validate(False, self.state.average)
        seconds = time.monotonic() - began
        best, dice = self.progress.best_dice, scores.mean_dice
        better = best is None or (dice is not None and dice > best)
        if better:
            save_weights(self.folder / "best.safetensors", self.state.average or self.state.network.state_dict())
            self.best_scores = scores if self.validation.quick == self.validation.all else None
        self.progress = replace(
            self.progress,
            best_dice=dice if better else best,
            stale=0 if better else self.progress.stale + 1,
            validation_s=seconds,
        )
        return replace(record, validation_s=seconds, dice=scores.dice, mean_dice=dice)

    def note_epoch(self, record: EpochRecord) -> None:
        """Add the record, decide whether this was the last epoch, and write the checkpoint."""
        patience = self.settings.train.patience
        validated = record.validation_s > 0  # the last weights are always scored
        finished = validated and (self.share >= 1.0 or (patience is not None and self.progress.stale >= patience))
        records = (*self.progress.records, record)
        self.progress = replace(self.progress, records=records, finished=finished, elapsed_s=self.elapsed_s)
        save_checkpoint(self.folder, self.progress, self.identity, self.state)
        write_history(records, self.folder / "history.csv")

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Augmented batches of one epoch and the seconds each took to make."""
        batches = self.source.epoch(self.batches, self.state.sampling)
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            images, labels = augment(
                *batch,
                self.settings.augment,
                self.state.augmentation,
                side_pairs=self.frame.side_pairs,
                directions=self.frame.directions,
                spacing_mm=self.frame.spacing_mm,
            )
            yield images, labels, time.monotonic() - began

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        state, train = self.state, self.settings.train
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(self.share, train)
        state.optimizer.zero_grad(set_to_none=True)
        if self.device.type != "mps":
            images = images.contiguous(memory_format=(torch.channels_last, torch.channels_last_3d)[images.ndim - 4])
        with autocast(self.device, self.dtype):
            heads = state.network(images)
        loss = supervised_loss(
            heads,
            _without_margin(labels, state.network.margin),
            self.settings.loss,
            regions=self.frame.regions,
            class_weights=self.class_weights,
        )
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if train.gradient_clip is not None:
            state.scaler.unscale_(state.optimizer)
            clip_grad_norm_(state.network.parameters(), train.gradient_clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        self._update_average()
        return loss.detach()

    def _update_average(self) -> None:
        average = self.state.average
        if not average:
            return
        # the bias of the first steps is avoided by a shorter memory: after n steps at most n/(n+10)
        steps = self.progress.iteration + 1
        decay = min(self.settings.train.ema_decay, steps / (steps + 10))
        current = self.state.network.state_dict()
        with torch.no_grad():
            floating = [name for name, tensor in average.items() if tensor.is_floating_point()]
            torch._foreach_lerp_([average[n] for n in floating], [current[n] for n in floating], 1 - decay)
            for name in average.keys() - set(floating):
                average[name].copy_(current[name])


def _without_margin(labels: Tensor, margin: Sequence[int]) -> Tensor:
    """The part of labels of the input's size that the logits of valid convolutions cover."""
    inner = (slice(lost, n - lost) for n, lost in zip(labels.shape[1:], margin, strict=True))
    return labels[(slice(None), *inner)]
