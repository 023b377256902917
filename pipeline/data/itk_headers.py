"""Headers of NRRD, MetaImage, PNG and TIFF, checked before ITK's decoders see the file.

A header that breaks these rules may crash ITK, keep it busy for ever, let it take memory without end, or read files
that have nothing to do with the volume. What the rules leave is for ITK to refuse.

Formats: https://teem.sourceforge.net/nrrd/format.html, https://itk.org/Wiki/ITK/MetaIO/Documentation,
https://www.w3.org/TR/png (11.2.1 IHDR), TIFF 6.0 (Adobe, 1992) and BigTIFF (https://libtiff.gitlab.io/libtiff).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from pipeline.data.detached_files import detached_bytes, header_start
from pipeline.data.volume_file import (
    MAX_DEFLATE_RATIO,
    META_SUFFIXES,
    NRRD_SUFFIXES,
    TIFF_SUFFIXES,
    checked_size,
    refuse,
    volume_suffix,
)

DECODERS = {
    **dict.fromkeys(NRRD_SUFFIXES, "NrrdImageIO"),
    **dict.fromkeys(META_SUFFIXES, "MetaImageIO"),
    **dict.fromkeys(TIFF_SUFFIXES, "TIFFImageIO"),
    ".png": "PNGImageIO",
}
"""File name endings and ITK's class that reads them: no other decoder looks at a file."""

_ADVICE = "The header is damaged; copy or export the file again"
_CUT = "The file is truncated or its header damaged; copy or export it again"
_MOST_AXES = 5  # of images and colours; ITK crashes on some with more
_MOST_LINE = 1000  # characters: ITK copies fields of NRRD into memory of fixed length
_FREE_TEXT = ("content", "labels")  # fields whose text may be longer, because ITK does not
_NOT_FINITE = re.compile(  # ITK takes NaN in a NRRD header for "not given", and puts 0 in its place
    r"^(space origin|space directions|spacings|offset|origin|position|transformmatrix|elementspacing)"
    r"\s*[:=](.*\b(nan|inf)\b.*)$",
    re.MULTILINE | re.IGNORECASE,
)
_DATA_FILE = re.compile("elementdatafile", re.IGNORECASE)

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type → numbers per pixel
_PNG_DEPTHS = (1, 2, 4, 8, 16)

# Types of tags, as struct knows them; bytes and texts are "B".
_TIFF_KINDS = {3: "H", 4: "I", 5: "Q", 8: "h", 9: "i", 10: "q", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_TIFF_MOST = 100_000  # pages; ITK takes 65,535 of them
_TIFF_RATIO = 40_000  # no compression of TIFF makes less of a block of zeros
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES = 256, 257, 258, 259, 277
_PLANAR = 284
_STRIPS, _TILES = (273, 279, 278), (324, 325, 323)  # tags of places, lengths, and rows of one
_TAGS = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _PLANAR, *_STRIPS, *_TILES}


class Stored(NamedTuple):
    """Bytes that hold voxels on disk, and whether they are compressed."""

    size: int
    compressed: bool


def check_header(path: Path, case: str | None) -> Stored | None:
    """Refuse a file whose header ITK must not see.

    Returns:
        What a NRRD or MetaImage file holds, to be compared with what ITK finds promised; None for pictures, whose
        pixels were compared.

    Raises:
        VolumeError: If the file is of another kind; lines or numbers of the header are out of bounds; the voxels are
            in files elsewhere, or fewer than promised.
    """
    suffix = volume_suffix(path)
    if suffix == ".png":
        _check_png(path, case)
        return None
    if suffix in TIFF_SUFFIXES:
        _check_tiff(path, case)
        return None
    return _nrrd(path, case) if suffix in NRRD_SUFFIXES else _meta_image(path, case)


def _nrrd(path: Path, case: str | None) -> Stored:
    header = header_start(path)
    if not header.startswith("NRRD00"):
        _other_kind(path, case)
    # ITK ends a line at any of these; the header ends at the first empty line, or with the file.
    lines, start = [], len(header)
    for match in re.finditer(r"([^\r\n]*)(\r\n|\n|\r|$)", header):
        if not match[1]:
            start = match.end()
            break
        lines.append(match[1])
    _require_end(header, start, path, case)
    text = "\n".join(lines)
    _require_finite(text, path, case)
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        # Comments, and keys with free values (``key:=value``), have no effect on the voxels.
        if line.startswith("#") or value.startswith("="):
            continue
        name = name.lower()
        if len(line) > _MOST_LINE and name not in _FREE_TEXT:
            rule, got = f"at most {_MOST_LINE} characters", f"{len(line)}"
            raise refuse("unreadable", f"header, {name[:20]}", rule, got, _ADVICE, case=case, file=path)
        fields[name] = value.strip()
    _require_axes(fields.get("dimension", ""), path, case)
    plain = fields.get("encoding", "").lower() in ("raw", "")
    elsewhere = detached_bytes(path, case)
    size = path.stat().st_size - (start if plain else 0) if elsewhere is None else elsewhere
    return Stored(size, not plain)


