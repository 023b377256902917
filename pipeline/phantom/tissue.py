"""Intensities: what a tissue measures in CT and in MR, and what the scanner adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from pipeline.phantom.shapes import Waves, draw_waves

Contrast = Literal["ct", "mr"]

CT_HU: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "air": (-1000.0, 0.0, 0.0),
        "fat": (-95.0, 0.0, 5.0),
        "muscle": (50.0, 12.0, 4.0),
        "bone": (580.0, 0.0, 60.0),
        "marrow": (230.0, 20.0, 35.0),
        "disc": (85.0, 10.0, 8.0),
        "lung": (-810.0, 15.0, 30.0),
        "blood": (45.0, 140.0, 8.0),
        "vein": (45.0, 85.0, 6.0),
        "heart": (45.0, 85.0, 8.0),
        "liver": (60.0, 45.0, 5.0),
        "lesion": (30.0, 15.0, 8.0),
        "spleen": (50.0, 65.0, 5.0),
        "kidney": (35.0, 150.0, 8.0),
        "medulla": (32.0, 95.0, 8.0),
        "bile": (10.0, 0.0, 4.0),
        "urine": (6.0, 0.0, 4.0),
        "food": (35.0, 0.0, 15.0),
        "water": (12.0, 0.0, 8.0),
        "stool": (-30.0, 0.0, 40.0),
        "bowel": (48.0, 35.0, 5.0),
        "table": (-350.0, 0.0, 80.0),
    }
)
"""Tissue → (HU without contrast agent, rise at full enhancement, standard deviation between patients)."""

MR_SIGNAL: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "air": (0.0, 0.0),
        "fat": (0.95, 0.03),
        "muscle": (0.38, 0.02),
        "bone": (0.12, 0.02),
        "marrow": (0.60, 0.05),
        "disc": (0.30, 0.03),
        "lung": (0.07, 0.01),
        "blood": (0.20, 0.03),
        "vein": (0.28, 0.03),
        "heart": (0.42, 0.03),
        "liver": (0.58, 0.03),
        "lesion": (0.40, 0.04),
        "spleen": (0.47, 0.02),
        "kidney": (0.50, 0.03),
        "medulla": (0.36, 0.03),
        "bile": (0.24, 0.03),
        "urine": (0.16, 0.02),
        "food": (0.45, 0.12),
        "water": (0.18, 0.05),
        "stool": (0.40, 0.10),
        "bowel": (0.40, 0.03),
        "table": (0.0, 0.0),
    }
)
"""Tissue → (T1-weighted signal relative to the brightest, standard deviation between patients)."""


@dataclass(frozen=True, eq=False)
class Scanner:
    """How one examination was acquired.

    Args:
        contrast: CT or MR.
        values: Mean intensity of each tissue, in HU or as relative signal.
        noise: Standard deviation of the noise in a voxel, in the same unit.
        blur_voxels: Standard deviation of the noise's in-plane correlation kernel.
        gain: Intensity units per relative signal (MR); 1 for CT.
        bias: Logarithm of the coil's sensitivity over the world (MR), or None.
    """

    contrast: Contrast
    values: Mapping[str, float]
    noise: float
    blur_voxels: float
    gain: float = 1.0
    bias: Waves | None = None


def draw_scanner(contrast: Contrast, rng: np.random.Generator) -> Scanner:
    """Draw contrast phase, tissue values, noise level and, for MR, scale and bias field of one examination."""
    blur = float(rng.uniform(0.4, 0.8))
    if contrast == "ct":
        phase = rng.uniform(0.3, 1.0)
        hu = {name: base + phase * rise + sd * _normal(rng) for name, (base, rise, sd) in CT_HU.items()}
        return Scanner(contrast, hu, float(rng.uniform(8.0, 24.0)), blur)
    signal = {name: base + sd * _normal(rng) for name, (base, sd) in MR_SIGNAL.items()}
    gain = float(np.exp(rng.uniform(np.log(250.0), np.log(2500.0))))
    return Scanner(
        contrast, signal, float(rng.uniform(0.02, 0.045)), blur, gain, draw_waves(rng, 4, (450.0, 900.0), 0.12, 1)
    )


def add_noise(slab: NDArray[np.float32], scanner: Scanner, rng: np.random.Generator) -> NDArray[np.float32]:
    """Add the scanner's noise: correlated Gaussian for CT, Rician for MR (Gudbjartsson and Patz 1995).

    Slices (along the last axis) are independent of each other, so a volume may be noised slab by slab in order.

    Returns:
        (I, J, K), whole numbers: HU within -1024 and 3071, or MR intensities of at least 0.
    """
    noise = _correlated(slab.shape, scanner, rng)
    if scanner.contrast == "ct":
        return np.asarray(np.clip(np.rint(slab + noise[0]), -1024.0, 3071.0), dtype=np.float32)
    return np.asarray(np.rint(scanner.gain * np.hypot(slab + noise[0], noise[1])), dtype=np.float32)


def _correlated(shape: tuple[int, ...], scanner: Scanner, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    offsets = np.arange(-2, 3)
    kernel = np.exp(-0.5 * (offsets / scanner.blur_voxels) ** 2)
    kernel /= np.linalg.norm(kernel)  # keeps the standard deviation of white noise
    i, j, k = shape
    white = rng.standard_normal((k, 1 if scanner.contrast == "ct" else 2, i, j), dtype=np.float32)
    white *= np.float32(scanner.noise)
    # Within slices only, and wrapped around: the noise of a slice does not depend on the slab it is made in.
    for axis in (2, 3):
        white = correlate1d(white, kernel, axis=axis, mode="wrap")
    return [np.moveaxis(white[:, channel], 0, -1) for channel in range(white.shape[1])]


def _normal(rng: np.random.Generator) -> float:
    return float(np.clip(rng.standard_normal(), -2.0, 2.0))
