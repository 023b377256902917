"""Label tables and replacements of label values, as people and other tools write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.core.documents import YAML_MB, compose_yaml, read_text, short
from pipeline.core.errors import DataError, listed, sentence
from pipeline.core.labels import LabelTable
from pipeline.core.tables import read_csv

_EXAMPLE = "Write for example 255=0 or 7=liver, or a CSV file with the columns from and to, or a YAML file of from: to"
_LARGEST = 2**32 - 1  # of a label map of 32 bits; atlases use ids of nine digits
_MOST_NAMES, _MOST_REGIONS = 32_766, 1000  # class indices are 16 bits; a channel of the network each
_NAME_LENGTH = 200  # files are named after organs
_NAMES_EXAMPLE = 'Write {"1": "liver", "2": "spleen"}'
_REGIONS_EXAMPLE = 'Write "regions": {"disc": [1, 2], "cup": [2]}'


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
        root = compose_yaml(read_text(path, "CSV or YAML", most_mb=YAML_MB))
    except ValueError as error:
        raise DataError(sentence("--remap", "CSV or YAML", error, _EXAMPLE, file=path)) from None
    entries = root.value if isinstance(root, yaml.MappingNode) else []  # the text itself: 3 stays "3", no stays "no"
    if not entries or not all(isinstance(node, yaml.ScalarNode) for entry in entries for node in entry):
        raise DataError(sentence("--remap", "a table of old and new values", "something else", _EXAMPLE, file=path))
    return [(old.value.strip(), new.value.strip()) for old, new in entries]


def _value(text: str, labels: LabelTable, where: str) -> int:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    found = {"background": 0, "ignore": labels.ignore_label}.get(text.lower())
    if found is None:
        found = {name: value for value, name in labels.names.items()}.get(text)
    if found is None:
        got, advice = repr(text), "Check the spelling, or give the number"
        raise DataError(sentence(f"--remap {where}", f"a number or a known name ({_known(labels)})", got, advice))
    return found


def _known(labels: LabelTable) -> str:
    names = listed(f"{value} {name}" for value, name in labels.names.items())
    ignored = "" if labels.ignore_label is None else f"{labels.ignore_label} ignore"
    return ", ".join(part for part in ("0 background", names, ignored) if part)


def label_table(content: Any, file: Path | str, beside: Mapping[str, Any] | None = None) -> LabelTable:
    """Label table from a description of values, names and regions.

    Names are ``{"1": "liver"}`` or ``{"liver": 1}``, alone or under ``names`` or ``labels``; ``background`` is dropped,
    ``ignore`` recognised. A number without quotes, or a list, is a value even where the name is a number as well:
    ``{"11": 1}`` is value 1, called 11. Where both are texts, the key is the value, unless other keys are names.

    Regions are ``{"disc": [1, 2]}`` under ``regions``, or, as in nnU-Net, lists in place of values, which makes every
    entry a region. They are painted in the order of ``regions_class_order``, which names a value for each; without it
    from large to small. Values that only lists mention are called ``label_<value>``; so are all where only regions are
    given.

    Args:
        content: What the description has under ``labels``, or the content of a ``labels.json``.
        file: The description, for messages.
        beside: The rest of the description, where ``regions`` and ``regions_class_order`` may stand as well.

    Raises:
        DataError: If it is no such table, or the table contradicts itself (see
            :class:`~pipeline.core.labels.LabelTable`).
    """
    if not isinstance(content, Mapping):
        got = type(content).__name__
        raise DataError(sentence("labels", "an object of values and names", got, _NAMES_EXAMPLE, file=file))
    outer = {**(beside or {}), **content}
    inner = next((content[key] for key in ("names", "labels") if isinstance(content.get(key), Mapping)), content)
    names, ignored, listed = _entries(inner, file)
    if inner is not content and content.get("ignore_label") is not None:
        ignored = _named_value(content["ignore_label"], "ignore", file)
    given = _regions(outer, inner is content, file)
    if given and listed:
        advice = "Keep one of the two"
        raise DataError(sentence("regions", "lists of values or an object of regions", "both", advice, file=file))
    regions = listed or {str(name): _members(values, str(name), file) for name, values in given.items()}
    order = outer.get("regions_class_order") if regions else None
    # nnU-Net lists values of regions without naming them.
    if listed or not names:
        for value in sorted({value for members in regions.values() for value in members} - {0, ignored}):
            names.setdefault(value, f"label_{value}")
    # Without an order, small regions are painted over large ones, as organs lie in bodies.
    if not order:
        regions = dict(sorted(regions.items(), key=lambda region: -len(set(region[1]))))
    painted = _members(order or [], "regions_class_order", file)
    for what, number, most in (("labels", len(names), _MOST_NAMES), ("regions", len(regions), _MOST_REGIONS)):
        if number > most:
            raise DataError(sentence(what, f"at most {most}", number, "Keep those that are wanted", file=file))
    endless = next((name for name in (*names.values(), *regions) if len(name) > _NAME_LENGTH), None)
    if endless:
        rule, advice = f"at most {_NAME_LENGTH} characters", "Shorten it"
        raise DataError(sentence("name", rule, f"{len(endless)} in {short(endless)}", advice, file=file))
    try:
        return LabelTable(names, ignored, regions, painted)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None


def _entries(
    content: Mapping[str, Any], file: Path | str
) -> tuple[dict[int, str], int | None, dict[str, tuple[int, ...]]]:
    """Names by value, the ignore label, and the regions if some entry is a list: then every entry is one."""
    names: dict[int, str] = {}
    ignored = None
    regions: dict[str, tuple[int, ...]] = {}
    entries = dict(content)
    names_first = _form(content, file)
    for key, value in content.items():
        # Beside organs an organ may be called regions, so the kind of value decides what an entry is about.
        about_regions = str(key).lower() == "regions" and isinstance(value, (Mapping, list))
        order = key == "regions_class_order" and isinstance(value, list)
        about_names = key == "dicom_names" and isinstance(value, Mapping)
        if about_regions or about_names or order or (key == "ignore_label" and value is None):
            del entries[key]
    for key, value in entries.items():
        number, name = (value, key) if names_first(key, value) else (key, value)
        if isinstance(number, list):
            members = _members(number, str(name), file)
            if set(members) != {0}:
                regions[str(name)] = members
            continue
        number = _named_value(number, name, file)
        if str(name).strip().lower() in ("ignore", "ignore_label"):
            ignored = number
        elif number in names:
            got, advice = f"{names[number]!r} and {name!r} for {number}", "Give every organ its own value"
            raise DataError(sentence("labels", "one name per value", got, advice, file=file))
        elif number != 0:
            names[number] = str(name)
            regions[str(name)] = (number,)
    listed = any(isinstance(value, list) for value in entries.values())
    return names, ignored, regions if listed else {}


def _form(content: Mapping[str, Any], file: Path | str) -> Callable[[str, Any], bool]:
    """Tells of every entry whether its key is the name and its value the number.

    Both ``{"1": "liver"}`` and ``{"liver": 1}`` are in use, and teeth and vertebrae are called by numbers. What is no
    text cannot be a name; of two texts of digits the other entries tell.
    """
    texts = {(_is_number(key), _is_number(value)) for key, value in content.items() if isinstance(value, str)}
    named, numbered = (False, True) in texts, (True, False) in texts
    odd = [key for key, value in content.items() if numbered and _is_number(key) and not isinstance(value, str)]
    if odd:
        got, advice = f"{short(content[odd[0]])} for {odd[0]!r} beside names", "Put all names, or all values, in front"
        raise DataError(sentence("labels", "names on one side", got, advice, file=file))

    def names_first(key: str, value: Any) -> bool:
        return not (isinstance(value, str) and _is_number(key)) or (named and not numbered and _is_number(value))

    return names_first


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[0-9]+\s*", text) is not None  # not isdigit, which takes a superscript


def _regions(outer: Mapping[str, Any], flat: bool, file: Path | str) -> Mapping[str, Any]:
    """The object of regions; beside organs, one of them may be called regions."""
    given = next((value for key, value in outer.items() if str(key).lower() == "regions"), None)
    if isinstance(given, Mapping):
        return given
    if isinstance(given, list) or not (given is None or flat):
        got = type(given).__name__
        raise DataError(sentence("regions", "an object of regions", got, _REGIONS_EXAMPLE, file=file))
    return {}


def _members(values: Any, name: str, file: Path | str) -> tuple[int, ...]:
    """Values of a region, or of ``regions_class_order``."""
    found = values if isinstance(values, list) else [values]
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST for value in found):
        got = f"{short(values)} for {short(name)}"
        raise DataError(sentence("regions", "a list of label values", got, _REGIONS_EXAMPLE, file=file))
    return tuple(found)


def _named_value(number: Any, name: Any, file: Path | str) -> int:
    value = int(number) if isinstance(number, str) and _is_number(number) and len(number) < 20 else number
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 0 <= value <= _LARGEST:
        rule = f"values from 0 to {_LARGEST}" if whole else "one integer per label"
        raise DataError(sentence("labels", rule, f"{short(number)} for {short(name)}", _NAMES_EXAMPLE, file=file))
    return value
