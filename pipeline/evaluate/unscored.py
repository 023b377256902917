"""Labels of the references that no prediction can have: which these are, and how a reader of the scores is told."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.labels import LabelTable
from pipeline.core.selection import select_values

__all__ = ["Scored", "missed_note", "scored_labels"]

_SHOWN = 8  # names quoted in a note


class Scored(NamedTuple):
    """What is scored, and what is not.

    Args:
        labels: The organs that are scored.
        unscored: Label value of the references that is left out → its name.
        notes: Sentences a reader of the scores should know.
    """

    labels: LabelTable
    unscored: dict[int, str]
    notes: tuple[str, ...]


def scored_labels(
    labels: LabelTable, references: LabelTable, possible: Collection[int], predicted: LabelTable
) -> Scored:
    """Leave out what predictions cannot have, as those of ``volseg predict --organs`` cannot have other organs.

    Args:
        labels: What is to be scored.
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
        return Scored(labels, {}, ())
    if len(unscored) == len(references.names):
        got = f"{_listed(predicted.organs)} in the predictions and {_listed(references.organs)} in the references"
        advice = "Give them the same names in labels.json, or say what they are with --match value or --labels"
        raise VolsegError(sentence("label tables", "an organ that both name", got, advice))
    kept = replace(select_values(labels, possible), ignore_label=labels.ignore_label)
    lost = [_named(name, held) for name, held in references.target_values.items() if not set(held) <= set(possible)]
    note = (
        f"Not scored, since the labels.json of the predictions does not name them: {_listed(lost)}. In the references "
        "they count as background. If they should count as missed, give a file that names all labels with --labels."
    )
    strange = [name for name in kept.organs if name not in references.organs]
    if strange:
        note += f" The references do not name {_listed(strange)}: organs that are the same must have the same name."
    return Scored(kept, unscored, (note,))


def missed_note(labels: LabelTable, possible: Collection[int]) -> tuple[str, ...]:
    """What to say of organs that are scored because a user says so, though predictions cannot have them.

    Args:
        labels: What is scored.
        possible: Label values that predictions may have.
    """
    lost = [_named(name, held) for name, held in labels.target_values.items() if not set(held) <= set(possible)]
    note = f"The labels.json of the predictions does not name {_listed(lost)}: they count as missed, since --labels "
    return (f"{note}names them.",) if lost else ()


def _named(name: str, held: Sequence[int]) -> str:
    return f"{name} ({'+'.join(map(str, held))})"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_SHOWN])} and {more} more"
