"""What a prediction writes, where, and which files are its own: masks, names and colours, entries, statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.core.documents import read_json
from pipeline.core.errors import DataError, VolsegError, sentence, unforeseen
from pipeline.core.files import OutputFolder, read_record, write_json, write_text
from pipeline.core.labels import LabelTable, select_organs
from pipeline.core.paths import real
from pipeline.core.tables import write_csv
from pipeline.core.volume import Image, LabelMap
from pipeline.data.dataset import CaseFiles
from pipeline.data.legend import (
    LegendEntry,
    freesurfer_colors,
    organ_color,
    slicer_colors,
    snap_labels,
    target_colors,
)
from pipeline.data.nifti import write_probabilities
from pipeline.data.organ_masks import organ_file_names
from pipeline.data.prediction_record import RECORD_FILE, Entries, by_mask
from pipeline.data.volume_file import split_source, volume_stem, volume_suffix
from pipeline.evaluate.organ_statistics import organ_statistics, statistics_columns, statistics_entry, statistics_row
from pipeline.export.dicom_objects import DicomOutput
from pipeline.infer.probability_maps import SoftPrediction
from pipeline.model.device import out_of_memory

FORMATS = ("nii.gz", "nii", "nrrd", "seg.nrrd", "mha")
"""Formats that masks can be written in, whatever their inputs are."""

PROBABILITIES, ENTROPY, DICOM = "probabilities", "entropy", "dicom"
"""Folders beside the masks; the first is one that ``volseg evaluate --probabilities`` takes, the last one to send."""

STATISTICS_FILES = ("statistics.json", "statistics.csv")
"""Names of what :func:`write_statistics` writes."""

_SOFT_SUFFIX = ".nii.gz"
_ALL = ("all",)
_CONVENTIONS = (
    "volume_ml: number of voxels times the volume of a voxel",
    "mean, sd: intensities of the image's own voxels in its own units (HU of a CT); sd divides by their number",
    "touches_edge: some voxel lies in the first or last plane along an axis, so a part may be outside; edges: "
    "which sides of the patient these are (L, R, A, P, I, S)",
    "confidence: mean probability of the organ over the voxels that the network gave to it, before cleaning; empty "
    "where it was not asked for (--confidence, --probabilities, --entropy) or no voxel was given",
)


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
        dicom: Of inputs that are DICOM series, also write some of ``seg``, ``sr``, ``rtstruct`` and ``sc``: a
            segmentation, measurements, a structure set, an overview.
        seg_type: How a DICOM segmentation is stored: ``binary``, ``labelmap`` or ``auto``.
    """

    format: str | None = None
    organs: tuple[str, ...] = ()
    split: bool = False
    statistics: bool = False
    probabilities: tuple[str, ...] = ()
    entropy: bool = False
    confidence: bool = False
    dicom: tuple[str, ...] = ()
    seg_type: str = "binary"

    def __post_init__(self) -> None:
        """Refuse unknown formats and objects."""
        if self.format is not None and self.format not in FORMATS:
            advice = "Choose one of them, or leave it out for the image's own"
            raise VolsegError(sentence("format", f"one of {', '.join(FORMATS)}", repr(self.format), advice))

        _ = self.objects

    @property
    def objects(self) -> DicomOutput:
        """The DICOM objects, with those that others need."""
        return DicomOutput(self.dicom, self.seg_type)

    @property
    def soft(self) -> bool:
        """Whether more than the winner of every voxel is wanted."""
        return bool(self.probabilities) or self.entropy or self.confidence


@dataclass(frozen=True)
class SoftPaths:
    """Where the soft outputs of a case go."""

    probabilities: Mapping[str, Path] = field(default_factory=dict)
    entropy: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.probabilities.values(), *(() if self.entropy is None else (self.entropy,)))


@dataclass(frozen=True)
class CasePaths:
    """Where the files of a case go.

    Args:
        mask: Its label map.
        folder: Folder of its organs' masks.
        organ_files: Organ or region → name of its mask there; empty without.
        soft: Its probabilities and entropy.
        dicom: Kind → DICOM object.
    """

    mask: Path
    folder: Path
    organ_files: Mapping[str, str]
    soft: SoftPaths = field(default_factory=SoftPaths)
    dicom: Mapping[str, Path] = field(default_factory=dict)


