"""Which cleaning of the masks is worth keeping: what raises the Dice of cases that the network did not train on.

First what a step of cleaning does to the scores of one case, then the choice, and last its files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.config.settings import Probability
from pipeline.core.documents import conform, read_json
from pipeline.core.files import write_json, write_text
from pipeline.core.grid import Box
from pipeline.core.labels import LabelTable
from pipeline.core.signals import Progress
from pipeline.core.tables import score_cell, text_table
from pipeline.data.volumes import read_label_map
from pipeline.engine.local import Run, map_cases
from pipeline.evaluate.overlap import joint_histogram, overlaps_of_counts
from pipeline.evaluate.pairing import FilePair
from pipeline.evaluate.summary import mean_there, organ_means
from pipeline.infer.cleaning import POSTPROCESSING_FILE, Cleaning, Piece, connected_pieces, label_boxes

StepKind = Literal["keep_largest", "remove_small", "fill_holes"]

SIZES_ML: tuple[float, ...] = tuple(round(m * 10.0**e, 3) for e in range(-3, 4) for m in (1, 2, 5))
"""Volumes that are tried as the smallest of a component that stays: 0.001, 0.002, 0.005, 0.01, … 5000."""

Dice = Mapping[str, float | None]
"""Organ → Dice; None where the organ is in neither reference nor prediction."""

RULE = (
    "A step is kept if it raises the mean Dice of its organ over the cases, and does not lower the mean over organs. "
    "First each step is tried alone, then those that helped are tried one after the other, in the order of this table."
)
_ADVICE = "Write it again with `volseg cross-validate`."
_ORDER: tuple[StepKind, ...] = ("keep_largest", "remove_small", "fill_holes")
_SLACK = 1e-9  # relative: volumes are products of spacings
_ROUNDING = 1e-9  # of a mean of Dice


@dataclass(frozen=True)
class Step:
    """One thing to do to one organ or region; ``min_ml`` is the volume a component must have to stay."""

    kind: StepKind
    organ: str
    min_ml: float | None = None

    def cleaning(self) -> Cleaning:
        """This step alone."""
        if self.kind == "keep_largest":
            return Cleaning(keep_largest=(self.organ,))
        if self.kind == "fill_holes":
            return Cleaning(fill_holes=(self.organ,))
        return Cleaning(remove_small_ml={self.organ: self.min_ml or 0.0})


@dataclass(frozen=True)
class EffectTask:
    """One case to measure, as it travels to a worker.

    Args:
        pair: Its prediction, not cleaned, and its reference.
        labels: The label table.
        steps: What to try.
        follow: Whether each step begins where the one before it ended, instead of at the prediction.
    """

    pair: FilePair
    labels: LabelTable
    steps: Sequence[Step] = ()
    follow: bool = False


@dataclass(frozen=True)
class CaseEffects:
    """Scores of one case: of the prediction as it is, and for each step the organs whose Dice it changed."""

    case: str
    before: Dice
    after: tuple[Dice, ...]


def size_effects(task: EffectTask) -> tuple[str, Dice, dict[str, tuple[float | None, ...]]]:
    """Dice of every organ if components below each of :data:`SIZES_ML` were removed from it, and from no other.

    Returns:
        Case id; organ → Dice of the prediction as it is; organ → Dice for each size, for the organs predicted.

    Raises:
        VolsegError: If a file cannot be read.
    """
    reference, index, voxel_ml = _read(task)
    table = task.labels.indexed()
    counts = _counts(reference, index, task.labels)
    before = _scores(counts, task.labels)
    boxes, found = label_boxes(index), {}
    for name, values in table.target_values.items():
        box = _around(boxes, values, index.shape)
        if box is not None:
            part = box.slices
            parts = [_component_sizes(reference[part], piece, values) for piece in _pieces(index[part], values)]
            voxels, kept, shared = np.concatenate(parts, axis=1)
            total, volume_ml = int(counts[list(values)].sum()), voxels * voxel_ml
            # The components are found once; every size that is tried only sums other ones.
            stays = [volume_ml >= size * (1 - _SLACK) for size in SIZES_ML]
            sums = [(int(kept[s].sum()), int(shared[s].sum())) for s in stays]
            found[name] = tuple(2 * both / (total + n) if total + n else None for n, both in sums)
    return task.pair.case, before, found


def measure_effects(task: EffectTask) -> CaseEffects:
    """Scores of a case before and after each step, exactly, for all organs that the step changes.

    Only the surroundings of the organ are looked at again, so that a step costs as much as its organ is large.
    """
    reference, index, voxel_ml = _read(task)
    labels, size = task.labels, task.labels.classes + 1
    counts = _counts(reference, index, labels)
    first = before = _scores(counts, labels)
    boxes = label_boxes(index)
    after: list[Dice] = []
    for step in task.steps:
        held = [n for n, left in enumerate(labels.without(step.organ)) if left != n]
        box = _around(boxes, held, index.shape)
        if box is None:
            after.append({})
            continue
        there, part = reference[box.slices], index[box.slices]
        cleaned = step.cleaning().apply(part, labels, voxel_ml)
        changed = cleaned != part
        # Only the voxels that changed move from one count to another.
        rows = np.where(there[changed] < 0, size - 1, there[changed]).astype(np.int64) * size
        moved = np.bincount(rows + cleaned[changed], minlength=size * size).astype(np.int64)
        moved -= np.bincount(rows + part[changed], minlength=size * size)
        now = _scores(counts + moved.reshape(size, size), labels)
        after.append({name: dice for name, dice in now.items() if dice != before[name]})
        if task.follow:
            for n in np.unique(cleaned[changed]).tolist():
                boxes[n] = Box.union([box, boxes.get(n, box)]) or box
            counts, before = counts + moved.reshape(size, size), now
            part[...] = cleaned
    return CaseEffects(task.pair.case, first, tuple(after))


def _pieces(part: NDArray[np.signedinteger[Any]], values: Sequence[int]) -> list[Piece]:
    return connected_pieces(part == values[0] if len(values) == 1 else np.isin(part, values))


def _component_sizes(
    reference: NDArray[np.signedinteger[Any]], piece: Piece, values: Sequence[int]
) -> NDArray[np.int64]:
    """(3, components): voxels, those that are not ignored, and those that the reference has as well."""
    there, size = reference[piece.box.slices], len(piece.sizes) + 1
    found = [np.bincount(piece.components[mask], minlength=size)[1:] for mask in (there >= 0, np.isin(there, values))]
    return np.stack([piece.sizes, *found])


def _read(task: EffectTask) -> tuple[NDArray[np.signedinteger[Any]], NDArray[np.signedinteger[Any]], float]:
    """Class indices of reference (-1 where ignored) and prediction, and the volume of a voxel in mL."""
    reference = read_label_map(task.pair.reference, case=task.pair.case)
    prediction = read_label_map(task.pair.prediction or "", case=task.pair.case)
    return (
        np.ascontiguousarray(task.labels.to_index(reference.array)),
        np.ascontiguousarray(task.labels.to_index(prediction.array)),
        prediction.grid.voxel_volume_ml,
    )


def _counts(
    reference: NDArray[np.signedinteger[Any]], index: NDArray[np.signedinteger[Any]], labels: LabelTable
) -> NDArray[np.int64]:
    """Voxels of each pair of classes (reference, prediction); the last row is what is ignored."""
    return joint_histogram(reference, index, range(labels.classes))


def _scores(counts: NDArray[np.int64], labels: LabelTable) -> dict[str, float | None]:
    found = overlaps_of_counts(counts[:-1], range(labels.classes), labels.indexed())
    return {overlap.name: None if overlap.status == "true_negative" else overlap.dice for overlap in found}


def _around(boxes: Mapping[int, Box], values: Sequence[int], shape: Sequence[int]) -> Box | None:
    """Box of some classes and one voxel around it, so that what is flat is flat because the volume is."""
    box = Box.union(boxes[n] for n in values if n in boxes)
    return None if box is None else box.grown(1, shape)


@dataclass(frozen=True)
class Decision:
    """One step: mean Dice of its organ, and over organs, without and with it, and whether it is kept."""

    step: Step
    before: float
    after: float
    mean_before: float
    mean_after: float
    kept: bool


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


def choose_postprocessing(
    pairs: Sequence[FilePair], labels: LabelTable, run: Run, progress: Progress
) -> Postprocessing:
    """Try every step on every organ and keep what helps."""
    # First the best size for each organ, so that "remove small" is one step like the others.
    tasks = [EffectTask(pair, labels) for pair in pairs]
    sized = [
        (before, by_size) for _, before, by_size in map_cases(run, progress, "component sizes")(size_effects, tasks)
    ]
    sizes = best_sizes(sized, labels.targets)
    tried = [
        Step(kind, organ, sizes.get(organ) if kind == "remove_small" else None)
        for kind in _ORDER
        for organ in labels.targets
        if kind != "remove_small" or organ in sizes
    ]

    def measure(steps: Sequence[Step], follow: bool) -> list[Decision]:
        tasks = [EffectTask(pair, labels, steps, follow) for pair in pairs]
        return judge(list(map_cases(run, progress, "post-processing")(measure_effects, tasks)), steps, follow)

    found = {entry.step: entry for entry in measure(tried, False)}
    wanted = [step for step, entry in found.items() if entry.kept]
    while wanted:
        together = measure(wanted, True)
        found |= {entry.step: entry for entry in together}
        if all(entry.kept for entry in together):
            break
        wanted = [entry.step for entry in together if entry.kept]  # without the others, do these still help?
    before = organ_means(entry for entry, _ in sized)[0]
    after = found[wanted[-1]].mean_after if wanted else before
    return Postprocessing(tuple(found.values()), len(sized), before, after)


def best_sizes(
    cases: Sequence[tuple[Dice, Mapping[str, Sequence[float | None]]]], organs: Sequence[str]
) -> dict[str, float]:
    """The volume in mL below which removing components of an organ helps it most, of equal ones the smallest.

    Args:
        cases: For each case the Dice of every organ as predicted, and of the organs predicted the Dice for each of
            :data:`SIZES_ML`.
        organs: Their names; those that no volume helps are left out of the result.
    """
    best = {}
    for organ in organs:
        plain = mean_there([before[organ] for before, _ in cases])
        means = [
            mean_there([by_size[organ][n] if organ in by_size else before[organ] for before, by_size in cases])
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
    """Decide for each step, as it was measured on each case, whether it helps; steps on organs of no case are left out.

    Args:
        effects: What the steps did to each case.
        steps: The steps.
        follow: Whether each step began where the one before it ended.
    """
    if not effects:
        return []
    scores = [dict(entry.before) for entry in effects]
    decisions = []
    mean_before, means_before = organ_means(scores)
    for n, step in enumerate(steps):
        now = [{**case, **entry.after[n]} for case, entry in zip(scores, effects, strict=True)]
        mean_after, means_after = organ_means(now)
        before, after = means_before[step.organ], means_after[step.organ]
        if before is not None and after is not None and mean_before is not None and mean_after is not None:
            kept = after > before + _ROUNDING and mean_after >= mean_before - _ROUNDING
            decisions.append(Decision(step, before, after, mean_before, mean_after, kept))
        if follow:
            scores, mean_before, means_before = now, mean_after, means_after
    return decisions


def write_postprocessing(found: Postprocessing, folder: Path) -> None:
    """Write ``postprocessing.json``, which predictions with the model follow, and ``postprocessing.md``."""
    content = {
        "kept": found.cleaning.to_json(),
        "rule": RULE,
        "cases": found.cases,
        "mean_dice": {"before": found.mean_before, "after": found.mean_after},
        "decisions": [asdict(decision) for decision in found.decisions],
    }
    text = "\n".join(("# Post-processing", "", RULE, "", *postprocessing_lines(found, everything=True)))
    write_text(folder / f"{Path(POSTPROCESSING_FILE).stem}.md", f"{text}\n")
    write_json(folder / POSTPROCESSING_FILE, content)


def postprocessing_lines(found: Postprocessing, everything: bool = False) -> tuple[str, ...]:
    """What is kept (or everything that was tried) as a table, and what it gains."""
    shown = [_cells(decision) for decision in found.decisions if everything or decision.kept]
    header = ("organ", "step", "Dice before", "after", "mean before", "after", "kept")
    gain = f"{score_cell(found.mean_before, 4)} to {score_cell(found.mean_after, 4)}"
    count = f"{sum(decision.kept for decision in found.decisions)} of {len(found.decisions)} steps kept"
    return (
        *((*text_table(header, shown), "") if shown else ()),
        f"post-processing: {count}, mean Dice {gain} (cases: {found.cases})",
    )


def _cells(decision: Decision) -> tuple[str, ...]:
    step = decision.step
    name = step.kind.replace("_", " ") + ("" if step.min_ml is None else f" below {step.min_ml:g} ml")
    numbers = (decision.before, decision.after, decision.mean_before, decision.mean_after)
    return step.organ, name, *(score_cell(number, 4) for number in numbers), "yes" if decision.kept else "no"


def read_postprocessing(folder: Path) -> Postprocessing:
    """Read what :func:`write_postprocessing` wrote; a VolsegError if it is missing or damaged."""
    path = folder / POSTPROCESSING_FILE
    found: _Found = conform(read_json(path, _ADVICE), _Found, path, _ADVICE)
    return Postprocessing(found.decisions, found.cases, found.mean_dice.before, found.mean_dice.after)


class _Means(BaseModel):
    before: Probability | None
    after: Probability | None


class _Found(BaseModel):
    """What is read of ``postprocessing.json``."""

    model_config = ConfigDict(allow_inf_nan=False)

    decisions: tuple[Decision, ...]
    cases: int
    mean_dice: _Means
