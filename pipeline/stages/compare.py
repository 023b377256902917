"""Two or more models on the same cases: who is better, where, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.core.errors import VolsegError, listed, result_of, sentence
from pipeline.core.files import write_bytes, write_json
from pipeline.core.signals import Progress, silent
from pipeline.core.tables import write_csv
from pipeline.evaluate.metrics import METRICS, Measures
from pipeline.evaluate.results import Evaluation, read_evaluation
from pipeline.evaluate.significance import PairedTest, Ranking, paired_tests, rankings
from pipeline.report.compare_plots import difference_plot, rank_plot
from pipeline.stages.evaluate import Meaning, evaluate

_SCORES = "summary.json"
_CONVENTIONS = (
    "Models are compared on the same cases; a missing prediction counts as a miss, and the image's diagonal stands for "
    "an infinite distance.",
    "p is that of Wilcoxon's two-sided signed-rank test of the differences case by case, cases without a difference "
    "left out; p_holm is corrected by Holm for all tests of the metric.",
    "Intervals of the mean difference and shares of ranks come from 10000 bootstrap resamples of whole cases.",
    "Ranks are by the mean over organs of each organ's mean over cases.",
)


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        out: Folder with ``comparison.csv``, ``comparison.json`` and the plots.
        tests: Every pair of models, metric and organ.
        ranks: The models' order by every metric.
        notes: Sentences a reader should know.
        failures: Files that could not be used.
        lacking: Model → cases without a usable prediction, which count as misses.
    """

    out: Path
    tests: tuple[PairedTest, ...]
    ranks: tuple[Ranking, ...]
    notes: tuple[str, ...]
    failures: tuple[str, ...]
    lacking: Mapping[str, tuple[str, ...]]


