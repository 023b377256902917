"""``volseg check``: every problem of a dataset, by case.

:func:`check_case` knows no other cases, so cases can be checked in parallel; :func:`check_dataset` then compares them.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, listed, sentence
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap, require_same_grid
from pipeline.data.dataset import CaseFiles, Dataset
from pipeline.data.dicom_labels import open_labels
from pipeline.data.organ_masks import merge_organs
from pipeline.data.volume_file import Doubt, VolumeError, VolumeFile, split_source
from pipeline.data.volumes import (
    is_dicom_label,
    open_volume,
    position_doubts,
    read_dicom_labels,
    read_label_map,
    read_voxels,
    require_channel_grid,
)

Severity = Literal["error", "warning", "note"]

_OBLIQUE_DEGREES = 1.0  # a scanner's rounding stays below, a tilted gantry or a planned MR slab above
_SPACING_RATIO = 3.0  # further from the median than this is more often a wrong unit or header than a protocol
_ORIENTATION_SHARE = 2 / 3  # one orientation must be this common before another one is odd
_MIN_CASES = 3  # fewer cases have no usual spacing or orientation


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
        content_hash: Of all voxels of the image, empty if unreadable.
        values: Label values present, background left out.
    """

    id: str
    problems: tuple[Problem, ...]
    grid: Grid | None = None
    content_hash: str = ""
    values: tuple[int, ...] = ()


def _problem(
    case: str | None, severity: Severity, code: str, what: str, expected: str, got: object, advice: str
) -> Problem:
    return Problem(case, severity, code, sentence(what, expected, got, advice, case=case))


@dataclass
class _Findings:
    """Collects the problems of a case while it is checked."""

    case: str
    problems: list[Problem] = field(default_factory=list)

    def add(self, severity: Severity, code: str, message: str) -> None:
        self.problems.append(Problem(self.case, severity, code, message))

    def report(self, severity: Severity, code: str, what: str, expected: str, got: object, advice: str) -> None:
        self.problems.append(_problem(self.case, severity, code, what, expected, got, advice))


def lost_case(files: CaseFiles, error: str) -> CaseFacts:
    """What is known of a case that ended the worker that checked it, or met an error that is not foreseen."""
    return CaseFacts(files.id, (Problem(files.id, "error", "failed", f"case {files.id}: {error}"),))


def check_case(files: CaseFiles, labels: LabelTable, channels: int) -> CaseFacts:
    """Check one case completely, reading its files once, and note what the comparison with other cases needs."""
    found = _Findings(files.id)
    if len(files.images) != channels:
        advice = "Add the missing files, or drop the case"
        found.report("error", "channels", "image channels", f"{channels} files", len(files.images), advice)
    grid, content_hash = _check_image(files, found)
    label_map = _check_labels(files, labels, found)
    if label_map is not None and grid is not None:
        try:
            require_same_grid(grid, label_map.grid, "label map grid", "the image grid", case=files.id)
        except DataError as error:
            found.add("error", "label_grid", str(error))
    values = () if label_map is None else tuple(value for value in label_map.values() if value)
    return CaseFacts(files.id, tuple(found.problems), grid, content_hash, values)


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
            require_channel_grid(grid, volume, number, files.id)
        except DataError as error:
            found.add("error", "channel_grid", str(error))
        _check_intensities(array, f"channel {number}" if len(files.images) > 1 else "image", found, len(files.images))
        # What is trained on is float32, so two images that agree in it are the same image.
        with np.errstate(over="ignore"):
            hasher.update(np.ascontiguousarray(array.T, dtype=np.float32).data)
    return grid, hasher.hexdigest() if complete else ""


def _check_header(volume: VolumeFile, found: _Findings) -> None:
    """Report what makes other programs place the volume elsewhere, and oblique axes."""
    for doubt in volume.doubts:
        found.report(*doubt)
    # Columns of unit length; the largest entry is the cosine between an axis and the body axis next to it.
    directions = volume.grid.affine[:3, :3] / np.asarray(volume.grid.spacing_mm)
    degrees = float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), 0.0, 1.0))).max())
    if degrees > _OBLIQUE_DEGREES:
        got, advice = f"axes tilted by {degrees:.1f} degrees", "Nothing to do; results are restored to this grid"
        found.report("note", "oblique", "image axes", "along the body axes", got, advice)


def _check_intensities(array: NDArray[Any], what: str, found: _Findings, channels: int) -> None:
    """Report NaN, infinity and constant images."""
    if array.dtype.kind == "f":
        nan, inf = int(np.count_nonzero(np.isnan(array))), int(np.count_nonzero(np.isinf(array)))
        if nan or inf:
            got = f"{nan} NaN and {inf} infinite of {array.size} voxels"
            advice = "Replace them and save the image again"
            found.report("error", "not_finite", f"{what} intensities", "finite numbers", got, advice)
            return
    if array.min() == array.max():
        severity: Severity = "error" if channels == 1 else "warning"
        got, advice = f"{float(array.min()):g} everywhere", "Export the image again, or drop the case"
        found.report(severity, "constant", f"{what} intensities", "more than one value", got, advice)


