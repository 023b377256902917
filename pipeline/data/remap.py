"""Tables that say which label values become which others, as a user gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.core import DataError, LabelTable, sentence
from pipeline.data.layout_tables import read_csv

__all__ = ["read_remap", "remapped"]

_EXAMPLE = "Write for example 255=0 or 7=liver, or a CSV file with the columns from and to, or a YAML file of from: to"


def read_remap(texts: Sequence[str], labels: LabelTable) -> dict[int, int]:
    """Read replacements of label values.

    Args:
        texts: Each ``from=to``, or a CSV file with the columns ``from`` and ``to``, or a YAML (or JSON) file of
            ``from: to``. Values are numbers or names of the label table; ``background`` is 0.
        labels: The dataset's label table.

    Returns:
        Old value → new value.

    Raises:
        DataError: If a text is none of these, a name is unknown, a new value is not in the label table, or an old value
            is given two new ones.
    """
    table: dict[int, int] = {}
    for text in texts:
        for old, new in _pairs(text):
            source, target = _value(old, labels, text), _value(new, labels, text)
            if labels.unknown([target]):
                rule, advice = f"a label value ({_known(labels)}) to replace by", "Add it to the label names first"
                raise DataError(sentence(f"--remap {text}", rule, new, advice))
            if table.setdefault(source, target) != target:
                got = f"{table[source]} and {target} for {source}"
                raise DataError(sentence(f"--remap {text}", "one new value for every old one", got, "Keep one"))
    return table


def remapped(array: NDArray[np.integer[Any]], table: Mapping[int, int]) -> tuple[NDArray[np.int64], dict[int, int]]:
    """Replace label values, all at once: ``{1: 2, 2: 1}`` swaps.

    Args:
        array: Any shape.
        table: Old value → new value.

    Returns:
        The new array, and how many voxels of each old value were replaced.
    """
    values, position, counts = np.unique(array, return_inverse=True, return_counts=True)
    new = np.array([table.get(int(value), int(value)) for value in values], dtype=np.int64)
    replaced = {int(v): int(n) for v, n in zip(values, counts, strict=True) if table.get(int(v), int(v)) != v}
    return new[position].reshape(array.shape), replaced


def _pairs(text: str) -> Iterable[tuple[str, str]]:
    path = Path(text)
    if not path.is_file():
        old, equals, new = text.partition("=")
        if not equals or not old.strip() or not new.strip():
            got = "something else" if equals else "neither a file nor from=to"
            raise DataError(sentence(f"--remap {text}", "from=to or an existing file", got, _EXAMPLE))
        return [(old.strip(), new.strip())]
    if path.suffix.lower() == ".csv":
        return [(row["from"], row["to"]) for row in read_csv(path, required=("from", "to"))]
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        got = " ".join(str(error).split())
        raise DataError(sentence("--remap", "CSV or YAML", got, _EXAMPLE, file=path)) from None
    entries = root.value if isinstance(root, yaml.MappingNode) else []  # the text itself: 3 stays "3", no stays "no"
    if not entries or not all(isinstance(node, yaml.ScalarNode) for entry in entries for node in entry):
        raise DataError(sentence("--remap", "a table of old and new values", "something else", _EXAMPLE, file=path))
    return [(old.value.strip(), new.value.strip()) for old, new in entries]


def _value(text: str, labels: LabelTable, where: str) -> int:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if text.lower() == "background":
        return 0
    if text.lower() == "ignore" and labels.ignore_label is not None:
        return labels.ignore_label
    found = next((value for value, name in labels.names.items() if name == text), None)
    if found is None:
        got, advice = repr(text), "Check the spelling, or give the number"
        raise DataError(sentence(f"--remap {where}", f"a number or a known name ({_known(labels)})", got, advice))
    return found


def _known(labels: LabelTable) -> str:
    names = [f"{value} {name}" for value, name in labels.names.items()]
    shown = names if len(names) <= 12 else [*names[:10], "…", names[-1]]
    ignored = [] if labels.ignore_label is None else [f"{labels.ignore_label} ignore"]
    return ", ".join(["0 background", *shown, *ignored])
