"""Changes of geometry: rotation, zoom and elastic deformation in one interpolation; sides that a mirror swaps.

Rotations are rotations in mm: voxel offsets from the patch centre are scaled by the spacing, rotated, and scaled back.
In strongly anisotropic patches nothing moves along the coarse axis (see :func:`coarse_axis`), because a few thick
slices hold too little to interpolate new ones from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.core.labels import IGNORE_INDEX
from pipeline.sample.randomness import BatchRandom

ANISOTROPY = 3.0
"""From this ratio on, of spacings or of patch sizes, the coarse axis is left alone."""


def coarse_axis(size: Sequence[int], spacing_mm: Sequence[float]) -> int | None:
    """The axis along which nothing should be rotated, zoomed or bent, if there is one.

    It is the axis of the largest spacing if that is at least 3 times the smallest; else the axis with the fewest voxels
    if another one has at least 3 times as many: rotating such a slab would turn most of it out of the patch.

    Args:
        size: Patch voxels along the spatial axes.
        spacing_mm: Spacing along the same axes.

    Returns:
        The axis, or None; always None in 2D.
    """
    if len(size) < 3:
        return None
    if max(spacing_mm) >= ANISOTROPY * min(spacing_mm):
        return max(range(len(size)), key=lambda axis: spacing_mm[axis])
    if max(size) >= ANISOTROPY * min(size):
        return min(range(len(size)), key=lambda axis: size[axis])
    return None


def affine_matrices(angles: Tensor, zoom: Tensor, spacing_mm: Sequence[float], fixed: int | None = None) -> Tensor:
    """Where to sample the patch so that it appears rotated and zoomed about its centre.

    Args:
        angles: Rad; (N, 3) about the first, second and third axis, applied in this order, or (N, 1) in 2D.
        zoom: (N,); above 1 enlarges.
        spacing_mm: Spacing along the D spatial axes.
        fixed: Axis along which nothing moves: only the rotation about it is made, and the zoom is in its plane.

    Returns:
        (N, D, D): voxel offset from the centre of the output → voxel offset in the input.
    """
    dims = len(spacing_mm)
    # Small matrices are made on the CPU: a GPU would launch a kernel for each of these steps.
    rotation = torch.eye(dims).expand(len(angles), dims, dims)
    for column in range(angles.shape[1]):
        if fixed is None or fixed == column:
            rotation = _plane_rotation(angles[:, column], column, dims) @ rotation
    shrink = (1.0 / zoom)[:, None].repeat(1, dims)
    if fixed is not None:
        shrink[:, fixed] = 1.0
    spacing = torch.tensor([float(value) for value in spacing_mm])
    return rotation * (spacing[None, :] / spacing[:, None]) * shrink[:, None, :]


def elastic_displacement(
    sigma_voxels: Tensor,
    size: Sequence[int],
    distance_voxels: float,
    spacing_mm: Sequence[float],
    random: BatchRandom,
    fixed: int | None = None,
) -> Tensor:
    """Draw smooth random displacement fields: a cubic B-spline through random control points.

    Lengths are in voxels of the finest axis and cover as many mm along the others.

    Args:
        sigma_voxels: (N,) SD of the displacement of control points, on the device of the fields.
        size: Patch voxels along the D spatial axes.
        distance_voxels: Distance of control points.
        spacing_mm: Spacing along the same axes.
        random: Source of the draws, one per field.
        fixed: Axis along which nothing moves.

    Returns:
        (N, D, *size), in voxels of each axis.
    """
    finest, device = min(spacing_mm), sigma_voxels.device
    operators = [
        spline_operator(length, distance_voxels * finest / spacing, device)
        for length, spacing in zip(size, spacing_mm, strict=True)
    ]
    points = [operator.shape[2] for operator in operators]
    gpu = device.type == "cuda"  # on their way to it nobody waits for a few numbers
    shares = torch.tensor([0.0 if axis == fixed else finest / spacing for axis, spacing in enumerate(spacing_mm)])
    amplitude = sigma_voxels[:, None] * shares.to(device, non_blocking=gpu)[None, :]
    # Control points are few: drawn on the CPU, they are the same on every device.
    control = random.normal((len(size), *points), torch.device("cpu")).to(device, non_blocking=gpu)
    field = (control * amplitude.reshape(*amplitude.shape, *(1,) * len(size))).flatten(0, 1)
    for axis, operator in enumerate(operators):
        field = along_axis(field, operator, axis)
    return field.reshape(len(sigma_voxels), len(size), *size)


def spline_operator(length: int, distance: float, device: torch.device) -> Tensor:
    """Cubic B-spline through control points that lie ``distance`` voxels apart, one more beyond each border.

    Args:
        length: Voxels n along the axis.
        distance: Distance of the control points in voxels, above 0.
        device: Where to build it.

    Returns:
        (1, n, m): weights of the m control points, each row sums to 1.

    Reference: Rueckert et al., Nonrigid registration using free-form deformations, IEEE TMI 1999, eq. 3.
    """
    places = torch.arange(length, device=device, dtype=torch.float32) / distance
    points = torch.arange(-1, int((length - 1) / distance) + 3, device=device)
    away = (places[:, None] - points[None, :]).abs()
    near = 2 / 3 - away.square() * (1 - away / 2)
    far = (2 - away).clamp(min=0) ** 3 / 6
    return torch.where(away < 1, near, far)[None]


def along_axis(arrays: Tensor, operator: Tensor, axis: int) -> Tensor:
    """Multiply every line along one axis by a matrix.

    Args:
        arrays: (N, *S).
        operator: (N, m, n) with n = S[axis], or (1, m, n) for all alike.
        axis: Axis of S, from 0.

    Returns:
        (N, *S) with m instead of n along the axis.
    """
    # All lines of a sample in one matrix product, which is what processors and GPUs do fastest.
    last = arrays.movedim(axis + 1, -1)
    lines = last.reshape(len(arrays), -1, last.shape[-1])
    product = torch.matmul(lines, operator.transpose(1, 2))
    return product.reshape(*last.shape[:-1], operator.shape[1]).movedim(-1, axis + 1)


def sampling_grid(matrices: Tensor, size: Sequence[int], displacement: Tensor | None = None) -> Tensor:
    """Sampling positions for :func:`warp`.

    Args:
        matrices: (N, D, D) of :func:`affine_matrices`, on the device of the images.
        size: Patch voxels along the spatial axes.
        displacement: (N, D, *size) voxels to add, or None.

    Returns:
        (N, *size, D), last axis first and -1 to 1 from border to border, as ``grid_sample`` wants it.
    """
    dims = len(size)
    offsets = []
    for axis, length in enumerate(size):
        line = torch.arange(length, device=matrices.device, dtype=matrices.dtype) - (length - 1) / 2
        offsets.append(line.reshape(*(-1 if other == axis else 1 for other in range(dims))))
    columns = []  # grid_sample wants the last axis first
    for row, length in reversed(list(enumerate(size))):
        # The sum over three broadcast lines: no matrix product, so no loss of precision to TF32 on a GPU.
        position = sum(
            (matrices[:, row, axis].reshape(-1, *(1,) * dims) * offsets[axis] for axis in range(dims)),
            torch.zeros((), device=matrices.device),
        )
        if displacement is not None:
            position = position + displacement[:, row]
        columns.append(position * (2.0 / length))
    return torch.stack(columns, dim=-1)


def warp(images: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Sample images linearly and labels by the nearest voxel.

    What comes from outside the patch looks as padding does: intensity 0, label ``IGNORE_INDEX``.

    Args:
        images: (N, C, *S), floating point.
        labels: (N, *S), integer, at least -1.
        grid: (N, *S, D) of :func:`sampling_grid`.

    Returns:
        Images and labels of the same shapes and types.
    """
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Raised, the ignored label is 0, and so is what lies outside the patch: both come back as ignored.
    raised = labels[:, None].to(grid.dtype) - IGNORE_INDEX
    nearest = F.grid_sample(raised, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0]
    return moved, (nearest + IGNORE_INDEX).to(labels.dtype)


