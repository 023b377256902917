"""Tables of scores of real sets: every tool's means with their intervals, and the differences between tools."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np
from helpers.intervals import Spread, over_cases, over_seeds
from helpers.real_fold import Cases
from helpers.scores import HALF, best_threshold

Arm = dict[int, dict[str, dict[str, float]]]
"""What one tool reached: seed → measure → case → value."""

FEW = 4  # so many structures have a row each
TOLD = {"iou": "IoU", "dice": "Dice", "pixel_error": "pixel error"}
CHALLENGE = {"rand": "V_Rand", "information": "V_Info"}


def measures(kind: str, cases: Cases) -> dict[str, dict[str, float]]:
    """What is told of a set scored as ``organs``, ``membranes`` or ``images``: measure → case → value.

    The worst structure is that with the lowest mean Dice over the cases. The challenge's scores are at the threshold
    that is best for the mean of all cases, and at a half.
    """
    first = next(iter(cases.values()))
    if kind == "organs":
        dice = [key for key in first if key.startswith("dice ")]
        found = {"Dice": {case: float(np.nanmean([found[key] for key in dice])) for case, found in cases.items()}}
        if len(dice) <= FEW:
            found |= {f"Dice of {key.removeprefix('dice ')}": _each(cases, key) for key in dice}
        else:
            found["Dice of the worst structure"] = _each(cases, structures(cases, "dice")[0][0])
        if sides := structures(cases, "exchanged"):
            found["largest share of a structure on the other side"] = _each(cases, sides[-1][0])
        return found
    found = {told: _each(cases, key) for key, told in TOLD.items() if key in first}
    if kind == "membranes":
        for score, told in CHALLENGE.items():
            found[f"{told} after thinning"] = _each(cases, f"{score} {best_threshold(cases.values(), score)[0]}")
            found[f"{told} after thinning, at {HALF}"] = _each(cases, f"{score} {HALF}")
    return found


def structures(cases: Cases, score: str) -> list[tuple[str, float]]:
    """Scores that begin with ``dice`` or ``exchanged`` and their means over the cases that have them, lowest first."""
    listed: dict[str, list[float]] = {}
    for found in cases.values():
        for key, value in found.items():
            if key.startswith(f"{score} ") and not np.isnan(value):
                listed.setdefault(key, []).append(value)
    return sorted(((key, fmean(values)) for key, values in listed.items()), key=lambda pair: pair[1])


def _each(cases: Cases, key: str) -> dict[str, float]:
    return {case: found[key] for case, found in cases.items()}


def spread(found: Spread, form: str = "{:.4f}") -> str:
    """``mean (SD)``, without the SD of a single value."""
    mean = form.format(found.mean)
    return mean if np.isnan(found.sd) else f"{mean} ({found.sd:.4f})"


def interval(found: Spread, form: str = "{:.3f}") -> str:
    """The interval, empty for a single value."""
    return "" if np.isnan(found.low) else f"{form.format(found.low)} to {form.format(found.high)}"


def by_seed(arm: Arm, measure: str) -> dict[int, float]:
    """Seed → mean over cases."""
    return {seed: float(np.nanmean(list(found[measure].values()))) for seed, found in arm.items()}


def by_case(arm: Arm, measure: str) -> dict[str, float]:
    """Case → mean over seeds."""
    listed = [found[measure] for found in arm.values()]
    return {case: fmean(found[case] for found in listed) for case in listed[0]}


def means_table(arms: Mapping[str, Arm], steps: Mapping[str, float]) -> str:
    """Markdown: every measure of every tool, which made so many steps."""
    head = ["tool", "measure", "seeds", "steps", "mean (SD over seeds)", "95 % over seeds"]
    head += ["SD of cases", "95 % over cases"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for tool, arm in arms.items():
        for measure in next(iter(arm.values())):
            seeds = over_seeds(list(by_seed(arm, measure).values()))
            cases = over_cases(list(by_case(arm, measure).values()))
            sd = "" if np.isnan(cases.sd) else f"{cases.sd:.3f}"
            cells = [tool, measure, str(len(arm)), f"{steps[tool]:.0f}", spread(seeds), interval(seeds)]
            cells += [sd, interval(cases)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def differences_table(arms: Mapping[str, Arm]) -> str:
    """Markdown: the first tool minus each of the others, case by case and seed by seed, in the seeds that both have."""
    (first, own), *others = arms.items()
    head = [
        "difference",
        "measure",
        "mean",
        "95 % over cases",
        "cases above",
        "mean (SD over seeds)",
        "95 % over seeds",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for other, arm in others:
        both = [seed for seed in own if seed in arm]
        pair = [{seed: tool[seed] for seed in both} for tool in (own, arm)]
        for measure in next(iter(own.values())) if both else ():
            ours, theirs = (by_case(tool, measure) for tool in pair)
            gains = [ours[case] - theirs[case] for case in ours]
            one, two = (by_seed(tool, measure) for tool in pair)
            seeds, cases = over_seeds([one[seed] - two[seed] for seed in both]), over_cases(gains)
            above = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
            cells = [f"{first} - {other}", measure, f"{cases.mean:+.4f}", interval(cases, "{:+.3f}"), above]
            cells += [spread(seeds, "{:+.4f}"), interval(seeds, "{:+.3f}")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