def case_paths(
    cases: Sequence[CaseFiles], out: Path, output: Output, table: LabelTable, known: LabelTable
) -> dict[str, CasePaths]:
    """Case id → where its files go: the mask has the input's own name, or the case's where that is another.

    Raises:
        VolsegError: If two masks would be one file, or a mask its own input.
    """
    found: dict[str, CasePaths] = {}
    taken: dict[Path, str] = {}
    for files in cases:
        first, stem = files.images[0], volume_stem(files.images[0])
        own_suffix = volume_suffix(first)  # DICOM has none
        suffix = f".{output.format}" if output.format else own_suffix or ".nii.gz"
        alone = len(files.images) == 1 and split_source(first)[0] == first
        own = alone and files.id in (stem, stem.removesuffix("_0000"))
        mask = out / (
            first.name if own and own_suffix and not output.format else f"{stem if own else files.id}{suffix}"
        )
        if mask in taken or real(mask) == real(split_source(first)[0]):
            culprit = f"case {taken[mask]}" if mask in taken else "the input itself"
            raise VolsegError(sentence(str(mask), "one mask per file", f"{culprit} there too", "Use another folder"))
        taken[mask] = files.id
        names = organ_file_names(table, suffix) if output.split else {}
        soft = soft_paths(out, files.id, known, output.probabilities, entropy=output.entropy)
        stem = volume_stem(mask)
        found[files.id] = CasePaths(mask, out / stem, names, soft, output.objects.files(out / DICOM, stem))
    return found


def soft_paths(out: Path, case: str, known: LabelTable, organs: Sequence[str], *, entropy: bool) -> SoftPaths:
    """Where the soft outputs of a case go; an organ's file has the same name whichever others are chosen."""
    names = organ_file_names(known, _SOFT_SUFFIX)
    files = {name: out / PROBABILITIES / case / names[name] for name in organs}
    return SoftPaths(files, out / ENTROPY / f"{case}{_SOFT_SUFFIX}" if entropy else None)


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


# Names and colours of label values.

LABEL_FILES = ("labels.json", "labels.txt", "labels.ctbl", "labels.lut")
"""For volseg, ITK-SNAP, 3D Slicer and FreeSurfer."""


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
    """The labels of a model, or the named ones; an organ's colour does not depend on the others that are chosen.

    Raises:
        DataError: If a name is not known.
    """
    table = select_organs(known, organs) if organs else known
    colors = {value: organ_color(n) for n, value in enumerate(known.values)}
    legend = tuple(LegendEntry(value, name, colors[value]) for value, name in table.names.items())
    return Labels(table, legend, target_colors(table, colors), known if organs else None)


def write_labels(out: Path, labels: Labels) -> None:
    """Write :data:`LABEL_FILES`.

    Where only some labels of a model were chosen, ``chosen_from`` has them all: those who score the masks then know
    which labels of the references cannot be in them.

    Raises:
        VolsegError: If they cannot be written.
    """
    colors = {str(entry.value): entry.color for entry in labels.legend}
    chosen_from = {} if labels.known is None else {"chosen_from": labels.known.to_json()}
    write_json(out / "labels.json", {**labels.table.to_json(), "colors": colors, **chosen_from})
    for name, form in zip(LABEL_FILES[1:], (snap_labels, slicer_colors, freesurfer_colors), strict=True):
        write_text(out / name, form(labels.legend))


# Which files in the folder are those of an earlier prediction.


def require_own_files(
    out: Path,
    wanted: Iterable[CasePaths],
    beside: Sequence[str],
    entries: Entries,
    table: LabelTable,
) -> None:
    """Refuse to overwrite what no earlier prediction wrote, and to mix masks whose values mean different organs.

    Args:
        out: Folder of the masks.
        wanted: Where the files of the cases go.
        beside: Names of the files that are written beside the masks.
        entries: Entries of ``predictions.json`` by file name.
        table: What the values will mean.

    Raises:
        VolsegError: If there is such a file.
    """
    masks = {paths.mask.name: paths for paths in wanted}
    # An organ's file belongs to the mask whose entry names it, a soft output or DICOM object to any mask of its case.
    own = {out / name for name in entries}
    for kind in ("soft_files", "dicom_files"):
        own |= {out / name for entry in entries.values() for name in entry.get(kind) or ()}
    files = [paths.mask for paths in masks.values()]
    for name, paths in masks.items():
        own |= {paths.folder / file for file in entries.get(name, {}).get("organ_files") or ()}
        files += [*(paths.folder / file for file in paths.organ_files.values()), *paths.soft.files]
        files += paths.dicom.values()
    if not (out / RECORD_FILE).exists():
        files += [out / name for name in beside]
    OutputFolder(out).require_free(files, own, "the mask of an earlier prediction")
    others = [name for name in entries if name not in masks and (out / name).is_file()]
    legend = out / "labels.json"
    if others and legend.is_file() and not same_labels(legend, table):
        rule = f"the organs of the masks that stay there, e.g. {others[0]}"
        raise VolsegError(sentence(str(legend), rule, "others", "Use another output folder"))


