"""Prediction and reference brought together: one grid and one set of label values, or what differs in a sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import product

import numpy as np

from pipeline.core.errors import DataError, sentence
from pipeline.core.grid import GRID_TOLERANCE_MM, Grid
from pipeline.core.volume import LabelMap, require_same_grid
from pipeline.data.regrid import regrid_labels

__all__ = ["aligned", "replaced_values", "without_values"]

_ADVICE = "Export it again on the reference's grid, or score it with --resample"


def aligned(prediction: LabelMap, reference: Grid, case: str | None = None, *, resample: bool = False) -> LabelMap:
    """The prediction on the reference's grid.

    Args:
        prediction: Label map on any grid.
        reference: The grid it must have.
        case: Case id for messages.
        resample: Bring it there (largest vote of linear interpolation) instead of refusing another grid.

    Raises:
        DataError: If the grids differ: both shapes, and how far a corner of the volume is moved in mm.
    """
    if resample and not reference.matches(prediction.grid):
        return regrid_labels(prediction, reference)
    if reference.shape != prediction.grid.shape:
        apart = _corners_apart_mm(reference, prediction.grid)
        rule = f"the reference grid within {GRID_TOLERANCE_MM:g} mm"
        got = f"shapes {reference.shape} and {prediction.grid.shape}, corners up to {apart:.4g} mm apart"
        raise DataError(sentence("prediction grid", rule, got, _ADVICE, case=case))
    require_same_grid(reference, prediction.grid, "prediction grid", "the reference grid", case=case, advice=_ADVICE)
    return prediction


def replaced_values(label_map: LabelMap, table: Mapping[int, int]) -> LabelMap:
    """The label map with other label values, all replaced at once; itself where none is.

    Args:
        label_map: Label values.
        table: Old value → new value.
    """
    if not table:
        return label_map
    values, position = np.unique(label_map.array, return_inverse=True)
    new = np.array([table.get(int(value), int(value)) for value in values], dtype=np.int64)
    new = new.astype(np.min_scalar_type(int(new.max()))) if new.min() >= 0 else new
    return LabelMap(new[position].reshape(label_map.array.shape), label_map.grid)


def without_values(label_map: LabelMap, values: Collection[int]) -> LabelMap:
    """The label map with some label values as background; itself where none is named.

    Args:
        label_map: Label values.
        values: Those to leave out.
    """
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
