"""What every volume format shares: file names, the opened file, what is refused, what label values may be.

A *source* is a file, or a part of one such as ``brain.nii.gz#channel=2of4``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from pipeline.core import machine
from pipeline.core.documents import require_regular
from pipeline.core.errors import DataError, VolsegError, sentence
from pipeline.core.grid import Grid, straightened
from pipeline.core.paths import ABSENT, absence, composed, names_beside, utf8_name

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mhd", ".png", ".tiff", ".tif")
"""File name endings that can be read and written. ``.seg.nrrd`` is NRRD, which 3D Slicer takes for a segmentation."""

NIFTI_SUFFIXES = (".nii", ".nii.gz")
NRRD_SUFFIXES = (".nrrd", ".seg.nrrd")
META_SUFFIXES = (".mha", ".mhd")

PICTURE_SUFFIXES = (".png", ".tiff", ".tif")
"""Those of pictures: slices, grey or in colour."""

TIFF_SUFFIXES = (".tiff", ".tif")
"""Those of pictures that may be stacks of slices."""

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Those of DICOM files, which often have none; a series is a folder, an archive or a file of several frames."""

LIST_SUFFIXES = (".json", ".csv")
"""Those of descriptions and lists of cases."""

RGB = ("R", "G", "B")
"""Channels of a colour picture, in their order."""

