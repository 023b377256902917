"""``volseg check``: every problem of a dataset, by case."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.core import Grid, LabelTable, sentence
from pipeline.core.errors import listed
from pipeline.data.case_files import CaseFiles, Dataset
from pipeline.data.check_case import CaseFacts, Problem, Severity, check_case

__all__ = ["CheckReport", "Problem", "check_dataset"]

_SPACING_RATIO = 3.0  # further from the median than this is more often a wrong unit or header than a protocol
_ORIENTATION_SHARE = 2 / 3  # one orientation must be this common before another one is odd
_MIN_CASES = 3  # fewer cases have no usual spacing or orientation

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
    """

    dataset: str
    layout: str
    cases: tuple[str, ...]
    problems: tuple[Problem, ...]
    summary: Mapping[str, Any]

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
            "problems": [asdict(problem) for problem in self.problems],
            "summary": dict(self.summary),
        }


def check_dataset(dataset: Dataset, *, map_cases: MapCases = map) -> CheckReport:
    """Check every case, then the cases against each other.

    Args:
        dataset: The dataset; its held-out cases are checked too.
        map_cases: Like ``map``: applies a picklable function to every case and keeps the order, e.g. a process pool's.

    Returns:
        All problems. Nothing is raised for a bad case.
    """
    files = (*dataset.cases, *dataset.tests)
    check = partial(check_case, labels=dataset.labels, channels=len(dataset.channels))
    facts = list(map_cases(check, files))
    across = [*_same_ids(facts), *_same_content(facts), *_odd_spacing(facts), *_odd_orientation(facts)]
    ordered = [problem for fact in facts for problem in fact.problems]
    by_case = {case: index for index, case in enumerate(dict.fromkeys(fact.id for fact in facts))}
    ordered = sorted([*ordered, *across], key=lambda problem: by_case[problem.case or ""])
    missing = _missing_organs(facts[: len(dataset.cases)], dataset.labels)
    ids = tuple(fact.id for fact in facts)
    return CheckReport(dataset.name, dataset.layout, ids, (*ordered, *missing), _summary(dataset, facts))


def _same_ids(facts: Sequence[CaseFacts]) -> list[Problem]:
    counts = Counter(fact.id for fact in facts)
    advice = "Rename or remove all but one"
    return [
        Problem(case, "error", "duplicate_id", sentence("case id", "one case of this name", number, advice, case=case))
        for case, number in counts.items()
        if number > 1
    ]


def _same_content(facts: Sequence[CaseFacts]) -> list[Problem]:
    """Cases whose images agree voxel by voxel."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        if fact.digest and fact.id not in by_digest[fact.digest]:
            by_digest[fact.digest].append(fact.id)
    advice = "Drop one, or put them into one group so that no split separates them"
    problems = []
    for twins in by_digest.values():
        for case in twins[1:]:
            got = f"the voxels of {twins[0]}"
            message = sentence("image", "voxels of its own", got, advice, case=case)
            problems.append(Problem(case, "warning", "duplicate_content", message))
    return problems


def _odd_spacing(facts: Sequence[CaseFacts]) -> list[Problem]:
    """Spacings, along R, A and S, far from the dataset's median."""
    grids = _grids(facts)
    if len(grids) < _MIN_CASES:
        return []
    spacings = np.array([_ras(grid).spacing_mm for _, grid in grids])
    median = np.median(spacings, axis=0)
    problems = []
    for (case, _), spacing in zip(grids, spacings, strict=True):
        ratio = np.maximum(spacing / median, median / spacing)
        if ratio.max() > _SPACING_RATIO:
            rule = f"about the dataset's median {_numbers(median)} mm along R, A, S"
            got, advice = f"{_numbers(spacing)} mm", "Check the header, e.g. whether it is in mm"
            problems.append(Problem(case, "warning", "odd_spacing", sentence("spacing", rule, got, advice, case=case)))
    return problems


def _odd_orientation(facts: Sequence[CaseFacts]) -> list[Problem]:
    """Orientations other than the one that most cases share."""
    grids = _grids(facts)
    counts = Counter(grid.orientation for _, grid in grids)
    if len(grids) < _MIN_CASES:
        return []
    usual, number = counts.most_common(1)[0]
    if number < _ORIENTATION_SHARE * len(grids):
        return []
    rule = f"{usual} as in {number} of {len(grids)} cases"
    advice = "Fine if the header is right; check that the patient is not turned"
    return [
        Problem(case, "warning", "odd_orientation", sentence("orientation", rule, grid.orientation, advice, case=case))
        for case, grid in grids
        if grid.orientation != usual
    ]


def _missing_organs(facts: Sequence[CaseFacts], labels: LabelTable) -> list[Problem]:
    """Organs (or regions) of the label table that no case has."""
    present = {value for fact in facts for value in fact.values}
    advice = "Remove it from the label names, or check the label maps"
    return [
        Problem(
            None,
            "warning",
            "organ_missing",
            sentence(f"organ {name} (label {listed(values)})", "at least one case", "none", advice),
        )
        for name, values in labels.target_values.items()
        if present.isdisjoint(values)
    ]


def _summary(dataset: Dataset, facts: Sequence[CaseFacts]) -> dict[str, Any]:
    grids = [_ras(grid) for _, grid in _grids(facts)]
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


def _ras(grid: Grid) -> Grid:
    return grid.reoriented("RAS")


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
