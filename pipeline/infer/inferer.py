"""Sliding-window inference: a network that sees windows gives logits of a whole volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from pipeline.infer.windows import Blend, axis_overlaps, importance_map, tile_starts, window_starts
from pipeline.sample.cut import paste

__all__ = ["Network", "Progress", "WindowInferer"]

Network = Callable[..., torch.Tensor]
"""Takes (B, C, *window), returns logits (B, L, *window), smaller by the margin on either side if there is one."""

Progress = Callable[[int, int], None]
"""Called with the windows done so far and their total number."""

_Place = tuple[int, tuple[int, ...]]  # volume of the batch, first voxel of the logits of a window


class WindowInferer(Inferer):  # type: ignore[misc]  # MONAI is untyped
    """Logits of whole volumes from overlapping windows; a drop-in for MONAI's ``SlidingWindowInferer``.

    Networks of valid convolutions, which give logits for less than they see, tile the volume by the overlap-tile
    strategy: windows see the image around their tile of logits as it is, mirrored at the border of the volume only.
    Where normalization does not depend on the window, the result is that of the network applied once to the whole
    mirrored volume, whatever the overlap: overlapping tiles agree, so that 0 is enough.

    Sums are kept in float32 (float64 if the network returns that), the input is never written to, and no gradients are
    kept.

    Args:
        window: Voxels of the window along each of 2 or 3 axes, a size the network takes.
        overlap: Fraction of the window (of its logits) that neighbours share, or one per axis, each in [0, 1).
        blend: Weight of a window's voxels where windows overlap: ``gaussian`` or ``constant``.
        batch: Windows per network call, at least 1.
        progress: Told after every network call how many windows are done.
        margin: The network's margin along each axis: the voxels of a window on either side that get no logits. None
            for networks whose logits are as large as their input.
        step: The network's divisor along each axis: with a margin, tiles start at its multiples. None for 1.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> inferer = WindowInferer((4, 4, 4), overlap=0.5)
        >>> inferer(torch.ones(1, 1, 9, 6, 3), network=lambda window: 2 * window).unique()
        tensor([2.])

    Reference: Ronneberger et al. 2015 (arXiv 1505.04597), figure 2, for the overlap-tile strategy.
    """

    def __init__(
        self,
        window: Sequence[int],
        overlap: float | Sequence[float] = 0.5,
        blend: Blend = "gaussian",
        batch: int = 1,
        progress: Progress | None = None,
        *,
        margin: Sequence[int] | None = None,
        step: Sequence[int] | None = None,
    ) -> None:
        self.window = tuple(int(size) for size in window)
        axes = len(self.window)
        if axes not in (2, 3) or min(self.window) < 1:
            raise ValueError(f"window: expected 2 or 3 sizes of at least 1 voxel, got {tuple(window)}. Correct it.")
        if batch < 1:
            raise ValueError(f"window batch: expected at least 1, got {batch}. Raise it.")
        self.overlap = axis_overlaps(overlap, axes)
        self.batch = batch
        self.progress = progress
        self.margin = _per_axis("margin", margin, axes, 0)
        self.step = _per_axis("step", step, axes, 1)
        self.tile = tuple(size - 2 * lost for size, lost in zip(self.window, self.margin, strict=True))
        if min(self.tile) < 1:
            rule = f"more than twice the margin {self.margin}"
            raise ValueError(f"window: expected {rule}, got {self.window}. Enlarge it.")
        self._importance = importance_map(self.tile, blend)

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the network over all windows and blend what it returns.

        Args:
            inputs: (B, C, *spatial) with as many spatial axes as the window. For the network, axes shorter than the
                window are padded with 0 on both sides; with a margin, every border is continued by its mirror image.
            network: Takes (n, C, *window), returns logits (n, L, *window), less the margin, of any floating type.
            args: Handed to the network.
            kwargs: Handed to the network.

        Returns:
            Logits (B, L, *spatial), float32 or float64, on the device of the inputs.

        Raises:
            ValueError: If the inputs or the network's output do not have these shapes, or a margin leaves tiles smaller
                than the step for a volume that needs several.
        """
        volumes = self._checked(inputs)
        shape = volumes.shape[2:]
        starts = list(product(*map(self._starts, range(len(shape)), shape)))
        places = [(volume, start) for volume in range(len(volumes)) for start in starts]
        total: torch.Tensor | None = None
        for done, group in self._groups(places):
            logits = self._fitting(network(self._windows(volumes, group), *args, **kwargs), len(group))
            if total is None:
                dtype = torch.promote_types(logits.dtype, torch.float32)
                total = torch.zeros((len(volumes), logits.shape[1], *shape), dtype=dtype, device=volumes.device)
                importance = self._importance.to(total)
            for (volume, start), window_logits in zip(group, logits, strict=True):
                seen, kept = _inside(start, self.tile, shape)
                total[volume][:, *seen].addcmul_(window_logits[:, *kept].to(total), importance[kept])
            del logits
            if self.progress is not None:
                self.progress(done, len(places))
        assert total is not None  # there is always a window, because sizes and batch are at least 1
        weights = total.new_zeros(shape)
        for start in starts:
            seen, kept = _inside(start, self.tile, shape)
            weights[seen] += importance[kept]
        return total.div_(weights)

    def _starts(self, axis: int, size: int) -> list[int]:
        """First voxels, along one axis, of the logits of all windows."""
        tile, overlap = self.tile[axis], self.overlap[axis]
        if any(self.margin):
            return tile_starts(size, tile, self.step[axis], overlap)
        return window_starts(size, tile, overlap) if size > tile else [-((tile - size) // 2)]

    def _windows(self, volumes: torch.Tensor, group: list[_Place]) -> torch.Tensor:
        """What the network sees at some places, (n, C, *window)."""
        windows = volumes.new_empty((len(group), volumes.shape[1], *self.window))
        fill = None if any(self.margin) else 0.0
        for window, (volume, start) in zip(windows, group, strict=True):
            first = [position - lost for position, lost in zip(start, self.margin, strict=True)]
            paste(window, volumes[volume], first, fill)
        return windows

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
        if not isinstance(logits, torch.Tensor) or (logits.shape[0], *logits.shape[2:]) != (count, *self.tile):
            raise ValueError(
                f"network output: expected logits ({count}, L, {', '.join(map(str, self.tile))}), got {shape}. "
                "Put the network in eval mode and choose a window of legal size."
            )
        return logits


def _per_axis(name: str, values: Sequence[int] | None, axes: int, least: int) -> tuple[int, ...]:
    numbers = (least,) * axes if values is None else tuple(int(value) for value in values)
    if len(numbers) != axes or min(numbers) < least:
        raise ValueError(f"{name}: expected {axes} numbers of at least {least}, got {values}. Take the network's.")
    return numbers


def _inside(
    start: Sequence[int], tile: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a volume that a tile covers, and the part of the tile that lies in the volume."""
    low = [max(first, 0) for first in start]
    high = [min(first + size, limit) for first, size, limit in zip(start, tile, shape, strict=True)]
    seen = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return seen, tuple(slice(a - first, b - first) for a, b, first in zip(low, high, start, strict=True))
