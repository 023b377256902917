"""Which label table the scores follow, and what the predictions' values mean where they have another one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.core.documents import read_json
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.labels import LabelTable, select_values
from pipeline.core.paths import is_named, real
from pipeline.data.descriptions import described_labels, read_description
from pipeline.data.label_tables import label_table, read_remap
from pipeline.data.volume_file import LIST_SUFFIXES

_SHOWN = 8  # names quoted in a note

MatchLabels = Literal["value", "name"]
"""What makes a label of the predictions that of the references, where their tables contradict each other."""

_LABELS = "labels.json"


class ChosenLabels(NamedTuple):
    """A label table and how predictions get its values.

    Args:
        labels: The organs that are scored; None if no one knows.
        remap: Label value of the predictions → the value of the table that it stands for.
        notes: Sentences a reader of the scores should know.
        unscored: Label value of the references that no prediction can have → its name.
    """

    labels: LabelTable | None
    remap: dict[int, int]
    notes: tuple[str, ...] = ()
    unscored: Mapping[int, str] = {}


def find_labels(prediction: Path, reference: Path) -> LabelTable | None:
    """Label table of the prediction folder (``labels.json``), else of the dataset the references are in.

    ``dataset.json`` or ``labels.json`` of the references is looked for in their folder and the one above.

    Returns:
        None if there is no such file.

    Raises:
        VolsegError: If a file is there but holds no label table.
    """
    return _predicted_labels(prediction) or _reference_labels(reference)


def choose_labels(
    prediction: Path,
    reference: Path,
    given: Path | None = None,
    match: MatchLabels | None = None,
    remap: Sequence[str] = (),
) -> ChosenLabels:
    """Decide on the label table.

    Labels of the references that the predictions' table does not name, such as those that ``volseg predict --organs``
    was not asked for, cannot be in the predictions. They are not scored, and a note says so; a table that is given is
    scored as it is.

    Args:
        prediction: As for :func:`find_labels`.
        reference: As for :func:`find_labels`.
        given: A file with the label table to follow, instead of those that are found.
        match: ``value``: the references' names hold for the predictions too. ``name``: the predictions' values become
            those that the references' table has for the same names. None: tables that agree, or know different organs.
        remap: What values of the predictions stand for, see :func:`~pipeline.data.label_tables.read_remap`.

    Raises:
        VolsegError: If a table cannot be read, the two contradict each other and ``match`` is None, ``name`` is
            wanted where one of them is missing, there is no table to read ``remap`` by, or no organ is in both tables.
    """
    predicted = _predicted_labels(prediction)
    table = _read_labels(given) if given is not None else _reference_labels(reference)
    if match == "name":
        chosen = _by_name(predicted, table, prediction)
    elif match == "value" or given is not None:
        chosen = ChosenLabels(table or predicted, {})
    else:
        _require_agreement(predicted, table)
        chosen = ChosenLabels(predicted or table, {})
    replaced = _replacements(remap, chosen.labels)
    chosen = chosen._replace(remap=chosen.remap | replaced)
    if predicted is None or chosen.labels is None:
        return chosen
    possible = {chosen.remap.get(value, value) for value in predicted.values} | set(replaced.values())
    if given is not None:
        lost = _lost(chosen.labels, possible)
        note = (
            f"The labels.json of the predictions does not name {lost}: they count as missed, since --labels names them."
        )
        return chosen._replace(notes=(*chosen.notes, note)) if lost else chosen
    known = table or _chosen_from(prediction) or predicted
    return _only_possible(chosen, chosen.labels, known, possible, predicted)


def _only_possible(
    chosen: ChosenLabels, labels: LabelTable, references: LabelTable, possible: Collection[int], predicted: LabelTable
) -> ChosenLabels:
    """Leave out what predictions cannot have, as those of ``volseg predict --organs`` cannot have other organs.

    Args:
        chosen: What is decided so far.
        labels: Its labels.
        references: What label values of the references mean.
        possible: Label values that predictions may have, as references have them.
        predicted: The predictions' own table, for the notes.

    Returns:
        All of ``labels``, nothing left out, if predictions may have every label of the references. Without an ignore
        label of its own the table has that of the references.

    Raises:
        VolsegError: If nothing is left.
    """
    if labels.ignore_label is None and references.ignore_label not in labels.names:
        labels = replace(labels, ignore_label=references.ignore_label)
    unscored = {value: name for value, name in references.names.items() if value not in possible}
    if not unscored:
        return chosen._replace(labels=labels)
    if len(unscored) == len(references.names):
        got = f"{_listed(predicted.organs)} in the predictions and {_listed(references.organs)} in the references"
        advice = "Give them the same names in labels.json, or say what they are with --match value or --labels"
        raise VolsegError(sentence("label tables", "an organ that both name", got, advice))
    kept = replace(select_values(labels, possible), ignore_label=labels.ignore_label)
    note = (
        f"Not scored, since the labels.json of the predictions does not name them: {_lost(references, possible)}. In "
        "the references they count as background. If they should count as missed, give a file that names all labels "
        "with --labels."
    )
    strange = [name for name in kept.organs if name not in references.organs]
    if strange:
        note += f" The references do not name {_listed(strange)}: organs that are the same must have the same name."
    return chosen._replace(labels=kept, notes=(*chosen.notes, note), unscored=unscored)


def _lost(labels: LabelTable, possible: Collection[int]) -> str:
    """The organs of a table that predictions cannot have whole, with their label values; empty if there are none."""
    lost = {name: held for name, held in labels.target_values.items() if not set(held) <= set(possible)}
    return _listed([f"{name} ({_sum(held)})" for name, held in lost.items()])


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_SHOWN])} and {more} more"


def _by_name(predicted: LabelTable | None, table: LabelTable | None, prediction: Path) -> ChosenLabels:
    if predicted is None or table is None:
        rule = f"a {_LABELS} beside the predictions and names of the references' labels"
        got = "none " + ("beside the predictions" if predicted is None else "of the references")
        raise VolsegError(sentence("--match name", rule, got, f"Write a {_LABELS}", file=prediction))
    values = {name: value for value, name in table.names.items()}
    # Organs that the references do not know become background, as if they had not been predicted.
    remap = {value: values.get(name, 0) for value, name in predicted.names.items()}
    dropped = [name for name in predicted.organs if name not in values]
    note = f"Predicted organs that the references do not know were left out: {', '.join(dropped)}."
    return ChosenLabels(table, {old: new for old, new in remap.items() if old != new}, (note,) if dropped else ())


def _replacements(remap: Sequence[str], labels: LabelTable | None) -> dict[int, int]:
    if remap and labels is None:
        rule, advice = "a label table to replace values by", "Name the labels with --labels"
        raise VolsegError(sentence("--remap", rule, "none found", advice))
    return {} if labels is None else read_remap(remap, labels)


def _require_agreement(predicted: LabelTable | None, table: LabelTable | None) -> None:
    problem = _contradiction(predicted, table) if predicted is not None and table is not None else ""
    if problem:
        rule = "one meaning per value in the labels of predictions and references"
        advice = "Choose --match name or --match value"
        raise VolsegError(sentence("label tables", rule, problem, advice))


def _contradiction(one: LabelTable, other: LabelTable) -> str:
    """The first label that two tables do not agree on, in words; empty if there is none."""
    for value, name in one.names.items():
        if other.names.get(value, name) != name:
            return f"{value} for {name} in the predictions and for {other.names[value]} in the references"
    values = {name: value for value, name in other.names.items()}
    for value, name in one.names.items():
        if values.get(name, value) != value:
            return f"{name} as {value} in the predictions and as {values[name]} in the references"
    targets = other.target_values
    for name, held in one.target_values.items():
        wider = targets.get(name, held)
        if not set(wider) <= set(one.names):  # the rest of it would be scored as background
            return f"{name} as {_sum(held)} in the predictions and as {_sum(wider)} in the references"
    return ""


def _sum(held: Sequence[int]) -> str:
    return "+".join(str(value) for value in held)


def _predicted_labels(prediction: Path) -> LabelTable | None:
    file = _beside(prediction)
    return _read_labels(file) if is_named(file) else None


def _chosen_from(prediction: Path) -> LabelTable | None:
    """All labels of the model, where its prediction was asked for some and says so in ``labels.json``."""
    file = _beside(prediction)
    content: Any = read_json(file) if is_named(file) else {}
    given = isinstance(content, dict) and "chosen_from" in content
    return label_table(content["chosen_from"], file) if given else None


def _beside(prediction: Path) -> Path:
    return (prediction if prediction.is_dir() else prediction.parent) / _LABELS


def _reference_labels(reference: Path) -> LabelTable | None:
    beside = reference if reference.is_dir() else reference.parent
    listed = [reference] if reference.suffix.lower() in LIST_SUFFIXES and reference.is_file() else []
    for place in (*listed, beside, real(beside).parent):
        found = described_labels(read_description(place))
        if found is not None:
            return found
    return None


def _read_labels(path: Path) -> LabelTable:
    return label_table(read_json(path), path)
