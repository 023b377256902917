"""Where windows lie and how much each of their voxels counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["MIN_IMPORTANCE", "Blend", "axis_overlaps", "importance_map", "window_starts", "windows"]

Blend = Literal["gaussian", "constant"]

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


def windows(
    shape: Sequence[int], window: Sequence[int], overlap: float | Sequence[float] = 0.5
) -> list[tuple[int, ...]]:
    """First voxels of all windows over a volume, the last axis running fastest.

    Args:
        shape: Voxels along each axis.
        window: Voxels of the window along each axis.
        overlap: Fraction of the window, or one per axis, each in [0, 1).

    Returns:
        One index tuple per window, at least one.

    Raises:
        ValueError: If a size is below 1 or an overlap is outside [0, 1).
    """
    overlaps = axis_overlaps(overlap, len(shape))
    return list(product(*(window_starts(*axis) for axis in zip(shape, window, overlaps, strict=True))))


def importance_map(window: Sequence[int], blend: Blend = "gaussian") -> torch.Tensor:
    """Weight of every voxel of a window where windows overlap.

    Args:
        window: Voxels of the window along each axis.
        blend: ``gaussian`` (SD an eighth of the window, around its centre) or ``constant`` (1 everywhere).

    Returns:
        float32 of the window's shape, from :data:`MIN_IMPORTANCE` to 1. Equals the map of MONAI's sliding window.

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


def _constant(size: int) -> NDArray[np.float64]:
    return np.ones(size)


_PROFILES: dict[str, Callable[[int], NDArray[np.float64]]] = {"gaussian": _gaussian, "constant": _constant}
