"""Solids made of voxels, for tests of distances, and surfaces between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.surface import Faces, SurfaceScores, label_faces, surface_scores

Mask = NDArray[np.bool_]


def box(shape: Sequence[int], start: Sequence[int], size: Sequence[int]) -> Mask:
    mask = np.zeros(tuple(shape), dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def ball(shape: Sequence[int], centre: Sequence[float], radius: float) -> Mask:
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
    return np.asarray(sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) <= radius**2)


def faces_of(mask: Mask) -> Faces:
    return label_faces(mask.astype(np.uint8)).of((1,))


def compared(
    reference: Mask, prediction: Mask, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), tolerance_mm: float = 1.0
) -> SurfaceScores:
    return surface_scores(faces_of(reference), faces_of(prediction), reference.shape, spacing_mm, tolerance_mm)
