"""NRRD, MetaImage, PNG and TIFF through SimpleITK.

Here, and nowhere else, SimpleITK's LPS world and array axes (K, J, I) meet the project's RAS+ and (I, J, K).

A picture (PNG, TIFF) is a volume of one slice, a TIFF of several pages a stack of them: i grows to the patient's left,
j to posterior, k to superior, spacing 1 mm unless the file, or one beside it (:mod:`pipeline.data.pictures`), says
otherwise. A colour picture is three volumes, red, green and blue.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  # its usual name
from numpy.typing import NDArray

from pipeline.core.errors import VolsegError
from pipeline.core.files import atomic_path
from pipeline.core.grid import Grid, flip_world
from pipeline.data.pictures import tiff_spacing, unknown_spacing, write_spacing
from pipeline.data.volume_file import (
    NRRD_SUFFIXES,
    PICTURE_SUFFIXES,
    TIFF_SUFFIXES,
    Doubt,
    VolumeError,
    VolumeFile,
    checked_grid,
    checked_path,
    checked_shape,
    checked_size,
    detached_files,
    header_text,
    refuse,
    require_utf8,
    volume_suffix,
)

_NOT_FINITE = re.compile(  # ITK takes NaN in a NRRD header for "not given", and puts 0 in its place
    r"^(space origin|space directions|spacings|offset|origin|position|transformmatrix|elementspacing)"
    r"\s*[:=](.*\b(nan|inf)\b.*)$",
    re.MULTILINE | re.IGNORECASE,
)
_UNITS = re.compile(r"^(space units|units|distanceunits)\s*[:=][ \t]*(.*?)\s*$", re.MULTILINE | re.IGNORECASE)
_MM = re.compile(r"mm|millimet(er|re)s?|none|\?*", re.IGNORECASE)
_NO_LENGTH = re.compile(r"[mnµu]?s|(milli)?sec(ond)?s?|hz|ppm|rad(ians?)?", re.IGNORECASE)
_ELSEWHERE = 1 << 62  # voxels in files of their own: their size is left to the reader


def itk_image(array: NDArray[Any], grid: Grid) -> Any:
    """A SimpleITK image of voxels (I, J, K) on their grid."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    affine = flip_world(grid.affine)
    spacing = np.asarray(grid.spacing_mm)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def itk_array(image: Any) -> NDArray[Any]:
    """Voxels (I, J, K) of a SimpleITK image."""
    return np.asarray(sitk.GetArrayFromImage(image).T)


