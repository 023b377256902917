"""NIfTI files through nibabel: the sform counts first, then the qform; voxels keep their stored type."""

from __future__ import annotations

import gzip
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.files import atomic_path
from pipeline.core.grid import Grid
from pipeline.core.notices import about, listening, tell
from pipeline.data.nibabel_alone import nib
from pipeline.data.nifti_forms import copy_forms, read_forms, stored_header, unit_of
from pipeline.data.volume_file import (
    NIFTI_SUFFIXES,
    VolumeError,
    VolumeFile,
    checked_grid,
    checked_path,
    checked_shape,
    checked_size,
    checked_type,
    refuse,
    split_source,
    volume_suffix,
)

PROBABILITY_STEP = 2.0**-14
"""Probabilities are written in multiples of it, so off by at most 0.00003; 0, 0.5 and 1 are exact."""

_GZIP_LEVEL = 5
_BLOCK = 16  # voxels
_GZIP_MAGIC = b"\x1f\x8b"
_OFFSETS = {348: ("f", 108), 540: ("q", 168)}  # size of NIfTI-1's and -2's header: type and place of vox_offset
# A gzip stream may hold a thousand times its size, and a header may promise extensions without end.
_MOST_HEADER = 64 << 20  # bytes before the voxels
_MOST_BEHIND = 64 << 20  # bytes behind them, or as many as they take
_MOST_LOOKED_AT = 1 << 28  # bytes of a damaged stream, to find out what is wrong with it
_READ_ERRORS = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
)


def load_nifti(path: Path, *, case: str | None = None) -> Any:
    """A nibabel image whose voxels are not read yet.

    Raises:
        VolumeError: If the file is missing, empty or no NIfTI volume.
    """
    checked_path(path, case)
    try:
        offset = _voxel_offset(path)
        if offset > _MOST_HEADER:
            rule, again = f"at most {_MOST_HEADER} bytes before the voxels", "Copy or export the file again"
            raise refuse("unreadable", "header", rule, f"{offset:.0f}", again, case=case, file=path)
        with listening("nibabel.global", "nibabel") as said:
            image = nib.load(path, mmap=False)
    except VolumeError:  # a ValueError too
        raise
    except _READ_ERRORS as error:
        raise _explain(error, path, case) from None
    tell(about(path, said))
    if not isinstance(image, nib.Nifti1Image):
        got = f"a file of type {type(image).__name__}"
        raise refuse("format", "file", "a NIfTI volume", got, "Export it as NIfTI", case=case, file=path)
    return image


def open_nifti(path: Path, *, case: str | None = None, straighten: bool = False) -> VolumeFile:
    """Read and check a NIfTI header; arguments as :func:`pipeline.data.volumes.open_volume`.

    Raises:
        VolumeError: If the file is missing or empty, is no NIfTI volume, is shorter than its header promises, holds
            colours or complex numbers, or its affine is not finite, not invertible or sheared.
    """
    image = load_nifti(path, case=case)
    shape, volumes = checked_shape(image.shape, path, case)
    dtype = image.header.get_data_dtype()
    checked_type(dtype, path, case)
    compressed = volume_suffix(path) == ".nii.gz"
    # A gzip stream does not say how long its content is, so its own size is compared by the best ratio.
    available = path.stat().st_size - (0 if compressed else int(image.dataobj.offset))
    checked_size(image.shape, dtype.itemsize, available, compressed, path, case)
    try:
        forms = read_forms(image)
    except _READ_ERRORS as error:
        raise _explain(error, path, case) from None
    grid = checked_grid(shape, forms.affine, path, case, straighten)
    apart_mm, doubts = forms.apart_mm(grid), forms.doubts(path, grid)
    return VolumeFile(path, grid, volumes, forms.codes, lambda: _voxels(image, path, case), apart_mm, doubts)


