"""The command line: parses, calls a stage, prints. Nothing else.

Stages are imported inside the commands, so that ``volseg --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from pipeline.cli.cross_validation import choose, cross_validate
from pipeline.cli.evaluation import compare, evaluate, stats
from pipeline.cli.steps import check, plan, predict, preprocess, report, train
from pipeline.cli.tools import (
    config_app,
    convert,
    demo,
    dicom,
    export,
    import_nnunet,
    import_totalsegmentator,
    inspect,
    model_app,
    models,
    networks,
    phantom,
    preview,
    prune,
    serve,
    share,
)

PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "The steps": (preprocess, train, predict, evaluate, report),
    "Data": (check, inspect, plan, preview, convert, dicom, phantom),
    "Models": (models, import_nnunet, import_totalsegmentator, cross_validate, choose, prune, share, export, networks),
    "Scores": (compare, stats),
    "Tools": (serve, demo),
}
"""All commands as ``volseg --help`` lists them: the steps in the order the data flows, then what goes with them."""

app = typer.Typer(
    name="volseg",
    help="3D medical segmentation: from a folder of CT or MRI volumes to masks, per-organ Dice and a report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _panel, _commands in PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(model_app, name="model", rich_help_panel="Models")
app.add_typer(config_app, name="config", rich_help_panel="Tools")


@app.callback(invoke_without_command=True)
def _global(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"volseg {installed('volseg')}")
        raise typer.Exit
