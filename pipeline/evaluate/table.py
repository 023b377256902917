"""The table of an evaluation as text, one line per organ."""

from __future__ import annotations

from typing import Any

__all__ = ["TABLE_COLUMNS", "table_rows"]

TABLE_COLUMNS: tuple[str, ...] = (
    "Organ",
    "Cases",
    "Dice",
    "95 % interval",
    "Median",
    "SD",
    "Min",
    "IoU",
    "HD95 mm",
    "NSD",
    "Bias %",
    "Missed",
    "Halluc.",
)

_DASH = "–"


def table_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Cells of the per-organ table, one tuple per scored organ and a last one for all; see :data:`TABLE_COLUMNS`.

    Args:
        summary: What :func:`~pipeline.evaluate.summary.summarize` returned.

    Returns:
        Text, ready to print. ``Cases`` counts those that enter the mean; misses include missing and failed predictions.
        Columns that were not measured have dashes.
    """
    lines = [_table_line(name, entry, entry["dice"]) for name, entry in summary["organs"].items() if entry["n"]]
    overall = summary["overall"]
    spread = {**overall["dice"]["over_cases"], **{key: overall["dice"][key] for key in ("mean", "interval_95")}}
    return [*lines, _table_line("all organs", {**overall, "n": overall["n_cases"]}, spread)]


def _table_line(name: str, entry: dict[str, Any], dice: dict[str, Any]) -> tuple[str, ...]:
    interval = dice["interval_95"]
    return (
        name,
        str(entry["n"]),
        _number(dice["mean"]),
        f"{interval[0]:.3f} {_DASH} {interval[1]:.3f}" if interval else _DASH,
        *(_number(dice[key]) for key in ("median", "sd", "min")),
        _number(entry["iou"]["mean"]),
        _number(entry.get("hd95_mm", {}).get("mean"), 2),
        _number(entry.get("nsd", {}).get("mean")),
        _number(entry.get("volume", {}).get("bias_percent"), 1, "+"),
        str(entry["n_missed"] + entry["n_missing_prediction"] + entry["n_failed"]),
        str(entry["n_hallucinated"]),
    )


def _number(value: float | None, digits: int = 3, sign: str = "") -> str:
    return _DASH if value is None else f"{value:{sign}.{digits}f}"
