"""The values of an evaluation: one row per case and target, and the files, failures and notes behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pipeline.core.labels import LabelTable
from pipeline.evaluate.measures import OVERLAP_ONLY, Measures

__all__ = ["STATUSES", "EvaluatedCase", "Evaluation", "Row", "Status", "label_entry"]

Status = Literal["scored", "true_negative", "missed", "hallucinated", "missing_prediction", "failed"]
"""What happened to one organ or region of one case.

* ``scored``: in the reference and in the prediction.
* ``true_negative``: in neither; Dice and IoU are NaN and enter no mean.
* ``missed``: only in the reference; 0, and infinite distances.
* ``hallucinated``: only in the prediction; likewise.
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
        more: Further columns, those of :class:`~pipeline.evaluate.measures.Measures`, and ``tolerance_mm`` and
            ``diagonal_mm`` (of the image), where surfaces were measured. NaN where a number is not defined.
    """

    case: str
    label: tuple[int, ...]
    name: str
    status: Status
    dice: float
    iou: float
    volume_reference_ml: float
    volume_prediction_ml: float
    more: Mapping[str, float] = field(default_factory=dict)

    @property
    def volume_bias_ml(self) -> float:
        """Predicted minus reference volume; without a usable prediction nothing was predicted."""
        usable = 0.0 if self.status in ("missing_prediction", "failed") else self.volume_prediction_ml
        return usable - self.volume_reference_ml

    @property
    def volume_bias_percent(self) -> float:
        """The bias in percent of the reference volume; NaN without one."""
        return 100 * self.volume_bias_ml / self.volume_reference_ml if self.volume_reference_ml else float("nan")

    def value(self, column: str) -> float:
        """The number of a column; NaN if it was not measured."""
        return float(self.more[column]) if column in self.more else float(getattr(self, column, "nan"))

    def penalised(self, column: str) -> float:
        """The same with the diagonal of the image in place of an infinite distance."""
        value = self.value(column)
        return self.more.get("diagonal_mm", value) if math.isinf(value) else value

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
        measures: What was measured.
    """

    labels: LabelTable
    rows: tuple[Row, ...]
    cases: tuple[EvaluatedCase, ...]
    failures: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    measures: Measures = OVERLAP_ONLY
