"""Reading and writing files, and the folder of a run: a killed run or a full disk leaves a finished file or none."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from pipeline.core.documents import conform, read_json, require_regular
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.locks import NO_LOCKS, lock

_NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # a full disk or a used-up quota
_NOT_UTF8 = "backslashreplace"  # bytes of file names that are not UTF-8: from \udce9 JSON gives the name back
_MARK = 8  # characters that tell temporary names of the same file apart
_NAME = 60  # characters of the file's own name in them


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
    temporary, held = None, None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary, held = _take(target)
        yield temporary
        # Else the rename could reach the disk before the content, and a power cut would leave an empty file.
        _sync(temporary)
        temporary.replace(target)
        temporary = None  # what has this name from now on is of the next write
    except OSError as error:
        raise why_not_written(error, target) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # an unreachable folder must not hide the error that is already on its way
                temporary.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def _temporary(target: Path, mark: str) -> Path:
    # In the same folder, because only there renaming is one step. The suffixes stay: writers choose the format by them.
    # Of a long name only the end, since names have at most 255 bytes and a character up to four.
    return target.with_name(f".{mark[:_MARK]}.part.{target.name[-_NAME:]}")


def _take(target: Path) -> tuple[Path, int | None]:
    """Take a temporary name for one write of a file: always the same, with what a killed write left under it.

    So that what a killed run left goes with the next run, which writes the same files. The name is another one each
    time while a second process is at work with the first, or where there are no locks.

    Returns:
        The path, and the descriptor of the empty locked file there; None for a name of the second kind.
    """
    path = _temporary(target, text_hash(target.name))
    try:
        held = lock(path, wait=False)
        while os.fstat(held).st_size or os.fstat(held).st_nlink > 1:
            try:  # removed, not emptied: it may be a hard link to a file of someone
                path.unlink()
            finally:
                os.close(held)
            held = lock(path, wait=False)
    except OSError as error:
        if error.errno in NO_LOCKS:
            path.unlink(missing_ok=True)
        return _temporary(target, uuid4().hex), None
    return path, held


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
            temporary.unlink(missing_ok=True)
            with suppress(OSError):  # another disk, or a file system without hard links
                os.link(source, temporary)
        if not (link and temporary.exists()):
            shutil.copyfile(source, temporary)


def write_text(path: Path | str, content: str) -> None:
    """Write UTF-8 text atomically, its line ends unchanged on every system."""
    write_bytes(path, content.encode("utf-8", _NOT_UTF8))


def write_json(path: Path | str, content: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically.

    Args:
        path: The file.
        content: Anything that JSON knows.
        indent: Spaces per level; None writes one line, which is many times faster, for small files in large numbers.

    Raises:
        ValueError: If the content holds NaN or infinity, which JSON does not know.
    """
    as_text: Any = {"encoding": "utf-8", "errors": _NOT_UTF8, "newline": "\n"}
    with atomic_path(path) as temporary, temporary.open("w", **as_text) as stream:
        if indent is None:
            stream.write(json.dumps(content, ensure_ascii=False, allow_nan=False))
        else:
            json.dump(content, stream, indent=indent, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def text_hash(*parts: str) -> str:
    """Content hash (16 hex digits) of texts in their order."""
    content = hashlib.blake2b(digest_size=8)
    # The length goes before each text: ("ab", "c") and ("a", "bc") are different contents.
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")  # parts may be names of files
        content.update(len(encoded).to_bytes(8, "little"))
        content.update(encoded)
    return content.hexdigest()


def file_hash(path: Path | str) -> str:
    """Content hash (32 hex digits) of a file, read in pieces.

    Raises:
        VolsegError: If it is a pipe or a device.
    """
    require_regular(Path(path))
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


def read_record(path: Path, kind: Any = None) -> dict[str, Any]:
    """The record of an earlier run, as it was written; empty if it is missing or damaged.

    Args:
        path: The file.
        kind: The type it must have, a pydantic model; None for any JSON object.
    """
    try:
        content = read_json(path)
        if kind is not None:
            conform(content, kind, path)
        json.dumps(content, allow_nan=False)  # what no record can hold could not be written again
    except (VolsegError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def inside(folder: Path, name: object) -> Path | None:
    """The path that a record names in a folder, relative to it; None for what leads out of it, or is no name.

    A record can be edited, or come with a folder from elsewhere: whatever deletes, copies or reads by one asks here.
    """
    if not isinstance(name, str):
        return None
    path = folder / name
    try:  # compared after links are resolved, since a link can lead anywhere
        found = path.resolve().is_relative_to(folder.resolve())
        path.exists()  # raises for names that no file can have
    except (OSError, ValueError, RuntimeError):  # too long, with a null character, or a link to itself
        return None
    return path if found else None


class OutputFolder:
    """The folder that one run writes: what it may overwrite there, what it refuses and what it removes.

    The policy of all commands is in ``docs/architecture.md``, "Output folders". In short: the record is written first;
    only folders and files that an earlier record of the same origin names are taken; a damaged record is none;
    what is unchanged is kept, what is stale removed. Nothing outside the folder is touched, whatever a record says,
    because it can be edited, or come from elsewhere: :func:`inside` decides. Where others are at work, temporary files
    are those of a killed run only if no other lives (:mod:`~pipeline.core.together`).

    Args:
        path: The folder; it need not exist.
        record: File name of its record; empty where the layout of the folder has no place for one.
        origin: Keys and values that the record of an earlier run must have for its files to be those of this run.

    Attributes:
        record: Path of the record.
        earlier: The record of an earlier run, of whatever origin; empty if there is none.
    """

    def __init__(self, path: Path, record: str = "", origin: Mapping[str, Any] | None = None) -> None:
        self.path, self.record, self.origin = path, path / record, dict(origin or {})
        self.earlier = read_record(self.record) if record else {}

    def require_own(self, earlier_run: str) -> None:
        """Refuse a folder that holds anything but what an earlier run of the same origin wrote.

        ``earlier_run`` says whose files may be there, e.g. ``an earlier repair of this dataset``.

        Raises:
            VolsegError: If other files are there, or the path is that of a file.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.glob("[!.]*"))):
            return
        # Only the keys of the origin: what else a record says may change from run to run.
        origin = {key: self.earlier.get(key) for key in self.origin}
        if self.earlier and origin == self.origin:
            return
        got = "a file" if self.path.is_file() else "other files"
        if self.earlier:
            got = f"one with {', '.join(f'{key} {value}' for key, value in origin.items())}"
        self.refuse(f"a new folder, or {earlier_run}", got)

    def require_only(self, expected: Collection[Path], rule: str) -> None:
        """Refuse a folder in which other files stand than those that this run writes; hidden files do not count.

        ``rule`` says what the folder must be, for the message.
        """
        strangers = (
            file.relative_to(self.path) for file in self.path.rglob("*") if file not in expected and file.is_file()
        )
        others = sorted(name for name in strangers if not any(part.startswith(".") for part in name.parts))
        if others:
            self.refuse(rule, f"{len(others)} other files such as {others[0]}")

    def require_free(self, files: Iterable[Path], own: Collection[Path], earlier_run: str) -> None:
        """Refuse to overwrite files other than those that an earlier run wrote.

        Raises:
            VolsegError: If another file is in the way.
        """
        taken = next((file for file in files if file not in own and file.exists()), None)
        if taken is not None:
            rule = f"a free place or {earlier_run}"
            raise VolsegError(sentence(str(taken), rule, "another file", "Use another output folder"))

    def refuse(self, rule: str, got: str) -> NoReturn:
        """Raise the sentence that says why this folder cannot be taken."""
        raise VolsegError(
            sentence("output folder", rule, got, "Choose another folder, or empty this one", file=self.path)
        )

    def listed(self, key: str) -> set[str]:
        """Names that the record of an earlier run lists under a key; none if it has no such list."""
        names = self.earlier.get(key)
        return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()

    def remove(self, names: Iterable[object]) -> None:
        """Remove files by their names in the record, relative to the folder; what leads out of it stays."""
        for path in (inside(self.path, name) for name in names):
            if path is not None and not path.is_dir():
                path.unlink(missing_ok=True)

    def remove_empty_folders(self) -> None:
        """Remove folders below this one in which nothing is left."""
        # The deepest come first, so that a folder of empty folders goes too.
        for folder in sorted((path for path in self.path.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):  # not empty
                folder.rmdir()
