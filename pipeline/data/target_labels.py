"""A label table as another dataset layout can hold it: which values become which, and what is lost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.core import DataError, LabelTable, sentence
from pipeline.data.label_names import label_table

__all__ = ["TranslatedLabels", "label_content", "translate_labels"]

_UNSAFE = re.compile(r'[\\/:*?"<>|]')  # not in file names of some system
_SHOWN = 8  # pairs quoted in a note


@dataclass(frozen=True)
class TranslatedLabels:
    """Labels of a converted dataset.

    Args:
        labels: The table as it will be read back; class ``n`` is the source's class ``n``.
        renumbered: Source value → value, of those that change; the ignore label included.
        notes: What changes besides, one sentence each.
    """

    labels: LabelTable
    renumbered: Mapping[int, int]
    notes: tuple[str, ...]


def translate_labels(labels: LabelTable, layout: str) -> TranslatedLabels:
    """Bring a label table into the form that a layout can hold.

    nnU-Net wants the values 1, 2, … without gaps and the ignore label behind them; of regions it has no names of
    single values. The layout ``organs`` wants names that can be file names, and has no place for ignored voxels.

    Args:
        labels: The dataset's table.
        layout: Name of the layout to write.

    Raises:
        DataError: If the layout cannot hold the table.
    """
    if layout == "organs":
        return _as_files(labels)
    if layout != "nnunet":
        return TranslatedLabels(labels, {}, ())
    table, renumbered = _consecutive(_spelled(labels))
    content = label_content(table, layout)
    read_back = label_table(content["labels"], "dataset.json", content)
    notes = []
    if renumbered:
        pairs = [f"{old} -> {new}" for old, new in renumbered.items()]
        shown = ", ".join(pairs if len(pairs) <= _SHOWN else [*pairs[: _SHOWN - 1], "…", pairs[-1]])
        notes.append(f"labels renumbered, because nnU-Net wants values without gaps: {shown} (all in conversion.json)")
    renamed = [name for name, new in zip(labels.organs, read_back.organs, strict=True) if name != new]
    if renamed:
        reason = "nnU-Net names regions only" if labels.regions else "nnU-Net's names are no numbers"
        notes.append(f"names of label values lost, because {reason}: {', '.join(renamed)}")
    if any(len(needed) > 1 for needed, _ in labels.painting()):
        notes.append("regions cross: where they do, nnU-Net predicts the later one alone")
    return TranslatedLabels(read_back, renumbered, tuple(notes))


def label_content(labels: LabelTable, layout: str) -> dict[str, Any]:
    """What a layout's description says about labels: ``labels`` and the keys that stand beside it.

    Args:
        labels: A table that :func:`translate_labels` returned for the layout.
        layout: Name of the layout.

    Returns:
        Part of ``dataset.json`` for ``nnunet`` and ``decathlon``; content of ``labels.json`` for the others.
    """
    if layout == "nnunet":
        return _nnunet_content(labels)
    own = labels.to_json()
    if layout != "decathlon":
        return own
    names = {"0": "background", **own["names"]}
    if labels.ignore_label is not None:
        names[str(labels.ignore_label)] = "ignore"
    return {"labels": names, **{key: own[key] for key in ("regions", "regions_class_order") if key in own}}


def _nnunet_content(labels: LabelTable) -> dict[str, Any]:
    """nnU-Net's form. A region of one value is a number unless it must be a list to show that there are regions."""
    entries: dict[str, Any] = {"background": 0, **{name: value for value, name in labels.names.items()}}
    order: dict[str, Any] = {}
    if labels.regions:
        several = any(len(held) > 1 for held in labels.regions.values())
        regions = {
            name: held[0] if several and labels.names[held[0]] == name else list(held)
            for name, held in labels.regions.items()
        }
        entries, order = {"background": 0, **regions}, {"regions_class_order": list(labels.painted)}
    ignored = {} if labels.ignore_label is None else {"ignore": labels.ignore_label}
    return {"labels": {**entries, **ignored}, **order}


def _consecutive(labels: LabelTable) -> tuple[LabelTable, dict[int, int]]:
    """The table with values 1, 2, …, the ignore label last, and the values that change."""
    ignored = () if labels.ignore_label is None else (labels.ignore_label,)
    new = {value: n for n, value in enumerate((*labels.values, *ignored), start=1)}
    table = LabelTable(
        {new[value]: name for value, name in labels.names.items()},
        new[ignored[0]] if ignored else None,
        {name: tuple(new[value] for value in held) for name, held in labels.regions.items()},
        tuple(new[value] for value in labels.painted),
    )
    return table, {value: n for value, n in new.items() if value != n}


def _spelled(labels: LabelTable) -> LabelTable:
    """Names that are numbers get a word in front: ``{"10": 1}`` could be read as value 10 with the name 1."""
    names = {value: f"label_{name}" if name.isdigit() else name for value, name in labels.names.items()}
    return _renamed(labels, names)


def _as_files(labels: LabelTable) -> TranslatedLabels:
    if labels.ignore_label is not None:
        rule, got = "a dataset without an ignore label", f"label {labels.ignore_label}"
        advice = "One mask per organ cannot say which voxels were not annotated: convert to another layout"
        raise DataError(sentence("organs layout", rule, got, advice))
    names = {value: _UNSAFE.sub("_", name).lstrip(".") or f"label_{value}" for value, name in labels.names.items()}
    changed = [f"{name} -> {names[value]}" for value, name in labels.names.items() if names[value] != name]
    notes = (f"organs renamed, because files are named after them: {', '.join(changed)}",) if changed else ()
    return TranslatedLabels(_renamed(labels, names), {}, notes)


def _renamed(labels: LabelTable, names: Mapping[int, str]) -> LabelTable:
    try:
        return replace(labels, names=names)
    except ValueError as error:
        raise DataError(str(error)) from None
