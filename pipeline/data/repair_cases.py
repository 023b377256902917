"""Which cases a repaired copy will have: each of its own name, time points of 4D images one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pipeline.core import DataError
from pipeline.data.case_files import CaseFiles, Dataset
from pipeline.data.repair_parts import Change
from pipeline.data.volume_file import join_source, split_source
from pipeline.data.volumes import open_header

__all__ = ["PlannedCase", "planned_cases"]


@dataclass(frozen=True)
class PlannedCase:
    """A case of the copy.

    Args:
        files: Its original files.
        held_out: Whether it is one of the dataset's held-out or unlabelled cases.
        changes: What was repaired about the case as a whole.
    """

    files: CaseFiles
    held_out: bool
    changes: tuple[Change, ...] = ()


def planned_cases(dataset: Dataset) -> list[PlannedCase]:
    """Choose the cases of a repaired copy.

    An unlabelled 4D image of a dataset with one channel becomes a case per volume, all of one group. A case listed
    twice with the same files is kept once. Different cases of one name get numbers and, because one name often means
    one patient, one group.

    Args:
        dataset: The dataset.

    Returns:
        Cases with different ids, held-out ones last.
    """
    listed = [PlannedCase(files, False) for files in dataset.cases]
    listed += [PlannedCase(files, True) for files in dataset.tests]
    volumes = [part for case in listed for part in _volumes(case, len(dataset.channels))]
    return _own_names(list({(case.files, case.held_out): case for case in volumes}.values()))


def _volumes(case: PlannedCase, channels: int) -> Iterable[PlannedCase]:
    """The case itself, or one per volume of its 4D image."""
    files = case.files
    count = 1
    if channels == 1 and len(files.images) == 1 and not files.labelled and not split_source(files.images[0])[1]:
        try:
            header = open_header(files.images[0], straighten=True)
        except DataError:  # said when its turn comes
            return [case]
        count = 1 if header.is_colour else header.volumes
    if count == 1:
        return [case]
    parts = []
    for n in range(1, count + 1):
        source, name = join_source(files.images[0], "channel", n, count), f"{files.id}_{n:0{len(str(count))}d}"
        done, before = "one case per volume", f"a 4D file of {count} volumes"
        change = Change(name, str(files.images[0]), "dimensions", done, before, f"volume {n}")
        own = replace(files, id=name, images=(source,), group=files.group or files.id)
        parts.append(PlannedCase(own, case.held_out, (change,)))
    return parts


def _own_names(cases: list[PlannedCase]) -> list[PlannedCase]:
    taken = Counter(case.files.id for case in cases)
    names = set(taken)
    seen: Counter[str] = Counter()
    result = []
    for case in cases:
        name = case.files.id
        if taken[name] == 1:
            result.append(case)
            continue
        seen[name] += 1
        number = seen[name]
        while number > 1 and f"{name}_{number}" in names:
            number += 1
        own = name if number == 1 else f"{name}_{number}"
        names.add(own)
        before = f"{taken[name]} cases called {name}"
        change = Change(own, str(case.files.images[0]), "duplicate_id", "own name, one group", before, own)
        files = replace(case.files, id=own, group=case.files.group or name)
        result.append(PlannedCase(files, case.held_out, (*case.changes, change)))
    return result
