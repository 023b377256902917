"""Headers whose voxels lie in files of their own, and what lies beside a TIFF."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.core.paths import absence, is_named
from pipeline.data.volume_file import META_SUFFIXES, NRRD_SUFFIXES, TIFF_SUFFIXES, refuse, volume_stem, volume_suffix

# MetaIO's ``ElementDataFile`` (https://itk.org/Wiki/ITK/MetaIO/Documentation) and
# "Detached headers" of NRRD (https://teem.sourceforge.net/nrrd/format.html).
_MOST_FILES = 10_000  # one per slice; a larger count means a damaged header
_META = re.compile(r"^[ \t]*ElementDataFile[ \t]*[=:][ \t]*(.*?)\s*$", re.MULTILINE)
_NRRD = re.compile(r"^data ?file:\s*(.*?)\s*$", re.MULTILINE | re.IGNORECASE)
_NUMBERED = re.compile(r"([^%]*%0?\d*d[^%]*?) (-?\d+) (-?\d+) (-?[1-9]\d*)( \d+)?")
_CHANNEL = re.compile(r"_\d{4}$")  # number of a channel, as nnU-Net has it
_HEADER_BYTES, _LONG_HEADER_BYTES = 1 << 16, 1 << 20  # the second of segmentations with hundreds of segments
_HEADER_ENDS = (b"\n\n", b"\r\n\r\n", b"ElementDataFile")


def header_start(path: Path) -> str:
    """The first 64 KB of a file as text, which hold the header of NRRD and MetaImage; 1 MB where that goes on."""
    with path.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
        if not any(end in start for end in _HEADER_ENDS):
            start += stream.read(_LONG_HEADER_BYTES - _HEADER_BYTES)
    return start.decode("latin-1")


def detached_files(path: Path) -> tuple[Path, ...]:
    """Files that hold a header's voxels, in its order, wherever it says that they are, whether they exist or not.

    :func:`detached_bytes` refuses those elsewhere than beside or below it. Empty if the voxels are in the file itself,
    or it cannot be read. Of a TIFF it is the file that has its spacing.
    """
    suffix = volume_suffix(path)
    if suffix in TIFF_SUFFIXES:
        return tuple(file for file in [spacing_file(path)] if file)
    if suffix not in (*META_SUFFIXES, *NRRD_SUFFIXES):
        return ()
    try:
        header = header_start(path)
    except OSError:
        return ()
    # Every end of a line that ITK knows.
    header = header.replace("\r\n", "\n").replace("\r", "\n") if suffix in NRRD_SUFFIXES else header
    names = _nrrd_names(header) if suffix in NRRD_SUFFIXES else [match[1] for match in [_META.search(header)] if match]
    # A null character would be an error wherever the name is used.
    places = (_utf8(name).replace("\0", "?") for name in names)
    return tuple(path.parent / name for name in places if name and name.upper() != "LOCAL")


def _utf8(name: str) -> str:
    """A name from :func:`header_start`, whose bytes are UTF-8 in most headers."""
    try:
        return name.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return name


def detached_bytes(path: Path, case: str | None) -> int | None:
    """Bytes of the files beside a header that hold its voxels; None if its own file holds them.

    Raises:
        VolumeError: If one is not there, is no regular file, or lies elsewhere than beside or below the header.
    """
    files = () if volume_suffix(path) in TIFF_SUFFIXES else detached_files(path)
    # Beside the header, or beside what it is a link to; links to the voxels are followed too. git-annex keeps all files
    # of a repository in one place, to which it links.
    homes = {path.parent.resolve(), path.resolve().parent} if files else set()
    stores = [folder / ".git" / "annex" / "objects" for home in homes for folder in (home, *home.parents)]
    homes |= {store for store in stores if store.is_dir() and store.resolve() == store}
    size = 0
    for file in files:
        try:
            place = file.resolve()
            inside, there, regular = any(map(place.is_relative_to, homes)), place.exists(), place.is_file()
        except (OSError, ValueError, RuntimeError):  # a name that no file can have, or links in a circle
            inside, there, regular = True, False, False
        if not inside:
            rule, advice = "a file beside or below its header", "Put both into one folder, and its name into the header"
            raise refuse("unreadable", "voxel data", rule, file, advice, case=case, file=path)
        if not regular or "%" in file.name or file.name.startswith("LIST") or len(files) >= _MOST_FILES:
            got = f"no {file.name} beside it" if not there else "a list, a device or too many files"
            gone = (got, "Copy both files of the volume")
            if not there and is_named(file):  # a link to nowhere
                gone = absence(file) or gone
            raise refuse("missing", "voxel data", f"the file {file.name}", *gone, case=case, file=path)
        size += place.stat().st_size
    return size if files else None


def spacing_file(path: Path) -> Path | None:
    """The file beside a TIFF that has its spacing, if there is one: ``c0.json`` of ``c0.tif`` and ``c0_0000.tif``."""
    stem = volume_stem(path)
    names = dict.fromkeys((stem, _CHANNEL.sub("", stem)))
    return next((file for name in names if (file := path.with_name(f"{name}.json")).is_file()), None)


def _nrrd_names(header: str) -> list[str]:
    """One name, numbered names, or a list that ends the header; an attached header ends with an empty line."""
    # A header within the file ends at the first empty line; voxels behind it may look like anything.
    found = _NRRD.search(header.split("\n\n", maxsplit=1)[0])
    if found is None:
        return []
    if found[1].startswith("LIST"):
        names = header[found.end() :].split("\n")[1 : 1 + _MOST_FILES]
        return [name for name in names if name] or ["LIST"]
    numbered = _NUMBERED.fullmatch(found[1])
    if numbered is None:
        return [found[1]]
    first, last, step = (int(numbered[group]) for group in (2, 3, 4))
    numbers = range(first, last + (1 if step > 0 else -1), step)[:_MOST_FILES]
    return [numbered[1] % number for number in numbers]
