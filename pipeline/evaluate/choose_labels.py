"""Which label table the scores follow, and what the predictions' values mean where they have another one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import read_json
from pipeline.core.labels import LabelTable
from pipeline.data.label_names import label_table
from pipeline.data.layout_tables import described_labels, read_description

__all__ = ["ChosenLabels", "MatchLabels", "choose_labels", "find_labels"]

MatchLabels = Literal["value", "name"]
"""What makes a label of the predictions that of the references, where their tables contradict each other."""

_LABELS = "labels.json"


class ChosenLabels(NamedTuple):
    """A label table and how predictions get its values.

    Args:
        labels: The organs; None if no one knows.
        remap: Label value of the predictions → the value of the table that it stands for.
        notes: Sentences a reader of the scores should know.
    """

    labels: LabelTable | None
    remap: dict[int, int]
    notes: tuple[str, ...] = ()


def find_labels(prediction: Path, reference: Path) -> LabelTable | None:
    """Label table of the prediction folder (``labels.json``), else of the dataset the references are in.

    Args:
        prediction: Predicted file or folder.
        reference: Reference file, folder or list of cases; ``dataset.json`` or ``labels.json`` is looked for there and
            one folder above.

    Returns:
        None if there is no such file.

    Raises:
        VolsegError: If a file is there but holds no label table.
    """
    return _predicted_labels(prediction) or _reference_labels(reference)


def choose_labels(
    prediction: Path, reference: Path, given: Path | None = None, match: MatchLabels | None = None
) -> ChosenLabels:
    """Decide on the label table.

    Args:
        prediction: As for :func:`find_labels`.
        reference: As for :func:`find_labels`.
        given: A file with the label table to follow, instead of those that are found.
        match: ``value``: the references' names hold for the predictions too. ``name``: the predictions' values become
            those that the references' table has for the same names. None: tables that agree, or know different organs.

    Raises:
        VolsegError: If a table cannot be read, the two contradict each other and ``match`` is None, or ``name`` is
            wanted where one of them is missing.
    """
    predicted = _predicted_labels(prediction)
    table = _read_labels(given) if given is not None else _reference_labels(reference)
    if match == "name":
        return _by_name(predicted, table, prediction)
    if predicted is None or table is None or match == "value" or given is not None:
        return ChosenLabels(table or predicted, {}) if match or given else ChosenLabels(predicted or table, {})
    problem = _contradiction(predicted, table)
    if problem:
        rule = "one meaning per value in the labels of predictions and references"
        advice = "Choose --match name or --match value"
        raise VolsegError(sentence("label tables", rule, problem, advice))
    return ChosenLabels(predicted, {})


def _by_name(predicted: LabelTable | None, table: LabelTable | None, prediction: Path) -> ChosenLabels:
    if predicted is None or table is None:
        rule = f"a {_LABELS} beside the predictions and names of the references' labels"
        got = "none " + ("beside the predictions" if predicted is None else "of the references")
        raise VolsegError(sentence("--match name", rule, got, f"Write a {_LABELS}", file=prediction))
    values = {name: value for value, name in table.names.items()}
    remap = {value: values.get(name, 0) for value, name in predicted.names.items()}
    dropped = [name for name in predicted.organs if name not in values]
    note = f"Predicted organs that the references do not know were left out: {', '.join(dropped)}."
    return ChosenLabels(table, {old: new for old, new in remap.items() if old != new}, (note,) if dropped else ())


def _contradiction(one: LabelTable, other: LabelTable) -> str:
    """The first label that two tables do not agree on, in words; empty if there is none."""
    for value, name in one.names.items():
        if other.names.get(value, name) != name:
            return f"{value} for {name} in the predictions and for {other.names[value]} in the references"
    values = {name: value for value, name in other.names.items()}
    for value, name in one.names.items():
        if values.get(name, value) != value:
            return f"{name} as {value} in the predictions and as {values[name]} in the references"
    return ""


def _predicted_labels(prediction: Path) -> LabelTable | None:
    home = prediction if prediction.is_dir() else prediction.parent
    return _read_labels(home / _LABELS) if (home / _LABELS).is_file() else None


def _reference_labels(reference: Path) -> LabelTable | None:
    beside = reference if reference.is_dir() else reference.parent
    listed = [reference] if reference.suffix.lower() in (".json", ".csv") and reference.is_file() else []
    for place in (*listed, beside, beside.resolve().parent):
        found = described_labels(read_description(place))
        if found is not None:
            return found
    return None


def _read_labels(path: Path) -> LabelTable:
    return label_table(read_json(path), path)
