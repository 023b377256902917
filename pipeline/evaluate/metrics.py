"""The columns of scores that say how good a prediction is, and what a missed organ gets in each."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluate.voxel_surface import COMPAT_TOOLS, compat_columns

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True)
class Metric:
    """A column of ``scores.csv`` of which means are taken.

    Args:
        column: Name of the column.
        title: Short name for tables and plots.
        higher: Whether higher is better.
        worst: What an organ gets that is in the reference or in the prediction but not in both.
    """

    column: str
    title: str
    higher: bool
    worst: float

    @property
    def is_distance(self) -> bool:
        """Whether it is a distance in mm: infinite where an organ is missed."""
        return self.worst == float("inf")


def _share(column: str, title: str) -> Metric:
    return Metric(column, title, higher=True, worst=0.0)


def _distance(column: str, title: str) -> Metric:
    return Metric(column, title, higher=False, worst=float("inf"))


def _error(column: str, title: str) -> Metric:
    return Metric(column, title, higher=False, worst=1.0)


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
        _share("lesion_f1", "lesion F1"),
        _share("lesion_rq", "lesion RQ"),
        _share("lesion_sq", "lesion SQ"),
        _share("lesion_pq", "lesion PQ"),
        _error("ece", "ECE"),
        _error("brier", "Brier"),
        *(
            (_share if column.endswith("_nsd") else _distance)(column, column)
            for tool in COMPAT_TOOLS
            for column in compat_columns(tool)
        ),
    )
}
"""Every such column, in the order of the table."""
