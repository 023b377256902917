"""Commands of a cross-validation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Device, Jobs

if TYPE_CHECKING:
    from pipeline.config.settings import Settings


def cross_validate(
    model: Annotated[Path, typer.Argument(help="Model folder with trained folds.")],
    prepared: Annotated[Path, typer.Option("--prepared", help="Folder that `volseg preprocess` wrote for it.")],
    folds: Annotated[
        list[int] | None, typer.Option("--fold", min=0, help="Folds whose validation cases count; by default all.")
    ] = None,
    device: Device = None,
    jobs: Jobs = None,
) -> None:
    """Predict every training case by the fold that did not train on it, score it, choose the post-processing.

    Exit code 2: some cases could not be predicted or scored, 3: none could.
    """
    from pipeline.console.bars import progress_bars
    from pipeline.console.printing import print_cross_validation
    from pipeline.stages.cross_validate import cross_validate as run

    with progress_bars() as bars:
        result = run(model, prepared, folds=folds, device=device, jobs=jobs, progress=bars.update)
    print_cross_validation(result, model)
    raise typer.Exit(result.exit_code)


def choose(
    models: Annotated[list[Path], typer.Argument(help="Model folders, cross-validated on the same cases.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    device: Device = None,
    jobs: Jobs = None,
) -> None:
    """Compare models and their pairs on the cases that did not train, and write the best as a model folder.

    Exit code 2: some cases could not be predicted or scored by one of them.
    """
    from pipeline.console.bars import print_line, progress_bars
    from pipeline.console.printing import print_choice
    from pipeline.stages.choose import choose as run

    with progress_bars() as bars:
        result = run(models, out, device=device, jobs=jobs, progress=bars.update, log=print_line)
    print_choice(result, out)
    raise typer.Exit(result.exit_code)


def train_all(
    prepared: Path, out: Path, settings: Settings, device: str | None, restart: bool, start: Path | None, tune: bool
) -> int:
    """What ``volseg train --fold all`` does: train, and cross-validate if no fold failed; gives the exit code."""
    from pipeline.console.bars import print_line, progress_bars
    from pipeline.console.printing import print_cross_validation, print_folds, print_validation
    from pipeline.stages.cross_validate import cross_validate as run
    from pipeline.stages.train_folds import default_devices, train_folds

    devices = (device,) if device else default_devices()
    result = train_folds(
        prepared,
        out,
        settings,
        devices=devices,
        restart=restart,
        start=start,
        tune=tune,
        on_epoch=print_validation,
        log=print_line,
    )
    print_folds(result)
    if result.exit_code:
        return result.exit_code
    with progress_bars() as bars:
        validated = run(out, prepared, device=devices[0], progress=bars.update)
    print_line("")
    print_cross_validation(validated, out)
    return validated.exit_code
