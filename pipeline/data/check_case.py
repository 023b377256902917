"""Everything that can be wrong with one case. Nothing here knows other cases, so cases can be checked in parallel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core import DataError, Grid, LabelMap, LabelTable, require_same_grid, sentence
from pipeline.data.case_files import CaseFiles
from pipeline.data.organ_masks import merge_organs
from pipeline.data.volume_file import VolumeError, VolumeFile
from pipeline.data.volumes import open_volume, read_label_map, read_voxels

__all__ = ["CaseFacts", "Problem", "Severity", "check_case", "lost_case"]

Severity = Literal["error", "warning", "note"]

_OBLIQUE_DEGREES = 1.0  # a scanner's rounding stays below, a tilted gantry or a planned MR slab above
_SHOWN = 10  # label values quoted in a message


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        case: Case id, or None if it concerns the dataset.
        severity: ``error``: the case cannot be used. ``warning``: look at it. ``note``: good to know.
        code: Kind of problem, one word for tables and JSON.
        message: One sentence that says what to do.
    """

    case: str | None
    severity: Severity
    code: str
    message: str


@dataclass(frozen=True)
class CaseFacts:
    """What checking one case found.

    Args:
        id: Case id.
        problems: What is wrong with it.
        grid: Grid of the first channel, None if unreadable.
        digest: Content hash of all voxels of the image, empty if unreadable.
        values: Label values present, background left out.
    """

    id: str
    problems: tuple[Problem, ...]
    grid: Grid | None = None
    digest: str = ""
    values: tuple[int, ...] = ()


@dataclass
class _Findings:
    """Collects the problems of a case while it is checked."""

    case: str
    problems: list[Problem] = field(default_factory=list)

    def add(self, severity: Severity, code: str, message: str) -> None:
        self.problems.append(Problem(self.case, severity, code, message))

    def say(self, severity: Severity, code: str, what: str, expected: str, got: object, advice: str) -> None:
        self.add(severity, code, sentence(what, expected, got, advice, case=self.case))


def lost_case(files: CaseFiles, error: str) -> CaseFacts:
    """What is known of a case that ended the worker that checked it, or met an error that is not foreseen."""
    return CaseFacts(files.id, (Problem(files.id, "error", "failed", f"case {files.id}: {error}"),))


def check_case(files: CaseFiles, labels: LabelTable, channels: int) -> CaseFacts:
    """Check one case completely: its files are read once.

    Args:
        files: The case.
        labels: Label table of the dataset.
        channels: Number of channels of the dataset.

    Returns:
        Every problem found, and what the comparison with other cases needs.
    """
    found = _Findings(files.id)
    if len(files.images) != channels:
        advice = "Add the missing files, or drop the case"
        found.say("error", "channels", "image channels", f"{channels} files", len(files.images), advice)
    grid, digest = _check_image(files, found)
    label_map = _check_labels(files, labels, found)
    if label_map is not None and grid is not None:
        try:
            require_same_grid(grid, label_map.grid, "label map grid", "the image grid", case=files.id)
        except DataError as error:
            found.add("error", "label_grid", str(error))
    values = () if label_map is None else tuple(value for value in label_map.values() if value)
    return CaseFacts(files.id, tuple(found.problems), grid, digest, values)


def _check_image(files: CaseFiles, found: _Findings) -> tuple[Grid | None, str]:
    """Check every channel; the first readable one gives the grid."""
    grid: Grid | None = None
    hasher = hashlib.blake2b(digest_size=16)
    complete = bool(files.images)
    for number, source in enumerate(files.images, start=1):
        try:
            volume = open_volume(source, case=files.id)
            if grid is None:
                grid = volume.grid
                _check_header(volume, found)
            array = read_voxels(volume, source)
        except VolumeError as error:
            found.add("error", error.code, str(error))
            complete = False
            continue
        try:
            what, name = f"grid of channel {number}", str(volume.path)
            require_same_grid(grid, volume.grid, what, "the grid of channel 1", case=files.id, file=name)
        except DataError as error:
            found.add("error", "channel_grid", str(error))
        _check_intensities(array, f"channel {number}" if len(files.images) > 1 else "image", found, len(files.images))
        with np.errstate(over="ignore"):
            hasher.update(np.ascontiguousarray(array.T, dtype=np.float32).data)
    return grid, hasher.hexdigest() if complete else ""


def _check_header(volume: VolumeFile, found: _Findings) -> None:
    """Report missing or contradicting forms and oblique axes."""
    if volume.form_codes == (0, 0):
        got, advice = "0 and 0", "Left and right may be swapped; check an organ whose side you know"
        found.say("warning", "form_codes", f"{volume.path}: sform_code and qform_code", "one above 0", got, advice)
    if volume.forms_differ:
        rule, got = "one position for every voxel", f"positions up to {volume.forms_apart_mm:.3g} mm apart"
        advice = "The sform counts here, the qform in other programs; --fix writes the sform into both"
        found.say("warning", "forms", f"{volume.path}: sform and qform", rule, got, advice)
    directions = volume.grid.affine[:3, :3] / np.asarray(volume.grid.spacing_mm)
    degrees = float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), 0.0, 1.0))).max())
    if degrees > _OBLIQUE_DEGREES:
        got, advice = f"axes tilted by {degrees:.1f} degrees", "Nothing to do; results are restored to this grid"
        found.say("note", "oblique", "image axes", "along the body axes", got, advice)


def _check_intensities(array: NDArray[Any], what: str, found: _Findings, channels: int) -> None:
    """Report NaN, infinity and constant images."""
    if array.dtype.kind == "f":
        nan, inf = int(np.count_nonzero(np.isnan(array))), int(np.count_nonzero(np.isinf(array)))
        if nan or inf:
            got, advice = (
                f"{nan} NaN and {inf} infinite of {array.size} voxels",
                "Replace them and save the image again",
            )
            found.say("error", "not_finite", f"{what} intensities", "finite numbers", got, advice)
            return
    if array.min() == array.max():
        severity: Severity = "error" if channels == 1 else "warning"
        got, advice = f"{float(array.min()):g} everywhere", "Export the image again, or drop the case"
        found.say(severity, "constant", f"{what} intensities", "more than one value", got, advice)


def _check_labels(files: CaseFiles, labels: LabelTable, found: _Findings) -> LabelMap | None:
    """Check the reference; None if there is none that can be read."""
    if not files.labelled:
        found.say("note", "unlabelled", "reference", "a label map", "none", "It is left out of training")
        return None
    try:
        if files.label is not None:
            label_map = read_label_map(files.label, case=files.id)
        else:
            label_map, shared = merge_organs(files.organs, soft=files.soft, case=files.id)
            if shared and not labels.regions:  # regions are meant to overlap
                got, advice = f"{shared} voxels in several masks", "The organ with the highest label value gets them"
                found.say("warning", "overlap", "organ masks", "no overlap", got, advice)
    except VolumeError as error:
        found.add("error", error.code, str(error))
        return None
    except DataError as error:
        found.add("error", "label_grid", str(error))
        return None
    values = label_map.values()
    unknown = labels.unknown(values)
    if unknown:
        got = ", ".join(map(str, unknown[:_SHOWN])) + (" …" if len(unknown) > _SHOWN else "")
        advice = "Add them to the label names, or correct the label map"
        found.say("error", "unknown_labels", "label values", "only those of the label table", got, advice)
    if not any(values):
        advice = "Fine if the case has no organ or lesion; otherwise replace the label map"
        found.say("warning", "no_labels", "label map", "at least one labelled voxel", "background only", advice)
    return label_map
