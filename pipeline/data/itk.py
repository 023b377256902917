"""NRRD, MetaImage, PNG and TIFF written through SimpleITK, and arrays as its images.

Here and in :mod:`pipeline.data.itk_open`, and nowhere else, SimpleITK's LPS world and array axes (K, J, I) meet the
project's RAS+ and (I, J, K).
"""

from __future__ import annotations

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
from pipeline.data.pictures import write_spacing
from pipeline.data.volume_file import PICTURE_SUFFIXES, TIFF_SUFFIXES, refuse, require_utf8, volume_suffix


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


def write_picture(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a picture as it is seen, (H, W) grey or (H, W, 3), as ``.png`` or ``.tif``, atomically, compressed."""
    with atomic_path(path) as temporary:
        _write(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), temporary)


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
        reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
        raise VolsegError(f"{path}: could not be written ({reason}). Check the path and the disk.") from None


def _write_pair(image: Any, path: Path) -> None:
    """Header and data file; the header names the data file, so both are written elsewhere under their final names."""
    with tempfile.TemporaryDirectory() as folder:
        _write(image, Path(folder) / path.name)
        # The header is what readers open: once it is there, the voxels are.
        for part in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):  # the header last
            with atomic_path(path.parent / part.name) as temporary:
                shutil.copyfile(part, temporary)
