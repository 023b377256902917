"""What stands behind a name: whether a folder has it, and why nothing can be opened there.

A file that a folder or a list names and that cannot be opened is never left out: it stays in every list, and whoever
opens it says with :func:`absence` what is there instead.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path

from pipeline.core.errors import DataError, sentence

# What Git keeps in place of a file that was not fetched, and what fetches it. Where a system has no links, git-annex's
# link to the content is a text too. https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md and
# https://git-annex.branchable.com/internals/pointer_file/
_POINTERS = (
    ("Git LFS", re.compile(rb"version https://(git-lfs|hawser)\.github\.com/spec/"), "git lfs pull"),
    ("git-annex", re.compile(rb"[./]*(\.git)?/annex/objects/"), "git annex get or datalad get"),
)
_POINTER_BYTES = 1 << 15  # git-annex takes no longer file for a pointer
_HEAD_BYTES = 200

ABSENT = "nothing there"
"""What is at a path that no folder names."""


def composed(name: str) -> str:
    """A name in Unicode's form NFC; macOS and its archives write ``ü`` as two characters (NFD).

    Names that look the same are the same: ids of cases are kept in this form, and names of files are compared in it.
    They can be written into any file, see :func:`utf8_name`.
    """
    return unicodedata.normalize("NFC", utf8_name(name))


def utf8_name(name: str) -> str:
    """A file's name as text that every file can hold: bytes that are not UTF-8 become ``%E9``."""
    return re.sub(r"[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)


def is_named(path: Path) -> bool:
    """Whether a folder has an entry of this name, also if that is a link to nowhere."""
    return os.path.lexists(path)


def is_broken_link(path: Path) -> bool:
    """Whether there is a link that leads to nothing that can be opened."""
    return path.is_symlink() and absence(path) is not None


def pointer(content: bytes) -> tuple[str, str] | None:
    """What a file is if its first bytes are those of a pointer, and what to do; as :func:`absence` has it."""
    for name, pattern, tool in _POINTERS:
        if pattern.match(content):
            return f"a pointer of {name} in place of the file", f"Fetch the file with {tool}"
    return None


def absence(path: Path) -> tuple[str, str] | None:
    """What is there instead of content that can be read, and what to do; None if there is a file or a folder.

    The two are ready for :func:`~pipeline.core.errors.sentence`: ``a link to /data/x.nii.gz, which is not there``, and
    ``Fetch ...``.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _POINTER_BYTES:
            return None
        with path.open("rb") as stream:
            return pointer(stream.read(_HEAD_BYTES))
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        return _why_not(path, error)


def _why_not(path: Path, error: OSError | ValueError) -> tuple[str, str]:
    missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
    reason = getattr(error, "strerror", None) or str(error)
    if os.path.islink(path):  # noqa: PTH114  # Path.is_symlink raises where a folder may not be searched
        got = f"a link to {path.readlink()}, " + ("which is not there" if missing else f"which says: {reason}")
        return got, "Fetch the file (git annex get, datalad get), mount its disk, or remove the link"
    return (ABSENT, "Check the path") if missing else (f"an error ({reason})", "Check path and permissions")


def real(path: Path) -> Path:
    """A path without links, absolute; also of a link that leads to itself, where ``Path.resolve`` raises."""
    return Path(os.path.realpath(path))


def entries(folder: Path, *, hidden: bool = False) -> list[Path]:
    """What a folder names, sorted by name: files, folders, links to nowhere; hidden ones (``._x``) only if asked for.

    Raises:
        DataError: If the folder cannot be listed.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if hidden or entry.name[0] != ".")
    except (OSError, ValueError) as error:
        got, advice = _why_not(folder, error)
        raise DataError(sentence("folder", "a folder that can be listed", got, advice, file=folder)) from None


def names_beside(path: Path) -> tuple[str, ...]:
    """The names in the folder of a file, sorted, to find one that is much like it; none if it cannot be listed."""
    try:
        return _names(path.parent, path.parent.stat().st_mtime_ns)
    except (OSError, ValueError):
        return ()


# A list of thousands of cases asks for the names in the same folder thousands of times.
@lru_cache(maxsize=8)
def _names(folder: Path, _: int) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir()))


def located(root: Path, name: str) -> Path:
    r"""The path that a list or a description means by a name, relative to its folder.

    A name that is not there as it is written is taken with ``/`` for Windows' ``\``, and then in whichever form of its
    accented letters the folders have it. What is not there at all is a path too: opening it says so.
    """
    path = root / name
    if ("\\" not in name and name.isascii()) or is_named(path):  # no look at the disk for every plain name
        return path
    path = root / name.replace("\\", "/")
    if is_named(path) or name.isascii():
        return path
    found = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        found /= part
        if not is_named(found):
            alike = (beside for beside in names_beside(found) if composed(beside) == composed(part))
            found = found.with_name(next(alike, part))
    return found
