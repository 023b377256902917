"""What a prediction writes and where: masks, their names and colours, a file per organ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import read_json, write_json, write_text
from pipeline.core.labels import LabelTable
from pipeline.core.selection import select_organs
from pipeline.data.case_files import CaseFiles
from pipeline.data.legend import LegendEntry, snap_labels
from pipeline.data.organ_files import organ_file_names
from pipeline.data.volume_file import split_source, volume_stem, volume_suffix
from pipeline.export.palette import organ_color
from pipeline.stages.prediction_soft import SoftPlace, soft_place

__all__ = ["FORMATS", "Labels", "Output", "Place", "chosen_labels", "places", "require_own_files", "write_labels"]

FORMATS = ("nii.gz", "nii", "nrrd", "seg.nrrd", "mha")
"""Formats that masks can be written in, whatever their inputs are."""


@dataclass(frozen=True)
class Output:
    """What to write beside or in place of a mask per case in its image's format.

    Args:
        format: One of FORMATS; by default the image's own.
        organs: Organs and regions to keep, the others becoming background; by default all.
        split: Also write a file per organ, into a folder per case.
        statistics: Also write ``statistics.json`` and ``statistics.csv``.
        probabilities: Organs and regions whose probabilities are also written, or ``("all",)``.
        entropy: Also write the entropy.
        confidence: Also note the mean probability of every organ; comes with the two.
    """

    format: str | None = None
    organs: tuple[str, ...] = ()
    split: bool = False
    statistics: bool = False
    probabilities: tuple[str, ...] = ()
    entropy: bool = False
    confidence: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown formats."""
        if self.format is not None and self.format not in FORMATS:
            advice = "Choose one of them, or leave it out for the image's own"
            raise VolsegError(sentence("format", f"one of {', '.join(FORMATS)}", repr(self.format), advice))

    @property
    def soft(self) -> bool:
        """Whether more than the winner of every voxel is wanted."""
        return bool(self.probabilities) or self.entropy or self.confidence


@dataclass(frozen=True)
class Place:
    """Where the files of a case go.

    Args:
        mask: Its label map.
        folder: Folder of its organs' masks.
        organ_files: Organ or region → name of its mask there; empty without.
        soft: Its probabilities and entropy.
    """

    mask: Path
    folder: Path
    organ_files: Mapping[str, str]
    soft: SoftPlace = field(default_factory=SoftPlace)


@dataclass(frozen=True)
class Labels:
    """Names and colours of what is written.

    Args:
        table: The organs chosen.
        legend: One entry per label value.
        colors: Organ or region → ``#rrggbb``.
        known: All labels of the model, where only some were chosen.
    """

    table: LabelTable
    legend: tuple[LegendEntry, ...]
    colors: Mapping[str, str]
    known: LabelTable | None = None


def chosen_labels(known: LabelTable, organs: Sequence[str]) -> Labels:
    """The labels of a model, or some of them; an organ's colour does not depend on the others that are chosen.

    Args:
        known: All labels of the model.
        organs: Names of those to keep; empty for all.

    Raises:
        DataError: If a name is not known.
    """
    table = select_organs(known, organs) if organs else known
    colors = {value: organ_color(n) for n, value in enumerate(known.values)}
    legend = tuple(LegendEntry(value, name, colors[value]) for value, name in table.names.items())
    drawn = dict(zip(table.regions, table.painted, strict=True)) or {name: value for value, name in table.names.items()}
    shown = {name: colors[value] for name, value in drawn.items()}
    return Labels(table, legend, shown, known if organs else None)


def places(
    cases: Sequence[CaseFiles], out: Path, output: Output, table: LabelTable, known: LabelTable
) -> dict[str, Place]:
    """Case id → its place: the mask has the input's own name, or the case's where that is another.

    Args:
        cases: All cases.
        out: Folder of the masks.
        output: What to write; its probabilities are names of organs.
        table: The organs that masks keep.
        known: All labels of the model.

    Raises:
        VolsegError: If two masks would be one file, or a mask its own input.
    """
    found: dict[str, Place] = {}
    taken: dict[Path, str] = {}
    for files in cases:
        first, stem = files.images[0], volume_stem(files.images[0])
        suffix = f".{output.format}" if output.format else volume_suffix(first)
        alone = len(files.images) == 1 and split_source(first)[0] == first
        own = alone and files.id in (stem, stem.removesuffix("_0000"))
        mask = out / (first.name if own and not output.format else f"{stem if own else files.id}{suffix}")
        if mask in taken or mask.resolve() == split_source(first)[0].resolve():
            culprit = f"case {taken[mask]}" if mask in taken else "the input itself"
            raise VolsegError(f"{mask}: expected one mask per file, got {culprit} there too. Use another folder.")
        taken[mask] = files.id
        names = organ_file_names(table, suffix) if output.split else {}
        soft = soft_place(out, files.id, known, output.probabilities, entropy=output.entropy)
        found[files.id] = Place(mask, out / volume_stem(mask), names, soft)
    return found


def require_own_files(
    out: Path,
    wanted: Iterable[Place],
    beside: Sequence[str],
    entries: Mapping[str, Mapping[str, Any]],
    table: LabelTable,
) -> None:
    """Refuse to overwrite what no earlier prediction wrote, and to mix masks whose values mean different organs.

    Args:
        out: Folder of the masks.
        wanted: Places of the cases.
        beside: Names of the files that are written beside the masks.
        entries: Entries of ``predictions.json`` by file name.
        table: What the values will mean.

    Raises:
        VolsegError: If there is such a file.
    """
    masks = {place.mask.name: place for place in wanted}
    soft = {name for entry in entries.values() for name in entry.get("soft_files", ())}
    strangers = [place.mask for name, place in masks.items() if name not in entries and place.mask.exists()]
    for name, place in masks.items():
        ours = entries.get(name, {}).get("organ_files") or ()
        files = (place.folder / file for file in place.organ_files.values() if file not in ours)
        soft_files = (file for file in place.soft.files if file.relative_to(out).as_posix() not in soft)
        strangers += [file for file in (*files, *soft_files) if file.exists()]
    if not (out / "predictions.json").exists():
        strangers += [out / name for name in beside if (out / name).exists()]
    if strangers:
        raise VolsegError(
            f"{strangers[0]}: expected a free place or the mask of an earlier prediction, got another file. "
            "Use another output folder."
        )
    others = [name for name in entries if name not in masks and (out / name).is_file()]
    if others and (out / "labels.json").is_file() and not _same_labels(out / "labels.json", table):
        raise VolsegError(
            f"{out / 'labels.json'}: expected the organs of the masks that stay there, e.g. {others[0]}, got others. "
            "Use another output folder."
        )


def write_labels(out: Path, labels: Labels) -> None:
    """Write ``labels.json`` and, for ITK-SNAP, ``labels.txt``.

    Where only some labels of a model were chosen, ``chosen_from`` has them all: those who score the masks then know
    which labels of the references cannot be in them.

    Raises:
        VolsegError: If they cannot be written.
    """
    colors = {str(entry.value): entry.color for entry in labels.legend}
    chosen_from = {} if labels.known is None else {"chosen_from": labels.known.to_json()}
    write_json(out / "labels.json", {**labels.table.to_json(), "colors": colors, **chosen_from})
    write_text(out / "labels.txt", snap_labels(labels.legend))


def _same_labels(file: Path, table: LabelTable) -> bool:
    try:
        there = LabelTable.from_json(read_json(file))
    except (VolsegError, KeyError, TypeError, ValueError, AttributeError):
        return False
    return (there.names, there.regions) == (table.names, table.regions)
