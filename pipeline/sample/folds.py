"""Cross-validation folds: drawn by a seed, group-aware, and kept in a file that a user may edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.documents import cut, read_json, short
from pipeline.core.errors import DataError, sentence
from pipeline.core.files import text_hash, write_json
from pipeline.core.paths import composed

_LONGEST_LIST = 8
_PARTS = ("train", "validation")


@dataclass(frozen=True)
class Fold:
    """One split of the cases.

    Args:
        train: Ids of the cases that train, sorted.
        validation: Ids of the cases that validate, sorted.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]


def make_folds(groups: Mapping[str, str | None], folds: int, seed: int) -> tuple[Fold, ...]:
    """Draw cross-validation folds in which every case validates exactly once.

    The order is drawn by hashing seed and name rather than by a random generator, so that a seed gives the same folds
    on every machine and with every library version, however the cases are listed. Groups are dealt out largest first,
    each to the smallest fold so far: without groups, fold sizes differ by at most one.

    Args:
        groups: Case id → group, e.g. the patient; None if the case is a group of its own. A group never spans a split.
        folds: Number of folds, at least 2.
        seed: Seed of the draw.

    Raises:
        DataError: If there are fewer than 2 folds, or fewer groups than folds.
    """
    if folds < 2:
        raise DataError(sentence("folds", "at least 2", folds, "Raise sample.folds"))
    members: dict[tuple[str, str], list[str]] = {}
    for case in sorted(groups):
        group = groups[case]
        members.setdefault(("case", case) if group is None else ("group", group), []).append(case)
    if len(members) < folds:
        got = f"{len(members)} ({len(groups)} cases)"
        advice = "Lower sample.folds or add cases; cases of one group (patient) count once"
        raise DataError(sentence("folds", f"at least {folds} groups of cases for {folds} folds", got, advice))
    # Large groups first: dealt last, one of them could make a fold much larger than the others.
    dealt: list[list[str]] = [[] for _ in range(folds)]
    for key in sorted(members, key=lambda key: (-len(members[key]), text_hash(str(seed), *key), key)):
        min(dealt, key=len).extend(members[key])
    return tuple(
        Fold(train=tuple(sorted(set(groups).difference(part))), validation=tuple(sorted(part))) for part in dealt
    )


def fixed_fold(splits: Mapping[str, str | int | None], groups: Mapping[str, str | None]) -> Fold:
    """The only fold of a dataset that fixes its split: case id → ``train``, ``validation`` or None, which is refused.

    Raises:
        DataError: If a case is left open, none trains or none validates, or a group is on both sides.
    """
    train, validation = (sorted(case for case, part in splits.items() if part == name) for name in _PARTS)
    still_open = sorted(case for case, part in splits.items() if part is None)
    if still_open:
        rule = "train or validation for every case"
        raise DataError(sentence("split", rule, f"none for {_listed(still_open)}", "Name it for all, or for none"))
    problems = _problems("split", train, validation, set(splits), groups, None)
    if problems:
        raise DataError("\n".join(problems))
    return Fold(tuple(train), tuple(validation))


def fixed_folds(parts: Mapping[str, str | int | None], groups: Mapping[str, str | None]) -> tuple[Fold, ...]:
    """The folds of a dataset that fixes them, as MONAI reads its datalists.

    Args:
        parts: Case id → the fold in which it validates; in all others, and with anything else in all, it trains.
        groups: Case id → group, e.g. the patient.

    Raises:
        DataError: If no case trains in a fold, or a group is on both sides of one.
    """
    folds, problems = [], []
    for number in sorted({part for part in parts.values() if isinstance(part, int)}):
        train = sorted(case for case, part in parts.items() if part != number)
        validation = sorted(case for case, part in parts.items() if part == number)
        problems += _problems(f"fold {number}", train, validation, set(parts), groups, None)
        folds.append(Fold(tuple(train), tuple(validation)))
    if problems:
        raise DataError("\n".join(problems))
    return tuple(folds)


def follows_split(fold: Fold, parts: Mapping[str, str | int | None]) -> bool:
    """Whether a fold, perhaps with fewer cases, is one that the dataset fixes; ``parts`` as for :func:`usual_folds`."""
    train, validation = ({parts.get(case) for case in part} for part in (fold.train, fold.validation))
    if len(validation) == 1 and isinstance(next(iter(validation)), int):
        return train.isdisjoint(validation)
    return (train, validation) == ({"train"}, {"validation"})


