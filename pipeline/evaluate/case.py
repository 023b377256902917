"""The scores of one case: one row per organ or region.

Prediction and reference are brought onto one grid and one set of label values first, or what differs is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, sentence
from pipeline.core.grid import GRID_TOLERANCE_MM, Box, Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap, require_same_grid
from pipeline.evaluate.metrics import (
    CALIBRATION_BINS,
    CALIBRATION_COLUMNS,
    CALIBRATION_MARGIN_MM,
    METRICS,
    OVERLAP_ONLY,
    Measures,
    Row,
    Status,
)
from pipeline.evaluate.overlap import Overlap, overlaps
from pipeline.evaluate.surface import LabelFaces, label_faces, surface_scores

# Whether probabilities mean what they say: expected calibration error and Brier score of an organ.


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


Probabilities = Mapping[str, NDArray[np.floating[Any]]]
"""Organ or region → its probability (I, J, K) in every voxel of the reference's grid."""

_ADVICE = "Export it again on the reference's grid, or score it with --resample"


def aligned(prediction: LabelMap, reference: Grid, case: str | None = None, *, resample: bool = False) -> LabelMap:
    """The prediction on the reference's grid; ``resample`` brings it there by the largest vote of linear interpolation.

    Raises:
        DataError: If the grids differ and may not: both shapes, and how far a corner of the volume is moved in mm.
    """
    if resample and not reference.matches(prediction.grid):
        from pipeline.data.regrid import regrid_labels  # here: it loads SimpleITK

        return regrid_labels(prediction, reference)
    if reference.shape != prediction.grid.shape:
        apart = _corners_apart_mm(reference, prediction.grid)
        rule = f"the reference grid within {GRID_TOLERANCE_MM:g} mm"
        got = f"shapes {reference.shape} and {prediction.grid.shape}, corners up to {apart:.4g} mm apart"
        raise DataError(sentence("prediction grid", rule, got, _ADVICE, case=case))
    require_same_grid(reference, prediction.grid, "prediction grid", "the reference grid", case=case, advice=_ADVICE)
    return prediction


def replaced_values(label_map: LabelMap, table: Mapping[int, int]) -> LabelMap:
    """The label map with other label values, by a table of old → new, all replaced at once; itself if it is empty."""
    if not table:
        return label_map
    values, position = np.unique(label_map.array, return_inverse=True)
    new = np.array([table.get(int(value), int(value)) for value in values], dtype=np.int64)
    new = new.astype(np.min_scalar_type(int(new.max()))) if new.min() >= 0 else new
    return LabelMap(new[position].reshape(label_map.array.shape), label_map.grid)


def without_values(label_map: LabelMap, values: Collection[int]) -> LabelMap:
    """The label map with some label values as background; itself where none is named."""
    if not values:
        return label_map
    array = label_map.array
    return LabelMap(np.where(np.isin(array, list(values)), array.dtype.type(0), array), label_map.grid)


def _corners_apart_mm(one: Grid, other: Grid) -> float:
    """Largest distance between corresponding outer corners of two volumes."""
    ends = [
        grid.to_world([[n * side - 0.5 for n, side in zip(grid.shape, corner, strict=True)] for corner in corners])
        for grid in (one, other)
        for corners in [tuple(product((0, 1), repeat=3))]
    ]
    return float(np.linalg.norm(ends[0] - ends[1], axis=1).max())


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two label maps on one grid, the surfaces of all their organs, and what is measured of them."""

    reference: NDArray[np.integer[Any]]
    prediction: NDArray[np.integer[Any]]
    faces: tuple[LabelFaces, LabelFaces]
    spacing_mm: tuple[float, float, float]
    ignore: int | None
    measures: Measures

    def box(self, label: Sequence[int]) -> Box:
        """The smallest box that holds an organ in both maps."""
        boxes = [box for faces in self.faces if (box := faces.box(label)) is not None]
        return Box.union(boxes) or Box.whole(self.reference.shape)

    def masks(self, label: Sequence[int], box: Box) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The organ in a box of both maps, voxels with the ignore label left out."""
        one, other = (np.isin(array[box.slices], label) for array in (self.reference, self.prediction))
        return one, other


def score_case(
    prediction: LabelMap,
    reference: LabelMap,
    labels: LabelTable,
    case: str,
    measures: Measures = OVERLAP_ONLY,
    probabilities: Probabilities | None = None,
) -> list[Row]:
    """Score every organ of one case, or every region if the table has regions.

    Args:
        prediction: Predicted label map on the reference's grid.
        reference: Reference label map.
        labels: The organs or regions, and the ignore label if there is one.
        case: Case id.
        measures: What to measure beside overlap and volumes.
        probabilities: Those of the prediction; without them calibration gets its worst score.

    Returns:
        One row per target, in the order of the table.

    Raises:
        DataError: If the grids differ (shapes, and the distance in mm), or a value is not in the label table.
    """
    reference = without_values(reference, measures.unscored)
    prediction = aligned(replaced_values(prediction, measures.remap), reference.grid, case, resample=measures.resample)
    found = overlaps(reference.array, prediction.array, labels, case=case)
    if not measures.needs_surfaces:
        return [_row(overlap, reference, case, {}) for overlap in found]
    pair = _pair(reference, prediction, labels, measures)
    return [_row(overlap, reference, case, _measured(overlap, pair, reference, probabilities)) for overlap in found]


