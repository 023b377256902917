"""``manifest.json``: size and SHA-256 of every file that predicting with a model reads, and whether they are as noted.

It is written where a model becomes one to hand on: by ``volseg share`` and the imports. A folder that trainings still
write to has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.documents import conform, read_json, require_regular, short
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import inside, own_version, read_record, write_json
from pipeline.core.paths import absence, is_named

MANIFEST = "manifest.json"
_ADVICE = "Get the model again"


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _Manifest(BaseModel):
    """Content of ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    volseg: str
    files: dict[str, _File] = Field(min_length=1)
    card: str | None = None
    """SHA-256 of the model card as volseg wrote it: one that is another now, someone has edited."""


def write_manifest(folder: Path, names: Iterable[str], card: str | None = None) -> None:
    """Note files of a model.

    Args:
        folder: Model folder.
        names: The files, relative to it, with ``/`` between folders.
        card: Text of the model card that volseg is about to write; None for a card that is not its own.
    """
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}
    noted = {} if card is None else {"card": hashlib.sha256(card.encode()).hexdigest()}
    write_json(folder / MANIFEST, {"volseg": own_version(), "files": files} | noted)


def is_edited(card: Path) -> bool:
    """Whether a model card is there that volseg did not write, or that someone has changed since."""
    if not is_named(card):
        return False
    noted = read_record(card.with_name(MANIFEST), _Manifest).get("card")
    return absence(card) is not None or noted != _sha256(card)


def require_noted(folder: Path) -> tuple[str, ...] | None:
    """Compare the files of a model with its manifest.

    Returns:
        Their names; None if the model has no manifest.

    Raises:
        VolsegError: With the name of the first file that is missing, truncated or changed; or if the manifest is
            damaged.
    """
    path = folder / MANIFEST
    if not is_named(path):
        return None
    manifest: _Manifest = conform(read_json(path), _Manifest, path, _ADVICE)
    for name, noted in manifest.files.items():
        file = inside(folder, name)
        if file is None:
            rule, got = "names of files in the folder", short(name)
            raise VolsegError(sentence("manifest", rule, got, _ADVICE, file=path))
        if gone := absence(file):
            raise VolsegError(sentence("file", f"{noted.bytes:,} bytes", gone[0], _ADVICE, file=file))
        if (size := file.stat().st_size) < noted.bytes:
            got = f"{size:,}: it is truncated"
            raise VolsegError(sentence("file", f"{noted.bytes:,} bytes", got, _ADVICE, file=file))
        if _sha256(file) != noted.sha256:
            rule = f"the content that {MANIFEST} notes (SHA-256 {noted.sha256[:12]}…)"
            raise VolsegError(sentence("file", rule, "another: it was changed", _ADVICE, file=file))
    return tuple(manifest.files)


def _sha256(path: Path) -> str:
    require_regular(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
