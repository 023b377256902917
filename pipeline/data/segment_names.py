"""Which organ of a dataset a segment of a DICOM object is, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pipeline.core.errors import one_line
from pipeline.core.paths import composed

_LONGEST = 200  # as of names in descriptions: files are named after organs


def plain_name(name: str, number: int) -> str:
    """The name of a segment on one line; its number stands for an empty one."""
    return " ".join(one_line(composed(name)).split())[:_LONGEST] or f"segment_{number}"


def name_key(name: str) -> str:
    """What is left of a name when capitals and what stands between its words do not count: ``Left-Kidney``."""
    return re.sub(r"[\W_]+", " ", name.casefold()).strip() or name


class SegmentNames:
    """Names of organs, and how segments may spell them.

    Args:
        organs: Names of the label table, those of regions first.
        aliases: Names of segments → names of organs; None for segments that are left out.
    """

    def __init__(self, organs: Iterable[str], aliases: Mapping[str, str | None]) -> None:
        known: dict[str, str | None] = {name: name for name in organs}
        self._names = {composed(name): organ for name, organ in (known | dict(aliases)).items()}
        by_key: dict[str, set[str | None]] = {}
        for name, organ in self._names.items():
            by_key.setdefault(name_key(name), set()).add(organ)
        # Names that differ in capitals alone are told apart where there are such.
        self._keys = {key: organs.pop() for key, organs in by_key.items() if len(organs) == 1}

    def knows(self, name: str) -> bool:
        """Whether it is said what a segment of this name is."""
        return name in self._names or name_key(name) in self._keys

    def organ(self, name: str) -> str | None:
        """The organ that a segment of this name is; None if it is left out, or nothing is said of it."""
        return self._names[name] if name in self._names else self._keys.get(name_key(name))
