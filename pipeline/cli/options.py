"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.data.layout_names import LAYOUTS

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with settings; see configs/.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one setting: section.key=value. Repeatable.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Worker processes; by default as many as pay.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; by default the best there is.")]
Layout = Annotated[
    str | None,
    typer.Option("--layout", help=f"{', '.join(LAYOUTS)}; recognised if left out."),
]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Output folder.")]
KeepHeaderText = Annotated[
    bool, typer.Option("--keep-header-text", help="Copy free text in headers, which may name patients; else cleared.")
]