def score_without_prediction(
    reference: LabelMap,
    labels: LabelTable,
    case: str,
    status: Status = "missing_prediction",
    measures: Measures = OVERLAP_ONLY,
) -> list[Row]:
    """Score a case that has no usable prediction: the worst score for every organ (or region) in its reference.

    Args:
        reference: Reference label map.
        labels: The organs or regions, and the ignore label if there is one.
        case: Case id.
        status: ``missing_prediction`` or ``failed``.
        measures: What is measured beside overlap and volumes.

    Returns:
        One row per target; scores are NaN for organs that the reference does not have.
    """
    rows = []
    reference = without_values(reference, measures.unscored)
    for found in overlaps(reference.array, reference.array, labels, case=case):
        wanted = found.reference_voxels > 0
        dice, iou = (METRICS[column].worst if wanted else float("nan") for column in ("dice", "iou"))
        volume_ml = found.reference_voxels * reference.grid.voxel_volume_ml
        more = _worst(found, measures, wanted) | _about(found, measures, reference)
        rows.append(Row(case, found.label, found.name, status, dice, iou, volume_ml, float("nan"), more))
    return rows


def diagonal_mm(label_map: LabelMap) -> float:
    """Distance between opposite corners of the volume: no two points in it are further apart."""
    return float(np.linalg.norm(np.array(label_map.grid.shape) * np.array(label_map.grid.spacing_mm)))


def _row(found: Overlap, reference: LabelMap, case: str, more: dict[str, float]) -> Row:
    voxel_ml = reference.grid.voxel_volume_ml
    volumes = found.reference_voxels * voxel_ml, found.prediction_voxels * voxel_ml
    return Row(case, found.label, found.name, found.status, found.dice, found.iou, *volumes, more)


def _pair(reference: LabelMap, prediction: LabelMap, labels: LabelTable, measures: Measures) -> _Pair:
    """Both label maps in the order of memory and the smallest type, with the surfaces of all organs."""
    # Faces are found by comparing neighbours, which is bound by memory: small voxels in C order are several times
    # as fast. What is predicted where the reference was not annotated becomes the ignore label too, so that no surface
    # of the prediction runs through that part.
    kind = np.min_scalar_type(max((0, *labels.values, labels.ignore_label or 0)))
    one = np.ascontiguousarray(reference.array, dtype=kind)
    other = np.ascontiguousarray(prediction.array, dtype=kind)
    ignore = labels.ignore_label
    if ignore is not None:
        other = np.where(one == ignore, kind.type(ignore), other)
    faces = label_faces(one, ignore), label_faces(other, ignore)
    return _Pair(one, other, faces, reference.grid.spacing_mm, ignore, measures)


def _about(found: Overlap, measures: Measures, reference: LabelMap) -> dict[str, float]:
    """Columns that say how distances are to be read."""
    if measures.surface == "none" and not measures.compat:
        return {}
    return {"tolerance_mm": measures.tolerance_of(found.name), "diagonal_mm": diagonal_mm(reference)}


def _worst(found: Overlap, measures: Measures, counts: bool) -> dict[str, float]:
    """The worst numbers of an organ, or NaN where nothing was to be found."""
    return {
        column: (METRICS[column].worst if counts else float("nan"))
        for column in measures.columns(found.name)
        if column in METRICS
    }


def _measured(
    found: Overlap, pair: _Pair, reference: LabelMap, probabilities: Probabilities | None
) -> dict[str, float]:
    """Everything that is measured beside overlap and volumes."""
    measures, about = pair.measures, _about(found, pair.measures, reference)
    if found.status == "true_negative":
        return _worst(found, measures, counts=False) | about
    more: dict[str, float] = {}
    one, other = (faces.of(found.label) for faces in pair.faces)
    shape, spacing_mm, tolerance_mm = pair.reference.shape, pair.spacing_mm, measures.tolerance_of(found.name)
    if measures.surface == "exact":
        more |= asdict(surface_scores(one, other, shape, spacing_mm, tolerance_mm))
    # What is seldom asked for is imported where it is measured: an evaluation starts without it.
    if measures.surface == "voxel":
        from pipeline.evaluate.compat import voxel_scores

        more |= asdict(voxel_scores(one, other, shape, spacing_mm, tolerance_mm))
    more |= about
    if found.name in measures.lesions:
        from pipeline.evaluate.lesions import lesion_scores

        masks = pair.masks(found.label, pair.box(found.label))
        more |= lesion_scores(*masks, reference.grid.voxel_volume_ml, measures.minimum_lesion_ml).columns()
    if measures.probabilities is not None:
        more |= _calibrated(found, pair, probabilities)
    if measures.compat:
        from pipeline.evaluate.compat import Organ, compat_scores

        box = pair.box(found.label)
        masks = pair.masks(found.label, box)
        organs = Organ(one, masks[0], box.start), Organ(other, masks[1], box.start)
        more |= compat_scores(measures.compat, *organs, shape, spacing_mm, tolerance_mm)
    return more


def _calibrated(found: Overlap, pair: _Pair, probabilities: Probabilities | None) -> dict[str, float]:
    if probabilities is None or found.name not in probabilities:
        return {column: METRICS[column].worst for column in CALIBRATION_COLUMNS}
    box = dilated_box(pair.box(found.label), pair.reference.shape, pair.spacing_mm)
    counted = None if pair.ignore is None else pair.reference[box.slices] != pair.ignore
    return calibration(probabilities[found.name][box.slices], pair.masks(found.label, box)[0], counted)
