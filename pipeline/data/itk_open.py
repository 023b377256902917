"""NRRD, MetaImage, PNG and TIFF, opened: read through SimpleITK, in a process of its own.

Here and in :mod:`pipeline.data.itk`, and nowhere else, SimpleITK's LPS world and array axes (K, J, I) meet the
project's RAS+ and (I, J, K).

A picture (PNG, TIFF) is a volume of one slice, a TIFF of several pages a stack of them: i grows to the patient's left,
j to posterior, k to superior, spacing 1 mm unless the file, or one beside it (:mod:`pipeline.data.pictures`), says
otherwise. A colour picture is three volumes, red, green and blue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import Grid, flip_world
from pipeline.data.detached_files import header_start
from pipeline.data.itk_headers import DECODERS, check_header
from pipeline.data.itk_reader import PALETTE, read_array, read_header
from pipeline.data.pictures import has_palette, tiff_spacing, unknown_spacing
from pipeline.data.reader_process import ReaderError
from pipeline.data.volume_file import (
    PICTURE_SUFFIXES,
    TIFF_SUFFIXES,
    Doubt,
    VolumeError,
    VolumeFile,
    checked_grid,
    checked_path,
    checked_shape,
    checked_size,
    refuse,
    require_utf8,
    volume_suffix,
)

_UNITS = re.compile(r"^(space units|units|distanceunits)\s*[:=][ \t]*(.*?)\s*$", re.MULTILINE | re.IGNORECASE)
_MM = re.compile(r"mm|millimet(er|re)s?|none|\?*", re.IGNORECASE)
_NO_LENGTH = re.compile(r"[mnµu]?s|(milli)?sec(ond)?s?|hz|ppm|rad(ians?)?", re.IGNORECASE)
_UNBOUNDED = 1 << 62  # bytes of a picture: its pixels were compared with the file before


def itk_affine(header: Mapping[str, Any]) -> NDArray[np.float64]:
    """Voxel to RAS+ affine (4, 4) of the header of a 2D, 3D or 4D image."""
    axes = len(header["size"])
    spatial = min(axes, 3)
    affine = np.eye(4)
    direction = np.array(header["direction"], dtype=np.float64).reshape(axes, axes)[:spatial, :spatial]
    # A 2D image is a slice of a volume: its third axis is the world's own.
    affine[:spatial, :spatial] = direction * np.array(header["spacing"][:spatial], dtype=np.float64)
    affine[:spatial, 3] = header["origin"][:spatial]
    return flip_world(affine)


def open_itk(path: Path, *, case: str | None = None, straighten: bool = False) -> VolumeFile:
    """Read and check the header of a file; arguments as :func:`pipeline.data.volumes.open_volume`.

    Returns:
        The opened volume; ``volumes`` is more than 1 for a 4D file and 3 for a colour picture, whose opacity must be
        the same everywhere.

    Raises:
        VolumeError: If the file is missing, empty or unreadable, is shorter than its header promises, holds vectors
            (other than the colours of a picture) or complex numbers, or its affine is not finite, not invertible or
            sheared.
    """
    suffix = checked_path(path, case)
    require_utf8(path, case)
    # Before SimpleITK sees the file, and before any memory is taken for its voxels.
    stored = check_header(path, case)
    header = _header(path, case)
    size, components, kind = header["size"], header["components"], header["kind"]
    shape, volumes = checked_shape(size, path, case)
    colour = suffix in PICTURE_SUFFIXES and components in (3, 4)
    if (components != 1 and not colour) or "complex" in kind or "label" in kind:
        got = f"{components} numbers per voxel ({kind})"
        advice = "Export one number per voxel (pictures: grey or RGB), one file per channel"
        raise refuse("type", "voxel type", "integers or floats", got, advice, case=case, file=path)
    bits = re.search(r"\d+", kind)
    itemsize = components * (int(bits[0]) // 8 if bits else 1)
    available, compressed = (_UNBOUNDED, False) if stored is None else stored
    checked_size(size, itemsize, available, compressed, path, case)
    if suffix not in PICTURE_SUFFIXES:
        _require_mm(path, case)
    grid = checked_grid(shape, itk_affine(header), path, case, straighten)
    doubts: tuple[Doubt, ...] = ()
    if suffix in PICTURE_SUFFIXES:
        spacing = tiff_spacing(path, shape[2], case) if suffix in TIFF_SUFFIXES else None
        affine = grid.affine if spacing is None else flip_world(np.diag([*spacing, 1.0]))
        grid = Grid(shape, affine, "picture" if spacing is None else "stack")
        doubts = (unknown_spacing(path, grid.spacing_mm),) if spacing is None and shape[2] > 1 else ()
    if colour:
        return VolumeFile(path, grid, 3, None, lambda: _colours(path, shape, header, case), doubts=doubts)
    axes = (*shape, volumes) if volumes > 1 else shape
    return VolumeFile(path, grid, volumes, None, lambda: _read(path, header, case).T.reshape(axes), doubts=doubts)


def palette_indices(picture: VolumeFile, case: str | None) -> NDArray[np.uint8] | None:
    """Indices (I, J, K) of an opened picture with a palette; None if it has none.

    Raises:
        VolumeError: If they cannot be read.
    """
    if not has_palette(picture.path):
        return None
    try:
        return read_array(picture.path, PALETTE, prod(picture.grid.shape)).T.reshape(picture.grid.shape)
    except ReaderError as error:
        raise _explain(error, picture.path, case) from None


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Pixels of a picture as it is seen, (H, W) grey or (H, W, colours): what :func:`write_picture` wrote."""
    return _read(path, _header(path, None), None)