def _meta_image(path: Path, case: str | None) -> Stored:
    header = header_start(path)
    last = _DATA_FILE.search(header)
    line_start = 0 if last is None else header.rfind("\n", 0, last.start()) + 1
    # The name of the file with the voxels ends the header. ITK would pass over one that is hidden in another line, and
    # take the next.
    if last is None or header[line_start : last.end()].strip() != "ElementDataFile":
        _other_kind(path, case)
    if _DATA_FILE.search(header, last.end()):
        rule, got = "one ElementDataFile", "two"
        raise refuse("unreadable", "header", rule, got, _ADVICE, case=case, file=path)
    end = header.find("\n", last.end()) + 1 or len(header)
    _require_end(header, end, path, case)
    _require_finite(header[:end], path, case)
    axes = re.findall(r"ndims\s*[=:]?([^\n]*)", header[:end], re.IGNORECASE)
    for given in axes or [""]:
        _require_axes(given.strip(), path, case)
    elsewhere = detached_bytes(path, case)
    size = path.stat().st_size - end + 1 if elsewhere is None else elsewhere
    return Stored(size, re.search(r"CompressedData\s*[=:]\s*[T1]", header[:end], re.IGNORECASE) is not None)


def _require_end(header: str, end: int, path: Path, case: str | None) -> None:
    """Refuse a header that goes on behind what was read of it."""
    if end >= len(header) and len(header) < path.stat().st_size:
        got = f"more than {len(header)} bytes"
        raise refuse("unreadable", "header", "an end of it", got, _ADVICE, case=case, file=path)


def _require_finite(header: str, path: Path, case: str | None) -> None:
    strange = _NOT_FINITE.search(header)
    if strange:
        got, advice = strange[2].strip(), "Repair the header or export the volume again"
        raise refuse("affine", f"header, {strange[1]}", "finite numbers", got, advice, case=case, file=path)


def _require_axes(given: str, path: Path, case: str | None) -> None:
    if not re.fullmatch(r"\d{1,9}", given) or not 1 <= int(given) <= _MOST_AXES:
        got = f"{given[:20]} axes" if given else "no number of axes"
        raise refuse("dimensions", "shape", "three axes", got, "Export one 3D volume per file", case=case, file=path)


def _check_png(path: Path, case: str | None) -> None:
    with path.open("rb") as stream:
        start = stream.read(33)
    if not start.startswith(_PNG_MAGIC):
        _other_kind(path, case)
    length, name, width, height, depth, colour = (*struct.unpack(">I4sIIBB", start[8:26].ljust(18, b"\0")),)
    if length != 13 or name != b"IHDR" or colour not in _PNG_CHANNELS or depth not in _PNG_DEPTHS or len(start) < 33:
        raise refuse("unreadable", "header", "a size and a type", "others", _ADVICE, case=case, file=path)
    if _PNG_CHANNELS[colour] == 2:  # which SimpleITK's decoder does not know
        advice = "Save the picture without transparency"
        raise refuse("type", "pixels", "grey levels or colours", "grey with opacity", advice, case=case, file=path)
    _check_pixels((width, height), depth * _PNG_CHANNELS[colour], path, case, Stored(path.stat().st_size, True))