def _voxels(image: Any, path: Path, case: str | None) -> NDArray[Any]:
    """(I, J, K), or (I, J, K, N) for N > 1 volumes, the last axis fastest in memory, in native byte order."""
    shape, volumes = checked_shape(image.shape, path, case)
    try:
        # What a scale makes infinite is found where voxels are checked, not printed.
        with np.errstate(over="ignore", invalid="ignore"):
            array = (
                _unpacked(image.dataobj, path, case)
                if volume_suffix(path) == ".nii.gz"
                else np.asanyarray(image.dataobj)
            )
    except VolumeError:  # a ValueError too
        raise
    except _READ_ERRORS as error:
        raise _explain(error, path, case) from None
    return _row_major(array.reshape((*shape, volumes) if volumes > 1 else shape, order="F"))


def write_nifti(
    array: NDArray[Any],
    grid: Grid,
    path: Path,
    *,
    like: Path | None = None,
    label_table: bytes = b"",
    slope: float | None = None,
    settle: bool = False,
) -> None:
    """Write a NIfTI volume atomically; equal content gives equal bytes.

    Sform and qform both hold the grid's affine. Their codes and the spatial unit are those of ``like``, otherwise 1
    (scanner) and mm. Where other programs may place ``like`` elsewhere, and it is on this grid, its forms are written
    as they are, so that every program places both alike.

    Args:
        array: (I, J, K), or (I, J, K, N) for several volumes, of the type to be stored.
        grid: Grid of one volume.
        path: ``.nii`` or ``.nii.gz``.
        like: A NIfTI file whose form codes and unit are kept; ignored if it is missing or of another format.
        label_table: Names of the label values, as Caret has them; written as two header extensions.
        slope: What readers multiply the stored integers by.
        settle: Write the grid in mm into both forms, with a code, whatever ``like`` says: one place for all programs.

    Raises:
        VolsegError: If the file cannot be written.
    """
    # NIfTI-1 has 16-bit sizes.
    kind = nib.Nifti2Image if max(grid.shape) > np.iinfo(np.int16).max else nib.Nifti1Image
    sform_code, qform_code, (unit, mm), doubtful = _header_of(like, grid)
    if doubtful is not None and not settle:
        image = kind(array, None, dtype=array.dtype)  # without an affine nibabel leaves the forms alone
        copy_forms(image.header, doubtful)
    else:
        unit, mm = ("mm", 1.0) if settle else (unit, mm)
        affine = np.diag([1 / mm, 1 / mm, 1 / mm, 1.0]) @ grid.affine
        image = kind(array, affine, dtype=array.dtype)
        image.set_sform(affine, sform_code)
        image.set_qform(affine, qform_code)
        image.header.set_xyzt_units(unit)
    if slope is not None:
        image.header.set_slope_inter(slope, 0.0)  # what is given is then stored as it is
    for code in ("ignore", "caret") if label_table else ():  # readers of TotalSegmentator's masks want the first
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, label_table))
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        if volume_suffix(path) != ".nii.gz":
            image.to_stream(stream)
            return
        # Neither name nor time in the stream: equal content gives equal bytes.
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, stream, mtime=0) as packed:
            image.to_stream(packed)


def _header_of(like: Path | None, grid: Grid) -> tuple[int, int, tuple[str, float], Any]:
    """Sform code, qform code and unit to write; the stored header too if it is of this grid, but not for all."""
    sform, qform, unit, doubtful = 0, 0, ("mm", 1.0), None
    if like is not None and volume_suffix(like) in NIFTI_SUFFIXES:
        with suppress(VolumeError):
            image = load_nifti(like)
            stored = stored_header(image)
            sform, qform, unit = int(image.header["sform_code"]), int(image.header["qform_code"]), unit_of(stored)
            volume = open_nifti(like)
            doubtful = stored if volume.doubts and volume.grid.matches(grid) else None
    return sform or qform or 1, qform or sform or 1, unit, doubtful


def _row_major(array: NDArray[Any]) -> NDArray[Any]:
    """A copy with the last axis fastest, in native byte order; files have the first axis fastest.

    Block by block it takes a third of the time, because the processor's cache holds a block both ways.
    """
    result = np.empty(array.shape, array.dtype.newbyteorder("="))
    for i in range(0, array.shape[0], _BLOCK):
        for k in range(0, array.shape[2], _BLOCK):
            result[i : i + _BLOCK, :, k : k + _BLOCK] = array[i : i + _BLOCK, :, k : k + _BLOCK]
    return result


