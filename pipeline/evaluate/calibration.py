"""Whether probabilities mean what they say: expected calibration error and Brier score of an organ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import Box
from pipeline.evaluate.metrics import CALIBRATION_BINS, CALIBRATION_COLUMNS, CALIBRATION_MARGIN_MM


def calibration(
    probability: NDArray[np.floating[Any]], reference: NDArray[np.bool_], counted: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Calibration of the probability of one organ.

    Args:
        probability: Of the organ in every voxel, 0 to 1.
        reference: Whether the voxel is the organ, the same shape.
        counted: Voxels that count; by default all.

    Returns:
        ``ece``: mean over voxels of the difference between the mean probability and the share of the organ in the bin
        of the voxel's probability, of 15 of equal width. ``brier``: mean squared difference of probability and
        reference. NaN without a voxel.

    Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; Brier, Monthly Weather Review 1950.
    """
    keep = slice(None) if counted is None else counted
    p, truth = probability[keep].ravel().astype(np.float64), reference[keep].ravel().astype(np.float64)
    if not len(p):
        return dict.fromkeys(CALIBRATION_COLUMNS, float("nan"))
    place = np.minimum((p * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    difference = np.bincount(place, weights=p - truth, minlength=CALIBRATION_BINS)
    return {"ece": float(np.abs(difference).sum() / len(p)), "brier": float(np.square(p - truth).mean())}


def dilated_box(box: Box, shape: Sequence[int], spacing_mm: Sequence[float]) -> Box:
    """The box with :data:`CALIBRATION_MARGIN_MM` around it, as far as there is a volume."""
    return box.grown([int(np.ceil(CALIBRATION_MARGIN_MM / spacing)) for spacing in spacing_mm], shape)
