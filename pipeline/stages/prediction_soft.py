"""Which soft outputs a prediction writes and where: a file per organ of probabilities, and one of the entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import DataError, sentence
from pipeline.core.labels import LabelTable
from pipeline.data.organ_files import organ_file_names
from pipeline.data.shares import write_shares
from pipeline.infer.soft_maps import SoftPrediction

__all__ = ["ENTROPY", "PROBABILITIES", "SoftPlace", "soft_organs", "soft_place", "write_soft"]

PROBABILITIES, ENTROPY = "probabilities", "entropy"
"""Folders beside the masks; the first is one that ``volseg evaluate --probabilities`` takes."""

_SUFFIX = ".nii.gz"
_ALL = ("all",)


@dataclass(frozen=True)
class SoftPlace:
    """Where the soft outputs of a case go.

    Args:
        probabilities: Organ or region → file.
        entropy: Its file; None without.
    """

    probabilities: Mapping[str, Path] = field(default_factory=dict)
    entropy: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.probabilities.values(), *(() if self.entropy is None else (self.entropy,)))


def soft_organs(known: LabelTable, kept: LabelTable, names: Sequence[str]) -> tuple[str, ...]:
    """The organs whose probabilities are written.

    Args:
        known: All labels of the model.
        kept: Those that masks keep.
        names: What was asked for; ``all`` for all organs (or regions) that masks keep.

    Raises:
        DataError: If the network finds no such organ or region.
    """
    if tuple(names) == _ALL and "all" not in known.targets:
        return tuple(name for name in known.targets if name in kept.targets)
    unknown = [name for name in names if name not in known.targets]
    if unknown:
        rule, got = f"all, or some of {', '.join(known.targets)}", ", ".join(unknown)
        raise DataError(sentence("probabilities", rule, got, "Correct the names"))
    return tuple(dict.fromkeys(names))


def soft_place(out: Path, case: str, known: LabelTable, organs: Sequence[str], *, entropy: bool) -> SoftPlace:
    """Where the soft outputs of a case go; an organ's file has the same name whichever others are chosen.

    Args:
        out: Folder of the masks.
        case: Case id.
        known: All labels of the model.
        organs: Whose probabilities are written.
        entropy: Whether the entropy is.
    """
    names = organ_file_names(known, _SUFFIX)
    files = {name: out / PROBABILITIES / case / names[name] for name in organs}
    return SoftPlace(files, out / ENTROPY / f"{case}{_SUFFIX}" if entropy else None)


def write_soft(soft: SoftPrediction, place: SoftPlace, *, like: Path | None = None) -> None:
    """Write the soft outputs of a case, each file atomically.

    Args:
        soft: What the predictor gave.
        place: Where to.
        like: As in :func:`~pipeline.data.volumes.write_label_map`.

    Raises:
        VolsegError: If a file cannot be written.
    """
    grid = soft.label_map.grid
    for name, path in place.probabilities.items():
        write_shares(soft.probabilities[name], grid, path, like=like)
    if place.entropy is not None and soft.entropy is not None:
        write_shares(soft.entropy, grid, place.entropy, like=like)
