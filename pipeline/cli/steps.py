"""The steps of the pipeline as commands, in the order the data flows, and those that look at a dataset before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.cross_validation import train_all
from pipeline.cli.options import (
    CaseTimeout,
    Config,
    Device,
    Jobs,
    KeepHeaderText,
    Layout,
    Neurological,
    OutFolder,
    SegType,
    Set,
)


def check(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder or datalist.")],
    layout: Layout = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report as JSON.")] = None,
    jobs: Jobs = None,
    fix: Annotated[Path | None, typer.Option("--fix", help="Write a repaired copy of the dataset here.")] = None,
    remap: Annotated[
        list[str] | None, typer.Option("--remap", help="With --fix: 255=0, 7=liver, or a CSV or YAML file. Repeatable.")
    ] = None,
    image_grid: Annotated[
        bool, typer.Option("--image-grid", help="With --fix: label maps of the image's shape lie on its grid.")
    ] = False,
    label_header: Annotated[
        bool, typer.Option("--label-header", help="With --fix: other label maps lie where their header says.")
    ] = False,
    keep_header_text: KeepHeaderText = False,
    case_timeout: CaseTimeout = None,
) -> None:
    """List every problem of a dataset, case by case. Exit code 2: some cases have errors, 3: all have.

    With --fix, repair what can be repaired in a copy, list every change in its fixes.csv, leave out the other cases
    and check the copy. Exit code 2: some cases were left out, 3: none with a label map is left.
    """
    from pipeline.console.bars import print_line, progress_bars
    from pipeline.console.printing import print_check, print_repair
    from pipeline.core.errors import listed
    from pipeline.core.files import write_json
    from pipeline.engine.local import case_limit
    from pipeline.stages import prepare
    from pipeline.stages.repair import repair

    if fix is None and (remap or image_grid or label_header or keep_header_text):
        options = "--remap, --image-grid, --label-header and --keep-header-text"
        raise typer.BadParameter(f"{options} say how to repair: give --fix and a folder as well.")
    with progress_bars() as bars, case_limit(case_timeout):
        if fix is None:
            found = prepare.check(dataset, layout=layout, jobs=jobs, progress=bars.update)
        else:
            fixed = repair(
                dataset,
                fix,
                remap=remap or (),
                image_grid=image_grid,
                label_header=label_header,
                keep_header_text=keep_header_text,
                layout=layout,
                jobs=jobs,
                progress=bars.update,
            )
    if fix is not None:
        print_repair(fixed)
        if fixed.report is None:
            raise typer.Exit(fixed.exit_code)
        found = fixed.report
    print_check(found)
    if fix is None and found.repairable:
        command = f"volseg check {dataset} --fix FOLDER writes a repaired copy there"
        print_line(f"Some of these can be repaired: {command} (case {listed(found.repairable)}).")
    if json_file is not None:
        write_json(json_file, found.to_json())
    raise typer.Exit(found.exit_code if fix is None else fixed.exit_code)


def plan(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder or datalist.")],
    out: OutFolder,
    config: Config = None,
    overrides: Set = None,
    layout: Layout = None,
    jobs: Jobs = None,
    trial: Annotated[bool, typer.Option("--trial", help="Also train three steps: time and memory.")] = False,
    budget: Annotated[
        str | None, typer.Option("--budget", help="With a trial: how many steps fit, e.g. into 8h.")
    ] = None,
    device: Device = None,
    case_timeout: CaseTimeout = None,
) -> None:
    """Measure a dataset and plan: fingerprint.html to look at, plan.yaml to edit and give to preprocess --plan."""
    from pipeline.config.yaml_file import load_settings
    from pipeline.console.bars import print_line, progress_bars
    from pipeline.console.printing import print_batch, print_fingerprint, print_plan
    from pipeline.engine.local import case_limit
    from pipeline.stages.prepare import PAGE_FILE
    from pipeline.stages.prepare import plan as run

    settings = load_settings(config, [*(overrides or ()), *([f"train.budget={budget}"] if budget else [])])
    with progress_bars() as bars, case_limit(case_timeout):
        batch = run(dataset, out, settings, layout=layout, jobs=jobs, progress=bars.update)
    print_fingerprint(out / "fingerprint.json")
    print_plan(out)
    if trial or budget:
        from pipeline.console.printing import print_trial
        from pipeline.stages.tune import trial as measure

        print_trial(measure(out, settings, device))
    print_line(f"Look at {out / PAGE_FILE}")
    print_batch(batch, "measured", out)
    raise typer.Exit(batch.exit_code)


def preprocess(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder or datalist.")],
    out: OutFolder,
    config: Config = None,
    overrides: Set = None,
    layout: Layout = None,
    jobs: Jobs = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Follow this plan, such as an edited plan.yaml.")] = None,
    case_timeout: CaseTimeout = None,
) -> None:
    """Plan, and bring every case to one grid: crop, normalize, resample, store; draw the folds."""
    from pipeline.engine.workers import warm_up

    # Before the imports of this process: the server imports torch and MONAI beside them, which takes as long.
    warm_up(jobs, "pipeline.preprocess.prepare_case")
    from pipeline.config.yaml_file import load_settings
    from pipeline.console.bars import progress_bars
    from pipeline.console.printing import print_batch, print_plan
    from pipeline.core.errors import result_of
    from pipeline.engine.local import case_limit
    from pipeline.stages import prepare

    settings = load_settings(config, overrides or ())
    with progress_bars() as bars, case_limit(case_timeout):
        batch = result_of(
            prepare.preprocess, dataset, out, settings, layout=layout, jobs=jobs, progress=bars.update, plan=plan
        )
    print_plan(out)
    print_batch(batch, "prepared", out)
    raise typer.Exit(batch.exit_code)


def train(
    prepared: Annotated[Path, typer.Argument(help="Folder that `volseg preprocess` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder; one folder may hold several folds.")],
    config: Config = None,
    overrides: Set = None,
    fold: Annotated[
        str, typer.Option("--fold", help="Which fold of splits.json validates; all: every fold, one per GPU at a time.")
    ] = "0",
    budget: Annotated[
        str | None, typer.Option("--budget", help="End after this time, e.g. 10m or 1h30m; with --fold all, each fold.")
    ] = None,
    device: Device = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew instead of continuing.")] = False,
    start: Annotated[
        Path | None, typer.Option("--from", help="Model folder whose weights to begin with (all but the outputs).")
    ] = None,
    autotune: Annotated[
        bool, typer.Option("--autotune", help="Measure which way to compute is fastest here (once per machine).")
    ] = False,
) -> None:
    """Train one fold or all of them, or continue where an earlier run stopped.

    With --fold all, exit code 2: some folds failed, 3: all failed.
    """
    if fold != "all" and not fold.isdecimal():
        raise typer.BadParameter(f"--fold: expected a number or all, got {fold!r}.")
    # What can be refused without torch is refused above: importing it takes seconds.
    from pipeline.config.yaml_file import load_settings
    from pipeline.console.bars import print_line, progress_bars
    from pipeline.console.printing import print_training
    from pipeline.stages.train import train as run
    from pipeline.train.distributed import is_first
    from pipeline.train.state import Callbacks

    settings = load_settings(config, [*(overrides or ()), *([f"train.budget={budget}"] if budget else [])])
    if fold == "all":
        raise typer.Exit(train_all(prepared, out, settings, device, restart, start, autotune))
    number = int(fold)
    with progress_bars() as bars:
        result = run(
            prepared,
            out,
            settings,
            fold=number,
            device=device,
            restart=restart,
            start=start,
            tune=autotune,
            callbacks=Callbacks(bars.on_start, bars.on_step, bars.on_epoch, print_line),
        )
    if is_first():
        print_training(result, out, number)


def predict(
    model: Annotated[Path, typer.Argument(help="Model folder, or a name that `volseg models` lists.")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Image files, folders, DICOM studies, 'quoted/*.nii.gz' or lists (.json, .csv, .txt)."),
    ],
    out: OutFolder,
    folds: Annotated[list[int] | None, typer.Option("--fold", help="Folds to average; by default all.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override, e.g. infer.mirror=true.")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="cpu, cuda, cuda:1, mps, by default the best; cuda:0,cuda:1 or cuda:all spread folds."
        ),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="nii.gz, nii, nrrd, seg.nrrd (3D Slicer) or mha; by default the input's."),
    ] = None,
    organs: Annotated[str | None, typer.Option("--organs", help="Keep only these, e.g. liver,spleen.")] = None,
    split: Annotated[bool, typer.Option("--split", help="Also write a file per organ: OUT/CASE/ORGAN.")] = False,
    max_memory: Annotated[
        float | None,
        typer.Option(
            "--max-memory",
            min=0.0,
            help="GB for the logits of an image, and for the image at the model's spacing; by default what is free.",
        ),
    ] = None,
    roi: Annotated[
        str | None, typer.Option("--roi", help="Where to look: none (everywhere), body, organs or auto; see the docs.")
    ] = None,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Also write statistics.json and .csv: mL, mean, SD, cut off or not.")
    ] = False,
    probabilities: Annotated[
        str | None,
        typer.Option("--probabilities", help="Also write OUT/probabilities/CASE/ORGAN, e.g. of liver,spleen, or all."),
    ] = None,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="Also write OUT/entropy/CASE: 0 sure of a class, 1 all alike.")
    ] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Also note each organ's mean probability (comes with these two).")
    ] = False,
    series: Annotated[
        str | None,
        typer.Option(
            "--series", help="Of DICOM: number (see inspect) or modality, e.g. 2 or CT; one per channel: 2,3."
        ),
    ] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Of DICOM: interpolate missing and uneven slices, else refused.")
    ] = False,
    dicom: Annotated[
        str | None,
        typer.Option("--dicom", help="Also write DICOM objects to OUT/dicom: some of seg,sr,rtstruct,sc."),
    ] = None,
    seg_type: SegType = "binary",
    case_timeout: CaseTimeout = None,
) -> None:
    """Segment images; every mask comes back on its image's grid under its image's name.

    Exit code 2: some cases could not be predicted, 3: none could.
    """
    from pipeline.console.bars import print_line, progress_bars
    from pipeline.console.printing import print_batch
    from pipeline.core.errors import result_of
    from pipeline.engine.local import case_limit
    from pipeline.stages.predict import predict as run
    from pipeline.stages.prediction_files import Output

    chosen, soft = _names("--organs", organs), _names("--probabilities", probabilities)
    objects = _names("--dicom", dicom)
    output = Output(file_format, chosen, split, statistics, soft, entropy, confidence, objects, seg_type)
    settings = [*(overrides or ()), *([f"infer.roi={roi}"] if roi else [])]
    with progress_bars() as bars, case_limit(case_timeout):
        batch = result_of(
            run,
            model,
            inputs,
            out,
            folds=folds,
            device=device,
            settings=settings,
            max_memory_gb=max_memory,
            output=output,
            series=_names("--series", series),
            allow_gaps=allow_gaps,
            progress=bars.update,
            on_stop=lambda batch: print_batch(batch, "predicted", out),
        )
    print_batch(batch, "predicted", out)
    if statistics:
        print_line(f"Statistics: {out / 'statistics.csv'}")
    raise typer.Exit(batch.exit_code)


def _names(option: str, text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    if text is not None and not names:
        raise typer.BadParameter(f"{option}: expected names such as liver,spleen, got none.")
    return names


def report(
    evaluation: Annotated[Path, typer.Argument(help="Folder that `volseg evaluate` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file, report.html.")],
    overlays: Annotated[int, typer.Option(min=0, help="Pictures of the worst and of the best cases, each.")] = 3,
    viewer_cases: Annotated[
        int, typer.Option("--viewer-cases", min=0, help="Cases in the 3D viewer, worst and best; 0: no viewer.")
    ] = 20,
    viewer_mb: Annotated[
        float, typer.Option("--viewer-mb", min=0.1, help="MB for their volumes; what is larger is made coarser.")
    ] = 6.0,
    show_names: Annotated[
        bool, typer.Option("--show-names", help="Show case ids and paths, which may name patients.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="Heading of the report.")] = None,
    curves: Annotated[Path | None, typer.Option(help="Picture of the training curves to include.")] = None,
    neurological: Neurological = False,
) -> None:
    """One offline HTML file: tables, plots, pictures of the worst and best cases, and a 3D viewer."""
    from pipeline.console.bars import print_line
    from pipeline.stages.report import report as run

    written = run(
        evaluation,
        out,
        overlays=overlays,
        viewer_cases=viewer_cases,
        viewer_mb=viewer_mb,
        show_names=show_names,
        title=title,
        curves=curves,
        neurological=neurological,
        log=print_line,
    )
    print_line(f"Report: {written} ({written.stat().st_size / 1e6:.1f} MB)")
    if not show_names:
        print_line("Cases are named by hashes and paths are left out; --show-names shows both.")
