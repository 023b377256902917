"""Regions: organs that overlap, each a union of label values, and how they are painted into one label map.

As in nnU-Net's region-based training (Isensee et al., nnU-Net for Brain Tumor Segmentation, BrainLes 2020).
Also left and right: which organs are twins, and which classes change places in a mirror image.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import cycle, islice
from typing import TypeAlias

from pipeline.core.errors import listed, sentence

# Laterality: which names differ only in left and right, and what mirroring does to classes that regions share.

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


def side_and_words(name: str) -> tuple[str, tuple[str, ...]]:
    """``left``, ``right`` or nothing, and the other words of a name in small letters: ``Kidney_L`` is a left kidney."""
    words = _words(name)
    for sides in _SIDE_WORDS:
        found = [place for place, word in enumerate(words) if word in sides]
        if len(found) == 1:
            side = ("left", "right")[sides.index(words[found[0]])]
            return side, tuple(word for place, word in enumerate(words) if place != found[0])
    return "", tuple(words)


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


Regions: TypeAlias = tuple[tuple[int, ...], ...]
"""Class indices of each region."""


PaintingStep = tuple[tuple[int, ...], int]
"""Regions (by position) and the value that is painted where all of them were found."""

_Regions = Mapping[str, tuple[int, ...]]

_CROSSINGS = 1000  # every one is a pass over the voxels
_SHOWN = 12  # regions of an example


def check_regions(
    regions: Mapping[str, Iterable[int]], values: Sequence[int], *, ordered: bool
) -> dict[str, tuple[int, ...]]:
    """Sort the values of every region and refuse regions that mean nothing.

    Args:
        regions: Region name → label values.
        values: Foreground values of the label table, ascending.
        ordered: Whether the value that paints each is given: then two may have the same values, as in nnU-Net.

    Raises:
        ValueError: If a name is empty or used twice, a region is empty, equals another or has an unknown value, or a
            value is in no region.
    """
    found: dict[str, tuple[int, ...]] = {}
    known = listed(values)
    for given, members in regions.items():
        name, held = str(given).strip(), tuple(sorted({int(value) for value in members}))
        if not name or name in found:
            raise ValueError(f"regions: expected a name of its own for each, got {name!r}. Rename it.")
        if not held:
            raise ValueError(f"region {name!r}: expected at least one label value, got none. List its values.")
        if not set(held) <= set(values):
            got = listed(value for value in held if value not in values)
            raise ValueError(f"region {name!r}: expected values of the label table ({known}), got {got}. Correct it.")
        twin = next((other for other, same in found.items() if same == held), None)
        if twin is not None and not ordered:
            rule, got = f"other values than those of {twin!r}", f"the same ({listed(held)})"
            advice = "Drop one of the two, or say in regions_class_order which value paints each"
            raise ValueError(sentence(f"region {name!r}", rule, got, advice))
        found[name] = held
    used = {value for held in found.values() for value in held}
    lost = [value for value in values if found and value not in used]
    if lost:
        raise ValueError(f"regions: expected every label value in one, got none with {listed(lost)}. Add a region.")
    return found


def painted_values(regions: _Regions, given: Sequence[int]) -> tuple[int, ...]:
    """The value each region is painted with, in the order of the regions.

    Args:
        regions: Checked regions, in painting order.
        given: One value per region, or nothing: then the one value that no later region holds; of several the one
            that the fewest regions share. A region that others make up has no such value, and shares one of theirs.

    Raises:
        ValueError: If the values do not fit, or none are given and a region leaves a choice.
    """
    if not given:
        return _own_values(regions)
    painted = tuple(int(value) for value in given)
    fits = len(painted) == len(regions) and all(
        value in held for value, held in zip(painted, regions.values(), strict=True)
    )
    # A value may paint two regions only where that hides none.
    if not fits or (len(set(painted)) < len(painted) and _hidden(regions, _steps(regions, painted))):
        rule = f"one value of each region, all different ({', '.join(regions)})"
        advice = "Name the value to paint each region with; only regions that others make up may share theirs"
        raise ValueError(sentence("regions_class_order", rule, listed(painted), advice))
    return painted


def painting_steps(regions: _Regions, painted: Sequence[int]) -> tuple[PaintingStep, ...]:
    """In which order to paint what.

    Every region in turn is painted with its value. A value that is none of these but the only one to lie in just
    these regions, as the crossing of two organs, is painted after the last of them where all of them were found.

    Args:
        regions: Checked regions, in painting order.
        painted: What :func:`painted_values` returned.

    Raises:
        ValueError: If a value would come out as one of other regions, because a later region hides it.
    """
    steps = _steps(regions, painted)
    hidden = _hidden(regions, steps)
    if hidden:
        value, result = hidden
        names = ", ".join(name for name, held in regions.items() if value in held)
        raise ValueError(
            f"regions: expected later regions to leave earlier ones visible, got {value} ({names}) "
            f"painted as {result}. List regions from large to small, and regions_class_order with them."
        )
    return steps


def _steps(regions: _Regions, painted: Sequence[int]) -> tuple[PaintingStep, ...]:
    """The steps of :func:`painting_steps`, whatever they hide."""
    homes = _homes(regions)
    # Values that regions are painted with need no crossing.
    own = {homes[value] for value in painted}
    # Reversed, so that of several values with the same regions the lowest one stands for them.
    crossings = {homes[value]: value for value in reversed(homes) if len(homes[value]) > 1 and homes[value] not in own}
    if len(crossings) > _CROSSINGS:
        advice = "Drop regions, or describe the organs without"
        raise ValueError(sentence("regions", f"at most {_CROSSINGS} crossings", len(crossings), advice))
    steps: list[PaintingStep] = []
    for n, value in enumerate(painted):
        steps.append(((n,), value))
        # After its last region, smaller sets first: a larger set of regions is painted over them.
        ending = (home for home in crossings if home[-1] == n)
        steps.extend((home, crossings[home]) for home in sorted(ending, key=lambda home: (len(home), home)))
    return tuple(steps)


def _hidden(regions: _Regions, steps: Sequence[PaintingStep]) -> tuple[int, int] | None:
    """The first value that comes out as one of other regions, and that one."""
    homes = _homes(regions)
    # Painting forwards must give back every value that label maps can hold, or scores would compare two meanings.
    # Values that lie in the same regions come out alike.
    results = {home: paint(home, steps) for home in set(homes.values())}
    return next(((value, results[home]) for value, home in homes.items() if homes[results[home]] != home), None)


def paint(found: Collection[int], steps: Sequence[PaintingStep]) -> int:
    """The value of a voxel in which the regions at certain positions were found; 0 if none was."""
    there = set(found)
    return next((value for needed, value in reversed(steps) if there.issuperset(needed)), 0)


def left_without(region: str, regions: _Regions, painted: Sequence[int]) -> dict[int, int]:
    """What becomes of the values of a region where it is taken away, and with it every region that lies within it.

    Each value of the region → the value that the remaining regions are painted with. Where just these have no value,
    that of as many of them as have one; 0 if none has.
    """
    steps = painting_steps(regions, painted)
    # A region within the one taken away cannot stay: without the whole there is no part.
    taken = {n for n, held in enumerate(regions.values()) if set(held) <= set(regions[region])}
    homes = _homes(regions)
    left = {}
    for value in regions[region]:
        rest = set(homes[value]) - taken
        fitting = [other for other, home in homes.items() if set(home) <= rest]
        painted_rest = paint(rest, steps)
        left[value] = painted_rest if painted_rest in fitting else max(fitting, key=lambda n: len(homes[n]), default=0)
    return left


def joined_with(region: str, regions: _Regions, painted: Sequence[int]) -> dict[int, int]:
    """What becomes of the background and of the values outside a region where it is added.

    0 and values that do not lie in the region → the value that lies in it too. Those for which there is no such value,
    because no label map can hold this region and theirs in one voxel, are left out: they stay.
    """
    steps = painting_steps(regions, painted)
    added = list(regions).index(region)
    homes = {0: (), **_homes(regions)}
    joined = {}
    for value, home in homes.items():
        both = {*home, added}
        if added not in home and both <= set(homes[found := paint(both, steps)]):
            joined[value] = found
    return joined


def _homes(regions: _Regions) -> dict[int, tuple[int, ...]]:
    """Values, ascending → positions of the regions that hold them."""
    homes: dict[int, list[int]] = defaultdict(list)
    for n, held in enumerate(regions.values()):
        for value in held:
            homes[value].append(n)
    return {value: tuple(homes[value]) for value in sorted(homes)}


def _own_values(regions: _Regions) -> tuple[int, ...]:
    shared = Counter(value for held in regions.values() for value in held)
    later: set[int] = set()
    fewest: dict[str, list[int]] = {}
    for name, held in reversed(list(regions.items())):
        # A value in a later region would be painted over by it.
        free = [value for value in held if value not in later]
        least = min((shared[value] for value in free), default=0)
        fewest[name] = [value for value in free if shared[value] == least]
        later.update(held)
    unclear = next((name for name in regions if len(fewest[name]) != 1), None)
    if unclear is not None:
        got = listed(fewest[unclear]) or "none"
        raise ValueError(
            f"region {unclear!r}: expected one value to paint it with, not in a later region, got {got}. "
            "List regions from large to small, and say in regions_class_order which value paints each"
            f"{_example(regions)}."
        )
    return tuple(fewest[name][0] for name in regions)


def _example(regions: _Regions) -> str:
    """An order that would do, in words; empty if the lowest values that later regions leave are none, or it is long."""
    if len(regions) > _SHOWN:
        return ""
    later: set[int] = set()
    painted: dict[str, int] = {}
    for name, held in reversed(list(regions.items())):
        free = [value for value in held if value not in later]
        painted[name] = min(free or held)
        later.update(held)
    order = [painted[name] for name in regions]
    if _hidden(regions, _steps(regions, order)):
        return ""
    return f": for example {listed(f'{value} for {name}' for name, value in zip(regions, order, strict=True))}"
