"""Choosing some organs of a label table, the others becoming background."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, sentence
from pipeline.core.labels import LabelTable

__all__ = ["keep_values", "select_organs", "select_values"]


def select_organs(table: LabelTable, names: Sequence[str]) -> LabelTable:
    """The part of a label table that some organs and regions make up.

    Args:
        table: A label table.
        names: Organs, and regions, which stand for all their values.

    Returns:
        The organs chosen, with their values. Of regions, those remain of which no value is lost; an organ that is then
        in none becomes one.

    Raises:
        DataError: If there is no such organ or region; the sentence lists the known ones.
    """
    held: dict[str, tuple[int, ...]] = {name: (value,) for value, name in table.names.items()}
    held |= table.regions
    unknown = [name for name in names if name not in held]
    if unknown or not names:
        got = ", ".join(unknown) or "none"
        raise DataError(sentence("organs", f"some of {', '.join(held)}", got, "Correct the names"))
    return select_values(table, {value for name in names for value in held[name]})


def select_values(table: LabelTable, values: Collection[int]) -> LabelTable:
    """The part of a label table that some label values make up.

    Args:
        table: A label table.
        values: Label values, those that are not in the table change nothing.

    Returns:
        As for :func:`select_organs`, without an ignore label; empty where no value is in the table.
    """
    organs = {value: name for value, name in table.names.items() if value in values}
    if not table.regions:
        return LabelTable(organs)
    painting = zip(table.regions.items(), table.painted, strict=True)
    kept = {name: (members, painted) for (name, members), painted in painting if set(members) <= set(values)}
    inside = {value for members, _ in kept.values() for value in members}
    kept |= {name: ((value,), value) for value, name in organs.items() if value not in inside}
    regions = {name: members for name, (members, _) in kept.items()}
    return LabelTable(organs, regions=regions, painted=tuple(painted for _, painted in kept.values()))


def keep_values(labels: NDArray[np.integer[Any]], values: Sequence[int]) -> NDArray[np.integer[Any]]:
    """A copy of labels in which all other values are 0."""
    return np.where(np.isin(labels, values), labels, labels.dtype.type(0))
