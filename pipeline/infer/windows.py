"""Where windows lie: how large they are, which of them cover a volume, and how much each of their voxels counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from pipeline.core.errors import ConfigError, sentence

if TYPE_CHECKING:  # bundles that `volseg export` writes have this module, and not these
    from pipeline.config.settings import InferSettings
    from pipeline.model.spec import NetworkSpec
    from pipeline.preprocess.plan_file import Plan

Blend = Literal["gaussian", "hann", "constant", "nnunet"]
Placement = Literal["interval", "even", "nnunet"]

WindowStart = tuple[int, ...]
"""First voxel of the logits of a window along each axis; negative where the volume is smaller than the window."""

MIN_IMPORTANCE = 1e-3
"""No voxel of a window weighs less than this (the centre of the Gaussian weighs 1), so that no sum of weights is 0."""

_SIGMA = 0.125  # SD of the Gaussian as a share of the window
_ROUNDING = 1e-9  # keeps 10 · (1 - 0.9) from counting as less than 1
_MOST = 1.25  # of the patch, along an axis; in 3D at most twice its voxels


# How large the windows are that networks see: the training patch, or what suits a volume.


def prediction_window(network: Any, patch: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The window that a network with a margin predicts a volume with, all sizes along the same axes.

    It is at least the training patch, its logits are at least as long as the margins on both sides together, and it is
    no larger than the volume needs.

    Args:
        network: With a margin along some axis: ``margin``, ``divisor`` and ``legal_size``.
        patch: Training patch.
        shape: Voxels of the volume.
    """
    margin, step = network.margin, network.divisor
    # Small windows would spend most work on margins that neighbours see once more.
    ample = [max(n, 4 * lost, one + 2 * lost) for n, lost, one in zip(patch, margin, step, strict=True)]
    enough = [n + 2 * lost for n, lost in zip(shape, margin, strict=True)]
    sizes = zip(network.legal_size(ample), network.legal_size(enough), strict=True)
    return tuple(network.legal_size([min(pair) for pair in sizes]))


