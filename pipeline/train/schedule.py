"""Learning rate over the course of a training, and how a time budget becomes progress."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.config.settings import TrainSettings, parse_duration_s

_POLY_POWER = 0.9
_ONECYCLE_RISE = 0.25
_ONECYCLE_START = 1 / 25
_ROUNDING = 1e-9  # 0.6 / 0.2 is a little less than 3


def learning_rate(progress: float, settings: TrainSettings) -> float:
    """Learning rate at a share of the training.

    Args:
        progress: 0 at the start, 1 at the end; values outside are clipped.
        settings: Section ``train``.

    Returns:
        ``poly``: lr·(1-p)^0.9; ``cosine``: half a cosine to 0; ``onecycle``: cosine up from lr/25 over the first
        quarter, cosine down to 0; ``step``: times ``step_factor`` after every ``step_share``; ``constant``. During the
        warm-up share it rises linearly instead.
    """
    p = min(max(progress, 0.0), 1.0)
    peak = settings.learning_rate
    if p < settings.warmup_share:
        return peak * p / settings.warmup_share
    p = (p - settings.warmup_share) / (1.0 - settings.warmup_share)
    match settings.schedule:
        case "poly":
            return float(peak * (1.0 - p) ** _POLY_POWER)
        case "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * p))
        case "onecycle":
            if p < _ONECYCLE_RISE:
                rise = 0.5 * (1.0 - math.cos(math.pi * p / _ONECYCLE_RISE))
                return peak * (_ONECYCLE_START + (1.0 - _ONECYCLE_START) * rise)
            return peak * 0.5 * (1.0 + math.cos(math.pi * (p - _ONECYCLE_RISE) / (1.0 - _ONECYCLE_RISE)))
        case "step":
            return peak * settings.step_factor ** int(p / settings.step_share + _ROUNDING)
        case "constant":
            return peak


def build_optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with momentum; norms and biases are not decayed."""
    # Kernels have more than one axis; scales and biases would be drawn towards 0 for no gain.
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=settings.learning_rate)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=nesterov)


@dataclass(frozen=True)
class Budget:
    """When a training ends: after so many iterations, or after so much time.

    Args:
        iterations: Number of iterations, if no time is given.
        seconds: Wall-clock time for everything including validation, or None.
    """

    iterations: int
    seconds: float | None

    def progress(self, iteration: int, elapsed_s: float, reserve_s: float) -> float:
        """Share of the training that is done: 0 at the start, 1 or more when it should end.

        Args:
            iteration: Iterations done.
            elapsed_s: Time spent, over all runs.
            reserve_s: Time to keep for the final validation.
        """
        if self.seconds is None:
            return iteration / self.iterations
        # Without the reserve, the last validation would end after the time is over.
        return elapsed_s / max(self.seconds - reserve_s, 1e-3)

    def epochs(self, epochs_done: int, progress: float, planned: int) -> int:
        """Expected number of epochs in all, for people to read."""
        if self.seconds is None:
            return planned
        return max(epochs_done + 1, round(epochs_done / progress)) if progress > 0 and epochs_done else planned


def make_budget(settings: TrainSettings, iterations_per_epoch: int) -> Budget:
    """Budget of the settings: their time if given, else epochs times iterations."""
    seconds = parse_duration_s(settings.budget) if settings.budget else None
    return Budget(settings.epochs * iterations_per_epoch, seconds)