def _colours(path: Path, shape: tuple[int, int, int], header: Mapping[str, Any], case: str | None) -> NDArray[Any]:
    """Red, green and blue of a picture, (I, J, K, 3); opacity is dropped if it says nothing."""
    array = _read(path, header, case)  # (K, J, I, components), without K if there is one slice
    if array.shape[-1] == 4 and array[..., 3].min() != array[..., 3].max():
        got = f"opacity from {array[..., 3].min()} to {array[..., 3].max()}"
        advice = "Save the picture without transparency"
        raise refuse("type", "alpha channel", "one opacity everywhere", got, advice, case=case, file=path)
    return np.moveaxis(array[..., :3], -1, 0).T.reshape(*shape, 3)


def _header(path: Path, case: str | None) -> dict[str, Any]:
    try:
        return read_header(path, DECODERS[volume_suffix(path)])
    except ReaderError as error:
        raise _explain(error, path, case) from None


def _read(path: Path, header: Mapping[str, Any], case: str | None) -> NDArray[Any]:
    try:
        return read_array(path, DECODERS[volume_suffix(path)], prod(header["size"]) * header["components"])
    except ReaderError as error:
        raise _explain(error, path, case) from None


def _require_mm(path: Path, case: str | None) -> None:
    """Refuse NRRD and MetaImage in another unit than mm, which ITK passes over: no mask would lie on its image."""
    header = re.split(r"\r?\n\r?\n|^ElementDataFile.*$", header_start(path), maxsplit=1, flags=re.MULTILINE)[0]
    for field, text in _UNITS.findall(header):
        units = re.findall(r'"([^"]*)"', text) or text.split()
        axes_of_time = field.lower() == "units"  # of any axis, the others are of space alone
        others = [u for u in units if not _MM.fullmatch(u) and not (axes_of_time and _NO_LENGTH.fullmatch(u))]
        if others:
            advice = "Write spacing and origin in mm, and the unit too"
            raise refuse("unit", f"header, {field}", "mm", ", ".join(others), advice, case=case, file=path)


def _explain(error: ReaderError, path: Path, case: str | None) -> VolumeError:
    rule, advice = f"a readable {volume_suffix(path)} volume", "Copy or export the file again"
    if error.fatal:
        return refuse("unreadable", "file", rule, f"one that {error}", advice, case=case, file=path)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else "no reason given"
    # ITK has no kinds of errors, so that texts of its messages must do.
    if error.damaged or "expected" in reason or "fread got only" in str(error) or "File cannot be read" in str(error):
        return refuse("truncated", "file", rule, "truncated or damaged voxel data", advice, case=case, file=path)
    return refuse("unreadable", "file", rule, f"an error ({reason})", advice, case=case, file=path)