def swap_sides(labels: Tensor, side_pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Exchange left and right class indices, as mirroring from left to right demands.

    Args:
        labels: Any shape, integer; values that are in no pair stay.
        side_pairs: (left, right) class indices, each at most once.

    Returns:
        The same shape and type.
    """
    if not side_pairs:
        return labels
    # A look-up table instead of one mask per pair; labels beyond it, and the ignored, stay as they are.
    table = _swapped(tuple(side_pairs), labels.dtype, labels.device)
    known = labels.clamp(0, len(table) - 1)
    return torch.where(known == labels, table[known.long()], labels)


@lru_cache(maxsize=16)
def _swapped(side_pairs: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Class index → that of the other side; kept, because a GPU would wait for it with every batch."""
    table = list(range(max(max(pair) for pair in side_pairs) + 1))
    for left, right in side_pairs:
        table[left], table[right] = right, left
    return torch.tensor(table, device=device, dtype=dtype)


def _plane_rotation(angle: Tensor, axis: int, dims: int) -> Tensor:
    """(N, dims, dims) rotation about one axis in 3D, in the plane in 2D."""
    first, second = ((axis + 1) % 3, (axis + 2) % 3) if dims == 3 else (0, 1)
    matrix = torch.eye(dims).repeat(len(angle), 1, 1)
    matrix[:, first, first] = matrix[:, second, second] = angle.cos()
    matrix[:, first, second], matrix[:, second, first] = -angle.sin(), angle.sin()
    return matrix
