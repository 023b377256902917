"""Commands that measure label maps: against references, against each other, and alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pipeline.cli.options import CaseTimeout, Jobs, OutFolder

if TYPE_CHECKING:
    from pipeline.evaluate.metrics import Measures


Tolerance = Annotated[
    list[str] | None,
    typer.Option("--tolerance-mm", help="Distance that NSD tolerates: 2, or liver=3 for one organ; several times."),
]
Surface = Annotated[
    str,
    typer.Option("--surface", help="exact: of voxel boxes; voxel: centres of border voxels, as MONAI; none: overlap."),
]
CompatTools = Annotated[
    list[str] | None, typer.Option("--compat", help="Add columns as monai, medpy or surface-distance measure them.")
]
Match = Annotated[
    str | None, typer.Option("--match", help="Labels belong together by value or by name, where tables differ.")
]
LabelsFile = Annotated[Path | None, typer.Option("--labels", help='JSON file of label names, {"1": "liver"}.')]


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Predicted label map, folder of them, or list of cases.")],
    references: Annotated[Path, typer.Argument(help="Reference label map, folder, dataset folder or list of cases.")],
    out: OutFolder,
    tolerance: Tolerance = None,
    surface: Surface = "exact",
    compat: CompatTools = None,
    lesions: Annotated[
        list[str] | None, typer.Option("--lesions", help="Organ whose connected parts to match one by one, or all.")
    ] = None,
    min_lesion_ml: Annotated[
        float, typer.Option("--min-lesion-ml", min=0, help="Smaller connected parts do not count.")
    ] = 0.0,
    probabilities: Annotated[
        Path | None, typer.Option("--probabilities", help="Folder with a file per case, for ECE and Brier score.")
    ] = None,
    labels: LabelsFile = None,
    match: Match = None,
    remap: Annotated[
        list[str] | None, typer.Option("--remap", help="What predicted values stand for: 5=liver, or a CSV or YAML.")
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring predictions on other grids to the reference's.")
    ] = False,
    metadata: Annotated[
        Path | None, typer.Option("--metadata", help="CSV with a column case: scores by its other columns too.")
    ] = None,
    by: Annotated[list[str] | None, typer.Option("--by", help="Column of the metadata, e.g. scanner.")] = None,
    jobs: Jobs = None,
    case_timeout: CaseTimeout = None,
) -> None:
    """Overlap, surface distances and volumes per organ: scores.csv, summary.json and a table.

    A missing prediction is a miss. Exit code 2: some cases could not be scored, 3: none could.
    """
    from dataclasses import replace

    from pipeline.console.bars import progress_bars
    from pipeline.console.printing import print_evaluation
    from pipeline.core.errors import result_of
    from pipeline.engine.local import case_limit
    from pipeline.stages.evaluate import Meaning, exit_code
    from pipeline.stages.evaluate import evaluate as run

    measures = _measures(tolerance, surface, compat)
    measures = replace(
        measures,
        lesions=tuple(lesions or ()),
        minimum_lesion_ml=min_lesion_ml,
        probabilities=probabilities,
        resample=resample,
    )
    meaning = Meaning(labels, cast("Any", _one_of("--match", match, ("value", "name"))), tuple(remap or ()))
    with progress_bars() as bars, case_limit(case_timeout):
        summary = result_of(
            run,
            predictions,
            references,
            out,
            measures=measures,
            meaning=meaning,
            metadata=metadata,
            by=by or (),
            jobs=jobs,
            progress=bars.update,
        )
    print_evaluation(summary, out)
    raise typer.Exit(exit_code(summary))


def _measures(tolerance: list[str] | None, surface: str, compat: list[str] | None) -> Measures:
    """What to measure, as options say."""
    from pipeline.evaluate.metrics import COMPAT_TOOLS, Measures

    _one_of("--surface", surface, ("exact", "voxel", "none"))
    tools = tuple(dict.fromkeys(_one_of("--compat", tool, COMPAT_TOOLS) for tool in compat or ()))
    overall, own = 2.0, {}
    for text in tolerance or ():
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise typer.BadParameter(f"--tolerance-mm: expected 2 or liver=2, in mm and not below 0, got {text!r}.")
        if equals:
            own[name] = value
        else:
            overall = value
    return Measures(cast("Any", surface), overall, own, cast("Any", tools))


def _one_of(option: str, value: str | None, known: tuple[str, ...]) -> str | None:
    if value is not None and value not in known:
        raise typer.BadParameter(f"{option}: expected {' or '.join(known)}, got {value!r}.")
    return value


def compare(
    models: Annotated[list[Path], typer.Argument(help="Of each model its predictions, or its scores.")],
    out: OutFolder,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="What predictions are scored against, as for evaluate.")
    ] = None,
    tolerance: Tolerance = None,
    surface: Surface = "exact",
    labels: LabelsFile = None,
    match: Match = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    jobs: Jobs = None,
    case_timeout: CaseTimeout = None,
) -> None:
    """Compare models on the same cases: paired tests, wins and losses, stability of their order, plots.

    Exit code 2: some files could not be scored.
    """
    from pipeline.console.bars import progress_bars
    from pipeline.console.printing import print_comparison
    from pipeline.engine.local import case_limit
    from pipeline.stages.compare import compare as run
    from pipeline.stages.evaluate import Meaning

    meaning = Meaning(labels, cast("Any", _one_of("--match", match, ("value", "name"))))
    measures = _measures(tolerance, surface, None)
    with progress_bars() as bars, case_limit(case_timeout):
        found = run(
            models,
            out,
            references=reference,
            measures=measures,
            meaning=meaning,
            seed=seed,
            jobs=jobs,
            progress=bars.update,
        )
    print_comparison(found)
    raise typer.Exit(2 if found.failures else 0)


def stats(
    label_maps: Annotated[Path, typer.Argument(help="Label map or folder of them.")],
    out: OutFolder,
    images: Annotated[
        Path | None, typer.Option("--images", help="Image or folder of images of the same names, for intensities.")
    ] = None,
    labels: LabelsFile = None,
    jobs: Jobs = None,
    case_timeout: CaseTimeout = None,
) -> None:
    """Volumes, intensities and cut-off organs of label maps without a reference: stats.csv and a table."""
    from pipeline.console.bars import progress_bars
    from pipeline.console.printing import print_batch, print_stats
    from pipeline.core.errors import result_of
    from pipeline.engine.local import case_limit
    from pipeline.stages.label_stats import label_stats as run

    with progress_bars() as bars, case_limit(case_timeout):
        batch, rows = result_of(run, label_maps, out, images=images, labels=labels, jobs=jobs, progress=bars.update)
    print_stats(rows)
    print_batch(batch, "measured", out / "stats.csv")
    raise typer.Exit(batch.exit_code)
