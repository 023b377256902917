"""Which windows cover a volume, in the order in which they are visited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from torch import Tensor

from pipeline.infer.windows import axis_overlaps, interval_starts, tile_starts, window_starts

__all__ = ["Place", "Tiling"]

Place = tuple[int, ...]
"""First voxel of the logits of a window along each axis; negative where the volume is smaller than the window."""


@dataclass(frozen=True)
class Tiling:
    """Windows and what they give logits for.

    Args:
        window: Voxels of the window along each of 2 or 3 axes, a size the network takes.
        overlap: Fraction of the window (of its logits) that neighbours share, one per axis, each in [0, 1).
        margin: The network's margin: the voxels of a window on either side that get no logits.
        step: The network's divisor: with a margin, tiles start at its multiples.
        spacing: ``interval``: a fixed distance, the last window moved back into the volume, as MONAI does; ``even``:
            evenly spread, as nnU-Net does. Networks with a margin have tiles at multiples of their step instead.
        box: First voxel, and one past the last, along each axis of what is covered; None for the whole volume. Windows
            see what is around it.
    """

    window: tuple[int, ...]
    overlap: tuple[float, ...]
    margin: tuple[int, ...]
    step: tuple[int, ...]
    spacing: Literal["interval", "even"] = "interval"
    box: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def of(
        cls,
        window: Sequence[int],
        overlap: float | Sequence[float],
        margin: Sequence[int] | None,
        step: Sequence[int] | None,
        spacing: Literal["interval", "even"],
    ) -> Tiling:
        """Check the numbers; None stands for no margin and for steps of 1.

        Raises:
            ValueError: If a number is outside its range.
        """
        sizes = tuple(int(size) for size in window)
        axes = len(sizes)
        if axes not in (2, 3) or min(sizes) < 1:
            raise ValueError(f"window: expected 2 or 3 sizes of at least 1 voxel, got {tuple(window)}. Correct it.")
        if spacing not in ("interval", "even"):
            raise ValueError(f"spacing: expected interval or even, got {spacing!r}. Choose one of them.")
        made = cls(
            sizes,
            axis_overlaps(overlap, axes),
            _per_axis("margin", margin, axes, 0),
            _per_axis("step", step, axes, 1),
            spacing,
        )
        if min(made.tile) < 1:
            rule = f"more than twice the margin {made.margin}"
            raise ValueError(f"window: expected {rule}, got {made.window}. Enlarge it.")
        return made

    @property
    def tile(self) -> tuple[int, ...]:
        """Voxels of a window that get logits."""
        return tuple(size - 2 * lost for size, lost in zip(self.window, self.margin, strict=True))

    def places(self, shape: Sequence[int], axis: int) -> list[Place]:
        """All windows of a volume, those that begin first along an axis first.

        Args:
            shape: Voxels of the volume.
            axis: Along which the volume is finished, plane by plane.
        """
        starts = [self._within(number, size) for number, size in enumerate(shape)]
        return sorted(product(*starts), key=lambda place: (place[axis], place))

    def reaches(self, place: Place, mask: Tensor) -> bool:
        """Whether the logits of a window lie in a mask (*spatial) of the volume, somewhere."""
        tile = zip(place, self.tile, strict=True)
        return bool(mask[tuple(slice(max(0, start), start + size) for start, size in tile)].any())

    def thinnest(self, shape: Sequence[int]) -> int:
        """The axis along which the planes that are not finished yet are the fewest voxels."""

        def voxels(axis: int) -> float:
            return min(self.tile[axis], shape[axis]) / shape[axis]

        return min(range(len(shape)), key=voxels)

    def _within(self, axis: int, size: int) -> list[int]:
        """First voxels, along one axis of a volume, of the logits of all windows."""
        tile, margin = self.tile[axis], any(self.margin)
        first, stop = (0, size) if self.box is None else self.box[axis]
        if margin:
            first -= first % self.step[axis]
        if stop - first >= size or (size <= tile and not margin):
            return self._starts(axis, size)
        if stop - first <= tile and not margin:
            return [min(max(0, first - (tile - stop + first) // 2), size - tile)]
        return [first + start for start in self._starts(axis, stop - first)]

    def _starts(self, axis: int, size: int) -> list[int]:
        """First voxels of the logits of the windows that cover an axis."""
        tile, overlap = self.tile[axis], self.overlap[axis]
        if any(self.margin):
            return tile_starts(size, tile, self.step[axis], overlap)
        if size <= tile:
            return [-((tile - size) // 2)]
        return (window_starts if self.spacing == "even" else interval_starts)(size, tile, overlap)


def _per_axis(name: str, values: Sequence[int] | None, axes: int, least: int) -> tuple[int, ...]:
    numbers = (least,) * axes if values is None else tuple(int(value) for value in values)
    if len(numbers) != axes or min(numbers) < least:
        raise ValueError(f"{name}: expected {axes} numbers of at least {least}, got {values}. Take the network's.")
    return numbers
