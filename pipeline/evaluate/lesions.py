"""Scores of lesions one by one: which were found, and how well those that were found are outlined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics import LESION_COLUMNS

_MATCH = 0.5  # IoU above which a prediction can match one lesion only


@dataclass(frozen=True)
class LesionScores:
    """Lesions of one case. All numbers from 0 to 1 are NaN without any lesion and 0 if only one map has some.

    Args:
        reference: Lesions in the reference.
        prediction: Lesions in the prediction.
        f1: Harmonic mean of the share of the reference's lesions that the prediction overlaps and the share of the
            predicted lesions that overlap the reference.
        rq: Recognition quality: F1 of lesions matched by an IoU above 0.5.
        sq: Segmentation quality: mean IoU of these matches; 0 without a match.
        pq: Panoptic quality: rq times sq.
    """

    reference: int
    prediction: int
    f1: float
    rq: float
    sq: float
    pq: float

    def columns(self) -> dict[str, float]:
        """The numbers under their names in ``scores.csv``, in the order of :data:`LESION_COLUMNS`."""
        values = (float(self.reference), float(self.prediction), self.f1, self.rq, self.sq, self.pq)
        return dict(zip(LESION_COLUMNS, values, strict=True))


def lesion_scores(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], voxel_ml: float, minimum_ml: float = 0.0
) -> LesionScores:
    """Match the connected parts of two masks; voxels that touch by a face, an edge or a corner belong together.

    Args:
        reference: Mask (I, J, K).
        prediction: Mask of the same shape.
        voxel_ml: Volume of a voxel in mL.
        minimum_ml: Parts smaller than this are taken out of both masks before anything is counted.

    Reference: Kirillov et al., Panoptic Segmentation, CVPR 2019.
    """
    one, n_one = _parts(reference, voxel_ml, minimum_ml)
    other, n_other = _parts(prediction, voxel_ml, minimum_ml)
    if not n_one or not n_other:
        score = 0.0 if n_one or n_other else float("nan")
        return LesionScores(n_one, n_other, score, score, score, score)
    both = (one > 0) & (other > 0)
    pairs, shared = np.unique(np.stack([one[both], other[both]]), axis=1, return_counts=True)
    sizes, other_sizes = np.bincount(one.ravel()), np.bincount(other.ravel())
    iou = shared / (sizes[pairs[0]] + other_sizes[pairs[1]] - shared)
    found, right = len(np.unique(pairs[0])) / n_one, len(np.unique(pairs[1])) / n_other
    # Above one half a part can overlap no second part as much: matches need no search.
    matched = iou[iou > _MATCH]
    rq = 2 * len(matched) / (n_one + n_other)
    sq = float(matched.mean()) if len(matched) else 0.0
    f1 = 2 * found * right / (found + right) if found + right else 0.0
    return LesionScores(n_one, n_other, f1, rq, sq, rq * sq)


def _parts(mask: NDArray[np.bool_], voxel_ml: float, minimum_ml: float) -> tuple[NDArray[np.integer[Any]], int]:
    """Connected parts numbered from 1, those below the minimum left out, and how many there are."""
    # cc3d 4.1 fails with 26 neighbours on some masks that are a single line, where faces are all that can touch.
    line = sum(size > 1 for size in mask.shape) < 2
    parts: NDArray[np.integer[Any]] = cc3d.connected_components(mask, connectivity=6 if line else 26)
    # Volumes are products of spacings, so that a part of exactly the minimum may be a rounding error below it.
    large = np.bincount(parts.ravel()) * voxel_ml >= minimum_ml * (1 - 1e-9)
    large[0] = False
    number = np.where(large, np.cumsum(large), 0)
    return number[parts], int(large.sum())
