"""The command line: parses, calls a stage, prints. Nothing else.

Stages are imported inside the commands, so that ``volseg --help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.cross_validation import folds_app
from pipeline.cli.evaluation import evaluation_app
from pipeline.cli.steps import steps
from pipeline.cli.tools import config_app, tools

app = typer.Typer(
    name="volseg",
    help="3D medical segmentation: from a folder of CT or MRI volumes to masks, per-organ Dice and a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(steps)
app.add_typer(evaluation_app)
app.add_typer(folds_app)
app.add_typer(tools)
app.add_typer(config_app, name="config")


@app.callback(invoke_without_command=True)
def _global(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"volseg {installed('volseg')}")
        raise typer.Exit
