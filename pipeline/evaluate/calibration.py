"""Whether probabilities mean what they say: expected calibration error and Brier score of an organ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION_COLUMNS = ("ece", "brier")
CALIBRATION_BINS = 15
CALIBRATION_MARGIN_MM = 10.0


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


def dilated_box(box: Sequence[slice], shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[slice, ...]:
    """The part of a volume that holds a box and :data:`CALIBRATION_MARGIN_MM` around it."""
    found = []
    for part, n, spacing in zip(box, shape, spacing_mm, strict=True):
        margin = int(np.ceil(CALIBRATION_MARGIN_MM / spacing))
        found.append(slice(max(0, part.start - margin), min(n, part.stop + margin)))
    return tuple(found)