def _check_labels(files: CaseFiles, labels: LabelTable, found: _Findings) -> LabelMap | None:
    """Check the reference; None if there is none that can be read."""
    if not files.labelled:
        found.report("note", "unlabelled", "reference", "a label map", "none", "It is left out of training")
        return None
    try:
        if files.label is not None and _is_dicom(files):
            label_map = _check_dicom_labels(files.label, labels, found)
        elif files.label is not None:
            label_map = read_label_map(files.label, case=files.id)
        else:
            label_map, shared = merge_organs(files.organs, soft=files.soft, case=files.id)
            if shared and not labels.regions:  # regions are meant to overlap
                got, advice = f"{shared} voxels in several masks", "The organ with the highest label value gets them"
                found.report("warning", "overlap", "organ masks", "no overlap", got, advice)
    except VolumeError as error:
        # DICOM labels are put on the image; where that cannot be read, it was said.
        if not _is_dicom(files) or all(problem.message != str(error) for problem in found.problems):
            found.add("error", error.code, str(error))
        return None
    except DataError as error:
        found.add("error", "label_grid", str(error))
        return None
    values = label_map.values()
    unknown = labels.unknown(values)
    if unknown:
        rule, advice = "only those of the label table", "Add them to the label names, or correct the label map"
        found.report("error", "unknown_labels", "label values", rule, listed(unknown), advice)
    for doubt in _label_doubts(files):
        if all(doubt.code != problem.code for problem in found.problems):
            found.report(*doubt)
    if not any(values):
        advice = "Fine if the case has no organ or lesion; otherwise replace the label map"
        found.report("warning", "no_labels", "label map", "at least one labelled voxel", "background only", advice)
    return label_map


def _is_dicom(files: CaseFiles) -> bool:
    return files.label is not None and is_dicom_label(files.label)


def _check_dicom_labels(source: Path, labels: LabelTable, found: _Findings) -> LabelMap:
    """Check DICOM labels: what was left out of them, and what overlaps."""
    read = read_dicom_labels(open_labels(source, case=found.case))
    for doubt in read.doubts:
        found.report(*doubt)
    if read.shared:
        rule, advice = "no overlap", "The organ with the highest label value gets them; regions may overlap"
        if labels.regions:
            rule, advice = "overlaps that the label table has a value for", "Add a value, or correct the segments"
        found.report("warning", "overlap", "segments", rule, f"{read.shared} voxels in several", advice)
    return read.label_map


def _label_doubts(files: CaseFiles) -> Sequence[Doubt]:
    """Why other programs may place the reference elsewhere than here; of organ masks the first that has a reason."""
    sources = [split_source(source)[0] for source in files.label_sources]
    return next((doubts for path in sources if (doubts := position_doubts(path))), ())


MapCases = Callable[[Callable[[CaseFiles], CaseFacts], Sequence[CaseFiles]], Iterable[CaseFacts]]


@dataclass(frozen=True)
class CheckReport:
    """What is wrong with a dataset, and what is in it.

    Args:
        dataset: Name of the dataset.
        layout: Its layout.
        cases: Ids of all cases checked, held-out ones last.
        problems: By case, in the order of ``cases``; those of the whole dataset last.
        summary: For reading: ``cases``, ``tests``, ``channels``, ``labels`` (values, names and regions),
            ``cases_with_organ`` (or with region), ``median_shape``, ``median_spacing_mm`` (along R, A, S),
            ``orientations`` (cases per orientation).
        repairable: Ids of the cases that ``--fix`` would repair, where that was tried.
    """

    dataset: str
    layout: str
    cases: tuple[str, ...]
    problems: tuple[Problem, ...]
    summary: Mapping[str, Any]
    repairable: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """Number of problems of a severity."""
        return sum(problem.severity == severity for problem in self.problems)

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the cases that have errors."""
        wrong = {problem.case for problem in self.problems if problem.severity == "error"}
        return tuple(case for case in dict.fromkeys(self.cases) if case in wrong)

    @property
    def exit_code(self) -> int:
        """0 if there is nothing worse than a warning, 2 if some cases have errors, 3 if all have."""
        if self.cases and len(self.failed) == len(set(self.cases)):
            return 3
        return 2 if self.count("error") else 0

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON: all fields, and the counts of errors, warnings and notes."""
        counts = {"errors": self.count("error"), "warnings": self.count("warning"), "notes": self.count("note")}
        return {
            "dataset": self.dataset,
            "layout": self.layout,
            **counts,
            "cases": list(self.cases),
            "failed": list(self.failed),
            "repairable": list(self.repairable),
            "problems": [asdict(problem) for problem in self.problems],
            "summary": dict(self.summary),
        }


