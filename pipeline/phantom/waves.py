"""Smooth random fields over space: displacements of the anatomy and bias fields of coils."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.shapes import Points

__all__ = ["Waves", "draw_waves", "wave_sum"]


@dataclass(frozen=True, eq=False)
class Waves:
    """Sum of plane waves, a smooth random field that needs no grid.

    Args:
        vectors: (n, 3) wave vectors in rad/mm.
        amplitudes: (n, c), one column per component of the field.
        phases: (n,) in rad.
    """

    vectors: NDArray[np.float32]
    amplitudes: NDArray[np.float32]
    phases: NDArray[np.float32]


def wave_sum(waves: Waves, points: Points) -> NDArray[np.float32]:
    """The field (c, I, J, K) at positions (3, I, J, K)."""
    total = np.zeros((waves.amplitudes.shape[1], *points.shape[1:]), dtype=np.float32)
    for vector, amplitude, phase in zip(waves.vectors, waves.amplitudes, waves.phases, strict=True):
        wave = np.sin(np.tensordot(vector, points, axes=1) + phase)
        for component, factor in zip(total, amplitude, strict=True):
            component += factor * wave
    return total


def draw_waves(
    rng: np.random.Generator, count: int, length_mm: tuple[float, float], amplitude: float, components: int
) -> Waves:
    """Draw waves of random directions.

    Args:
        rng: Source of randomness.
        count: Number of waves.
        length_mm: Shortest and longest wavelength.
        amplitude: Standard deviation of each wave's amplitude, per component.
        components: Components of the field.
    """
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    vectors = direction * (2.0 * np.pi / rng.uniform(*length_mm, size=(count, 1)))
    amplitudes = amplitude * np.clip(rng.standard_normal((count, components)), -2.0, 2.0)
    phases = rng.uniform(0.0, 2.0 * np.pi, size=count)
    return Waves(vectors.astype(np.float32), amplitudes.astype(np.float32), phases.astype(np.float32))
