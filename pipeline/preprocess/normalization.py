"""Normalization of intensities, channel by channel.

``volseg export`` copies this module into bundles: it may import nothing of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from scipy.ndimage import binary_fill_holes


class Scheme(Protocol):
    """How a channel is normalized; what the schemes are is said where plans have them."""

    @property
    def scheme(self) -> str:
        """``ct``, ``zscore``, ``zscore_nonzero``, ``range`` or ``none``."""

    @property
    def mean(self) -> float:
        """Of ``ct``: what is subtracted."""

    @property
    def sd(self) -> float:
        """Of ``ct``: what is divided by, above 0."""

    @property
    def low(self) -> float | None:
        """Of ``ct``: the smallest intensity that is told apart; None for all."""

    @property
    def high(self) -> float | None:
        """Of ``ct``: the largest one."""


def normalize(image: torch.Tensor, schemes: Sequence[Scheme]) -> torch.Tensor:
    """Intensities of an image as a network sees them.

    Args:
        image: (C, *S) of any type, finite.
        schemes: One per channel.

    Returns:
        (C, *S) float32, a copy.
    """
    values = image.to(torch.float32)
    # Holes count as inside: a dark spot within the body is no border.
    masked = any(entry.scheme == "zscore_nonzero" for entry in schemes)
    mask = torch.from_numpy(binary_fill_holes((values != 0).any(dim=0).numpy())) if masked else None
    normalized = torch.empty_like(values)
    for channel, entry, target in zip(values, schemes, normalized, strict=True):
        target.copy_(_normalize(channel, entry, mask if entry.scheme == "zscore_nonzero" else None))
    return normalized


def _normalize(channel: torch.Tensor, how: Scheme, mask: torch.Tensor | None) -> torch.Tensor:
    if how.scheme == "none":
        return channel
    if how.scheme == "ct":
        clipped = channel if how.low is None else channel.clamp(how.low, how.high)
        return (clipped - how.mean).div_(how.sd)
    if how.scheme == "range":
        raised = channel - channel.min()
        return raised.div_(max(float(raised.max()), 1e-8))
    inside = channel if mask is None else channel[mask]
    if not inside.numel():
        return channel
    # In double precision: sums over a hundred million voxels lose digits in single.
    mean = float(inside.mean(dtype=torch.float64))
    sd = float((inside - mean).square_().mean(dtype=torch.float64)) ** 0.5
    scaled = (channel - mean).div_(max(sd, 1e-8))
    return scaled if mask is None else scaled.mul_(mask)
