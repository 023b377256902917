"""The columns of ``scores.csv``, what one row of it holds, and how a row enters means and counts.

What a missed, a hallucinated or an absent organ does to a mean is decided here and nowhere else: :data:`ENTRIES` says
for each status of an organ whether its measured number, the worst number or none enters, and :data:`METRICS` holds the
worst number of every column. :meth:`Row.entry` asks both; all means and counts ask :meth:`Row.entry` and
:attr:`Row.counts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.core.errors import VolsegError, sentence

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
CALIBRATION_BINS = 15
CALIBRATION_MARGIN_MM = 10.0
"""Around reference and prediction: voxels farther away are no test of a probability."""

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
        more: Further columns, those of :class:`~pipeline.evaluate.metrics.Measures`, and ``tolerance_mm`` and
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


# What to measure of every organ (:class:`Measures`), and the conventions that follow from it, in words.

_ALL = "all"
_SHOWN = 8  # names quoted in a message
_OVERLAP = (
    "Dice = 2 |R ∩ P| / (|R| + |P|) and IoU = |R ∩ P| / |R ∪ P|, from voxel counts, one organ at a time. A region, as "
    "organs that overlap are called, is an organ here: the union of its label values.",
    "An organ that is in the reference but not in the prediction (missed) scores 0.",
    "An organ that is in the prediction but not in the reference (hallucinated) scores 0.",
    "An organ that is in neither (true negative) has no score and enters no mean; such cases are counted.",
    "A case without a prediction file, or with one that cannot be used (failed), scores 0 for every organ in its "
    "reference.",
    "Voxels that carry the ignore label in the reference are left out of every count and volume.",
    "The volume bias is prediction minus reference; a case without a usable prediction counts as 0 mL.",
)
_STATISTICS = (
    "Mean foreground Dice is the mean over organs of each organ's mean over cases, so that every organ weighs the "
    "same, and so are all overall means. The mean over cases, of each case's mean over its organs, is given beside it.",
    "Intervals are 95 % percentile bootstrap intervals: 10000 resamples of whole cases, seeded. One case alone has no "
    "interval.",
    "SD is the sample standard deviation (n - 1).",
)
_KINDS = {
    "exact": "Surfaces are those of solids made of voxel boxes; distances between them are weighted by area.",
    "voxel": "Surfaces are the centres of voxels that touch the outside by a face (as in MONAI), each counted once; "
    "percentiles are interpolated.",
}
_DISTANCES = (
    "HD is the largest distance, HD95 the 95th percentile, each the larger of the two directions. MASD is the mean of "
    "the two directed mean distances, ASSD the mean over both surfaces together. Beyond the field of view is "
    "background. Faces that touch the ignore label are part of no surface.",
    "A missed or hallucinated organ has infinite distances and NSD 0. In every statistic of distances the diagonal of "
    "the image stands for infinity; only where_found leaves such cases out, says how many are left, and is no score.",
)


@dataclass(frozen=True)
class Measures:
    """What to measure beside overlap and volumes.

    Args:
        surface: Between which surfaces distances are measured: ``exact`` (boxes), ``voxel`` (centres of border voxels)
            or ``none``.
        tolerance_mm: Distance that surface Dice (NSD) tolerates.
        tolerances_mm: The same for single organs, by name.
        compat: Tools in whose conventions columns are added.
        lesions: Organs whose connected parts are matched one by one; ``all`` for every organ.
        minimum_lesion_ml: Parts smaller than this do not count.
        probabilities: Folder of the predicted probabilities, for calibration.
        resample: Bring predictions on other grids to the reference's instead of refusing them.
        remap: Label value of the predictions → the one it stands for.
        unscored: Label value of the references that is not scored, since no prediction can have it, → its name; in the
            references it counts as background.
    """

    surface: Literal["exact", "voxel", "none"] = "exact"
    tolerance_mm: float = 2.0
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    compat: tuple[Compat, ...] = ()
    lesions: tuple[str, ...] = ()
    minimum_lesion_ml: float = 0.0
    probabilities: Path | None = None
    resample: bool = False
    remap: Mapping[int, int] = field(default_factory=dict)
    unscored: Mapping[int, str] = field(default_factory=dict)

    @property
    def needs_surfaces(self) -> bool:
        """Whether faces of organs have to be found: for distances, or for the box around an organ."""
        return self.surface != "none" or bool(self.compat or self.lesions or self.probabilities)

    def for_organs(self, names: Sequence[str]) -> Measures:
        """The same with ``all`` among the lesions replaced by every organ.

        Raises:
            VolsegError: If a tolerance or the lesions name an organ that there is not.
        """
        for what, given in (("--tolerance-mm", self.tolerances_mm), ("--lesions", self.lesions)):
            unknown = [name for name in given if name not in (*names, _ALL)]
            if unknown:
                shown = ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
                rule = f"organs of the label table ({shown})"
                raise VolsegError(sentence(what, rule, ", ".join(unknown), "Check the spelling"))
        return replace(self, lesions=tuple(names) if _ALL in self.lesions else self.lesions)

    def tolerance_of(self, organ: str) -> float:
        """The tolerance of an organ in mm."""
        return self.tolerances_mm.get(organ, self.tolerance_mm)

    def columns(self, organ: str) -> tuple[str, ...]:
        """Columns of an organ that are measured beside overlap and volumes."""
        return (
            *(SURFACE_COLUMNS if self.surface != "none" else ()),
            *(LESION_COLUMNS if organ in self.lesions else ()),
            *(CALIBRATION_COLUMNS if self.probabilities is not None else ()),
            *(column for tool in self.compat for column in compat_columns(tool)),
        )

    def conventions(self) -> tuple[str, ...]:
        """The conventions of everything that is measured, one sentence or a few each."""
        lines = list(_OVERLAP)
        if self.surface != "none":
            own = "".join(f", {organ} {limit:g} mm" for organ, limit in self.tolerances_mm.items())
            nsd = f"NSD is the share of both surfaces' area within the tolerance: {self.tolerance_mm:g} mm{own}."
            lines += [_KINDS[self.surface], nsd, *_DISTANCES]
        if self.compat:
            lines.append(f"Columns named after {', '.join(self.compat)} follow the conventions of these tools.")
        if self.lesions:
            lines.append(
                f"Lesions ({', '.join(self.lesions)}) are 26-connected parts of at least "
                f"{self.minimum_lesion_ml:g} mL. F1 counts any overlap as found; RQ, SQ and PQ match parts of an IoU "
                "above 0.5."
            )
        if self.probabilities is not None:
            lines.append(
                f"ECE ({CALIBRATION_BINS} bins) and Brier score are taken within {CALIBRATION_MARGIN_MM:g} mm of the "
                "box around reference and prediction; without probabilities they are 1."
            )
        return (*lines, *_STATISTICS)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        content = asdict(self)
        content["probabilities"] = None if self.probabilities is None else str(self.probabilities)
        content["remap"] = {str(old): new for old, new in self.remap.items()}
        content["unscored"] = {str(value): name for value, name in self.unscored.items()}
        return {**content, "compat": list(self.compat), "lesions": list(self.lesions)}


OVERLAP_ONLY = Measures(surface="none")
"""Overlap and volumes alone."""