def itk_affine(header: Any) -> NDArray[np.float64]:
    """Voxel to RAS+ affine (4, 4) of a 2D, 3D or 4D image or reader."""
    axes = header.GetDimension()
    spatial = min(axes, 3)
    affine = np.eye(4)
    direction = np.array(header.GetDirection(), dtype=np.float64).reshape(axes, axes)[:spatial, :spatial]
    # A 2D image is a slice of a volume: its third axis is the world's own.
    affine[:spatial, :spatial] = direction * np.array(header.GetSpacing()[:spatial], dtype=np.float64)
    affine[:spatial, 3] = header.GetOrigin()[:spatial]
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
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _explain(error, path, case) from None
    size = reader.GetSize()
    shape, volumes = checked_shape(size, path, case)
    components, kind = reader.GetNumberOfComponents(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
    colour = suffix in PICTURE_SUFFIXES and components in (3, 4)
    if (components != 1 and not colour) or "complex" in kind or "label" in kind:
        got = f"{components} numbers per voxel ({kind})"
        advice = "Export one number per voxel (pictures: grey or RGB), one file per channel"
        raise refuse("type", "voxel type", "integers or floats", got, advice, case=case, file=path)
    if suffix not in PICTURE_SUFFIXES:
        bits = re.search(r"\d+", kind)
        # Checked before any voxel is read: SimpleITK would take the memory first and fail then.
        available, compressed = _stored(path, case)
        _require_mm(path, case)
        checked_size(size, int(bits[0]) // 8 if bits else 1, available, compressed, path, case)
    grid = checked_grid(shape, itk_affine(reader), path, case, straighten)
    doubts: tuple[Doubt, ...] = ()
    if suffix in PICTURE_SUFFIXES:
        spacing = tiff_spacing(path, shape[2], case) if suffix in TIFF_SUFFIXES else None
        affine = grid.affine if spacing is None else flip_world(np.diag([*spacing, 1.0]))
        grid = Grid(shape, affine, "picture" if spacing is None else "stack")
        doubts = (unknown_spacing(path, grid.spacing_mm),) if spacing is None and shape[2] > 1 else ()
    if colour:
        return VolumeFile(path, grid, 3, None, lambda: _colours(path, shape, case), doubts=doubts)
    axes = (*shape, volumes) if volumes > 1 else shape
    return VolumeFile(path, grid, volumes, None, lambda: np.asarray(_read(path, case).T).reshape(axes), doubts=doubts)


def write_itk(array: NDArray[Any], grid: Grid, path: Path, fields: Mapping[str, str] | None = None) -> None:
    """Write a volume atomically, compressed.

    Args:
        array: (I, J, K), of the type to be stored.
        grid: Its grid.
        path: ``.nrrd``, ``.mha``, ``.mhd`` (with a ``.zraw`` beside it), ``.png`` (one slice) or ``.tif`` (a stack has
            a ``.json`` beside it), both of unsigned integers of at most 16 bits.
        fields: Further header fields, for NRRD.

    Raises:
        VolumeError: If a picture cannot hold the array or its grid.
        VolsegError: If the file cannot be written.
    """
    suffix = volume_suffix(path)
    require_utf8(path)
    image = _picture(array, grid, path) if suffix in PICTURE_SUFFIXES else itk_image(array, grid)
    for key, text in (fields or {}).items():
        image.SetMetaData(key, text)
    if suffix == ".mhd":
        _write_pair(image, path)
        return
    if array.shape[2] > 1 and suffix in TIFF_SUFFIXES:
        write_spacing(path, grid.spacing_mm)  # first: once the voxels are there, the stack is whole
    with atomic_path(path) as temporary:
        _write(image, temporary)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Pixels of a picture as it is seen, (H, W) grey or (H, W, colours): what :func:`write_picture` wrote."""
    return np.asarray(_read(path, None))


def write_picture(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a picture as it is seen, (H, W) grey or (H, W, 3), as ``.png`` or ``.tif``, atomically, compressed."""
    with atomic_path(path) as temporary:
        _write(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), temporary)


def _colours(path: Path, shape: tuple[int, int, int], case: str | None) -> NDArray[Any]:
    """Red, green and blue of a picture, (I, J, K, 3); opacity is dropped if it says nothing."""
    array = _read(path, case)  # (K, J, I, components), without K if there is one slice
    if array.shape[-1] == 4 and array[..., 3].min() != array[..., 3].max():
        got = f"opacity from {array[..., 3].min()} to {array[..., 3].max()}"
        advice = "Save the picture without transparency"
        raise refuse("type", "alpha channel", "one opacity everywhere", got, advice, case=case, file=path)
    return np.moveaxis(array[..., :3], -1, 0).T.reshape(*shape, 3)


def _read(path: Path, case: str | None) -> NDArray[Any]:
    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    except RuntimeError as error:
        raise _explain(error, path, case) from None


def _stored(path: Path, case: str | None) -> tuple[int, bool]:
    """Bytes on disk that hold voxels, and whether they are compressed, from the text header; refuses NaN in it."""
    header = header_text(path)
    strange = _NOT_FINITE.search(header)
    if strange:
        got, advice = strange[2].strip(), "Repair the header or export the volume again"
        raise refuse("affine", f"header, {strange[1]}", "finite numbers", got, advice, case=case, file=path)
    elsewhere = detached_files(path)
    if volume_suffix(path) in NRRD_SUFFIXES:
        plain = re.search(r"^encoding:\s*raw\s*$", header, re.MULTILINE)
        start = re.search(r"\r?\n\r?\n", header)
        if elsewhere:
            return _ELSEWHERE, not plain
        return path.stat().st_size - (start.end() if plain and start else 0), not plain
    compressed = re.search(r"^CompressedData\s*=\s*True", header, re.MULTILINE | re.IGNORECASE) is not None
    if not elsewhere:
        last = re.search(r"^ElementDataFile\s*=.*$", header, re.MULTILINE)
        return path.stat().st_size - (last.end() if last else 0), compressed
    data = elsewhere[0]
    if not data.is_file():
        got, advice = f"no {data.name} beside it", "Copy both files of the volume"
        raise refuse("missing", "voxel data", f"the file {data.name}", got, advice, case=case, file=path)
    return data.stat().st_size, compressed


def _require_mm(path: Path, case: str | None) -> None:
    """Refuse NRRD and MetaImage in another unit than mm, which ITK passes over: no mask would lie on its image."""
    header = re.split(r"\r?\n\r?\n|^ElementDataFile.*$", header_text(path), maxsplit=1, flags=re.MULTILINE)[0]
    for field, text in _UNITS.findall(header):
        units = re.findall(r'"([^"]*)"', text) or text.split()
        axes_of_time = field.lower() == "units"  # of any axis, the others are of space alone
        others = [u for u in units if not _MM.fullmatch(u) and not (axes_of_time and _NO_LENGTH.fullmatch(u))]
        if others:
            advice = "Write spacing and origin in mm, and the unit too"
            raise refuse("unit", f"header, {field}", "mm", ", ".join(others), advice, case=case, file=path)


def _picture(array: NDArray[Any], grid: Grid, path: Path) -> Any:
    """A SimpleITK image of one slice, or a stack for TIFF, if a picture file can hold array and grid."""
    advice = "Write .nii.gz instead"
    stack = array.shape[2] > 1
    if stack and volume_suffix(path) not in TIFF_SUFFIXES:
        raise refuse("dimensions", "picture", "one slice", f"{array.shape[2]} slices", advice, file=path)
    if array.dtype not in (np.uint8, np.uint16):
        got = f"type {array.dtype}, largest value {array.max()}"
        raise refuse("type", "picture", "values from 0 to 65535", got, advice, file=path)
    steps = grid.spacing_mm if stack else (*grid.spacing_mm[:2], 1.0)
    if grid.place == "header" and not grid.matches(Grid(grid.shape, flip_world(np.diag([*steps, 1.0])))):
        got = f"orientation {grid.orientation}, origin {grid.affine[:3, 3].round(3).tolist()} mm"
        rule = "orientation LPS, origin 0 and a slice of 1 mm, because pictures store no more"
        raise refuse("affine", "grid", rule, got, advice, file=path)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T if stack else array[:, :, 0].T))
    image.SetSpacing(list(steps if stack else steps[:2]))
    return image