# Formats that are not read: what they are, what to do, their endings, and whether such a file is a case wherever it
# lies. The others are often something else (previews, slices of a series, arrays), so that only messages name them.
_TO_NIFTI = "Convert to .nii.gz"
_UNREAD = (
    ("NIfTI or Analyze in two files", f"{_TO_NIFTI}, e.g. with nibabel", (".hdr", ".img", ".hdr.gz", ".img.gz"), True),
    ("FreeSurfer", f"{_TO_NIFTI}, e.g. with mri_convert", (".mgz", ".mgh"), True),
    ("packed by another program", "Unpack, or pack with gzip", (".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip"), True),
    ("another format", _TO_NIFTI, (".mnc", ".gipl", ".gipl.gz", ".nrrd.gz", ".nhdr", ".mha.gz"), True),
    ("pictures", "Convert to .png", (".bmp",), True),
    ("pictures", "Convert to .png", (".jpg", ".jpeg", ".gif", ".webp", ".jp2"), False),
    ("DICOM", "Give the folder of the series", DICOM_SUFFIXES, False),
    ("arrays", f"{_TO_NIFTI}, with the spacing", (".npy", ".npz", ".h5", ".hdf5", ".mat", ".pt"), False),
    ("archives", "Unpack", (".tar", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"), False),
)
_DICOM = _UNREAD[6]

ANY_SERIES = "any"
"""The only DICOM series that can be used, whatever its modality."""

MAX_LABEL = 2**32 - 1
"""Largest label value: what every format stores as an unsigned integer."""

MAX_DEFLATE_RATIO = 1040
"""Deflate cannot compress better than 1032:1 (zlib technical details); plus some room."""

_MAX_VOXELS = 4_000_000_000  # more than any scanner delivers; a larger count means a damaged header
_LARGE = 1 << 30  # bytes of voxels from which on the free memory is looked up
_SHOWN = 5  # fractional values quoted in a message
_SOURCE = re.compile(r"#(channel|label|soft)=(\d+)(?:of(\d+))?$")
_SERIES = re.compile(r"#series=(?P<series>[A-Za-z0-9]+)?(?P<gaps>\+gaps)?$")
_LABELS = "#labels="
_OBJECT = "%7B"  # how an object of JSON begins behind it


class VolumeError(DataError):
    """A volume file cannot be used.

    Args:
        message: One sentence that says what to do.
        code: Kind of problem, a short word for tables and JSON: missing, format, empty, unreadable, truncated,
            dimensions, size, type, affine, labels.
    """

    def __init__(self, message: str, code: str = "unreadable") -> None:
        super().__init__(message)
        self.code = code


class Doubt(NamedTuple):
    """Why readers may place a volume differently, for ``volseg check`` and for notes beside results.

    The severity and code of a problem of ``volseg check``, then the parts of a sentence.
    """

    severity: Literal["warning", "note"]
    code: str
    what: str
    expected: str
    got: str
    advice: str


@dataclass(frozen=True, eq=False)
class VolumeFile:
    """A volume file whose header was read and found sound; the voxels are read by ``load``.

    Args:
        path: The file.
        grid: Grid of one volume.
        volumes: Number of volumes along the fourth axis; 1 for an ordinary volume, 3 for a colour picture.
        form_codes: NIfTI's (sform_code, qform_code), None for other formats.
        load: Reads the voxels as stored (scaled if the header says so): (I, J, K), or (I, J, K, volumes) if there are
            several. Raises VolumeError if they cannot be read.
        forms_apart_mm: How far NIfTI's qform or pixdim moves a voxel from where the sform, which counts, puts it;
            infinite if the qform is damaged.
        doubts: Why other programs may place the volume elsewhere.
    """

    path: Path
    grid: Grid
    volumes: int
    form_codes: tuple[int, int] | None
    load: Callable[[], NDArray[Any]]
    forms_apart_mm: float = 0.0
    doubts: tuple[Doubt, ...] = ()

    @property
    def is_colour(self) -> bool:
        """Whether the volumes are the colours of a picture."""
        return self.volumes > 1 and volume_suffix(self.path) in PICTURE_SUFFIXES

    @property
    def forms_differ(self) -> bool:
        """Whether parts of the header put a voxel more than half a voxel apart; rounded quaternions stay below."""
        return self.forms_apart_mm > min(self.grid.spacing_mm) / 2


def volume_suffix(path: Path | str) -> str:
    """The ending of a volume's file name in lower case, e.g. ``.nii.gz``; empty if it is none of VOLUME_SUFFIXES."""
    name = split_source(path)[0].name.lower()
    return next((suffix for suffix in VOLUME_SUFFIXES if name.endswith(suffix) and name != suffix), "")


def unread_suffix(path: Path | str) -> str:
    """The ending, in lower case, of a volume that is a case although its format is not read; empty of all others."""
    name = Path(path).name.lower()
    endings = (ending for _, _, group, is_case in _UNREAD if is_case for ending in group)
    return next((ending for ending in endings if name.endswith(ending) and name != ending), "")


def unread_format(path: Path) -> tuple[str, str] | None:
    """Format and advice for a volume of a format that is not read; None if the file is nothing of the kind.

    DICOM files, which often have no ending, are known by their content.
    """
    name = path.name.lower()
    known = next((row for row in _UNREAD if name.endswith(row[2])), None)
    if known is None:
        try:
            require_regular(path)  # a pipe would never end
            with path.open("rb") as stream:
                known = _DICOM if stream.read(132)[128:] == b"DICM" else None
        except (VolsegError, OSError, ValueError):
            return None
    return known and known[:2]


def volume_stem(path: Path | str) -> str:
    """File name without its volume ending: ``liver_01`` of ``scans/liver_01.nii.gz``.

    Its accented letters are composed, so that files from macOS have the names of all others.
    """
    file = split_source(path)[0]
    suffix = volume_suffix(path) or unread_suffix(file.name)
    if suffix:
        return composed(file.name[: -len(suffix)])
    # A DICOM series is a folder, whose name may be an identifier full of dots.
    return composed(file.name if file.is_dir() else file.stem)


def join_source(path: Path | str, kind: str, number: int, total: int | None = None) -> Path:
    """Name a part of a file, or what it stands for, behind a ``#``.

    ``brain.nii.gz#channel=2of4`` is the second of the four volumes of a 4D file. ``liver.nii.gz#label=5`` is a mask
    whose voxels get label value 5. ``cup.png#soft=2`` is a soft map; where at least half agree, voxels get value 2.
    """
    return Path(f"{path}#{kind}={number}{'' if total is None else f'of{total}'}")


def is_picture(source: Path | str) -> bool:
    """Whether a source is of a picture: its axes are made up, so that no one knows the patient's sides."""
    return volume_suffix(split_source(source)[0]) in PICTURE_SUFFIXES


def split_source(source: Path | str) -> tuple[Path, str, int, int]:
    """Undo :func:`join_source`.

    Returns:
        The file, the kind or an empty string, the number (0 without one), the total (1 without one). Of a DICOM series
        that is named the kind is ``series``, of DICOM labels of a dataset ``labels``.
    """
    text = str(source)
    if _LABELS + _OBJECT in text:
        return split_source(text.rpartition(_LABELS)[0])[0], "labels", 0, 1
    match = _SOURCE.search(text) if "#" in text else None
    if match is None and (found := _SERIES.search(text) if "#" in text else None):
        return Path(text[: found.start()]), "series", 0, 1
    if match is None:
        # Most sources are plain files: they come back as they are, without a new path.
        return source if isinstance(source, Path) else Path(source), "", 0, 1
    return Path(text[: match.start()]), match[1], int(match[2]), int(match[3] or 1)


def series_source(path: Path, series: str = "", *, allow_gaps: bool = False) -> Path:
    """Name a DICOM series: ``study#series=2`` by its number, ``study#series=CT`` the only CT that can be used.

    With ``allow_gaps`` missing slices are interpolated: ``study#series=any+gaps``. If nothing is asked for, it is the
    path itself, which stands for the only series that can be used.
    """
    chosen = f"{(series or ANY_SERIES).removesuffix('+gaps')}+gaps" if allow_gaps else series or ANY_SERIES
    return path if chosen == ANY_SERIES else Path(f"{path}#series={chosen}")


def labels_source(source: Path, content: Mapping[str, Any]) -> Path:
    """DICOM labels with all that is needed to make a label map of them, which they do not say themselves."""
    return Path(f"{source}{_LABELS}{quote(json.dumps(content, separators=(',', ':')), safe='')}")


def labels_content(source: Path | str) -> tuple[Path, dict[str, Any]]:
    """Undo :func:`labels_source`; of any other source the content is empty.

    Raises:
        VolumeError: If what was added was changed.
    """
    text, _, added = str(source).rpartition(_LABELS)
    if not added.startswith(_OBJECT):
        return Path(source), {}
    with suppress(ValueError):
        content = json.loads(unquote(added))
        if isinstance(content, dict):
            return Path(text), content
    raise refuse("format", "labels", "what a dataset says of them", "something else", "Open the dataset", file=text)


def wanted_series(source: Path | str) -> tuple[str, bool]:
    """Which DICOM series a source means, and whether gaps are interpolated."""
    match = _SERIES.search(str(source)) if "#" in str(source) else None
    return (ANY_SERIES, False) if match is None else (match["series"] or ANY_SERIES, match["gaps"] is not None)


def refuse(
    code: str, what: str, expected: str, got: object, advice: str, *, case: str | None = None, file: Path | str
) -> VolumeError:
    """Compose a VolumeError; arguments as :func:`pipeline.core.errors.sentence`."""
    return VolumeError(sentence(what, expected, got, advice, case=case, file=file), code)


def refusal_of(reason: object, code: str, case: str | None) -> VolumeError:
    """A VolumeError of a sentence that is led by its file already."""
    return VolumeError(f"case {case}: {reason}" if case else str(reason), code)


def require_utf8(path: Path, case: str | None = None) -> None:
    """Refuse a path that ITK cannot take: it would end the process."""
    if utf8_name(str(path)) != str(path):
        rule, advice = f"UTF-8, as {volume_suffix(path)} needs", "Rename the file and its folders, or take .nii.gz"
        raise refuse("format", "path", rule, "other bytes", advice, case=case, file=path)


def checked_path(path: Path, case: str | None) -> str:
    """Suffix of an existing, regular, readable, non-empty file of a known format; refuses all others."""
    suffix = volume_suffix(path)
    if gone := absence(path):
        got, advice = _look_alike(path) or gone if gone[0] == ABSENT else gone
        raise refuse("missing", "file", "an existing file", got, advice, case=case, file=path)
    if path.is_dir():
        raise refuse("format", "file", "a volume file", "a folder", "Give a file in it", case=case, file=path)
    if not suffix:
        rule = f"a name ending in {', '.join(VOLUME_SUFFIXES)}"
        raise refuse("format", "file", rule, *unread_words(path), case=case, file=path)
    try:
        require_regular(path)
    except VolsegError as error:
        raise refusal_of(error, "format", case) from None
    if suffix.startswith(".nii") and path.name[-len(suffix) :][:4] not in (".nii", ".NII"):  # nibabel finds no others
        rule, advice = "an ending in small or in capital letters", "Rename it"
        raise refuse("format", "file", rule, repr(path.name), advice, case=case, file=path)
    if path.stat().st_size == 0:
        advice = "Copy or export it again"
        raise refuse("empty", "file", "a volume", "an empty file (0 bytes)", advice, case=case, file=path)
    if not os.access(path, os.R_OK):
        got, advice = "no permission to read it", "Change its rights"
        raise refuse("unreadable", "file", "a readable file", got, advice, case=case, file=path)
    return suffix


def unread_words(path: Path) -> tuple[str, str]:
    """What a file is whose format is not read, and what to do, for messages."""
    if (found := unread_format(path)) is None:
        return repr(path.name), "Convert the volume, e.g. to NIfTI"
    return f"{path.name!r} ({found[0]}), a format that is not read", found[1]


def _look_alike(path: Path) -> tuple[str, str] | None:
    """A file beside one that is not there, whose name differs in its ending or in capital letters only; and advice."""
    stem = volume_stem(path).lower()
    # What DVC and the iCloud leave in place of a file that was not fetched.
    for left in (f"{path.name}.dvc", f".{path.name}.icloud"):
        if left in names_beside(path):
            return f"only {left}, which stands for it", "Fetch the file (dvc pull, brctl download)"
    near = [path.with_name(name) for name in names_beside(path) if volume_stem(name).lower() == stem]
    if read := [file.name for file in near if volume_suffix(file)]:
        return f"{ABSENT}, but {read[0]}", "Rename it, or correct its name or ending where the dataset is described"
    unread = [unread_words(file) for file in near if unread_format(file)]
    return (f"{ABSENT}, but {unread[0][0]}", unread[0][1]) if unread else None


def checked_shape(shape: Sequence[int], path: Path, case: str | None) -> tuple[tuple[int, int, int], int]:
    """Shape of one volume and the number of volumes; trailing axes of length 1 are dropped, a slice gets K = 1."""
    sizes = [int(n) for n in shape]
    if any(n < 1 for n in sizes):
        advice = "The header is damaged; export the volume again"
        raise refuse("size", "shape", "axes of at least 1 voxel", tuple(sizes), advice, case=case, file=path)
    # NIfTI writers add axes for time and vectors even where there is one of each.
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) < 2 or len(sizes) > 4:
        got, advice = f"{len(sizes)} axes {tuple(sizes)}", "Export one 3D volume per file"
        raise refuse("dimensions", "shape", "three axes", got, advice, case=case, file=path)
    i, j, k, volumes = (*sizes, *(1 for _ in range(4 - len(sizes))))
    return (i, j, k), volumes


def checked_size(
    shape: Sequence[int], itemsize: int, available_bytes: int, compressed: bool, path: Path, case: str | None
) -> None:
    """Refuse a file too short for what its header promises, or too large, before memory is taken.

    Too large are more than 4e9 voxels, and more than the memory that is free.
    """
    voxels = prod(int(n) for n in shape)
    advice = "The file is truncated or its header damaged; copy or export it again"
    if voxels > _MAX_VOXELS:
        got = f"{voxels:.3g} voxels, shape {tuple(int(n) for n in shape)}"
        raise refuse("size", "header", f"at most {_MAX_VOXELS:.0e} voxels", got, advice, case=case, file=path)
    needed = voxels * itemsize
    if needed > available_bytes * (MAX_DEFLATE_RATIO if compressed else 1):
        got = f"{available_bytes} bytes{' (compressed)' if compressed else ''}"
        rule = f"{needed} bytes for shape {tuple(int(n) for n in shape)}"
        raise refuse("truncated", "voxel data", rule, got, advice, case=case, file=path)
    free = machine.available_bytes() if needed > _LARGE else None
    if free is not None and needed > free:
        rule, got = f"at most {machine.bytes_in_words(free)}, the free memory", machine.bytes_in_words(needed)
        raise refuse("size", "voxels", rule, got, "Read it where there is more, or crop it", case=case, file=path)


def checked_type(dtype: np.dtype[Any], path: Path, case: str | None) -> None:
    """Refuse colours, vectors and complex numbers."""
    if dtype.kind not in "iuf":
        got = "complex numbers" if dtype.kind == "c" else f"colours or vectors ({dtype})"
        advice = "Export one number per voxel, one file per channel"
        raise refuse("type", "voxel type", "integers or floats", got, advice, case=case, file=path)


def checked_grid(
    shape: tuple[int, int, int], affine: NDArray[np.float64], path: Path, case: str | None, straighten: bool = False
) -> Grid:
    """Grid of a header; if asked for, a slight shear is taken out (:func:`pipeline.core.grid.straightened`)."""
    try:
        return Grid(shape, straightened(affine, shape) if straighten else affine)
    except ValueError as error:
        raise refusal_of(f"{path}: {error}", "affine", case) from None


def label_array(
    array: NDArray[Any], path: Path, *, case: str | None = None, signed: bool = False
) -> NDArray[np.integer[Any]]:
    """Check that voxels are labels, and cast whole numbers stored as floats; ``signed`` ones are to be replaced.

    Returns:
        The array itself if it is of an integer type, otherwise of the smallest type, unsigned unless a value is
        negative.

    Raises:
        VolumeError: If a value is fractional, negative, NaN, infinite or above MAX_LABEL.
    """
    what, advice = "label values", "Export the label map without interpolation, as integers"
    if array.dtype.kind == "f":
        strange = array.size - int(np.count_nonzero(np.isfinite(array)))
        if strange:
            got = f"NaN or infinity in {strange} voxels"
            raise refuse("labels", what, "whole numbers", got, advice, case=case, file=path)
        fractional = np.unique(array[array != np.rint(array)])
        if fractional.size:
            first = ", ".join(f"{float(value):g}" for value in fractional[:_SHOWN])
            got = f"{first}{' …' if fractional.size > _SHOWN else ''} ({fractional.size} fractional values)"
            raise refuse("labels", what, "whole numbers", got, advice, case=case, file=path)
    lowest, highest = array.min(), array.max()
    if lowest < (-MAX_LABEL if signed else 0) or highest > MAX_LABEL:
        rule, got = f"values from 0 to {MAX_LABEL}", f"{int(lowest)} to {int(highest)}"
        raise refuse("labels", what, rule, got, "Renumber the labels", case=case, file=path)
    if array.dtype.kind == "f":
        return array.astype(np.int64 if lowest < 0 else np.min_scalar_type(int(highest)))
    return array
