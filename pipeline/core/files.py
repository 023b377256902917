"""Reading and writing files: a killed run or a full disk leaves a finished file or none; content hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.core.errors import VolsegError

_NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # a full disk or a used-up quota
_MARK = 8  # characters that tell temporary names of the same file apart


def own_version() -> str:
    """Version of volseg; ``source`` where it runs without being installed."""
    try:
        return version("volseg")
    except PackageNotFoundError:
        return "source"


def signature() -> dict[str, str]:
    """``version`` and ``date``, for the foot of pages."""
    return {"version": own_version(), "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Give a temporary path beside the target; on success it is synced and renamed onto the target, else removed.

    The folder of the target is created.

    Raises:
        VolsegError: If the disk is full or the folder cannot be written to.
    """
    target = Path(target)
    # In the same folder, because only there renaming is one step. The suffixes stay: writers choose the format by them.
    temporary = target.with_name(f".{uuid4().hex[:_MARK]}.part.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Else the rename could reach the disk before the content, and a power cut would leave an empty file.
        _sync(temporary)
        temporary.replace(target)
    except OSError as error:
        raise why_not_written(error, target) from error
    finally:
        with suppress(OSError):  # an unreachable folder must not hide the error that is already on its way
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, deep: bool = False) -> None:
    """Remove the temporary files that a killed run left in a folder, with ``deep`` also in those below.

    Only for folders to which one run writes. The folder need not exist. What cannot be removed is left: the next write
    into the folder says why.
    """
    for path in (folder.rglob if deep else folder.glob)(f".{'[0-9a-f]' * _MARK}.part.*"):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write bytes atomically. Raises VolsegError as :func:`atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def copy_file(source: Path, target: Path, *, link: bool = False) -> None:
    """Copy a file atomically, byte by byte; a symbolic link is followed.

    Args:
        source: The file.
        target: The copy.
        link: Make a hard link instead where the file system can, which takes no space. Then a change within one of the
            two files shows in both.
    """
    source = source.resolve()
    if link and target.exists() and target.samefile(source):
        return
    with atomic_path(target) as temporary:
        if link:
            with suppress(OSError):  # another disk, or a file system without hard links
                os.link(source, temporary)
        if not temporary.exists():
            shutil.copyfile(source, temporary)


def write_text(path: Path | str, content: str) -> None:
    """Write UTF-8 text atomically, its line ends unchanged on every system."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path | str, content: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically.

    Args:
        path: The file.
        content: Anything that JSON knows.
        indent: Spaces per level; None writes one line, which is many times faster, for small files in large numbers.

    Raises:
        ValueError: If the content holds NaN or infinity, which JSON does not know.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        if indent is None:
            stream.write(json.dumps(content, ensure_ascii=False, allow_nan=False))
        else:
            json.dump(content, stream, indent=indent, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def read_json(path: Path | str, missing: str = "Check the path.") -> Any:
    """Read JSON; ``missing`` is the advice if the file is not there, a full sentence.

    Raises:
        VolsegError: If the file is missing, cannot be read or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VolsegError(f"{path}: expected a JSON file, got nothing there. {missing}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise VolsegError(f"{path}: expected JSON, got {error}. Repair or write the file again.") from None
    except OSError as error:
        detail = error.strerror or str(error)
        raise VolsegError(f"{path}: expected a readable file, got {detail!r}. Check path and permissions.") from None


def text_hash(*parts: str) -> str:
    """Content hash (16 hex digits) of texts in their order."""
    content = hashlib.blake2b(digest_size=8)
    # The length goes before each text: ("ab", "c") and ("a", "bc") are different contents.
    for part in parts:
        encoded = part.encode("utf-8")
        content.update(len(encoded).to_bytes(8, "little"))
        content.update(encoded)
    return content.hexdigest()


def file_hash(path: Path | str) -> str:
    """Content hash (32 hex digits) of a file, read in pieces."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    if path.stat().st_nlink > 1:  # a hard link to a file that is on the disk already, and may be read-only
        return
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def why_not_written(error: OSError, target: Path) -> VolsegError:
    """The error of a system as one sentence on what could not be written."""
    if error.errno in _NO_SPACE:
        return VolsegError(f"{target}: the disk is full, nothing was written. Free some space and run again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return VolsegError(f"{target}: no permission to write there. Choose another output folder.")
    return VolsegError(f"{target}: could not be written ({error.strerror or error}). Check the path and the disk.")