def same_labels(file: Path, table: LabelTable) -> bool:
    """Whether a ``labels.json`` holds a table."""
    try:
        there = LabelTable.from_json(read_json(file))
    except (VolsegError, KeyError, TypeError, ValueError, AttributeError):
        return False
    return (there.names, there.regions) == (table.names, table.regions)


# ``predictions.json``: which image each mask came from, how it was cleaned, and whether it is finished.


class Entry(BaseModel):
    """What is used of an entry of either record; further keys stay as they are."""

    model_config = ConfigDict(strict=True, extra="allow")

    prediction: str
    hash: str = ""
    organ_files: list[str] | None = None
    soft_files: list[str] | None = None
    dicom_files: list[str] | None = None
    seg_type: str | None = None
    confidence: dict[str, float | None] = {}


def prediction_entry(files: CaseFiles, name: str, cleaning: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entry of a mask that is not done yet, which an empty hash says; ``name`` is the mask's."""
    images = [str(real(path)) for path in files.images]
    return {"case": files.id, "images": images, "prediction": name, "postprocessing": cleaning, "hash": ""}


def why_failed(case: str, error: BaseException) -> str:
    """One sentence on why a case could not be predicted."""
    if isinstance(error, VolsegError):
        return str(error)
    if out_of_memory(error):
        return sentence("memory", "enough", "too little", "Lower infer.batch_size, or use --device cpu", case=case)
    return sentence(f"case {case}", "a prediction", unforeseen(error), "Check the file and the device")


# Soft outputs: a file per organ of probabilities, and one of the entropy.


def write_soft(soft: SoftPrediction, paths: SoftPaths, *, like: Path | None = None) -> None:
    """Write the soft outputs of a case; ``like`` as in :func:`~pipeline.data.volumes.write_label_map`.

    Raises:
        VolsegError: If a file cannot be written.
    """
    grid = soft.label_map.grid
    for name, path in paths.probabilities.items():
        write_probabilities(soft.probabilities[name], grid, path, like=like)
    if paths.entropy is not None and soft.entropy is not None:
        write_probabilities(soft.entropy, grid, paths.entropy, like=like)


# ``statistics.json`` and ``statistics.csv``: volume, intensities and edges of every organ.


class _Organ(BaseModel):
    """What becomes a line of the table."""

    model_config = ConfigDict(strict=True)

    label: int | list[int]
    voxels: int
    volume_ml: float
    intensity: dict[str, dict[str, float | None]]
    touches_edge: bool
    edges: list[str]
    confidence: float | None = None


class _Measured(Entry):
    case: str
    organs: dict[str, _Organ]


def earlier_statistics(out: Path) -> Entries:
    """What is known of every mask, by file name."""
    file = out / STATISTICS_FILES[0]
    return by_mask(file, read_record(file).get("cases"), _Measured)


def measure(label_map: LabelMap, table: LabelTable, image: Image, channels: Sequence[str]) -> dict[str, Any]:
    """Statistics of a case: organ or region → its numbers."""
    found = organ_statistics(label_map, table, image)
    return {organ.name: statistics_entry(organ, channels) for organ in found}


def write_statistics(out: Path, cases: Mapping[str, Mapping[str, Any]], channels: Sequence[str]) -> None:
    """Write both files.

    Args:
        out: Folder of the masks.
        cases: File name of a mask → ``case``, ``prediction``, ``hash`` and ``organs``, as :func:`measure` gave them,
            with ``confidence`` where it is known.
        channels: Name of every channel of the images.

    Raises:
        VolsegError: If they cannot be written.
    """
    entries = [cases[name] for name in sorted(cases)]
    rows = [
        (*statistics_row(entry["case"], name, organ, channels), organ.get("confidence"))
        for entry in entries
        for name, organ in entry["organs"].items()
    ]
    content = {"channels": list(channels), "cases": entries, "conventions": list(_CONVENTIONS)}
    write_json(out / STATISTICS_FILES[0], content)
    write_csv(out / STATISTICS_FILES[1], [(*statistics_columns(channels), "confidence"), *rows], digits=6)
