"""The values of an evaluation: one row per case and target, and the files, failures and notes behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.core.labels import LabelTable

__all__ = ["STATUSES", "EvaluatedCase", "Evaluation", "Row", "Status", "label_entry"]

Status = Literal["scored", "true_negative", "missed", "hallucinated", "missing_prediction", "failed"]
"""What happened to one organ or region of one case.

* ``scored``: in the reference and in the prediction.
* ``true_negative``: in neither; Dice and IoU are NaN and enter no mean.
* ``missed``: only in the reference; 0.
* ``hallucinated``: only in the prediction; 0.
* ``missing_prediction``: there is no prediction file; 0 if the reference has the organ, else NaN.
* ``failed``: there is a prediction file that cannot be used; as ``missing_prediction``.
"""

STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Row:
    """Scores of one organ, or of one region of a table that has regions, in one case.

    Args:
        case: Case id.
        label: Label values: the organ's one, or all of the region's.
        name: Name of the organ or region.
        status: What happened, see :data:`Status`.
        dice: 0 to 1, or NaN where it is not defined.
        iou: 0 to 1, or NaN where it is not defined.
        volume_reference_ml: Volume in the reference, ignored voxels left out.
        volume_prediction_ml: Volume in the prediction, ignored voxels left out; NaN without a usable prediction.
    """

    case: str
    label: tuple[int, ...]
    name: str
    status: Status
    dice: float
    iou: float
    volume_reference_ml: float
    volume_prediction_ml: float

    @property
    def counts(self) -> bool:
        """Whether the row enters the means: always, unless its Dice is not defined."""
        return not math.isnan(self.dice)


def label_entry(label: tuple[int, ...]) -> int | str:
    """Label values as files show them: ``3`` for one, ``"1+3"`` for several."""
    return label[0] if len(label) == 1 else "+".join(str(value) for value in label)


@dataclass(frozen=True)
class EvaluatedCase:
    """The files behind the rows of one case.

    Args:
        id: Case id.
        reference: Reference label map.
        prediction: Predicted label map, or None if there is none.
        images: One image file per channel, empty if not known.
    """

    id: str
    reference: Path
    prediction: Path | None = None
    images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Everything one run of the evaluation found.

    Args:
        labels: The label table the rows follow.
        rows: One per case and target, ordered by case, then as in the label table.
        cases: One per case of the reference, sorted by id.
        failures: (case, message) of cases with a file that could not be used.
        notes: Sentences a reader of the scores should know.
    """

    labels: LabelTable
    rows: tuple[Row, ...]
    cases: tuple[EvaluatedCase, ...]
    failures: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
