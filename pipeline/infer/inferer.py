"""Sliding-window inference: a network that sees windows gives logits of a whole volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch.nn.functional import pad

from pipeline.infer.windows import Blend, axis_overlaps, importance_map, windows

__all__ = ["Network", "Progress", "WindowInferer"]

Network = Callable[..., torch.Tensor]
"""Takes (B, C, *window), returns logits (B, L, *window)."""

Progress = Callable[[int, int], None]
"""Called with the windows done so far and their total number."""

_Place = tuple[int, tuple[slice, ...]]  # volume of the batch, part of its spatial axes


class WindowInferer(Inferer):  # type: ignore[misc]  # MONAI is untyped
    """Logits of whole volumes from overlapping windows; a drop-in for MONAI's ``SlidingWindowInferer``.

    Sums are kept in float32 whatever the network returns, the input is never written to, and no gradients are kept.

    Args:
        window: Voxels of the window along each of 2 or 3 axes, a size the network takes.
        overlap: Fraction of the window that neighbours share, or one per axis, each in [0, 1).
        blend: Weight of a window's voxels where windows overlap: ``gaussian`` or ``constant``.
        batch: Windows per network call, at least 1.
        progress: Told after every network call how many windows are done.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> inferer = WindowInferer((4, 4, 4), overlap=0.5)
        >>> inferer(torch.ones(1, 1, 9, 6, 3), network=lambda window: 2 * window).unique()
        tensor([2.])
    """

    def __init__(
        self,
        window: Sequence[int],
        overlap: float | Sequence[float] = 0.5,
        blend: Blend = "gaussian",
        batch: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self.window = tuple(int(size) for size in window)
        if len(self.window) not in (2, 3) or min(self.window) < 1:
            raise ValueError(f"window: expected 2 or 3 sizes of at least 1 voxel, got {tuple(window)}. Correct it.")
        if batch < 1:
            raise ValueError(f"window batch: expected at least 1, got {batch}. Raise it.")
        self.overlap = axis_overlaps(overlap, len(self.window))
        self.batch = batch
        self.progress = progress
        self._importance = importance_map(self.window, blend)

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the network over all windows and blend what it returns.

        Args:
            inputs: (B, C, *spatial) with as many spatial axes as the window. Axes shorter than the window are padded
                with 0 on both sides for the network and cut back afterwards.
            network: Takes (n, C, *window), returns logits (n, L, *window) of any floating type.
            args: Handed to the network.
            kwargs: Handed to the network.

        Returns:
            Logits (B, L, *spatial), float32, on the device of the inputs.

        Raises:
            ValueError: If the inputs or the network's output do not have these shapes.
        """
        volumes, margins = _padded(self._checked(inputs), self.window)
        importance = self._importance.to(volumes.device)
        parts = [
            tuple(slice(first, first + size) for first, size in zip(start, self.window, strict=True))
            for start in windows(volumes.shape[2:], self.window, self.overlap)
        ]
        places = [(volume, part) for volume in range(len(volumes)) for part in parts]
        total: torch.Tensor | None = None
        for done, group in self._groups(places):
            patches = torch.stack([volumes[volume][:, *part] for volume, part in group])
            logits = self._fitting(network(patches, *args, **kwargs), len(group))
            del patches
            if total is None:
                shape = (len(volumes), logits.shape[1], *volumes.shape[2:])
                total = torch.zeros(shape, dtype=torch.float32, device=volumes.device)
            for (volume, part), window_logits in zip(group, logits, strict=True):
                total[volume][:, *part].addcmul_(window_logits.to(volumes.device, torch.float32), importance)
            del logits
            if self.progress is not None:
                self.progress(done, len(places))
        assert total is not None  # there is always a window, because sizes and batch are at least 1
        total /= _summed_weights(parts, importance, volumes.shape[2:])
        return _cut_back(total, margins)

    def _groups(self, places: list[_Place]) -> Iterator[tuple[int, list[_Place]]]:
        """Windows of one network call each, and how many are done after it."""
        for first in range(0, len(places), self.batch):
            group = places[first : first + self.batch]
            yield first + len(group), group

    def _checked(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.ndim != len(self.window) + 2 or 0 in inputs.shape:
            raise ValueError(
                f"inference input: expected (B, C, {len(self.window)} spatial axes), none of them empty, "
                f"got shape {tuple(inputs.shape)}. Add the batch and channel axes."
            )
        plain: torch.Tensor = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return plain

    def _fitting(self, logits: torch.Tensor, count: int) -> torch.Tensor:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if not isinstance(logits, torch.Tensor) or (logits.shape[0], *logits.shape[2:]) != (count, *self.window):
            raise ValueError(
                f"network output: expected logits ({count}, L, {', '.join(map(str, self.window))}), got {shape}. "
                "Put the network in eval mode and choose a window of legal size."
            )
        return logits


def _padded(volumes: torch.Tensor, window: Sequence[int]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Zero-pad axes shorter than the window on both sides; also return (before, size) of the volume per axis."""
    sizes = volumes.shape[2:]
    missing = [max(0, wanted - size) for wanted, size in zip(window, sizes, strict=True)]
    margins = [(count // 2, size) for count, size in zip(missing, sizes, strict=True)]
    if any(missing):
        sides = [side for count in reversed(missing) for side in (count // 2, count - count // 2)]
        volumes = pad(volumes, sides)
    return volumes, margins


def _cut_back(logits: torch.Tensor, margins: Sequence[tuple[int, int]]) -> torch.Tensor:
    for axis, (before, size) in enumerate(margins, start=2):
        logits = logits.narrow(axis, before, size)
    return logits.contiguous()


def _summed_weights(parts: Sequence[tuple[slice, ...]], importance: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Sum of the weights that each voxel of a volume receives, (*shape)."""
    weights = torch.zeros(tuple(shape), dtype=torch.float32, device=importance.device)
    for part in parts:
        weights[part] += importance
    return weights