def fitting_window(network: Any, patch: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The window that sees a volume of about the size of the training patch at once, all sizes along the same axes.

    Along an axis on which the volume needs no more than a quarter more than the patch, the window is as long as the
    volume (at least half the patch), so that neither padding nor a second window is computed; along others it is the
    patch.

    Args:
        network: Without a margin; one without ``legal_size`` takes any.
        patch: Training patch.
        shape: Voxels of the volume.
    """
    legal = getattr(network, "legal_size", tuple)
    wanted = legal([max(n, one // 2) for n, one in zip(shape, patch, strict=True)])
    return tuple(n if n <= _MOST * one else one for n, one in zip(wanted, patch, strict=True))


def check_window(spec: NetworkSpec, settings: InferSettings) -> None:
    """Refuse a window that the network cannot take, or whose logits are too few to tile a volume.

    Raises:
        ConfigError: Naming the next legal size.
    """
    wanted = settings.window_size
    if not isinstance(wanted, tuple):
        return
    if len(wanted) != spec.dims:
        rule = f"{spec.dims} numbers for a network of {spec.dims} dimensions"
        raise ConfigError([sentence("infer.window_size", rule, wanted, "Give one per axis the network sees")])
    sizes = spec.sizes()
    axes = zip(wanted, sizes.step, sizes.margin, strict=True)
    legal = sizes.legal_size([max(n, step + 2 * lost) for n, step, lost in axes])
    if legal != wanted:
        rule, advice = f"a size {spec.name} can tile volumes with", f"The next legal one is {legal}"
        raise ConfigError([sentence("infer.window_size", rule, wanted, advice)])


def in_volume(size: Sequence[int], plan: Plan, spec: NetworkSpec) -> tuple[int, ...]:
    """A size along the axes that the network sees as one along i, j, k: 1 across the slices of a 2D network."""
    sizes = dict(zip(plan.axes(spec.dims), size, strict=True))
    return tuple(sizes.get(axis, 1) for axis in range(3))


# Where windows lie along one axis, and what their voxels weigh.


def axis_overlaps(overlap: float | Sequence[float], axes: int) -> tuple[float, ...]:
    """One overlap per axis.

    Args:
        overlap: Fraction of the window, or one per axis, each in [0, 1).
        axes: Number of axes.

    Raises:
        ValueError: If an overlap is outside [0, 1) or their number is not that of the axes.
    """
    overlaps = (float(overlap),) * axes if isinstance(overlap, int | float) else tuple(map(float, overlap))
    if len(overlaps) != axes or not all(0.0 <= share < 1.0 for share in overlaps):
        raise ValueError(
            f"window overlap: expected a number in [0, 1) or {axes} of them, got {overlap}. Write for example 0.5."
        )
    return overlaps


def window_starts(size: int, window: int, overlap: float, half_to_even: bool = False) -> list[int]:
    """First voxels of the windows along one axis: as few as the overlap allows, evenly spread, first and last flush.

    Args:
        size: Voxels along the axis, at least 1.
        window: Voxels of the window, at least 1.
        overlap: Fraction of the window that neighbours share at least (but for rounding), in [0, 1).
        half_to_even: Round halves of a voxel to even numbers, as nnU-Net does, and not up.

    Returns:
        Ascending and distinct; ``[0]`` if the window is as large as the axis or larger. Every voxel is in a window.

    Raises:
        ValueError: If a size is below 1 or the overlap is outside [0, 1).

    Reference: Isensee et al., nnU-Net, Nature Methods 2021, supplementary note on inference (spacing of the windows).
    """
    if size < 1 or window < 1:
        raise ValueError(f"window: expected sizes of at least 1 voxel, got {window} on an axis of {size}. Enlarge it.")
    (share,) = axis_overlaps(overlap, 1)
    if size <= window:
        return [0]
    step = max(window * (1.0 - share), 1.0)
    gaps = math.ceil((size - window) / step - _ROUNDING)
    if half_to_even:
        return [round(index * ((size - window) / gaps)) for index in range(gaps + 1)]
    return [(2 * index * (size - window) + gaps) // (2 * gaps) for index in range(gaps + 1)]  # rounds half up


def interval_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis as MONAI's sliding window has them.

    They are a fixed distance apart, rounded down to whole voxels; the last one is moved back into the axis.

    Args:
        size: Voxels along the axis, at least 1.
        window: Voxels of the window, at least 1.
        overlap: Fraction of the window that neighbours share at least, in [0, 1).

    Returns:
        Ascending and distinct; ``[0]`` if the window is as large as the axis or larger. Every voxel is in a window.
    """
    distance = max(int(window * (1.0 - overlap)), 1)
    gaps = max(0, math.ceil((size - window) / distance))
    return [min(index * distance, size - window) for index in range(gaps + 1)] if gaps else [0]


def tile_starts(size: int, tile: int, step: int, overlap: float = 0.0) -> list[int]:
    """First voxels of the tiles along one axis that a network of valid convolutions fills with logits.

    They lie as far apart as the overlap allows, at multiples of the network's step: only there do its poolings fall on
    the same voxels in every tile, so that all tiles together are what the network makes of the whole axis at once.

    Args:
        size: Voxels along the axis, at least 1.
        tile: Voxels of the network's output, at least 1.
        step: Distance of the network's legal sizes, at least 1.
        overlap: Fraction of the tile that neighbours share at least, in [0, 1); but they are always a step apart.

    Returns:
        Ascending from 0; the last tile may reach beyond the axis. Every voxel is in a tile.

    Raises:
        ValueError: If a number is out of range, or several tiles are needed and a tile is smaller than the step.

    Reference: Ronneberger et al. 2015 (arXiv 1505.04597), figure 2, the overlap-tile strategy.
    """
    if min(size, tile, step) < 1:
        raise ValueError(f"tile: expected at least 1 voxel, got {tile} on an axis of {size} by {step}. Enlarge it.")
    (share,) = axis_overlaps(overlap, 1)
    if size <= tile:
        return [0]
    if tile < step:
        raise ValueError(f"tile: expected at least {step} voxels, the network's step, got {tile}. Enlarge the window.")
    stride = max(step, int(tile * (1.0 - share) + _ROUNDING) // step * step)
    return list(range(0, size - tile + stride, stride))


def importance_map(window: Sequence[int], blend: Blend = "gaussian") -> torch.Tensor:
    """Weight of every voxel of a window where windows overlap.

    Args:
        window: Voxels of the window along each axis.
        blend: ``gaussian`` (SD an eighth of the window, around its centre), ``hann`` (a raised cosine, which falls to 0
            just outside the window), ``constant`` (1 everywhere) or ``nnunet`` (see :func:`nnunet_importance`).

    Returns:
        float32 of the window's shape, from :data:`MIN_IMPORTANCE` to 1, of nnU-Net from less to 10. Gaussian and
        constant equal the maps of MONAI's sliding window.

    Raises:
        ValueError: If the blend is not known.
    """
    if blend == "nnunet":
        return nnunet_importance(window)
    if blend not in _PROFILES:
        known = ", ".join((*_PROFILES, "nnunet"))
        raise ValueError(f"blend: expected one of {known}, got {blend!r}. Choose one of them.")
    weights = np.ones(())
    for size in window:
        weights = weights[..., None] * _PROFILES[blend](size)
    return torch.from_numpy(np.maximum(weights, MIN_IMPORTANCE).astype(np.float32))


def nnunet_importance(window: Sequence[int]) -> torch.Tensor:
    """nnU-Net's Gaussian: around voxel ``size // 2``, cut off at 4 SD, in 16 bits, 10 in the centre.

    What 16 bits round to 0 weighs what the lightest other voxel does.

    Args:
        window: Voxels of the window along each axis.

    Reference: nnU-Net v2, ``compute_gaussian``.
    """
    weights = np.ones(())
    for size in window:
        unit = np.zeros(size)
        unit[size // 2] = 1.0
        weights = weights[..., None] * gaussian_filter1d(unit, _SIGMA * size, mode="constant")
    half = torch.from_numpy(weights * (10 / weights.max())).to(torch.float16)
    half[half == 0] = half[half > 0].min()
    return half.float()


def _gaussian(size: int) -> NDArray[np.float64]:
    distance = np.arange(size) - (size - 1) / 2
    return np.asarray(np.exp(-0.5 * (distance / (_SIGMA * size)) ** 2), dtype=np.float64)


_PROFILES: dict[str, Callable[[int], NDArray[np.float64]]] = {
    "gaussian": _gaussian,
    "hann": lambda size: np.sin(np.pi * (np.arange(size) + 1) / (size + 1)) ** 2,
    "constant": np.ones,
}


# Which windows cover a volume, in the order in which they are computed.


@dataclass(frozen=True)
class Tiling:
    """Windows and what they give logits for.

    Args:
        window: Voxels of the window along each of 2 or 3 axes, a size the network takes.
        overlap: Fraction of the window (of its logits) that neighbours share, one per axis, each in [0, 1).
        margin: The network's margin: the voxels of a window on either side that get no logits.
        step: The network's divisor: with a margin, tiles start at its multiples.
        placement: ``interval``: a fixed distance, the last window moved back into the volume, as MONAI does; ``even``:
            evenly spread; ``nnunet``: the same, halves of a voxel rounded as nnU-Net does. Networks with a margin have
            tiles at multiples of their step instead.
        box: First voxel, and one past the last, along each axis of what is covered; None for the whole volume. Windows
            see what is around it.
    """

    window: tuple[int, ...]
    overlap: tuple[float, ...]
    margin: tuple[int, ...]
    step: tuple[int, ...]
    placement: Placement = "interval"
    box: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def of(
        cls,
        window: Sequence[int],
        overlap: float | Sequence[float],
        margin: Sequence[int] | None,
        step: Sequence[int] | None,
        placement: Placement,
    ) -> Tiling:
        """Check the numbers; None stands for no margin and for steps of 1.

        Raises:
            ValueError: If a number is outside its range.
        """
        sizes = tuple(int(size) for size in window)
        axes = len(sizes)
        if axes not in (2, 3) or min(sizes) < 1:
            raise ValueError(f"window: expected 2 or 3 sizes of at least 1 voxel, got {tuple(window)}. Correct it.")
        if placement not in get_args(Placement):
            known = ", ".join(get_args(Placement))
            raise ValueError(f"placement: expected one of {known}, got {placement!r}. Choose one of them.")
        made = cls(
            sizes,
            axis_overlaps(overlap, axes),
            _per_axis("margin", margin, axes, 0),
            _per_axis("step", step, axes, 1),
            placement,
        )
        if min(made.tile) < 1:
            rule = f"more than twice the margin {made.margin}"
            raise ValueError(f"window: expected {rule}, got {made.window}. Enlarge it.")
        return made

    @property
    def tile(self) -> tuple[int, ...]:
        """Voxels of a window that get logits."""
        return tuple(size - 2 * lost for size, lost in zip(self.window, self.margin, strict=True))

    def starts(self, shape: Sequence[int], axis: int) -> list[WindowStart]:
        """All windows of a volume of a shape, those that begin first along the streaming axis first."""
        starts = [self._within(number, size) for number, size in enumerate(shape)]
        return sorted(product(*starts), key=lambda start: (start[axis], start))

    def reaches(self, start: WindowStart, mask: Tensor) -> bool:
        """Whether the logits of a window lie in a mask (*spatial) of the volume, somewhere."""
        tile = zip(start, self.tile, strict=True)
        return bool(mask[tuple(slice(max(0, voxel), voxel + size) for voxel, size in tile)].any())

    def thinnest(self, shape: Sequence[int]) -> int:
        """The axis along which the planes that are not finished yet are the fewest voxels."""
        return min(range(len(shape)), key=lambda axis: min(self.tile[axis], shape[axis]) / shape[axis])

    def _within(self, axis: int, size: int) -> list[int]:
        """First voxels, along one axis of a volume, of the logits of all windows."""
        tile, margin = self.tile[axis], any(self.margin)
        first, stop = (0, size) if self.box is None else self.box[axis]
        if margin:  # tiles of a box are those of the whole volume, whose poolings fall on multiples of the step
            first -= first % self.step[axis]
        if stop - first >= size or (size <= tile and not margin):
            return self._starts(axis, size)
        if stop - first <= tile and not margin:  # one window, the box in its middle as far as the volume allows
            return [min(max(0, first - (tile - stop + first) // 2), size - tile)]
        return [first + start for start in self._starts(axis, stop - first)]

    def _starts(self, axis: int, size: int) -> list[int]:
        """First voxels of the logits of the windows that cover an axis."""
        tile, overlap = self.tile[axis], self.overlap[axis]
        if any(self.margin):
            return tile_starts(size, tile, self.step[axis], overlap)
        if size <= tile:
            return [-((tile - size) // 2)]
        if self.placement == "interval":
            return interval_starts(size, tile, overlap)
        return window_starts(size, tile, overlap, self.placement == "nnunet")


def _per_axis(name: str, values: Sequence[int] | None, axes: int, least: int) -> tuple[int, ...]:
    numbers = (least,) * axes if values is None else tuple(int(value) for value in values)
    if len(numbers) != axes or min(numbers) < least:
        raise ValueError(f"{name}: expected {axes} numbers of at least {least}, got {values}. Take the network's.")
    return numbers
