"""The command that segments images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import OutFolder

__all__ = ["predict"]


def predict(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Image files, folders, 'quoted/*.nii.gz' or lists (.json, .csv, .txt).")
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
        typer.Option("--max-memory", min=0.0, help="GB that the logits of an image may take; by default what is free."),
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
) -> None:
    """Segment images; every mask comes back on its image's grid under its image's name.

    Exit code 2: some cases could not be predicted, 3: none could.
    """
    from pipeline.console import print_batch, progress_bars, say
    from pipeline.stages.predict import infer_settings
    from pipeline.stages.predict import predict as run
    from pipeline.stages.prediction_output import Output

    chosen, soft = _names("--organs", organs), _names("--probabilities", probabilities)
    output = Output(file_format, chosen, split, statistics, soft, entropy, confidence)
    settings = infer_settings(model, [*(overrides or ()), *([f"infer.roi={roi}"] if roi else [])])
    with progress_bars() as bars:
        batch = run(
            model,
            inputs,
            out,
            folds=folds,
            device=device,
            settings=settings,
            max_memory_gb=max_memory,
            output=output,
            progress=bars.update,
            on_stop=lambda batch: print_batch(batch, "predicted", out),
        )
    print_batch(batch, "predicted", out)
    if statistics:
        say(f"Statistics: {out / 'statistics.csv'}")
    raise typer.Exit(batch.exit_code)


def _names(option: str, text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    if text is not None and not names:
        raise typer.BadParameter(f"{option}: expected names such as liver,spleen, got none.")
    return names