def _unpacked(proxy: Any, path: Path, case: str | None) -> NDArray[Any]:
    """Voxels of a gzip-compressed file, read to its end, which compares the checksum (nibabel alone does not)."""
    with gzip.open(path) as stream:
        layout = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
        array: NDArray[Any] = np.asanyarray(nib.arrayproxy.ArrayProxy(stream, layout))
        if not _drained(stream, max(_MOST_BEHIND, array.size * proxy.dtype.itemsize)):
            got, advice = f"more than {_MOST_BEHIND >> 20} MB", "Copy or export the file again"
            raise refuse("size", "file", "little or nothing behind the voxels", got, advice, case=case, file=path)
    return array


def _voxel_offset(path: Path) -> float:
    """Where a header says that the voxels begin; 0 of what is no NIfTI file, which nibabel refuses."""
    with (gzip.open if volume_suffix(path) == ".nii.gz" else open)(path, "rb") as stream:
        start = stream.read(176)
    for order in ("<", ">") if len(start) == 176 else ():
        form, place = _OFFSETS.get(struct.unpack_from(f"{order}i", start)[0], ("", 0))
        if form:
            return float(struct.unpack_from(order + form, start, place)[0])
    return 0.0


def _explain(error: Exception, path: Path, case: str | None) -> VolumeError:
    """Find out why nibabel could not read a file."""
    again = "Copy or export the file again"
    # The first two bytes tell what the file is, whatever its name says.
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP_MAGIC
    if volume_suffix(path) == ".nii.gz" and not packed:
        got, advice = "a file that is not gzip-compressed", "If it is a plain NIfTI file, rename it to .nii"
        return refuse("format", "file", "a gzip-compressed NIfTI volume", got, advice, case=case, file=path)
    if packed:
        try:
            with gzip.open(path) as stream:
                _drained(stream, _MOST_LOOKED_AT)
        except EOFError:
            got = f"a truncated gzip stream ({path.stat().st_size} bytes)"
            return refuse("truncated", "file", "a complete NIfTI volume", got, again, case=case, file=path)
        except (OSError, zlib.error) as damage:
            got = f"a damaged gzip stream ({damage})"
            return refuse("unreadable", "file", "a NIfTI volume", got, again, case=case, file=path)
    if isinstance(error, nib.filebasedimages.ImageFileError):
        got = f"a file without a NIfTI header ({path.stat().st_size} bytes)"
        return refuse("format", "file", "a NIfTI volume", got, again, case=case, file=path)
    reason = " ".join(str(error).split()) or type(error).__name__
    return refuse("unreadable", "file", "a readable NIfTI volume", f"an error ({reason})", again, case=case, file=path)


def _drained(stream: gzip.GzipFile, most: int) -> bool:
    """Read to the end, which checks the whole gzip stream, keeping nothing; False if that is after many bytes."""
    while most >= 0 and (part := stream.read(1 << 20)):
        most -= len(part)
    return most >= 0


def write_probabilities(
    array: NDArray[np.floating[Any]], grid: Grid, path: Path, *, like: Path | str | None = None
) -> None:
    """Write a probability map atomically: int16 with a slope in the header, which every reader scales.

    Args:
        array: (I, J, K), 0 to 1; it may be the map of a file, which is read plane by plane.
        grid: Its grid.
        path: ``.nii`` or ``.nii.gz``.
        like: As in :func:`~pipeline.data.volumes.write_voxels`.
    """
    steps = np.empty(array.shape, np.int16, order="F")  # the order of the file
    # Along the slowest axis, so that a map of a file is read once, front to back.
    slowest = int(np.argmax(np.abs(array.strides)))
    for source, target in zip(np.moveaxis(array, slowest, 0), np.moveaxis(steps, slowest, 0), strict=True):
        target[...] = np.rint(source / PROBABILITY_STEP)
    write_nifti(steps, grid, path, like=None if like is None else split_source(like)[0], slope=PROBABILITY_STEP)