def _write(image: Any, path: Path) -> None:
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise VolsegError(f"{path}: could not be written ({_reason(error)}). Check the path and the disk.") from None


def _write_pair(image: Any, path: Path) -> None:
    """Header and data file; the header names the data file, so both are written elsewhere under their final names."""
    with tempfile.TemporaryDirectory() as folder:
        _write(image, Path(folder) / path.name)
        # The header is what readers open: once it is there, the voxels are.
        for part in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):  # the header last
            with atomic_path(path.parent / part.name) as temporary:
                shutil.copyfile(part, temporary)


def _reason(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _explain(error: RuntimeError, path: Path, case: str | None) -> VolumeError:
    rule, advice = f"a readable {volume_suffix(path)} volume", "Copy or export the file again"
    if "Unable to determine ImageIO reader" in str(error):
        got = f"a file of another kind ({path.stat().st_size} bytes)"
        return refuse("format", "file", rule, got, advice, case=case, file=path)
    # ITK has no kinds of errors, so that texts of its messages must do.
    if "expected" in _reason(error) or "fread got only" in str(error) or "File cannot be read" in str(error):
        return refuse("truncated", "file", rule, "truncated or damaged voxel data", advice, case=case, file=path)
    return refuse("unreadable", "file", rule, f"an error ({_reason(error)})", advice, case=case, file=path)
