"""Which grid a case is scanned on: spacing, orientation and field of view."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core import Grid
from pipeline.phantom.anatomy import TRUNK
from pipeline.phantom.body import Body

__all__ = ["ORIENTATIONS", "SPACINGS_MM", "Size", "draw_grid"]

Size = Literal["small", "full"]

SPACINGS_MM: dict[Size, tuple[tuple[float, float, float], ...]] = {
    "small": (
        (2.8, 2.8, 4.0),
        (3.0, 3.0, 5.0),
        (3.0, 3.0, 3.0),
        (2.4, 2.4, 5.0),
        (3.2, 5.0, 3.2),
        (3.4, 3.4, 2.5),
        (5.0, 2.9, 2.9),
        (3.3, 3.3, 0.8),
        (2.6, 2.6, 4.5),
        (1.6, 1.6, 5.0),
        (3.1, 3.1, 2.0),
    ),
    "full": ((0.8, 0.8, 5.0), (0.8, 0.8, 2.5), (0.8, 0.8, 1.5), (0.9, 0.9, 3.0), (0.85, 0.85, 2.0)),
}
"""Spacings along the patient's x, y, z: mostly axial slices, some coronal, sagittal and nearly isotropic."""

ORIENTATIONS: tuple[str, ...] = ("LPS", "RAS", "PIR", "LAS", "SRA", "RPI", "AIL")
"""Axis codes in use."""

_VOXELS: dict[Size, int] = {"small": 2_000_000, "full": 512 * 512 * 300}
_LOWEST_MM, _HIGHEST_MM = -215.0, 232.0  # ends of a field of view that cuts nothing, in body coordinates
_MIDDLE_MM = 15.0  # a short field of view is centred on the upper abdomen


_DEAL_STREAM = 9  # apart from the streams of the cases


def draw_grid(body: Body, index: int, seed: int, size: Size, rng: np.random.Generator) -> tuple[Grid, str]:
    """Draw the grid of a case.

    Spacings and orientations are dealt in turn, so that a small dataset has them all; where the thin slices would make
    more voxels than the size allows, the field of view is shorter, as in practice.

    Args:
        body: The patient, whose extent the field of view follows.
        index: Number of the case.
        seed: Seed of the dataset, which shuffles the order of dealing.
        size: ``"small"`` (about 1 million voxels) or ``"full"`` (512 x 512 x 60 to 300).
        rng: Source of the field of view.

    Returns:
        The grid in RAS order and the orientation to store it in.
    """
    deal = np.random.default_rng([seed, 0, _DEAL_STREAM])
    spacings = deal.permutation(np.array(SPACINGS_MM[size]))
    spacing = spacings[index % len(spacings)]
    orientation = ORIENTATIONS[int(deal.permutation(len(ORIENTATIONS))[index % len(ORIENTATIONS)])]
    lower, upper = _field_of_view(body, rng)
    if size == "full":
        half = 256 * spacing[:2]
        lower[:2], upper[:2] = -half, half
    counts = np.maximum(np.rint((upper - lower) / spacing), 8).astype(int)
    slices = min(counts[2], _VOXELS[size] // (counts[0] * counts[1]))
    if slices < counts[2]:
        middle = _MIDDLE_MM * body.scale[2]
        lower[2] = np.clip(middle - slices * spacing[2] / 2, lower[2], upper[2] - slices * spacing[2])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.round(body.offset_mm + lower + spacing / 2, 3)
    return Grid((int(counts[0]), int(counts[1]), int(slices)), affine), orientation


def _field_of_view(body: Body, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges (3,) in world mm from the body's origin; sometimes the top, the bottom or some skin is cut off."""
    half_width = max(width for _, width, _ in TRUNK.stations_mm) + body.fat_mm
    half_depth = max(depth for _, _, depth in TRUNK.stations_mm) + body.fat_mm
    margin = rng.uniform(-6.0, 22.0, size=2)
    cut = str(rng.choice(["nothing", "top", "bottom"], p=[0.65, 0.22, 0.13]))
    low, high = rng.uniform(-150.0, -75.0), rng.uniform(100.0, 190.0)
    half = np.array([half_width, half_depth]) * body.scale[:2] + margin
    lower = np.array([-half[0], -half[1] - 10.0, (low if cut == "bottom" else _LOWEST_MM) * body.scale[2]])
    upper = np.array([half[0], half[1] + 4.0, (high if cut == "top" else _HIGHEST_MM) * body.scale[2]])
    return lower, upper
