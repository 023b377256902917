"""The columns of ``scores.csv``, what one row of it holds, and how a row enters means and counts.

What a missed, a hallucinated or an absent organ does to a mean is decided here and nowhere else: :data:`ENTRIES` says
for each status of an organ whether its measured number, the worst number or none enters, and :data:`METRICS` holds the
worst number of every column. :meth:`Row.entry` asks both; all means and counts ask :meth:`Row.entry` and
:attr:`Row.counts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Status = Literal["scored", "true_negative", "missed", "hallucinated", "missing_prediction", "failed"]
"""What happened to one organ or region of one case.

* ``scored``: in the reference and in the prediction.
* ``true_negative``: in neither; Dice and IoU are NaN.
* ``missed``: only in the reference.
* ``hallucinated``: only in the prediction.
* ``missing_prediction``: there is no prediction file; Dice is NaN if the reference does not have the organ.
* ``failed``: there is a prediction file that cannot be used; as ``missing_prediction``.
"""

STATUSES: tuple[Status, ...] = get_args(Status)

Entry = Literal["measured", "worst", "left out"]

ENTRIES: dict[Status, Entry] = {
    "scored": "measured",
    "true_negative": "left out",
    "missed": "worst",
    "hallucinated": "worst",
    "missing_prediction": "worst",
    "failed": "worst",
}
"""Which number of an organ of this status enters the means: the one that was measured, the column's worst, or none."""


SURFACE_COLUMNS = ("hd_mm", "hd95_mm", "masd_mm", "assd_mm", "nsd")
LESION_COLUMNS = ("lesions_reference", "lesions_prediction", "lesion_f1", "lesion_rq", "lesion_sq", "lesion_pq")
CALIBRATION_COLUMNS = ("ece", "brier")

Compat = Literal["monai", "medpy", "surface-distance"]
"""A tool whose conventions can be followed."""

COMPAT_TOOLS: tuple[Compat, ...] = get_args(Compat)


def compat_columns(tool: Compat) -> tuple[str, ...]:
    """Columns of a tool, in the order of what ``compat_scores`` gives: distances in mm, and ``_nsd``."""
    return {
        "monai": ("monai_hd_mm", "monai_hd95_mm", "monai_asd_mm", "monai_nsd"),
        "medpy": ("medpy_hd_mm", "medpy_hd95_mm", "medpy_assd_mm"),
        "surface-distance": (
            "surface_distance_hd_mm",
            "surface_distance_hd95_mm",
            "surface_distance_mean_reference_mm",
            "surface_distance_mean_prediction_mm",
            "surface_distance_nsd",
        ),
    }[tool]


@dataclass(frozen=True)
class Metric:
    """A column of ``scores.csv`` of which means are taken.

    Args:
        column: Name of the column.
        title: Short name for tables and plots.
        higher: Whether higher is better.
        worst: The worst number: what an organ gets for which there is nothing to measure.
        needs_both: Whether there is nothing to measure unless reference and prediction both have the organ. Lesions and
            calibration have numbers of their own for a missed organ.
    """

    column: str
    title: str
    higher: bool
    worst: float
    needs_both: bool = True

    @property
    def is_distance(self) -> bool:
        """Whether it is a distance in mm: infinite where an organ is missed."""
        return self.worst == float("inf")


def _share(column: str, title: str, needs_both: bool = True) -> Metric:
    return Metric(column, title, higher=True, worst=0.0, needs_both=needs_both)


def _distance(column: str, title: str) -> Metric:
    return Metric(column, title, higher=False, worst=float("inf"))


def _error(column: str, title: str) -> Metric:
    return Metric(column, title, higher=False, worst=1.0, needs_both=False)


METRICS: dict[str, Metric] = {
    metric.column: metric
    for metric in (
        _share("dice", "Dice"),
        _share("iou", "IoU"),
        _distance("hd_mm", "HD"),
        _distance("hd95_mm", "HD95"),
        _distance("masd_mm", "MASD"),
        _distance("assd_mm", "ASSD"),
        _share("nsd", "NSD"),
        _share("lesion_f1", "lesion F1", needs_both=False),
        _share("lesion_rq", "lesion RQ", needs_both=False),
        _share("lesion_sq", "lesion SQ", needs_both=False),
        _share("lesion_pq", "lesion PQ", needs_both=False),
        _error("ece", "ECE"),
        _error("brier", "Brier"),
        *(
            (_share if column.endswith("_nsd") else _distance)(column, column)
            for tool in COMPAT_TOOLS
            for column in compat_columns(tool)
        ),
    )
}
"""Every column of which means are taken, in the order of the table."""


@dataclass(frozen=True)
class Row:
    """Scores of one organ, or of one region of a table that has regions, in one case.

    Args:
        case: Case id.
        label: Label values: the organ's one, or all of the region's.
        name: Name of the organ or region.
        status: What happened, see :data:`Status`.
        dice: 0 to 1, or NaN if neither reference nor prediction has the organ.
        iou: Likewise.
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
        """The number of a column as it was measured; NaN if it was not."""
        return float(self.more[column]) if column in self.more else float(getattr(self, column, "nan"))

    @property
    def absent(self) -> bool:
        """Whether the organ is in neither reference nor prediction."""
        return math.isnan(self.dice)

    @property
    def counts(self) -> bool:
        """Whether the row enters means and their counts."""
        return self._entry != "left out"

    def entry(self, column: str) -> float:
        """The number with which the row enters the mean of a column.

        Returns:
            NaN if it does not, or if the column was not measured for the organ. The diagonal of the image stands for
            an infinite distance.
        """
        entry = self._entry
        if entry == "left out":
            return math.nan
        value = self.more[column] if column in self.more else getattr(self, column, None)
        if value is None:
            return math.nan
        # A number that is not defined for an organ that is there stays so: of an organ whose every face touches the
        # ignore label there is no surface.
        if entry == "worst" and METRICS[column].needs_both and (self.absent or not math.isnan(value)):
            value = METRICS[column].worst
        return self.more.get("diagonal_mm", value) if math.isinf(value) else value

    @property
    def _entry(self) -> Entry:
        # A case without a usable prediction has a row for every organ; those that its reference lacks are no misses.
        return ENTRIES["true_negative" if math.isnan(self.dice) else self.status]


def label_entry(label: tuple[int, ...]) -> int | str:
    """Label values as files show them: ``3`` for one, ``"1+3"`` for several."""
    return label[0] if len(label) == 1 else "+".join(str(value) for value in label)
