"""Where windows lie and how much each of their voxels counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = [
    "MIN_IMPORTANCE",
    "Blend",
    "axis_overlaps",
    "importance_map",
    "interval_starts",
    "tile_starts",
    "window_starts",
]

Blend = Literal["gaussian", "hann", "constant"]

MIN_IMPORTANCE = 1e-3
"""No voxel of a window weighs less than this (the centre of the Gaussian weighs 1), so that no sum of weights is 0."""

_SIGMA = 0.125  # SD of the Gaussian as a share of the window
_ROUNDING = 1e-9  # keeps 10 · (1 - 0.9) from counting as less than 1


def axis_overlaps(overlap: float | Sequence[float], axes: int) -> tuple[float, ...]:
    """One overlap per axis.

    Args:
        overlap: Fraction of the window, or one per axis, each in [0, 1).
        axes: Number of axes.

    Raises:
        ValueError: If an overlap is outside [0, 1) or their number is not that of the axes.
    """
    overlaps = (
        (float(overlap),) * axes if isinstance(overlap, int | float) else tuple(float(share) for share in overlap)
    )
    if len(overlaps) != axes or not all(0.0 <= share < 1.0 for share in overlaps):
        raise ValueError(
            f"window overlap: expected a number in [0, 1) or {axes} of them, got {overlap}. Write for example 0.5."
        )
    return overlaps


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: as few as the overlap allows, evenly spread, first and last flush.

    Args:
        size: Voxels along the axis, at least 1.
        window: Voxels of the window, at least 1.
        overlap: Fraction of the window that neighbours share at least (but for rounding), in [0, 1).

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
            just outside the window) or ``constant`` (1 everywhere).

    Returns:
        float32 of the window's shape, from :data:`MIN_IMPORTANCE` to 1. Gaussian and constant equal the
        maps of MONAI's sliding window.

    Raises:
        ValueError: If the blend is not known.
    """
    if blend not in _PROFILES:
        raise ValueError(f"blend: expected one of {', '.join(_PROFILES)}, got {blend!r}. Choose one of them.")
    weights = np.ones(())
    for size in window:
        weights = weights[..., None] * _PROFILES[blend](size)
    return torch.from_numpy(np.maximum(weights, MIN_IMPORTANCE).astype(np.float32))


def _gaussian(size: int) -> NDArray[np.float64]:
    distance = np.arange(size) - (size - 1) / 2
    return np.asarray(np.exp(-0.5 * (distance / (_SIGMA * size)) ** 2), dtype=np.float64)


def _hann(size: int) -> NDArray[np.float64]:
    return np.asarray(np.sin(np.pi * (np.arange(size) + 1) / (size + 1)) ** 2, dtype=np.float64)


def _constant(size: int) -> NDArray[np.float64]:
    return np.ones(size)


_PROFILES: dict[str, Callable[[int], NDArray[np.float64]]] = {
    "gaussian": _gaussian,
    "hann": _hann,
    "constant": _constant,
}
