"""What a step of cleaning does to the scores of one case; the work behind the choice of post-processing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.core.labels import LabelTable
from pipeline.data.volumes import read_label_map
from pipeline.evaluate.overlap import joint_histogram
from pipeline.evaluate.pairing import FilePair
from pipeline.infer.cleaning import Cleaning
from pipeline.infer.postprocess import Piece, connected_pieces

__all__ = ["SIZES_ML", "CaseEffects", "EffectTask", "Step", "StepKind", "measure_effects", "size_effects"]

StepKind = Literal["keep_largest", "remove_small", "fill_holes"]

SIZES_ML: tuple[float, ...] = tuple(round(m * 10.0**e, 3) for e in range(-3, 4) for m in (1, 2, 5))
"""Volumes that are tried as the smallest of a component that stays: 0.001, 0.002, 0.005, 0.01, … 5000."""

Dice = Mapping[str, float | None]
"""Organ → Dice; None where the organ is in neither reference nor prediction."""

_Box = tuple[slice, ...]
_SLACK = 1e-9  # relative: volumes are products of spacings


@dataclass(frozen=True)
class Step:
    """One thing to do to one organ or region.

    Args:
        kind: What.
        organ: To which organ or region.
        min_ml: Of ``remove_small``, the volume a component must have to stay.
    """

    kind: StepKind
    organ: str
    min_ml: float | None = None

    def cleaning(self) -> Cleaning:
        """This step alone."""
        if self.kind == "keep_largest":
            return Cleaning(keep_largest=(self.organ,))
        if self.kind == "fill_holes":
            return Cleaning(fill_holes=(self.organ,))
        return Cleaning(remove_small_ml={self.organ: self.min_ml or 0.0})


@dataclass(frozen=True)
class EffectTask:
    """One case to measure, as it travels to a worker.

    Args:
        pair: Its prediction, not cleaned, and its reference.
        labels: The label table.
        steps: What to try.
        follow: Whether each step begins where the one before it ended, instead of at the prediction.
    """

    pair: FilePair
    labels: LabelTable
    steps: Sequence[Step] = ()
    follow: bool = False


@dataclass(frozen=True)
class CaseEffects:
    """Scores of one case.

    Args:
        case: Case id.
        before: Of the prediction as it is.
        after: For each step, the organs whose Dice it changed, with the new Dice.
    """

    case: str
    before: Dice
    after: tuple[Dice, ...]


def size_effects(task: EffectTask) -> tuple[str, Dice, dict[str, tuple[float | None, ...]]]:
    """Dice of every organ if components below each of :data:`SIZES_ML` were removed from it, and from no other.

    Returns:
        Case id; organ → Dice of the prediction as it is; organ → Dice for each size, for the organs predicted.

    Raises:
        VolsegError: If a file cannot be read.
    """
    reference, index, voxel_ml = _read(task)
    table = task.labels.indexed()
    counts = _counts(reference, index, task.labels)
    before = _scores(counts, task.labels)
    boxes, found = _boxes(index), {}
    for name, values in table.target_values.items():
        box = _around(boxes, values, index.shape)
        if box is not None:
            parts = [_component_sizes(reference[box], piece, values) for piece in _pieces(index[box], values)]
            voxels, kept, shared = np.concatenate(parts, axis=1)
            total, volume_ml = int(counts[list(values)].sum()), voxels * voxel_ml
            stays = [volume_ml >= size * (1 - _SLACK) for size in SIZES_ML]
            found[name] = tuple(_dice(total, int(kept[s].sum()), int(shared[s].sum())) for s in stays)
    return task.pair.case, before, found


def measure_effects(task: EffectTask) -> CaseEffects:
    """Scores of a case before and after each step, exactly, for all organs that the step changes.

    Only the surroundings of the organ are looked at again, so that a step costs as much as its organ is large.

    Raises:
        VolsegError: If a file cannot be read.
    """
    reference, index, voxel_ml = _read(task)
    labels, size = task.labels, task.labels.classes + 1
    counts = _counts(reference, index, labels)
    first = before = _scores(counts, labels)
    boxes = _boxes(index)
    after: list[Dice] = []
    for step in task.steps:
        held = [n for n, left in enumerate(labels.without(step.organ)) if left != n]
        box = _around(boxes, held, index.shape)
        if box is None:
            after.append({})
            continue
        part = index[box]
        cleaned = step.cleaning().apply(part, labels, voxel_ml)
        changed = cleaned != part
        rows = np.where(reference[box][changed] < 0, size - 1, reference[box][changed]).astype(np.int64) * size
        moved = np.bincount(rows + cleaned[changed], minlength=size * size).astype(np.int64)
        moved -= np.bincount(rows + part[changed], minlength=size * size)
        now = _scores(counts + moved.reshape(size, size), labels)
        after.append({name: dice for name, dice in now.items() if dice != before[name]})
        if task.follow:
            for n in np.unique(cleaned[changed]).tolist():
                boxes[n] = box if n not in boxes else _union([box, boxes[n]])
            counts, before = counts + moved.reshape(size, size), now
            index[box] = cleaned
    return CaseEffects(task.pair.case, first, tuple(after))


def _pieces(part: NDArray[np.signedinteger[Any]], values: Sequence[int]) -> list[Piece]:
    return connected_pieces(part == values[0] if len(values) == 1 else np.isin(part, values))


def _component_sizes(
    reference: NDArray[np.signedinteger[Any]], piece: Piece, values: Sequence[int]
) -> NDArray[np.int64]:
    """(3, components): voxels, those that are not ignored, and those that the reference has as well."""
    there, size = reference[piece.box], len(piece.sizes) + 1
    found = [np.bincount(piece.components[mask], minlength=size)[1:] for mask in (there >= 0, np.isin(there, values))]
    return np.stack([piece.sizes, *found])


def _read(task: EffectTask) -> tuple[NDArray[np.signedinteger[Any]], NDArray[np.signedinteger[Any]], float]:
    """Class indices of reference (-1 where ignored) and prediction, and the volume of a voxel in mL."""
    reference = read_label_map(task.pair.reference, case=task.pair.case)
    prediction = read_label_map(task.pair.prediction or "", case=task.pair.case)
    return (
        np.ascontiguousarray(task.labels.to_index(reference.array)),
        np.ascontiguousarray(task.labels.to_index(prediction.array)),
        prediction.grid.voxel_volume_ml,
    )


def _counts(
    reference: NDArray[np.signedinteger[Any]], index: NDArray[np.signedinteger[Any]], labels: LabelTable
) -> NDArray[np.int64]:
    """Voxels of each pair of classes (reference, prediction); the last row is what is ignored."""
    return joint_histogram(reference, index, range(labels.classes))


def _scores(counts: NDArray[np.int64], labels: LabelTable) -> dict[str, float | None]:
    kept = counts[:-1]
    scores = {}
    for name, values in labels.indexed().target_values.items():
        at = list(values)
        shared = kept[np.ix_(at, at)].sum()
        scores[name] = _dice(int(kept[at].sum()), int(kept[:, at].sum()), int(shared))
    return scores


def _dice(reference: int, prediction: int, shared: int) -> float | None:
    return 2 * shared / (reference + prediction) if reference + prediction else None


def _boxes(index: NDArray[np.signedinteger[Any]]) -> dict[int, _Box]:
    found = find_objects(index.astype(np.int32, copy=False))
    return {n: box for n, box in enumerate(found, start=1) if box is not None}


def _around(boxes: Mapping[int, _Box], values: Sequence[int], shape: Sequence[int]) -> _Box | None:
    """Box of some classes and one voxel around it, so that what is flat is flat because the volume is."""
    there = [boxes[n] for n in values if n in boxes]
    if not there:
        return None
    box = zip(_union(there), shape, strict=True)
    return tuple(slice(max(0, side.start - 1), min(size, side.stop + 1)) for side, size in box)


def _union(boxes: Sequence[_Box]) -> _Box:
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
