"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.data.layout_names import LAYOUTS


def _seconds(text: str) -> float:
    from pipeline.config.settings import parse_duration_s  # here, because it takes pydantic, which is slow to load

    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with settings; see configs/.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one setting: section.key=value. Repeatable.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Worker processes; by default as many as pay.")]
CaseTimeout = Annotated[
    float | None,
    typer.Option(
        "--case-timeout",
        parser=_seconds,
        metavar="TIME",
        help="A case that takes longer than this, e.g. 10m or 1h30m, fails; the others go on. By default none does.",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; by default the best there is.")]
Layout = Annotated[
    str | None,
    typer.Option("--layout", help=f"{', '.join(LAYOUTS)}; recognised if left out."),
]
SegType = Annotated[
    str, typer.Option("--seg-type", help="Of a DICOM segmentation: binary, labelmap (small, but new) or auto.")
]
Neurological = Annotated[
    bool, typer.Option("--neurological", help="Show the patient's left on the left; else on the right.")
]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Output folder.")]
KeepHeaderText = Annotated[
    bool, typer.Option("--keep-header-text", help="Copy free text in headers, which may name patients; else cleared.")
]
