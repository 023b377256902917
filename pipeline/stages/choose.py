"""From cross-validated models to the best of them or the best pair, as a model folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, count
from pathlib import Path
from typing import Any

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import OutputFolder, copy_file, own_version, write_json, write_text
from pipeline.core.signals import Progress, silent
from pipeline.core.tables import score_cell, text_table
from pipeline.evaluate.results import read_summary
from pipeline.evaluate.significance import PairedDifference, paired_difference
from pipeline.model.folder import ENSEMBLE_FILE, ensemble_members, fold_folder
from pipeline.preprocess.plan_file import FIRST_STAGE
from pipeline.stages.cross_validate import (
    FOLDER,
    CrossValidation,
    ModelUnderTest,
    cross_validate_models,
    noted_validation,
)
from pipeline.stages.postprocessing import postprocessing_lines, write_postprocessing


@dataclass(frozen=True)
class Candidate:
    """A model or a pair of models, scored on the cases that its folds did not train on.

    Args:
        name: Names of the models, joined by a plus.
        members: Their names.
        mean_dice: Mean over organs of each organ's mean over cases; None if nothing could be scored.
        cases: Case id → mean Dice over its organs.
        difference: To the best candidate, case by case.
    """

    name: str
    members: tuple[str, ...]
    mean_dice: float | None
    cases: Mapping[str, float | None]
    difference: PairedDifference


@dataclass(frozen=True)
class Choice:
    """All candidates and the best of them.

    Args:
        candidates: Best first.
        best: What the cross-validation of the best gave.
        exit_code: 0 all fine, 2 some cases could not be predicted or scored by some candidate.
    """

    candidates: tuple[Candidate, ...]
    best: CrossValidation
    exit_code: int


def choose(
    models: Sequence[Path],
    out: Path,
    *,
    device: str | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
    log: Callable[[str], None] = lambda text: None,
) -> Choice:
    """Compare models and all pairs of them on the cases that their folds did not train on, and write the best.

    A pair averages the probabilities of its two models on the case's own grid, fold by fold, so they may differ in
    network, patch and spacing. ``out`` becomes a model folder with copies of the chosen models, their post-processing,
    ``ensemble.json`` and ``choice.md``; ``cross_validation/`` in it has the predictions and scores of every pair.

    Args:
        models: At least two model folders, cross-validated on the same cases.
        out: Folder to write; an earlier choice there is replaced.
        device: Name of the device; by default the best there is.
        jobs: Worker processes that score; by default as many as pay.
        progress: Told after every case.
        log: Called with the name of each pair before it is predicted.

    Raises:
        VolsegError: If there are fewer than two models, one is not cross-validated or has other cases, labels, channels
            or orientation, or ``out`` holds something else.
    """
    names = _names(models)
    tested: dict[str, ModelUnderTest] = {}
    validated: dict[str, CrossValidation] = {}
    for name, model in names.items():
        tested[name], validated[name] = _validated(model, device, jobs, progress)
    cases = _shared_cases(tested, validated)
    earlier = _earlier_members(out)
    write_json(out / ENSEMBLE_FILE, {"members": list(earlier)})  # first: it marks the folder as ours
    found: dict[tuple[str, ...], CrossValidation] = {(name,): result for name, result in validated.items()}
    for pair in combinations(names, 2):
        log(f"pair {'+'.join(pair)}")
        home = out / FOLDER / "+".join(pair)
        members = [tested[name] for name in pair]
        found[pair] = cross_validate_models(members, cases, home, device=device, jobs=jobs, progress=progress)
    # Of equal means the single model is taken: it takes half the time to predict.
    ranked = sorted(found, key=lambda key: (-(found[key].mean_dice or 0.0), len(key)))
    best = _case_dice(found[ranked[0]])
    candidates = [_candidate(key, found[key], best) for key in ranked]
    failed = any(result.exit_code for result in found.values())
    choice = Choice(tuple(candidates), found[ranked[0]], 2 if failed else 0)
    _write(choice, {name: tested[name] for name in ranked[0]}, tuple(cases), out, earlier)
    return choice


def _names(models: Sequence[Path]) -> dict[str, Path]:
    """A name for each model: that of its folder, with a number where several folders have one name."""
    if len({model.resolve() for model in models}) < max(2, len(models)):
        got = ", ".join(map(str, models)) or "none"
        raise VolsegError(sentence("models", "two or more different folders", got, "Name each once"))
    names: dict[str, Path] = {}
    for model in models:
        name = model.resolve().name
        free = (found for n in count(1) if (found := name if n == 1 else f"{name}_{n}") not in {*names, FOLDER})
        names[next(free)] = model
    return names


def _validated(
    model: Path, device: str | None, jobs: int | None, progress: Progress
) -> tuple[ModelUnderTest, CrossValidation]:
    """A model and its cross-validation, brought up to date where anything changed since."""
    advice = f"Run `volseg cross-validate {model} --prepared …` first"
    try:
        noted = noted_validation(read_summary(model / FOLDER), model / FOLDER)
        prepared, folds = Path(noted.models[0].prepared), [fold.fold for fold in noted.folds]
    except VolsegError:
        ModelUnderTest.read(model, model)  # says what is wrong if it is no model at all
        raise VolsegError(sentence("model", "a cross-validated one", "one that is not", advice, file=model)) from None
    if not prepared.is_dir():
        raise VolsegError(sentence("prepared dataset", "where it was", "nothing there", advice, file=prepared))
    tested = ModelUnderTest.read(model, prepared)
    cases, out = tested.fold_cases(folds), model / FOLDER
    return tested, cross_validate_models([tested], cases, out, device=device, jobs=jobs, progress=progress)


def _shared_cases(
    tested: Mapping[str, ModelUnderTest], validated: Mapping[str, CrossValidation]
) -> dict[int, tuple[str, ...]]:
    """Fold → its validation cases, which must be the same for all models, as must be what they see and predict."""
    first, *others = tested
    found = {name: _fold_cases(result) for name, result in validated.items()}
    # Only what is averaged or scored must be the same; network, patch and spacing may differ.
    for name in others:
        one, other = tested[first].card.plan, tested[name].card.plan
        compared = {
            "label tables": (one.label_table, other.label_table),
            "channels": (one.channels, other.channels),
            "orientation (preprocess.orientation)": (one.orientation, other.orientation),
            "further transforms": (one.extra, other.extra),
            "cases in each fold (splits.json)": (found[first], found[name]),
        }
        for what, (here, there) in compared.items():
            if here != there:
                advice = "Only such models can be compared and averaged: leave one out, or train it on the same folds"
                raise VolsegError(sentence("models", f"the same {what}", f"others in {first} and {name}", advice))
    for name, result in validated.items():
        coarse = result.summary["cross_validation"]["prepared_grid"]
        if coarse:
            rule, got = "every case scored on its own grid", f"{len(coarse)} cases of {name} on the prepared grid"
            advice = "Put their references where they were when they were prepared, or prepare the dataset again"
            raise VolsegError(sentence("models", rule, got, advice))
    return found[first]


def _fold_cases(result: CrossValidation) -> dict[int, tuple[str, ...]]:
    return {entry["fold"]: tuple(entry["cases"]) for entry in result.summary["cross_validation"]["folds"]}


def _case_dice(result: CrossValidation) -> dict[str, float | None]:
    return {entry["case"]: entry["dice"] for entry in result.summary["cases"]}


def _candidate(key: tuple[str, ...], result: CrossValidation, best: Mapping[str, float | None]) -> Candidate:
    dice = _case_dice(result)
    return Candidate("+".join(key), key, result.mean_dice, dice, paired_difference(dice, best))


def _earlier_members(out: Path) -> tuple[str, ...]:
    """Members that an earlier choice left in a folder; refuse one that holds anything else."""
    folder = OutputFolder(out, ENSEMBLE_FILE)
    folder.require_own("an earlier choice")
    return ensemble_members(out) if folder.earlier else ()


def _write(
    choice: Choice, members: Mapping[str, ModelUnderTest], folds: Sequence[int], out: Path, earlier: Sequence[str]
) -> None:
    """Write the model folder of the best; ``ensemble.json`` names its members last."""
    # Until the last file is written a member is missing, and predicting says so.
    for name in earlier:
        shutil.rmtree(out / name, ignore_errors=True)
    for name, model in members.items():
        # A cascade goes with its first stage.
        for part in ("", FIRST_STAGE) if model.card.plan.cascade else ("",):
            for fold in folds:
                home, target = fold_folder(model.folder / part, fold), fold_folder(out / name / part, fold)
                for file in ("model.safetensors", "validation.json"):
                    if (home / file).is_file():
                        copy_file(home / file, target / file)
            copy_file(model.folder / part / "model.json", out / name / part / "model.json")
    write_postprocessing(choice.best.postprocessing, out)
    write_text(out / "choice.md", "\n".join(("# Choice of the model", "", *choice_lines(choice))) + "\n")
    candidates: list[dict[str, Any]] = [asdict(candidate) for candidate in choice.candidates]
    content = {"members": list(members), "folds": list(folds), "volseg": own_version(), "candidates": candidates}
    write_json(out / ENSEMBLE_FILE, content)


def choice_lines(choice: Choice) -> tuple[str, ...]:
    """The candidates as a table, and which was taken."""
    header = ("model", "mean Dice", "difference", "95 % interval", "better", "equal", "worse")
    rows = []
    for candidate in choice.candidates:
        found = candidate.difference
        low, high = found.interval_95 or (None, None)
        interval = f"{score_cell(low, 4)} to {score_cell(high, 4)}"
        counts = (str(count) for count in (found.better, found.equal, found.worse))
        rows.append((candidate.name, score_cell(candidate.mean_dice, 4), score_cell(found.mean, 4), interval, *counts))
    first = choice.candidates[0]
    what = "the pair" if len(first.members) > 1 else "the model"
    best = f"Best: {what} {first.name}, mean Dice {score_cell(first.mean_dice, 4)} without post-processing."
    meaning = "Difference: to the best, of the mean Dice of a case, mean over cases; better, equal, worse: cases."
    return (*text_table(header, rows), "", meaning, best, *postprocessing_lines(choice.best.postprocessing))