def usual_folds(
    groups: Mapping[str, str | None], splits: Mapping[str, str | int | None] | None, folds: int, seed: int
) -> tuple[Fold, ...]:
    """The split or the folds that a dataset fixes, else drawn folds, no more than there are groups.

    Raises:
        DataError: If there are fewer than two groups, or the split cannot be used.
    """
    if splits is not None and any(isinstance(part, int) for part in splits.values()):
        return fixed_folds(splits, groups)
    if splits is not None:
        return (fixed_fold(splits, groups),)
    distinct = len({group or f"case {case}" for case, group in groups.items()})
    return make_folds(groups, max(2, min(folds, distinct)), seed)


def write_splits(path: Path | str, folds: Sequence[Fold]) -> None:
    """Write folds as a JSON list of ``{"train": [ids], "validation": [ids]}``, one id per line, for editing by hand."""
    write_json(path, [{"train": list(fold.train), "validation": list(fold.validation)} for fold in folds])


def read_splits(
    path: Path | str, cases: Collection[str], *, groups: Mapping[str, str | None] | None = None
) -> tuple[Fold, ...]:
    """Read and check folds, perhaps edited by hand or written by nnU-Net (whose key is ``val``).

    Any number of folds is legal, cases may be left out of a fold, and a case may validate in several.

    Args:
        path: File that :func:`write_splits` wrote, or nnU-Net's ``splits_final.json``.
        cases: Ids of the cases there are.
        groups: Case id → group; given, a group in both parts of a fold is refused.

    Returns:
        The folds, ids sorted.

    Raises:
        DataError: Every problem found, one sentence a line: unknown or repeated ids, a case or group on both sides,
            an empty part, or a file that is no list of folds.
        VolsegError: If the file is missing or not JSON.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content:
        got = "an empty list" if content == [] else type(content).__name__
        raise DataError(sentence("splits", "a list with one entry per fold", got, _REWRITE, file=path))
    # All problems are collected: whoever edits the file by hand wants to see them at once.
    problems: list[str] = []
    folds = []
    known = {composed(case): case for case in cases}
    for number, entry in enumerate(content):
        parts = _parts(entry)
        if parts is None:
            rule = 'an object {"train": [case ids], "validation": [case ids]}'
            problems.append(sentence(f"fold {number}", rule, short(entry), _REWRITE, file=path))
            continue
        # Whoever edits the file on macOS may write accented letters otherwise than the ids have them.
        train, validation = ([known.get(composed(case), case) for case in part] for part in parts)
        problems += _problems(f"fold {number}", train, validation, set(cases), groups or {}, path)
        folds.append(Fold(tuple(sorted(train)), tuple(sorted(validation))))
    if problems:
        raise DataError("\n".join(problems))
    return tuple(folds)


_REWRITE = "Correct it, or delete the file to have it drawn again"


def _parts(entry: Any) -> tuple[list[str], list[str]] | None:
    if not isinstance(entry, dict) or set(entry) not in ({"train", "validation"}, {"train", "val"}):
        return None
    train, validation = entry["train"], entry["validation"] if "validation" in entry else entry["val"]
    for part in (train, validation):
        if not isinstance(part, list) or not all(isinstance(case, str) for case in part):
            return None
    return train, validation


def _problems(
    what: str,
    train: list[str],
    validation: list[str],
    cases: set[str],
    groups: Mapping[str, str | None],
    path: Path | str | None,
) -> list[str]:
    found = []
    for name, part in zip(_PARTS, (train, validation), strict=True):
        unknown = sorted(set(part) - cases)
        repeated = sorted(case for case, count in Counter(part).items() if count > 1)
        if not part:
            found.append((f"{what} {name}", "at least one case", "none", "Move a case there"))
        if unknown:
            found.append((f"{what} {name}", "ids of cases in the dataset", _listed(unknown), "Correct or remove them"))
        if repeated:
            found.append((f"{what} {name}", "every case once", f"{_listed(repeated)} again", "Remove the repetition"))
    both = sorted(set(train) & set(validation))
    if both:
        rule = "no case in both train and validation"
        found.append((what, rule, _listed(both), "Remove each from one of them"))
    sides = [{groups.get(case) for case in part} - {None} for part in (train, validation)]
    shared = sorted(str(group) for group in sides[0] & sides[1])
    if shared and not both:  # a case on both sides brings its group along
        rule = "no group (patient) in both train and validation"
        found.append((what, rule, _listed(shared), "Move all of its cases to one side"))
    return [sentence(*problem, file=path) for problem in found]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LONGEST_LIST} more" if len(names) > _LONGEST_LIST else ""
    return ", ".join(map(cut, names[:_LONGEST_LIST])) + more
