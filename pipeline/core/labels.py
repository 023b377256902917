"""The label table: which integer means which organ, and how values map to network classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.documents import short
from pipeline.core.errors import DataError, listed, sentence
from pipeline.core.regions import (
    PaintingStep,
    check_regions,
    left_without,
    one_sided_classes,
    one_sided_names,
    paint,
    painted_values,
    painting_steps,
    paired_names,
    swapped_classes,
)

IGNORE_INDEX = -1
"""Class index of voxels that carry the ignore label: neither loss nor score sees them."""

_UNKNOWN = -2  # class index of values that are not in the table, before they are refused
_MOST = np.iinfo(np.int16).max  # class indices are stored in 16 bits
_LARGEST = 2**63  # label maps are read as 64-bit integers
_DENSE = 2**16  # tables of values closer together than this are looked up directly


@dataclass(frozen=True)
class LabelTable:
    """Names of label values. Class index 0 is background; class ``n`` is the n-th foreground value, ascending.

    Organs that overlap are regions, unions of label values. A network then finds every region for itself (a sigmoid
    each), and regions instead of organs are scored; label maps hold values as ever.

    Args:
        names: Foreground label value → organ name; values at least 1, names unique and not empty.
        ignore_label: Value of voxels that were not annotated, or None.
        regions: Region name → label values, in painting order: later ones are painted over earlier ones. Empty for
            organs that do not overlap.
        painted: The value each region is painted with; by default what :func:`~pipeline.core.regions.painted_values`
            finds.

    Raises:
        ValueError: If a value is below 1, a name is empty or used twice, the ignore label is also an organ, or the
            regions contradict the values or each other (see :mod:`pipeline.core.regions`).
    """

    names: Mapping[int, str]
    ignore_label: int | None = None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    painted: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Sort by value and refuse ambiguous tables."""
        names = {int(value): str(name).strip() for value, name in sorted(self.names.items())}
        if len(names) > _MOST:
            raise ValueError(f"label table: expected at most {_MOST} values, got {len(names)}. Merge some.")
        low = [value for value in names if value < 1]
        if low:
            raise ValueError(f"label table: expected foreground values of at least 1, got {low}. 0 is the background.")
        seen: dict[str, int] = {}
        for value, name in names.items():
            if not name:
                raise ValueError(f"label table: expected a name for every value, got none for {value}. Name it.")
            if name in seen:
                got = f"{name!r} for {seen[name]} and {value}"
                raise ValueError(f"label table: expected unique names, got {got}. Rename one.")
            seen[name] = value
        if self.ignore_label is not None and (self.ignore_label in names or self.ignore_label == 0):
            rule = "an ignore label that is no organ and not 0"
            raise ValueError(f"label table: expected {rule}, got {self.ignore_label}. Take another value.")
        regions = check_regions(self.regions, tuple(names), ordered=bool(self.painted))
        painted = painted_values(regions, self.painted)
        # Called for its refusals: a table whose regions hide one another must not exist.
        painting_steps(regions, painted)
        # The dataclass is frozen, and what was given may be unsorted or have values as texts.
        for entry, checked in (("names", names), ("regions", regions), ("painted", painted)):
            object.__setattr__(self, entry, checked)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LabelTable:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If it is no such table, or the table contradicts itself.
        """
        names, regions = content.get("names"), content.get("regions", {})
        painted, ignored = content.get("regions_class_order", []), content.get("ignore_label")
        if (
            not (isinstance(names, Mapping) and isinstance(regions, Mapping))
            or not all(isinstance(name, str) for name in (*names.values(), *regions))
            or not all(isinstance(values, list | tuple) for values in (painted, *regions.values()))
        ):
            rule, advice = "names by value, and lists of values as regions", "Write it as volseg does"
            raise ValueError(sentence("label table", rule, short(dict(content)), advice))
        return cls(
            {_value(value): name for value, name in names.items()},
            None if ignored is None else _value(ignored),
            {name: tuple(map(_value, held)) for name, held in regions.items()},
            tuple(map(_value, painted)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON, keys as strings; regions only where there are any."""
        names = {str(value): name for value, name in self.names.items()}
        content: dict[str, Any] = {"names": names, "ignore_label": self.ignore_label}
        if self.regions:
            content["regions"] = {name: list(values) for name, values in self.regions.items()}
            content["regions_class_order"] = list(self.painted)
        return content

    def __hash__(self) -> int:
        """Hash of all entries."""
        return hash((tuple(self.names.items()), self.ignore_label, tuple(self.regions.items()), self.painted))

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
        """Number of class indices, background included."""
        return len(self.names) + 1

    @property
    def outputs(self) -> int:
        """Channels of a network's logits: one per region, else one per class."""
        return len(self.regions) or self.classes

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of what is predicted and scored: the regions, else the organs."""
        return tuple(self.regions) or self.organs

    @property
    def target_values(self) -> dict[str, tuple[int, ...]]:
        """Label values of every target, by name: those of a region, the one of an organ."""
        return dict(self.regions) or {name: (value,) for value, name in self.names.items()}

    def indexed(self) -> LabelTable:
        """The same table with class indices in place of values; ignored voxels are :data:`IGNORE_INDEX`."""
        return self.renumbered({value: n for n, value in enumerate(self.names, start=1)}, IGNORE_INDEX)

    def renumbered(self, new: Mapping[int, int], ignore_label: int | None) -> LabelTable:
        """The same table with other label values; ``new`` has all of them."""
        names = {new[value]: name for value, name in self.names.items()}
        regions = {name: tuple(new[value] for value in held) for name, held in self.regions.items()}
        return LabelTable(names, ignore_label, regions, tuple(new[value] for value in self.painted))

    def region_classes(self) -> tuple[tuple[int, ...], ...]:
        """Class indices of each region, ascending; empty for organs that do not overlap."""
        return tuple(self.indexed().regions.values())

    def painting(self) -> tuple[PaintingStep, ...]:
        """How regions become class indices: (channels, class), each painted where all its channels were found.

        Later steps are painted over earlier ones; what no step reaches is background.
        """
        table = self.indexed()
        return painting_steps(table.regions, table.painted)

    def without(self, target: str) -> tuple[int, ...]:
        """What is left of each class, background first, where a target is taken away: a class index.

        Of an organ nothing is left, of a region the other regions there that do not lie within it. A KeyError tells
        that there is no such target.
        """
        table = self.indexed()
        # An organ leaves background, a region what the other regions there are painted with.
        left = left_without(target, table.regions, table.painted) if self.regions else {table.value_of(target): 0}
        return tuple(left.get(n, n) for n in range(self.classes))

    def value_of(self, name: str) -> int:
        """Label value of an organ name.

        Raises:
            KeyError: If there is no such organ; the message lists the known ones.
        """
        found = {known: value for value, known in self.names.items()}
        if name not in found:
            raise KeyError(f"organ: expected one of {', '.join(self.organs)}, got {name!r}. Check the spelling.")
        return found[name]

    def value_where(self, found: Collection[str]) -> tuple[int, bool]:
        """The value of a voxel that lies in some organs or regions, by name.

        Of organs that do not overlap it is the highest value; of regions that with which they are painted.

        Returns:
            The value, 0 if none are given, and whether it stands for all of them.
        """
        if not self.regions:
            values = [self.value_of(name) for name in found]
            return max(values, default=0), len(values) <= 1
        held = list(self.regions.values())
        there: set[int] = set()
        for name in found:  # the name of a value that is none of a region stands for all regions there
            own = [n for n, region in enumerate(self.regions) if region == name]
            there.update(own or [n for n, values in enumerate(held) if self.value_of(name) in values])
        value = paint(there, painting_steps(self.regions, self.painted))
        return value, all(value in held[n] for n in there)

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
        # A lookup in a dense table is one pass over the voxels; np.unique sorts them all.
        if array.size and high - low < _DENSE and int(array.min()) >= low and int(array.max()) <= high:
            keys: NDArray[np.integer[Any]] = np.arange(low, high + 1)
            position: NDArray[np.integer[Any]] = array if low == 0 else array.astype(np.int64) - low
        else:  # values far apart, as in brain atlases, or outside the table: number those that are present
            keys, position = np.unique(array, return_inverse=True)
        dtype = np.int8 if self.classes <= 127 else np.int16
        lookup = np.array([classes.get(int(value), _UNKNOWN) for value in keys], dtype=dtype)
        # Unknown values are found in the result, so that the common case needs no pass of its own.
        index: NDArray[np.signedinteger[Any]] = lookup[position].reshape(array.shape)
        if (index == _UNKNOWN).any():
            raise ValueError(
                f"label values: expected only 0 and those of the label table ({listed(self.values)}), "
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
        lookup, low = [0, *self.names], 0
        if self.ignore_label is not None and self.ignore_label > 0:
            lookup, low = [*lookup, self.ignore_label], IGNORE_INDEX  # index -1 is the last entry
        if index.size and (int(index.min()) < low or int(index.max()) >= self.classes):
            rule, got = f"{low} to {self.classes - 1}", f"{int(index.min())} to {int(index.max())}"
            raise ValueError(f"class index: expected {rule}, got {got}. Check that the network belongs to this table.")
        values: NDArray[np.unsignedinteger[Any]] = np.array(lookup, dtype=np.min_scalar_type(max(lookup)))
        return np.asarray(values[index])

    def side_pairs(self) -> tuple[tuple[int, int], ...]:
        """Class indices that swap when left and right do, as (left, right), found in the names of the targets."""
        if self.regions:
            return swapped_classes(self.region_classes(), paired_names(self.regions), self.classes)
        return self.output_side_pairs()

    def one_sided(self) -> tuple[str, ...]:
        """Organs on one side only: mirrored from left to right they keep a name that is wrong there."""
        if not self.regions:
            return tuple(self.organs[index] for index in one_sided_names(self.organs))
        found = one_sided_classes(self.region_classes(), paired_names(self.regions), self.classes)
        return tuple(self.organs[index - 1] for index in found)

    def output_side_pairs(self) -> tuple[tuple[int, int], ...]:
        """Channels of the logits that swap when left and right do, as (left, right)."""
        first = 0 if self.regions else 1  # channel 0 of a softmax is the background
        return tuple((left + first, right + first) for left, right in paired_names(self.targets))


def _value(value: Any) -> int:
    """A label value from a file: a whole number, or its digits, which keys of JSON are."""
    if isinstance(value, str) and re.fullmatch("-?[0-9]{1,18}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST:
        return value
    raise ValueError(sentence("label table", "whole numbers as values", short(value), "Correct it"))


def select_organs(table: LabelTable, names: Sequence[str]) -> LabelTable:
    """The part of a label table that some organs, and regions for all their values, make up.

    A region remains if it loses no value; an organ that is then in no region becomes one itself.

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
    """The part of a label table that some label values make up, as :func:`select_organs`; without an ignore label."""
    organs = {value: name for value, name in table.names.items() if value in values}
    if not table.regions:
        return LabelTable(organs)
    # A region that loses a value would mean something else than its name says, so it goes.
    painting = zip(table.regions.items(), table.painted, strict=True)
    kept = {name: (members, painted) for (name, members), painted in painting if set(members) <= set(values)}
    inside = {value for members, _ in kept.values() for value in members}
    kept |= {name: ((value,), value) for value, name in organs.items() if value not in inside}
    regions = {name: members for name, (members, _) in kept.items()}
    return LabelTable(organs, regions=regions, painted=tuple(painted for _, painted in kept.values()))


def keep_values(labels: NDArray[np.integer[Any]], values: Sequence[int]) -> NDArray[np.integer[Any]]:
    """A copy of labels in which all other values are 0."""
    return np.where(np.isin(labels, values), labels, labels.dtype.type(0))
