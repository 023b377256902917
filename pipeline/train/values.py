"""What a training is given and what it reports, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import SupportsFloat

from torch import nn

from pipeline.sample.augment import Direction

__all__ = ["Frame", "OnStep", "Validation", "ValidationScores"]

OnStep = Callable[[float, SupportsFloat], None]
"""Called after every step with the share of the training that is done and the epoch's mean loss so far."""


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
class Validation:
    """How to score a network on full volumes.

    Args:
        score: Takes the network in evaluation mode and whether all cases are wanted instead of the quick subset.
        quick: Number of cases of the quick subset.
        all: Number of all cases.
        passes: Mirrored and rotated images that are averaged where all cases are wanted; the quick subset never is.
    """

    score: Callable[[nn.Module, bool], ValidationScores]
    quick: int
    all: int
    passes: int = 1

    @property
    def complete(self) -> bool:
        """Whether scoring the quick subset is scoring all cases."""
        return self.quick == self.all and self.passes == 1

    @property
    def longer(self) -> float:
        """How many times as long as the quick subset all cases take."""
        return self.passes * self.all / self.quick


@dataclass(frozen=True)
class Frame:
    """What augmentation needs to know of the axes a network sees.

    Args:
        directions: Anatomical direction of each axis: ``LR``, ``AP`` or ``SI``.
        spacing_mm: Spacing of each axis.
        side_pairs: Class indices of left/right organ pairs.
        regions: Class indices of each region, where regions are trained by a sigmoid each; empty for a softmax over
            classes.
    """

    directions: tuple[Direction, ...]
    spacing_mm: tuple[float, ...]
    side_pairs: tuple[tuple[int, int], ...]
    regions: tuple[tuple[int, ...], ...] = ()
