"""DICOM files and archives of them, opened by pydicom within limits, and the plain values of their elements.

Loaded by the process that reads, see :mod:`pipeline.data.dicom_reader`. What comes out of an element is a number, an
identifier or a word; what a library says about a file is not passed on, since it may quote it.
"""

from __future__ import annotations

import io
import math
import re
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from pipeline.core import machine
from pipeline.data.reader_process import allow_memory

MOST_FILES = 50_000
"""Most files of a folder, an archive or a DICOMDIR."""

_MOST_ARCHIVE_BYTES = 64 << 30  # of an archive, unpacked
_MOST_FILE_BYTES = 8 << 30
_IN_MEMORY_BYTES = 256 << 20  # of a member of an archive whose header alone is wanted
_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory


class RefusedError(Exception):
    """Words of our own, which may be told."""


class NotDicomError(Exception):
    """A file that is something else."""


def archive_names(path: str) -> list[str]:
    """Names of the regular files of an archive within the limits, sorted."""
    found = [entry for entry in _archive(path).infolist() if not entry.is_dir()]
    if len(found) > MOST_FILES:
        raise RefusedError(f"{len(found)} files, more than {MOST_FILES}")
    if sum(entry.file_size for entry in found) > _MOST_ARCHIVE_BYTES:
        raise RefusedError(f"more than {_MOST_ARCHIVE_BYTES >> 30} GiB, unpacked")
    if any(entry.flag_bits & 1 for entry in found):
        raise RefusedError("encrypted files")
    # Nothing is unpacked to the disk, but an archive with such names was made to harm.
    if any(not _stays_inside(entry.filename) for entry in found):
        raise RefusedError("a file name that leads out of the archive")
    mode = {entry.filename: entry.external_attr >> 16 for entry in found}
    return sorted(name for name in mode if not (stat.S_IFMT(mode[name]) and not stat.S_ISREG(mode[name])))


def _archive(path: str) -> zipfile.ZipFile:
    status = Path(path).stat()
    return _open_archive(path, status.st_mtime_ns, status.st_size)


# Its files are asked for one after the other, and its list of them may be long.
@lru_cache(maxsize=1)
def _open_archive(path: str, *_: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _stays_inside(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and parts[0] != "/" and ":" not in parts[0] and ".." not in parts and "\0" not in name


def file_stamp(archive: str, file: str) -> tuple[Any, ...]:
    """What tells a file, or a member of an archive, from another one and from itself after a change."""
    status = Path(archive or file).stat()
    return archive, file, status.st_mtime_ns, status.st_size


def file_bytes(archive: str, file: str) -> int:
    """Size of a file, or of a member of an archive as its list says."""
    return _archive(archive).getinfo(file).file_size if archive else Path(file).stat().st_size


@contextmanager
def opened(archive: str, file: str, *, whole: bool = True) -> Iterator[IO[bytes]]:
    """A file, or a member of an archive: in memory, or, if its header alone is wanted, as it is unpacked."""
    size = file_bytes(archive, file)
    if not archive:
        if whole:  # pydicom holds the pixels, of which a part is copied
            allow_memory(2 * min(size, _MOST_FILE_BYTES))
        with Path(file).open("rb") as stream:
            yield stream
        return
    if size > _MOST_FILE_BYTES:
        raise RefusedError(f"a file of more than {_MOST_FILE_BYTES >> 30} GiB")
    entry = _archive(archive).getinfo(file)
    if not whole and size > _IN_MEMORY_BYTES:
        with _archive(archive).open(entry) as member:
            yield io.BufferedReader(cast(io.RawIOBase, member), 1 << 20)  # it reads as a raw stream does
        return
    free = machine.available_bytes() if size > _IN_MEMORY_BYTES else None
    if free is not None and 3 * size > free:
        raise RefusedError("a file larger than the free memory")
    allow_memory(3 * size)
    with _archive(archive).open(entry) as member:
        content = member.read(size + 1)
    if len(content) != size:
        raise RefusedError("a file of another size than the archive says")
    yield io.BytesIO(content)


def read_dataset(stream: IO[bytes], **options: Any) -> Any:
    """The data set of a file; options as of ``pydicom.dcmread``."""
    import pydicom

    # Some scanners and old archives leave out the preamble.
    marked = is_marked(stream)
    dataset = pydicom.dcmread(stream, force=not marked, **options)
    if not marked and not (uid(dataset, "SOPClassUID") and "Rows" in dataset):
        raise NotDicomError
    return dataset


def is_marked(stream: IO[bytes]) -> bool:
    """Whether DICOM's mark is behind the preamble."""
    stream.seek(128)
    marked = stream.read(4) == b"DICM"
    stream.seek(0)
    return marked


def referenced_files(stream: IO[bytes]) -> list[str]:
    """Files that the records of a DICOMDIR name."""
    dataset = read_dataset(stream, specific_tags=["DirectoryRecordSequence"])
    if uid(dataset.file_meta, "MediaStorageSOPClassUID") != _DIRECTORY:
        raise RefusedError("a file that is no DICOMDIR")
    records = list(dataset.get("DirectoryRecordSequence") or ())
    if len(records) > 4 * MOST_FILES:
        raise RefusedError(f"{len(records)} records")
    found = []
    for record in records:
        name = record.get("ReferencedFileID")
        if name:
            joined = "/".join([name] if isinstance(name, str) else [str(part) for part in name])
            if not _stays_inside(joined):
                raise RefusedError("a file name that leads out of its folder")
            found.append(joined)
    return list(dict.fromkeys(found))


# Values of elements.


def words(value: Any) -> list[str]:
    """The first words of an element of several, in capital letters."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else ()
    return [str(text).strip().upper() for text in list(texts)[:20]]


def uid(item: Any, name: str) -> str:
    """An identifier; empty if there is none."""
    text = str(item.get(name, "") or "").strip()
    return text if re.fullmatch(r"[0-9.]{1,64}", text) else ""


def whole(item: Any, name: str) -> int | None:
    """A whole number of 32 bits; None if there is none."""
    found = numbers(item, name, 1)
    return int(found[0]) if found and abs(found[0]) < 1 << 31 else None


def numbers(item: Any, name: str, count: int) -> list[float] | None:
    """So many finite numbers of an element; None if they are not there."""
    value = item.get(name)
    if value is None or value == "":
        return None
    values = list(value) if not isinstance(value, str) and isinstance(value, Sequence) else [value]
    with suppress(TypeError, ValueError, OverflowError):
        found = [float(number) for number in values]
        if len(found) == count and all(map(math.isfinite, found)):
            return found
    return None


def items(dataset: Any, name: str) -> list[Any]:
    """Items of a sequence; none if there is no such sequence."""
    found = dataset.get(name)
    return list(found) if found and not isinstance(found, str | bytes) else []
