"""Which cases a prepared dataset holds, and what ``case.json`` notes of each; without torch, which the voxels need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from pipeline.core.documents import conform, read_json
from pipeline.core.errors import VolsegError
from pipeline.core.paths import is_named
from pipeline.data.dataset import possible_file

ADVICE = "Delete the case's folder and run `volseg preprocess` again."

PossibleFile = Annotated[str, AfterValidator(possible_file)]
"""A path in a record."""


def case_folder(folder: Path, case: str) -> Path:
    """Where the files of a case are."""
    return folder / "cases" / case


def prepared_ids(folder: Path) -> tuple[str, ...]:
    """Ids of all finished cases, sorted; empty if there are none."""
    return tuple(sorted(home.name for home in (folder / "cases").glob("*") if is_named(home / "case.json")))


def stored_hash(folder: Path, case: str) -> str | None:
    """Content hash under which a finished case was stored; None if it is not there or ``case.json`` is damaged."""
    try:
        content_hash = read_info(folder, case).get("hash")
    except VolsegError:
        return None
    return content_hash if isinstance(content_hash, str) else None


class CaseInfo(BaseModel):
    """What is used of ``case.json``; its grid history is checked by whoever follows it.

    Older versions noted neither ``dataset``, where the case came from, nor ``checksums``.
    """

    model_config = ConfigDict(strict=True)

    hash: str | None = None
    recipe: str | None = None
    group: str | None = None
    dataset: str | None = None
    classes: list[int] | None = None
    images: list[PossibleFile] = []
    labels: list[PossibleFile] = []
    trace: dict[str, Any] = {}
    checksums: dict[str, str] = {}


def read_info(folder: Path, case: str) -> dict[str, Any]:
    """Content of ``case.json``.

    Raises:
        VolsegError: If the case is not in the store, or the file is damaged.
    """
    path = case_folder(folder, case) / "case.json"
    info = read_json(path, "Run `volseg preprocess`.")
    conform(info, CaseInfo, path, ADVICE)
    return dict(info)