def _check_pixels(size: tuple[int, int], bits: int, path: Path, case: str | None, stored: Stored) -> None:
    """Refuse a picture of more pixels than its bytes can hold; ``bits`` are those of a pixel."""
    width, height = size
    if not width or not height:
        got = f"({width}, {height})"
        raise refuse("size", "shape", "axes of at least 1 voxel", got, _ADVICE, case=case, file=path)
    # Rows in whole bytes, and of these no more than there are: a picture of few bits per pixel has more pixels.
    checked_size((max(1, width * bits // 8), height), 1, stored.size, stored.compressed, path, case)


class _Page(NamedTuple):
    """A directory of a TIFF file: tag → values."""

    tags: Mapping[int, tuple[int, ...]]

    def one(self, tag: int, otherwise: int) -> int:
        """The only or first value of a tag."""
        return next(iter(self.tags.get(tag, ())), otherwise)


def _check_tiff(path: Path, case: str | None) -> None:
    """Refuse directories in a circle or outside the file, and strips or tiles outside it."""
    length = path.stat().st_size
    with path.open("rb") as stream:
        try:
            # Together too: many pages may have the same few pixels.
            needed = sum(_check_page(page, length, path, case) for page in _pages(stream, length))
            if needed > length:
                raise _DamagedError(f"pixels of {needed} bytes at least in {length}")
        except (_DamagedError, struct.error) as error:
            got = str(error) if isinstance(error, _DamagedError) else "one that ends before"
            raise refuse("truncated", "file", "a complete TIFF", got, _CUT, case=case, file=path) from None
        except _OtherKindError:
            _other_kind(path, case)


class _DamagedError(Exception):
    """A TIFF file whose directories do not lie in it; the text says how."""


class _OtherKindError(Exception):
    """No TIFF file."""


def _pages(stream: IO[bytes], length: int) -> Iterator[_Page]:
    """Directories, from the first on; all that they point to lies in the file."""

    def numbers(form: str, at: int | None = None) -> tuple[Any, ...]:
        if at is not None:
            stream.seek(at)
        return struct.unpack(order + form, stream.read(struct.calcsize(order + form)))

    start = stream.read(4)
    order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
    version = struct.unpack(f"{order}H", start[2:])[0] if order and len(start) == 4 else 0
    if version not in (42, 43):
        raise _OtherKindError
    # BigTIFF, version 43, has 8 bytes for every count and place.
    place, count = ("Q", "Q") if version == 43 else ("I", "H")
    width = struct.calcsize(place)
    (at,) = numbers(place, 8 if version == 43 else 4)
    seen: set[int] = set()
    while at:
        if at in seen or len(seen) == _TIFF_MOST:
            raise _DamagedError("directories in a circle" if at in seen else f"more than {_TIFF_MOST} pages")
        seen.add(at)
        if at >= length:
            raise _DamagedError(f"a directory at byte {at} of {length}")
        (entries,) = numbers(count, at)
        if entries > _TIFF_MOST:
            raise _DamagedError(f"{entries} tags")
        block = stream.read(entries * (4 + 2 * width))
        (at,) = numbers(place)
        tags = {}
        for tag, kind, number, inline in struct.iter_unpack(f"{order}HH{place}{width}s", block):
            form = f"{number}{_TIFF_KINDS.get(kind, 'B')}"
            size = struct.calcsize(order + form)
            # In the entry if the values fit there, else where the entry says.
            where = None if size <= width else struct.unpack(order + place, inline)[0]
            if where is not None and where + size > length:
                raise _DamagedError(f"a table at bytes {where} to {where + size} of {length}")
            if tag in _TAGS:
                tags[tag] = struct.unpack(order + form, inline[:size]) if where is None else numbers(form, where)
        yield _Page(tags)


def _check_page(page: _Page, length: int, path: Path, case: str | None) -> int:
    """The least bytes that a page's pixels take, all of which lie in the file."""
    width, height, samples = page.one(_WIDTH, 0), page.one(_HEIGHT, 0), page.one(_SAMPLES, 1)
    bits, compressed = page.one(_BITS, 1) * samples, page.one(_COMPRESSION, 1) != 1
    places, lengths, rows = next((tags for tags in (_STRIPS, _TILES) if tags[0] in page.tags), _STRIPS)
    at, sizes = page.tags.get(places, ()), page.tags.get(lengths, ())
    row = (width * bits + 7) // 8
    if not compressed and places == _STRIPS[0]:
        # ITK takes wrong lengths of plain strips for what their rows need. Colours lie together, or one after another.
        whole = height * (row if page.one(_PLANAR, 1) == 1 else (width * bits // samples + 7) // 8)
        least = max(1, min(page.one(rows, height), height))
        each, strips = whole * least // max(1, height), max(1, -(-height // least))
        sizes = tuple(min(each, whole - n % strips * each) for n in range(len(at)))
    for start, size in zip(at, sizes, strict=False):
        if start + size > length:
            raise _DamagedError(f"pixels at bytes {start} to {start + size} of {length}")
    ratio = _TIFF_RATIO // MAX_DEFLATE_RATIO + 1 if compressed else 1
    _check_pixels((width, height), bits, path, case, Stored(sum(sizes) * ratio if sizes else length, compressed))
    return height * row // (_TIFF_RATIO if compressed else 1)


def _other_kind(path: Path, case: str | None) -> NoReturn:
    rule, got = f"a readable {volume_suffix(path)} volume", f"a file of another kind ({path.stat().st_size} bytes)"
    raise refuse("format", "file", rule, got, "Copy or export the file again", case=case, file=path)
