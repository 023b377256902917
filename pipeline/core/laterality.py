"""Laterality: which names differ only in left and right, and what mirroring does to classes that regions share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import cycle, islice

# Whole words of a name: the l of "lung" is no side.
_SIDE_WORDS = (("left", "right"), ("l", "r"), ("lt", "rt"), ("sin", "dex"))


def paired_names(names: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Positions of names that differ only in their side, as (left, right), in the order of the left ones.

    ``kidney_left`` and ``kidney_right``, ``Left Lung`` and ``Right Lung``, ``l_femur`` and ``r_femur`` are pairs.
    """
    by_words = {tuple(_words(name)): index for index, name in enumerate(names)}
    pairs = []
    for words, index in by_words.items():
        for left, right in _SIDE_WORDS:
            if left not in words:
                continue
            twin = by_words.get(tuple(right if word == left else word for word in words))
            if twin is not None:
                pairs.append((index, twin))
                break
    return tuple(sorted(pairs))


def swapped_classes(
    regions: Sequence[Sequence[int]], region_pairs: Sequence[tuple[int, int]], classes: int
) -> tuple[tuple[int, int], ...]:
    """Class indices that must swap so that every region becomes its twin.

    A class is what lies in a certain set of regions; its twins are the classes in the set of the twin regions. Where
    one side has more of them (a left lung with a tumour, a right one without), some swap with the same twin: they
    differ in no region. A class without twin stays.

    Args:
        regions: Class indices of each region.
        region_pairs: (left, right) positions of the regions.
        classes: Number of classes, background included.

    Returns:
        (left, right) class indices, in the order of the left ones.
    """
    members = _members(regions, classes)
    pairs: set[tuple[int, int]] = set()
    for held, lefts in members.items():
        mirrored = _mirrored(held, region_pairs)
        rights = members.get(mirrored, [])
        # Every pair of sets comes twice: only the one whose own region is listed first counts.
        if rights and min(held - mirrored, default=0) < min(mirrored - held, default=0):
            # Where one side has more classes, those of the other side are used again: they differ in no region.
            count = max(len(lefts), len(rights))
            pairs.update(zip(islice(cycle(lefts), count), islice(cycle(rights), count), strict=True))
    return tuple(sorted(pairs))


def one_sided_classes(
    regions: Sequence[Sequence[int]], region_pairs: Sequence[tuple[int, int]], classes: int
) -> tuple[int, ...]:
    """Class indices whose mirror image no class stands for, such as a tumour that was only seen in the left lung.

    Arguments as for :func:`swapped_classes`.
    """
    members = _members(regions, classes)
    alone = [found for held, found in members.items() if _mirrored(held, region_pairs) not in members]
    return tuple(sorted(index for found in alone for index in found))


def one_sided_names(names: Iterable[str]) -> tuple[int, ...]:
    """Positions of names that say left or right and have no twin."""
    listed = list(names)
    twins = {index for pair in paired_names(listed) for index in pair}
    sided = (index for index, name in enumerate(listed) if {"left", "right"} & set(_words(name)))
    return tuple(index for index in sided if index not in twins)


def _members(regions: Sequence[Sequence[int]], classes: int) -> dict[frozenset[int], list[int]]:
    """Positions of regions → the classes that lie in just these."""
    members: dict[frozenset[int], list[int]] = {}
    for index in range(1, classes):
        members.setdefault(frozenset(n for n, region in enumerate(regions) if index in region), []).append(index)
    return members


def _mirrored(held: frozenset[int], region_pairs: Sequence[tuple[int, int]]) -> frozenset[int]:
    twin = {a: b for pair in region_pairs for a, b in (pair, pair[::-1])}
    return frozenset(twin.get(n, n) for n in held)


def _words(name: str) -> list[str]:
    # kidneyLeft is two words, too.
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
