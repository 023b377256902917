"""The toy dataset as DICOM series, and commands that must tell nothing of their texts."""

from __future__ import annotations

from pathlib import Path

import command_line
import numpy as np
import pytest
from generated_dicom import SECRET, save, slices_of
from toy import toy_case

from pipeline.core.volume import Image


def run(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code of a command, and all that it says, on one line."""
    code, out, err = command_line.run(capfd, *words)
    return code, " ".join((out + " " + err).split())


def whole(index: int) -> Image:
    """A case of the toy dataset, in whole numbers."""
    image = toy_case(index)[0]
    return Image(np.rint(image.array), image.grid)


def as_dicom(index: int, folder: Path, **options: object) -> Path:
    image = whole(index)
    return save(slices_of(image.array[0].astype(np.int16), image.grid.affine, **options), folder)


def require_no_secret(*texts: str, folders: tuple[Path, ...] = ()) -> None:
    """No text of the generated files, in any case of letters."""
    words = [word.lower() for word in SECRET.split("^")]
    for text in texts:
        assert not any(word in text.lower() for word in words)
    for path in (path for folder in folders for path in folder.rglob("*")):
        assert not any(word in path.name.lower() for word in words)
        if path.is_file():
            content = path.read_bytes().lower()
            assert not any(word.encode() in content for word in words), path
