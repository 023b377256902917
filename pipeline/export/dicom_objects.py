"""What a mask of a DICOM series is written as: each object atomically, and only once it was read back and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import atomic_path
from pipeline.export.dicom_source import Segmented, as_they_are
from pipeline.export.measurements import check_measurements, measurements
from pipeline.export.overview import check_overview, overview
from pipeline.export.segmentation import SEG_TYPES, as_labelmap, check_segmentation, segmentation
from pipeline.export.structure_set import check_structure_set, structure_set

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


KINDS = ("seg", "sr", "rtstruct", "sc")
"""Segmentation, measurements, structure set, overview (secondary capture)."""


@dataclass(frozen=True)
class DicomOutput:
    """Which objects are written.

    Args:
        kinds: Some of KINDS. Measurements bring the segmentation that they refer to.
        seg_type: How a segmentation is stored; with measurements, ``auto`` is binary.
        neurological: Whether the overview has the patient's left on the left.

    Raises:
        VolsegError: If one is not known, or measurements would refer to a label map.
    """

    kinds: tuple[str, ...] = ()
    seg_type: str = "binary"
    neurological: bool = False

    def __post_init__(self) -> None:
        """Refuse other words, and bring kinds into their order."""
        strange = [kind for kind in self.kinds if kind not in KINDS]
        if strange:
            rule, got = f"some of {', '.join(KINDS)}", ", ".join(strange)
            raise VolsegError(sentence("DICOM objects", rule, got, "Correct the names"))
        if self.seg_type not in SEG_TYPES:
            rule = f"one of {', '.join(SEG_TYPES)}"
            raise VolsegError(sentence("segmentation type", rule, repr(self.seg_type), "Correct it"))
        if "sr" in self.kinds and self.seg_type == "labelmap":
            # Readers of reports, and dciodvfy, know segments of binary ones only.
            advice = "Leave one of the two out"
            raise VolsegError(sentence("segmentation type", "binary or auto with sr", "labelmap", advice))
        wanted = {*self.kinds, *(("seg",) if "sr" in self.kinds else ())}
        object.__setattr__(self, "kinds", tuple(kind for kind in KINDS if kind in wanted))
        if "sr" in wanted:
            object.__setattr__(self, "seg_type", "binary")

    def files(self, folder: Path, stem: str) -> dict[str, Path]:
        """Kind → the file that it is written to."""
        return {kind: folder / f"{stem}.{kind}.dcm" for kind in self.kinds}

    def outdated(self, folder: Path, stem: str) -> tuple[Path, ...]:
        """Objects of an earlier run that would refer to a segmentation which this one replaces by another."""
        replaced = "seg" in self.kinds and self.seg_type != "binary"
        return (folder / f"{stem}.sr.dcm",) if replaced else ()


def write_objects(case: Segmented, files: Mapping[str, Path], output: DicomOutput) -> None:
    """Write DICOM objects of a mask.

    Args:
        case: The series and its mask.
        files: What :meth:`DicomOutput.files` gave.
        output: How they are made.

    Raises:
        VolsegError: If one cannot be made or written, or is not read back as the mask: then it is not there.
    """
    as_labelmap(case, output.seg_type)  # refused before anything is written
    made: dict[str, Dataset] = {}
    with as_they_are():
        for kind, path in files.items():
            try:
                with atomic_path(path) as temporary:
                    made[kind] = _made(kind, case, output, made)
                    made[kind].save_as(temporary, enforce_file_format=True)
                    _check(kind, case, temporary, made)
            except (VolsegError, OSError, MemoryError):
                raise
            except Exception as error:  # whatever a library raises is about the series' elements, which it may quote
                rule, got = "one that can be made of the series", f"an error ({type(error).__name__})"
                advice, where = "Check the series with another program", case.source.opened
                text = sentence(f"DICOM object {kind}", rule, got, advice, case=where.case, file=where.path)
                raise VolsegError(text) from None


def _made(kind: str, case: Segmented, output: DicomOutput, made: Mapping[str, Dataset]) -> Dataset:
    """An object; of those made before, measurements take the segmentation."""
    match kind:
        case "seg":
            return segmentation(case, output.seg_type)
        case "sr":
            return measurements(case, made["seg"])
        case "rtstruct":
            return structure_set(case)
        case _:
            return overview(case, neurological=output.neurological)


def _check(kind: str, case: Segmented, path: Path, made: Mapping[str, Dataset]) -> None:
    """Read an object back and compare it with the mask."""
    match kind:
        case "seg":
            check_segmentation(case, path)
        case "sr":
            check_measurements(case, path, made["seg"].SOPInstanceUID)
        case "rtstruct":
            check_structure_set(case, path)
        case _:
            check_overview(made[kind], path)
