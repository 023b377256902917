"""The one place where SimpleITK's LPS world and reversed array axes (K, J, I) meet the project's RAS+ and (I, J, K)."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  # its usual name
from numpy.typing import NDArray

from pipeline.core import Grid, flip_world

__all__ = ["itk_affine", "itk_array", "itk_image"]


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
    affine[:spatial, :spatial] = direction * np.array(header.GetSpacing()[:spatial], dtype=np.float64)
    affine[:spatial, 3] = header.GetOrigin()[:spatial]
    return flip_world(affine)
