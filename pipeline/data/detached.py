"""Headers whose voxels lie in files of their own: MetaImage ``.mhd``, and NRRD with a ``data file``.

Sources: MetaIO's ``ElementDataFile`` (https://itk.org/Wiki/ITK/MetaIO/Documentation) and the section "Detached headers"
of NRRD's definition (https://teem.sourceforge.net/nrrd/format.html).
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.data.volume_file import NRRD_SUFFIXES, volume_suffix

__all__ = ["detached_files"]

_MOST_FILES = 10_000  # one per slice; a larger count means a damaged header
_META = re.compile(r"^ElementDataFile\s*=\s*(.*?)\s*$", re.MULTILINE)
_NRRD = re.compile(r"^data ?file:\s*(.*?)\s*$", re.MULTILINE)
_NUMBERED = re.compile(r"([^%]*%0?\d*d[^%]*?) (-?\d+) (-?\d+) (-?[1-9]\d*)( \d+)?")
_HEADER_BYTES = 1 << 16


def detached_files(path: Path) -> tuple[Path, ...]:
    """Files beside a header that hold its voxels, whether they exist or not.

    Args:
        path: Any volume file.

    Returns:
        In the header's order; empty if the voxels are in the file itself, or it cannot be read.
    """
    suffix = volume_suffix(path)
    if suffix not in (".mhd", ".mha", *NRRD_SUFFIXES):
        return ()
    try:
        with path.open("rb") as stream:
            header = stream.read(_HEADER_BYTES).decode("latin-1")
    except OSError:
        return ()
    names = _nrrd_names(header) if suffix in NRRD_SUFFIXES else [match[1] for match in [_META.search(header)] if match]
    return tuple(path.parent / name for name in names if name and name.upper() != "LOCAL")


def _nrrd_names(header: str) -> list[str]:
    """One name, numbered names, or a list that ends the header; an attached header ends with an empty line."""
    found = _NRRD.search(re.split(r"\r?\n\r?\n", header, maxsplit=1)[0])
    if found is None:
        return []
    if found[1].split()[:1] == ["LIST"]:
        return header[found.end() :].split("\n")[1 : 1 + _MOST_FILES]
    numbered = _NUMBERED.fullmatch(found[1])
    if numbered is None:
        return [found[1]]
    first, last, step = (int(numbered[group]) for group in (2, 3, 4))
    numbers = range(first, last + (1 if step > 0 else -1), step)[:_MOST_FILES]
    return [numbered[1] % number for number in numbers]
