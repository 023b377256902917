"""From scores to a report: one HTML file.

Apart from the stage that scores, which starts without Matplotlib and Jinja.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import signature
from pipeline.report.report import write_report

_PNG = b"\x89PNG\r\n\x1a\n"
_HTML = (".html", ".htm")


def report(
    evaluation: Path | str,
    out: Path | str,
    *,
    overlays: int = 3,
    viewer_cases: int = 20,
    viewer_mb: float = 6.0,
    show_names: bool = False,
    title: str | None = None,
    curves: Path | str | None = None,
    neurological: bool = False,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of an evaluation, signed with version and date.

    Args:
        evaluation: Folder that :func:`~pipeline.stages.evaluate.evaluate` wrote.
        out: HTML file; its name ends in ``.html`` or ``.htm``.
        overlays: Worst and best cases to draw, each.
        viewer_cases: Cases in the viewer, half of them the worst.
        viewer_mb: Megabytes that their volumes may take.
        show_names: Show case ids and paths instead of hashes.
        title: Heading.
        curves: PNG of training curves to include.
        neurological: Show the patient's left on the left; otherwise on the right, as radiologists do.
        log: Called with one sentence if cases that were to be shown are not.

    Returns:
        ``out``.

    Raises:
        VolsegError: If ``out`` has another ending, the evaluation cannot be read, ``curves`` is no PNG file, or the
            report cannot be written.
    """
    evaluation, out = Path(evaluation), Path(out)
    if out.suffix.lower() not in _HTML:
        rule, advice = "a file that ends in .html", f"Name it for example {out.stem or 'report'}.html"
        raise VolsegError(sentence("out", rule, str(out), advice))
    if curves is not None:
        curves = Path(curves)
        _require_png(curves)
    return write_report(
        evaluation,
        out,
        overlays=overlays,
        viewer_cases=viewer_cases,
        viewer_mb=viewer_mb,
        show_names=show_names,
        title=title,
        curves=curves,
        neurological=neurological,
        log=log,
        **signature(),
    )


def _require_png(path: Path) -> None:
    """Refuse a wrong path before a report is written without the picture."""
    try:
        with path.open("rb") as stream:
            found = "another file" if stream.read(len(_PNG)) != _PNG else ""
    except OSError as error:
        found = error.strerror or "one that cannot be read"
    if found:
        raise VolsegError(sentence("--curves", "a PNG picture", found, "Give the curves.png of a fold", file=path))
