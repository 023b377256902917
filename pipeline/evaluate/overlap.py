"""Voxel overlap of two label maps, all organs or regions at once from one joint histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, listed, sentence
from pipeline.core.labels import LabelTable
from pipeline.evaluate.metrics import Status

_PIECE_VOXELS = 1 << 22  # the temporary arrays stay near 100 MB, whatever the size of the volume
_BYTE = 256
_TABLE_LIMIT = 1 << 20  # label values up to here are looked up in a table, larger ones by binary search


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of one organ or region in a reference and a prediction, voxels with the ignore label left out.

    Args:
        name: Organ or region.
        label: Its label values.
        reference_voxels: Voxels with one of them in the reference.
        prediction_voxels: Voxels with one of them in the prediction.
        intersection_voxels: Voxels that have one of them in both, not necessarily the same.
    """

    name: str
    label: tuple[int, ...]
    reference_voxels: int
    prediction_voxels: int
    intersection_voxels: int

    @property
    def dice(self) -> float:
        """2 |R ∩ P| / (|R| + |P|); NaN if both are empty, 0 if one is (Dice 1945)."""
        total = self.reference_voxels + self.prediction_voxels
        return 2 * self.intersection_voxels / total if total else float("nan")

    @property
    def iou(self) -> float:
        """|R ∩ P| / |R ∪ P|; NaN if both are empty, 0 if one is (Jaccard 1901)."""
        union = self.reference_voxels + self.prediction_voxels - self.intersection_voxels
        return self.intersection_voxels / union if union else float("nan")

    @property
    def status(self) -> Status:
        """``scored``, ``true_negative``, ``missed`` or ``hallucinated``."""
        if self.reference_voxels and self.prediction_voxels:
            return "scored"
        if self.reference_voxels:
            return "missed"
        return "hallucinated" if self.prediction_voxels else "true_negative"


def joint_histogram(
    reference: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], values: Sequence[int]
) -> NDArray[np.int64]:
    """Count how often each pair of values meets in one voxel.

    Args:
        reference: Label values, any shape.
        prediction: Label values, the same shape.
        values: The N values to tell apart, at least one, different from each other.

    Returns:
        (N + 1, N + 1) voxel counts, rows the reference's and columns the prediction's value in the order of
        ``values``; the last row and column count every other value. All zero for empty arrays.

    Raises:
        ValueError: If the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"label arrays: expected equal shapes, got {reference.shape} and {prediction.shape}.")
    size = len(values) + 1
    counts = np.zeros(size * size, dtype=np.int64)
    if reference.ndim > 1 and reference.flags.f_contiguous:  # as files are read: walk along memory
        reference, prediction = reference.T, prediction.T
    ordered = np.array(sorted(values), dtype=np.int64)
    position = np.argsort(np.array(values, dtype=np.int64), kind="stable")
    # Some rows at a time, so that the temporary arrays do not grow with the volume.
    rows = max(1, _PIECE_VOXELS * len(reference) // max(1, reference.size))
    small = np.zeros(_BYTE * _BYTE, dtype=np.int64)  # of pairs of values that are bytes: many times faster
    for start in range(0, len(reference), rows):
        one, other = reference[start : start + rows].ravel(), prediction[start : start + rows].ravel()
        # Two bytes make one number of 16 bits, whose histogram has a fixed size: no value is looked up.
        if _is_bytes(one) and _is_bytes(other):
            pairs = (one.astype(np.uint16) << 8) | other.astype(np.uint8)
            small += np.bincount(pairs, minlength=_BYTE * _BYTE)
            continue
        row, column = _codes(one, ordered, position), _codes(other, ordered, position)
        row *= size
        row += column
        counts += np.bincount(row, minlength=size * size)
    # Only the pairs of bytes that occur are translated into the values that the caller named.
    codes = _codes(np.arange(_BYTE), ordered, position)
    there = np.flatnonzero(small)
    place = codes[there // _BYTE] * size + codes[there % _BYTE]
    np.add.at(counts, place, small[there])
    return counts.reshape(size, size)


def overlaps(
    reference: NDArray[np.integer[Any]],
    prediction: NDArray[np.integer[Any]],
    labels: LabelTable,
    *,
    case: str | None = None,
) -> tuple[Overlap, ...]:
    """Overlap of every organ of the label table, or of every region if it has regions.

    Voxels that carry the ignore label in the reference are left out of all counts, whatever is predicted there.

    Args:
        reference: Label values, any shape.
        prediction: Label values, the same shape.
        labels: The organs or regions, and the ignore label if there is one.
        case: Case id for messages.

    Returns:
        One per target of the table, in its order.

    Raises:
        ValueError: If the shapes differ.
        DataError: If the reference holds a value that is not in the table, or the prediction one that is no organ.
    """
    values = (0, *labels.values, *(() if labels.ignore_label is None else (labels.ignore_label,)))
    counts = joint_histogram(reference, prediction, values)
    # Which values are unknown is looked for only when there are some: np.unique of a volume takes seconds.
    if counts[-1].any():
        raise _unknown("reference", labels.unknown(np.unique(reference).tolist()), labels, case)
    organs = len(labels.values)
    kept = counts[: organs + 1]  # without the reference's ignore label, which follows the organs
    if kept[:, organs + 1 :].any():
        there = np.isin(reference, values[: organs + 1])
        found = set(np.unique(prediction[there]).tolist()) - set(values[: organs + 1])
        raise _unknown("prediction", sorted(found), labels, case)
    return overlaps_of_counts(kept, values, labels)


def overlaps_of_counts(counts: NDArray[np.int64], values: Sequence[int], labels: LabelTable) -> tuple[Overlap, ...]:
    """Overlap of every target of a table.

    Args:
        counts: Voxels of each pair of values, rows the reference's, ignored voxels left out.
        values: What value a row and a column stand for.
        labels: The organs or regions.
    """
    in_reference, in_prediction = counts.sum(axis=1), counts.sum(axis=0)
    found = []
    for name, label in labels.target_values.items():
        at = [values.index(value) for value in label]
        shared = counts[np.ix_(at, at)].sum()
        found.append(Overlap(name, label, int(in_reference[at].sum()), int(in_prediction[at].sum()), int(shared)))
    return tuple(found)


def _codes(
    piece: NDArray[np.integer[Any]], ordered: NDArray[np.int64], position: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Index of each voxel's value in the list the caller gave, or the list's length for other values."""
    other = len(ordered)
    low, high = int(ordered[0]), int(ordered[-1])
    if high - low <= _TABLE_LIMIT:
        table = np.full(high - low + 3, other, dtype=np.int64)  # first and last entry: below and above the range
        table[ordered - low + 1] = position
        return table.take(piece.astype(np.int64) - (low - 1), mode="clip")
    found = np.minimum(np.searchsorted(ordered, piece), other - 1)
    return np.where(ordered[found] == piece, position[found], other)


def _is_bytes(piece: NDArray[np.integer[Any]]) -> bool:
    """Whether all values are from 0 to 255."""
    return bool(piece.dtype == np.uint8 or (piece.size and piece.min() >= 0 and piece.max() < _BYTE))


def _unknown(what: str, values: Sequence[int], labels: LabelTable, case: str | None) -> DataError:
    table = listed(labels.values) or "empty"
    known = "Name them in a labels.json beside the references: what predictions cannot have is then left out"
    advice = known if what == "reference" else "Add them to the label table, or remap them"
    return DataError(
        sentence(
            f"{what} values",
            f"0 and those of the label table ({table})",
            list(values),
            advice,
            case=case,
        )
    )