def check_dataset(dataset: Dataset, *, map_cases: MapCases = map) -> CheckReport:
    """Check every case, then the cases against each other; nothing is raised for a bad case.

    Args:
        dataset: The dataset; its held-out cases are checked too.
        map_cases: Like ``map``: applies a picklable function to every case and keeps the order, e.g. a process pool's.
    """
    files = (*dataset.cases, *dataset.tests)
    check = partial(check_case, labels=dataset.labels, channels=len(dataset.channels))
    facts = list(map_cases(check, files))
    alone = [problem for fact in facts for problem in fact.problems]
    across = [*_same_ids(facts), *_same_content(facts), *_odd_spacing(facts), *_odd_orientation(facts)]
    ids = tuple(fact.id for fact in facts)
    # Of ids that occur twice the first place counts.
    place = {case: number for number, case in reversed(list(enumerate(ids)))}
    by_case = sorted([*alone, *across], key=lambda problem: place[problem.case or ""])
    missing = _missing_organs(facts[: len(dataset.cases)], dataset.labels)
    said = [Problem(None, "note", "description", note) for note in dataset.notes]
    return CheckReport(dataset.name, dataset.layout, ids, (*by_case, *missing, *said), _summary(dataset, facts))


def _same_ids(facts: Sequence[CaseFacts]) -> list[Problem]:
    counts = Counter(fact.id for fact in facts)
    rule, advice = "one case of this name", "Rename or remove all but one"
    return [
        _problem(case, "error", "duplicate_id", "case id", rule, number, advice)
        for case, number in counts.items()
        if number > 1
    ]


def _same_content(facts: Sequence[CaseFacts]) -> list[Problem]:
    """Cases whose images agree voxel by voxel."""
    by_content: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        if fact.content_hash and fact.id not in by_content[fact.content_hash]:
            by_content[fact.content_hash].append(fact.id)
    rule, advice = "voxels of its own", "Drop one, or put them into one group so that no split separates them"
    return [
        _problem(case, "warning", "duplicate_content", "image", rule, f"the voxels of {first}", advice)
        for first, *twins in by_content.values()
        for case in twins
    ]


def _odd_spacing(facts: Sequence[CaseFacts]) -> list[Problem]:
    """Spacings, along R, A and S, far from the dataset's median."""
    grids = _grids(facts)
    if len(grids) < _MIN_CASES:
        return []
    spacings = np.array([grid.reoriented("RAS").spacing_mm for _, grid in grids])
    median = np.median(spacings, axis=0)
    ratios = np.maximum(spacings / median, median / spacings).max(axis=1)
    rule = f"about the dataset's median {_numbers(median)} mm along R, A, S"
    advice = "Check the header, e.g. whether it is in mm"
    return [
        _problem(case, "warning", "odd_spacing", "spacing", rule, f"{_numbers(spacing)} mm", advice)
        for (case, _), spacing, ratio in zip(grids, spacings, ratios, strict=True)
        if ratio > _SPACING_RATIO
    ]


def _odd_orientation(facts: Sequence[CaseFacts]) -> list[Problem]:
    """Orientations other than the one that most cases share."""
    grids = _grids(facts)
    if len(grids) < _MIN_CASES:
        return []
    usual, number = Counter(grid.orientation for _, grid in grids).most_common(1)[0]
    if number < _ORIENTATION_SHARE * len(grids):
        return []
    rule = f"{usual} as in {number} of {len(grids)} cases"
    advice = "Fine if the header is right; check that the patient is not turned"
    return [
        _problem(case, "warning", "odd_orientation", "orientation", rule, grid.orientation, advice)
        for case, grid in grids
        if grid.orientation != usual
    ]


def _missing_organs(facts: Sequence[CaseFacts], labels: LabelTable) -> list[Problem]:
    """Organs (or regions) of the label table that no case has."""
    present = {value for fact in facts for value in fact.values}
    rule, advice = "at least one case", "Remove it from the label names, or check the label maps"
    return [
        _problem(None, "warning", "organ_missing", f"organ {name} (label {listed(values)})", rule, "none", advice)
        for name, values in labels.target_values.items()
        if present.isdisjoint(values)
    ]


def _summary(dataset: Dataset, facts: Sequence[CaseFacts]) -> dict[str, Any]:
    grids = [grid.reoriented("RAS") for _, grid in _grids(facts)]
    found = [set(fact.values) for fact in facts[: len(dataset.cases)]]
    targets = dataset.labels.target_values.items()
    median_shape = np.median([grid.shape for grid in grids], axis=0).tolist() if grids else None
    median_spacing = np.median([grid.spacing_mm for grid in grids], axis=0).round(4).tolist() if grids else None
    return {
        "cases": len(dataset.cases),
        "tests": len(dataset.tests),
        "channels": list(dataset.channels),
        "labels": dataset.labels.to_json(),
        "cases_with_organ": {name: sum(not held.isdisjoint(values) for held in found) for name, values in targets},
        "median_shape": median_shape,
        "median_spacing_mm": median_spacing,
        "orientations": dict(Counter(grid.orientation for _, grid in _grids(facts)).most_common()),
    }


def _grids(facts: Sequence[CaseFacts]) -> list[tuple[str, Grid]]:
    return [(fact.id, fact.grid) for fact in facts if fact.grid is not None]


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
