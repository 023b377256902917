"""Which cleaning of the masks is worth keeping: what raises the Dice of cases that the network did not train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum
from pathlib import Path

from pipeline.core.errors import VolsegError
from pipeline.core.files import read_json, write_json, write_text
from pipeline.core.labels import LabelTable
from pipeline.engine import Run
from pipeline.evaluate.pairing import FilePair
from pipeline.export.text_table import score_cell, text_table
from pipeline.infer.cleaning import POSTPROCESSING_FILE, Cleaning
from pipeline.stages.batch import Progress, mapped
from pipeline.stages.cleaning_effects import (
    SIZES_ML,
    CaseEffects,
    Dice,
    EffectTask,
    Step,
    StepKind,
    measure_effects,
    size_effects,
)

__all__ = [
    "Decision",
    "Postprocessing",
    "best_sizes",
    "choose_postprocessing",
    "judge",
    "read_postprocessing",
    "write_postprocessing",
]

RULE = (
    "A step is kept if it raises the mean Dice of its organ over the cases, and does not lower the mean over organs. "
    "First each step is tried alone, then those that helped are tried one after the other, in the order of this table."
)
_ADVICE = "Write it again with `volseg cross-validate`."
_ORDER: tuple[StepKind, ...] = ("keep_largest", "remove_small", "fill_holes")
_ROUNDING = 1e-9  # of a mean of Dice


@dataclass(frozen=True)
class Decision:
    """One step, measured.

    Args:
        step: What was tried.
        before: Mean Dice of its organ without it.
        after: With it.
        mean_before: Mean Dice over organs without it.
        mean_after: With it.
        kept: Whether it is kept.
    """

    step: Step
    before: float
    after: float
    mean_before: float
    mean_after: float
    kept: bool

    def cells(self) -> tuple[str, ...]:
        """What a table shows."""
        size = "" if self.step.min_ml is None else f" below {self.step.min_ml:g} ml"
        numbers = (self.before, self.after, self.mean_before, self.mean_after)
        name = f"{self.step.kind.replace('_', ' ')}{size}"
        return self.step.organ, name, *(score_cell(number, 4) for number in numbers), "yes" if self.kept else "no"


@dataclass(frozen=True)
class Postprocessing:
    """What was tried and what is kept.

    Args:
        decisions: One per step tried, in the order in which they are applied.
        cases: Cases that decided.
        mean_before: Mean Dice over organs of the predictions as they are; None if nothing could be scored.
        mean_after: With all that is kept.
    """

    decisions: tuple[Decision, ...]
    cases: int
    mean_before: float | None
    mean_after: float | None

    @property
    def cleaning(self) -> Cleaning:
        """What is kept."""
        found = Cleaning()
        for decision in self.decisions:
            found |= decision.step.cleaning() if decision.kept else Cleaning()
        return found

    def lines(self, everything: bool = False) -> tuple[str, ...]:
        """What is kept (or everything that was tried) as a table, and what it gains."""
        shown = [decision.cells() for decision in self.decisions if everything or decision.kept]
        header = ("organ", "step", "Dice before", "after", "mean before", "after", "kept")
        gain = f"{score_cell(self.mean_before, 4)} to {score_cell(self.mean_after, 4)}"
        count = f"{sum(decision.kept for decision in self.decisions)} of {len(self.decisions)} steps kept"
        return (
            *((*text_table(header, shown), "") if shown else ()),
            f"post-processing: {count}, mean Dice {gain} (cases: {self.cases})",
        )


def choose_postprocessing(
    pairs: Sequence[FilePair], labels: LabelTable, run: Run, progress: Progress
) -> Postprocessing:
    """Try every step on every organ and keep what helps.

    Args:
        pairs: Predictions of cases that did not train, not cleaned, and their references.
        labels: The label table.
        run: The engine's function.
        progress: Told after every case.
    """
    tasks = [EffectTask(pair, labels) for pair in pairs]
    sized = [(before, by_size) for _, before, by_size in mapped(run, progress, "component sizes")(size_effects, tasks)]
    sizes = best_sizes(sized, labels.targets)
    tried = [
        Step(kind, organ, sizes.get(organ) if kind == "remove_small" else None)
        for kind in _ORDER
        for organ in labels.targets
        if kind != "remove_small" or organ in sizes
    ]

    def measure(steps: Sequence[Step], follow: bool) -> list[Decision]:
        tasks = [EffectTask(pair, labels, steps, follow) for pair in pairs]
        return judge(list(mapped(run, progress, "post-processing")(measure_effects, tasks)), steps, follow)

    found = {entry.step: entry for entry in measure(tried, False)}
    wanted = [step for step, entry in found.items() if entry.kept]
    while wanted:
        together = measure(wanted, True)
        found |= {entry.step: entry for entry in together}
        if all(entry.kept for entry in together):
            break
        wanted = [entry.step for entry in together if entry.kept]  # without the others, do these still help?
    before = _overall([entry for entry, _ in sized], labels.targets)
    after = found[wanted[-1]].mean_after if wanted else before
    return Postprocessing(tuple(found.values()), len(sized), before, after)


def best_sizes(
    cases: Sequence[tuple[Dice, Mapping[str, Sequence[float | None]]]], organs: Sequence[str]
) -> dict[str, float]:
    """The volume below which removing components of an organ helps it most.

    Args:
        cases: For each case the Dice of every organ as predicted, and of the organs predicted the Dice for each of
            :data:`~pipeline.stages.cleaning_effects.SIZES_ML`.
        organs: Their names.

    Returns:
        Organ → mL, of equal ones the smallest; organs that no volume helps are left out.
    """
    best = {}
    for organ in organs:
        plain = _mean([before[organ] for before, _ in cases])
        means = [
            _mean([by_size[organ][n] if organ in by_size else before[organ] for before, by_size in cases])
            for n in range(len(SIZES_ML))
        ]
        highest = max((mean for mean in means if mean is not None), default=None)
        if plain is not None and highest is not None and highest > plain + _ROUNDING:
            best[organ] = next(
                size
                for size, mean in zip(SIZES_ML, means, strict=True)
                if mean is not None and mean >= highest - _ROUNDING
            )
    return best


def judge(effects: Sequence[CaseEffects], steps: Sequence[Step], follow: bool) -> list[Decision]:
    """Decide for each step whether it helps.

    Args:
        effects: What the steps did to each case.
        steps: The steps, as they were measured.
        follow: Whether each step began where the one before it ended.

    Returns:
        One per step, in their order; those of organs that were in no case are left out.
    """
    if not effects:
        return []
    organs = tuple(effects[0].before)
    scores = [dict(entry.before) for entry in effects]
    mean_before, decisions = _overall(scores, organs), []
    for n, step in enumerate(steps):
        now = [{**case, **entry.after[n]} for case, entry in zip(scores, effects, strict=True)]
        before, after = (_mean([case[step.organ] for case in cases]) for cases in (scores, now))
        mean_after = _overall(now, organs)
        if before is not None and after is not None and mean_before is not None and mean_after is not None:
            kept = after > before + _ROUNDING and mean_after >= mean_before - _ROUNDING
            decisions.append(Decision(step, before, after, mean_before, mean_after, kept))
        if follow:
            scores, mean_before = now, mean_after
    return decisions


def write_postprocessing(found: Postprocessing, folder: Path) -> None:
    """Write ``postprocessing.json``, which predictions with the model in this folder follow, and ``postprocessing.md``.

    Raises:
        VolsegError: If the folder cannot be written to.
    """
    content = {
        "kept": found.cleaning.to_json(),
        "rule": RULE,
        "cases": found.cases,
        "mean_dice": {"before": found.mean_before, "after": found.mean_after},
        "decisions": [asdict(decision) for decision in found.decisions],
    }
    text = "\n".join(("# Post-processing", "", RULE, "", *found.lines(everything=True)))
    write_text(folder / f"{Path(POSTPROCESSING_FILE).stem}.md", f"{text}\n")
    write_json(folder / POSTPROCESSING_FILE, content)


def read_postprocessing(folder: Path) -> Postprocessing:
    """Read what :func:`write_postprocessing` wrote.

    Raises:
        VolsegError: If it is missing or damaged.
    """
    path = folder / POSTPROCESSING_FILE
    content = read_json(path, _ADVICE)
    try:
        decisions = [Decision(**{**entry, "step": Step(**entry["step"])}) for entry in content["decisions"]]
        mean = content["mean_dice"]
        return Postprocessing(tuple(decisions), int(content["cases"]), mean["before"], mean["after"])
    except (KeyError, TypeError, ValueError) as error:
        raise VolsegError(f"{path}: expected the decisions of a cross-validation, got {error!r}. {_ADVICE}") from None


def _overall(cases: Sequence[Dice], organs: Sequence[str]) -> float | None:
    """Mean over organs of the mean over cases."""
    return _mean([_mean([case[organ] for case in cases]) for organ in organs])


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fsum(there) / len(there) if there else None
