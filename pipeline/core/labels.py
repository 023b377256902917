"""The label table: which integer means which organ, and how values map to network classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["IGNORE_INDEX", "LabelTable"]

IGNORE_INDEX = -1
"""Class index of voxels that carry the ignore label: neither loss nor score sees them."""

_UNKNOWN = -2  # class index of values that are not in the table, before they are refused
_DENSE = 2**16  # tables of values closer together than this are looked up directly

_SIDES = (("left", "right"), ("l", "r"), ("lt", "rt"), ("sin", "dex"))


@dataclass(frozen=True)
class LabelTable:
    """Names of label values. Class index 0 is background; class ``n`` is the n-th foreground value, ascending.

    Args:
        names: Foreground label value → organ name; values at least 1, names unique and not empty.
        ignore_label: Value of voxels that were not annotated, or None.

    Raises:
        ValueError: If a value is below 1, a name is empty or used twice, or the ignore label is also an organ.
    """

    names: Mapping[int, str]
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        """Sort by value and refuse ambiguous tables."""
        names = {int(value): str(name).strip() for value, name in sorted(self.names.items())}
        low = [value for value in names if value < 1]
        if low:
            raise ValueError(f"label table: expected foreground values of at least 1, got {low}. 0 is the background.")
        seen: dict[str, int] = {}
        for value, name in names.items():
            if not name:
                raise ValueError(f"label table: expected a name for every value, got none for {value}. Name it.")
            if name in seen:
                raise ValueError(
                    f"label table: expected unique names, got {name!r} for {seen[name]} and {value}. Rename one."
                )
            seen[name] = value
        if self.ignore_label is not None and (self.ignore_label in names or self.ignore_label == 0):
            raise ValueError(
                f"label table: expected an ignore label that is no organ and not 0, got {self.ignore_label}. "
                "Take another value."
            )
        object.__setattr__(self, "names", names)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LabelTable:
        """Read what :meth:`to_json` wrote.

        Args:
            content: ``{"names": {"1": "liver", …}, "ignore_label": 255 | None}``.
        """
        return cls({int(v): str(n) for v, n in content["names"].items()}, content.get("ignore_label"))

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON, keys as strings."""
        return {"names": {str(value): name for value, name in self.names.items()}, "ignore_label": self.ignore_label}

    def __hash__(self) -> int:
        """Hash of all entries."""
        return hash((tuple(self.names.items()), self.ignore_label))

    @property
    def values(self) -> tuple[int, ...]:
        """Foreground label values, ascending."""
        return tuple(self.names)

    @property
    def organs(self) -> tuple[str, ...]:
        """Organ names in the order of their values, which is the order of classes 1, 2, …."""
        return tuple(self.names.values())

    @property
    def classes(self) -> int:
        """Number of classes a network must tell apart, background included."""
        return len(self.names) + 1

    def value_of(self, name: str) -> int:
        """Label value of an organ name.

        Raises:
            KeyError: If there is no such organ; the message lists the known ones.
        """
        for value, known in self.names.items():
            if known == name:
                return value
        raise KeyError(f"organ: expected one of {', '.join(self.organs)}, got {name!r}. Check the spelling.")

    def unknown(self, values: Iterable[int]) -> tuple[int, ...]:
        """The values that are neither background, nor an organ, nor the ignore label, ascending."""
        legal = {0, *self.names, *(() if self.ignore_label is None else (self.ignore_label,))}
        return tuple(sorted({int(value) for value in values} - legal))

    def to_index(self, array: NDArray[np.integer[Any]]) -> NDArray[np.signedinteger[Any]]:
        """Label values → class indices.

        Args:
            array: Any shape, label values.

        Returns:
            Same shape; int8 up to 127 classes, else int16. Ignored voxels are :data:`IGNORE_INDEX`.

        Raises:
            ValueError: If a value is not in the table.
        """
        classes = {0: 0, **{value: n for n, value in enumerate(self.names, start=1)}}
        if self.ignore_label is not None:
            classes[self.ignore_label] = IGNORE_INDEX
        low, high = min(classes), max(classes)
        keys: NDArray[np.integer[Any]]
        position: NDArray[np.integer[Any]]
        if array.size and high - low < _DENSE and int(array.min()) >= low and int(array.max()) <= high:
            keys, position = np.arange(low, high + 1), array if low == 0 else array.astype(np.int64) - low
        else:  # values far apart, as in brain atlases, or outside the table: number those that are present
            keys, position = np.unique(array, return_inverse=True)
        dtype = np.int8 if self.classes <= 127 else np.int16
        lookup = np.array([classes.get(int(value), _UNKNOWN) for value in keys], dtype=dtype)
        index: NDArray[np.signedinteger[Any]] = np.take(lookup, position).reshape(array.shape)
        if (index == _UNKNOWN).any():
            raise ValueError(
                f"label values: expected only 0 and those of the label table ({self._legal()}), "
                f"got {list(self.unknown(np.unique(array).tolist()))}. Add them to the table or remap them."
            )
        return index

    def from_index(self, index: NDArray[np.integer[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        """Class indices → label values; the inverse of :meth:`to_index`.

        Args:
            index: Any shape, 0 … classes - 1, and :data:`IGNORE_INDEX` if the table has an ignore label above 0.

        Returns:
            Same shape, the smallest unsigned type that holds every value of the table.

        Raises:
            ValueError: If an index is not one of these.
        """
        lookup = [0, *self.names]
        low = 0
        if self.ignore_label is not None and self.ignore_label > 0:
            lookup, low = [*lookup, self.ignore_label], IGNORE_INDEX  # index -1 is the last entry
        if index.size and (int(index.min()) < low or int(index.max()) >= self.classes):
            raise ValueError(
                f"class index: expected {low} to {self.classes - 1}, got {int(index.min())} to {int(index.max())}. "
                "Check that the network belongs to this label table."
            )
        values: NDArray[np.unsignedinteger[Any]] = np.array(lookup, dtype=np.min_scalar_type(max(lookup)))
        return np.asarray(values[index])

    def side_pairs(self) -> tuple[tuple[int, int], ...]:
        """Class indices of organs that come in a left and a right, found in their names.

        ``kidney_left`` and ``kidney_right``, ``Left Lung`` and ``Right Lung``, ``l_femur`` and ``r_femur`` are pairs.

        Returns:
            (left, right) class indices, in the order of the left ones.
        """
        by_words = {tuple(_words(name)): index for index, name in enumerate(self.organs, start=1)}
        pairs = []
        for words, index in by_words.items():
            for left, right in _SIDES:
                if left not in words:
                    continue
                twin = by_words.get(tuple(right if word == left else word for word in words))
                if twin is not None:
                    pairs.append((index, twin))
                    break
        return tuple(sorted(pairs))

    def _legal(self) -> str:
        values = [str(value) for value in self.values]
        return ", ".join(values if len(values) <= 12 else [*values[:10], "…", values[-1]])


def _words(name: str) -> list[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