def compare(
    models: Sequence[Path],
    out: Path,
    *,
    references: Path | None = None,
    measures: Measures | None = None,
    meaning: Meaning | None = None,
    seed: int = 0,
    jobs: int | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Compare models.

    Args:
        models: Of each a folder of predictions, or the folder of their scores.
        out: Folder for the comparison; predictions are scored into a folder for each model in it.
        references: What predictions are scored against; not needed where there are scores.
        measures: What to measure, as for ``evaluate``.
        meaning: What label values mean, as for ``evaluate``.
        seed: Seed of the bootstrap.
        jobs: Worker processes; by default as many as pay.
        progress: Told after every case.

    Raises:
        VolsegError: If there are fewer than two models, one cannot be scored, or they were scored on different cases or
            organs, or measured differently.
    """
    if len(models) < 2:
        rule, advice = "two or more", "Name the folders of their predictions or scores"
        raise VolsegError(sentence("models", rule, len(models), advice))
    found: dict[str, Evaluation] = {}
    for name, path in zip(_names(models), models, strict=True):
        folder = path
        if not (path / _SCORES).is_file():
            if references is None:
                rule, advice = "scores, or --reference to score against", "Give --reference"
                raise VolsegError(sentence("model", rule, "a folder without scores", advice, file=path))
            folder = out / name
            result_of(
                evaluate, path, references, folder, measures=measures, meaning=meaning, jobs=jobs, progress=progress
            )
        found[name] = read_evaluation(folder)
    # Before any statistics: a difference between other cases or tolerances would be none between models.
    _require_comparable(found)
    scores = {name: evaluation.rows for name, evaluation in found.items()}
    lacking = {name: _lacking(evaluation) for name, evaluation in found.items()}
    notes = _notes(found, lacking)
    failures = tuple(f"{name}: {text}" for name, evaluation in found.items() for _, text in evaluation.failures)
    result = Comparison(out, paired_tests(scores, seed), rankings(scores, seed), notes, failures, lacking)
    _write(result, len({row.case for rows in scores.values() for row in rows}))
    caution = notes[0] if any(lacking.values()) else ""
    for metric in dict.fromkeys(test.metric for test in result.tests):
        write_bytes(out / f"difference_{metric}.png", difference_plot(result.tests, metric, caution))
    write_bytes(out / "ranks.png", rank_plot(result.ranks, caution))
    return result


def _lacking(evaluation: Evaluation) -> tuple[str, ...]:
    """Cases that count as misses because their prediction is missing or could not be used."""
    unused = {row.case for row in evaluation.rows if row.status in ("missing_prediction", "failed")}
    return tuple(sorted(unused.union(case.id for case in evaluation.cases if case.prediction is None)))


def _notes(found: Mapping[str, Evaluation], lacking: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What a reader should know: first who lacks predictions, then which cases nobody could be compared on."""
    notes = []
    if any(lacking.values()):
        total = max(len(evaluation.cases) for evaluation in found.values())
        counts = ", ".join(f"{name} {len(cases)} of {total}" for name, cases in lacking.items())
        notes.append(f"Predictions that are missing or could not be used count as misses: {counts}.")
        notes += [f"{name}: no usable prediction of {listed(cases)}." for name, cases in lacking.items() if cases]
    scored = {row.case for evaluation in found.values() for row in evaluation.rows}
    left_out = sorted({case.id for evaluation in found.values() for case in evaluation.cases} - scored)
    if left_out:
        notes.append(f"Left out of the comparison, because their reference could not be used: {listed(left_out)}.")
    return (*notes, *(f"{name}: {note}" for name, evaluation in found.items() for note in evaluation.notes))


def _names(models: Sequence[Path]) -> list[str]:
    """The folders' own names, with as much of the path before as tells them apart."""
    parts = [path.resolve().parts for path in models]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["_".join(part[-depth:]).replace("/", "") for part in parts]
        if len(set(names)) == len(names):
            return names
    raise VolsegError(sentence("models", "different folders", "one folder twice", "Name each once"))


def _require_comparable(found: dict[str, Evaluation]) -> None:
    """Refuse models that were scored on other cases, organs or by other measures."""
    first, *others = found
    one = found[first]
    for name in others:
        other = found[name]
        kinds = {
            "cases": ({case.id for case in one.cases}, {case.id for case in other.cases}),
            "organs": (set(one.labels.targets), set(other.labels.targets)),
        }
        for what, (mine, theirs) in kinds.items():
            if mine != theirs:
                apart = sorted(mine ^ theirs)
                got = f"{len(apart)} in one of them only, e.g. {apart[0]}"
                advice = "Score both against the same references"
                advice += ", with --labels if they were not asked for the same organs" if what == "organs" else ""
                raise VolsegError(sentence(f"{what} of {first} and {name}", "the same", got, advice))
        used = [(e.measures.surface, e.measures.tolerance_mm, dict(e.measures.tolerances_mm)) for e in (one, other)]
        if used[0] != used[1]:
            advice = "Score both again with the same options"
            raise VolsegError(
                sentence(f"measures of {first} and {name}", "the same surface and tolerance", "different ones", advice)
            )


def _write(found: Comparison, cases: int) -> None:
    names = [field.name for field in fields(PairedTest) if field.name != "interval_95"]
    rows = [
        [
            *(getattr(test, name) for name in names),
            *(test.interval_95 or (None, None)),
            *(len(found.lacking[model]) for model in (test.one, test.other)),
        ]
        for test in found.tests
    ]
    header = [*names, "interval_low", "interval_high", "lacking_one", "lacking_other"]
    write_csv(found.out / "comparison.csv", [header, *rows])
    content: dict[str, Any] = {
        "models": list(found.lacking),
        "cases": cases,
        "higher_is_better": {test.metric: METRICS[test.metric].higher for test in found.tests},
        "tests": [asdict(test) for test in found.tests],
        "ranks": [asdict(ranking) for ranking in found.ranks],
        "conventions": list(_CONVENTIONS),
        "lacking": {name: list(lost) for name, lost in found.lacking.items()},
        "notes": list(found.notes),
        "failures": list(found.failures),
    }
    write_json(found.out / "comparison.json", content)
