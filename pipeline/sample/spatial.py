"""Changes of geometry: rotation, zoom and elastic deformation in one interpolation; sides that a mirror swaps.

Rotations are rotations in mm: voxel offsets from the patch centre are scaled by the spacing, rotated, and scaled back.
In strongly anisotropic patches nothing moves along the coarse axis (see :func:`coarse_axis`), because a few thick
slices hold too little to interpolate new ones from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.core.labels import IGNORE_INDEX
from pipeline.sample.randomness import BatchRandom

ANISOTROPY = 3.0
"""From this ratio on, of spacings or of patch sizes, the coarse axis is left alone."""

MOST_READ = 8.0
"""Times the voxels of a patch that are read at most for one that is moved. By default it is 2.1 on average; one moved
patch in 500 would need more, and its corners are padding."""


@dataclass(frozen=True, eq=False)
class Move:
    """How a patch is rotated, zoomed and bent about its centre: which voxels of its surroundings it shows.

    Args:
        matrix: (D, D) of :func:`affine_matrices`, on the CPU.
        control: (D, *points) displacement of control points in voxels of each axis, on the CPU; None if not bent.
        distances: Voxels between control points along each axis.
    """

    matrix: Tensor
    control: Tensor | None = None
    distances: tuple[float, ...] = ()

    def box(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """The voxels that the patch may show: first and end along each axis, counted from where the patch begins.

        At most about 8 times as many as the patch has; what lies farther out is shown as padding.

        Args:
            size: Patch voxels along the D axes.
        """
        half = [(length - 1) / 2 for length in size]
        # The corners lie farthest out; a spline stays between its control points. No look at the device is needed.
        reach = (self.matrix.double().abs() @ torch.tensor(half, dtype=torch.float64)).tolist()
        if self.control is not None:
            bends = self.control.abs().flatten(1).amax(1).tolist()
            reach = [own + bend for own, bend in zip(reach, bends, strict=True)]
        excess = math.prod((2 * own + 1) / length for own, length in zip(reach, size, strict=True)) / MOST_READ
        if excess > 1:
            shrink = excess ** (-1 / len(size))
            reach = [max(own * shrink, min(own, own_half)) for own, own_half in zip(reach, half, strict=True)]
        return [
            (math.floor(own_half - own), math.ceil(own_half + own) + 1)
            for own, own_half in zip(reach, half, strict=True)
        ]

    def show(
        self, images: Tensor, labels: Tensor, size: Sequence[int], first: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The patch, sampled from a part of its volume.

        Args:
            images: (C, *S), floating point: the part.
            labels: (*S), integer, at least -1.
            size: Patch voxels along the D axes.
            first: Where the part begins, counted from where the patch begins; by default it is the patch as it was.

        Returns:
            Images (C, *size) and labels (*size) of the same types.
        """
        displacement = None
        if self.control is not None:
            # On their way to a GPU nobody waits for a few numbers.
            control = self.control[None].to(images.device, non_blocking=images.device.type == "cuda")
            displacement = elastic_displacement(control, size, self.distances)[0]
        place = images.device
        grid = sampling_grid(self.matrix, size, displacement, part=labels.shape, first=first, device=place)
        shown, nearest = warp(images[None], labels[None], grid[None])
        return shown[0], nearest[0]


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


def largest_rotation(degrees: float | Literal["auto"], size: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Largest rotation in degrees.

    ``auto``: 30 in 3D, but 180 in the plane of a patch with a coarse axis; 180 in 2D, but 15 where one side of the
    patch is more than 1.5 times the other.

    Args:
        degrees: ``augment.rotate_degrees``.
        size: Patch voxels along the spatial axes.
        spacing_mm: Spacing along the same axes.

    Reference: nnunetv2 2.8.1, whose coarse axis is one with less than a third of another's voxels.
    """
    if degrees != "auto":
        return degrees
    if len(size) == 2:
        return 15.0 if max(size) > 1.5 * min(size) else 180.0
    return 30.0 if coarse_axis(size, spacing_mm) is None else 180.0


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


def control_distances(distance_voxels: float, spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Voxels between control points along each axis: ``distance_voxels`` of the finest, as many mm along the others."""
    return tuple(distance_voxels * min(spacing_mm) / spacing for spacing in spacing_mm)


def draw_control(
    sigma_voxels: float,
    size: Sequence[int],
    distances: Sequence[float],
    spacing_mm: Sequence[float],
    random: BatchRandom,
    fixed: int | None = None,
) -> Tensor:
    """Draw displacements of control points, for smooth random displacement fields.

    Args:
        sigma_voxels: Their SD in voxels of the finest axis; as many mm along the others.
        size: Patch voxels along the D spatial axes.
        distances: Of the control points along each axis.
        spacing_mm: Spacing along the same axes.
        random: Source of the draws, one per field.
        fixed: Axis along which nothing moves.

    Returns:
        (N, D, *points), in voxels of each axis, on the CPU.
    """
    finest = min(spacing_mm)
    points = [_control_points(length, distance) for length, distance in zip(size, distances, strict=True)]
    sd = [0.0 if axis == fixed else sigma_voxels * finest / spacing for axis, spacing in enumerate(spacing_mm)]
    # Control points are few: drawn on the CPU, they are the same on every device.
    control = random.normal((len(size), *points), torch.device("cpu"))
    return control * torch.tensor(sd).reshape(-1, *(1,) * len(size))


def elastic_displacement(control: Tensor, size: Sequence[int], distances: Sequence[float]) -> Tensor:
    """Displacement fields (N, D, *size): cubic B-splines through control points (N, D, *points)."""
    field = control.flatten(0, 1)
    for axis, (length, distance) in enumerate(zip(size, distances, strict=True)):
        field = along_axis(field, spline_operator(length, distance, control.device), axis)
    return field.reshape(*control.shape[:2], *size)


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
    points = torch.arange(_control_points(length, distance), device=device) - 1
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


def sampling_grid(
    matrix: Tensor,
    size: Sequence[int],
    displacement: Tensor | None = None,
    *,
    part: Sequence[int] | None = None,
    first: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Sampling positions of one patch for :func:`warp`.

    Args:
        matrix: (D, D) of :func:`affine_matrices`, on the CPU.
        size: Patch voxels along the D spatial axes.
        displacement: (D, *size) voxels to add, or None.
        part: Voxels of what is sampled; by default the patch.
        first: Where that begins, counted from where the patch begins; by default there.
        device: Of the positions; by default the CPU.

    Returns:
        (*size, D), last axis first and -1 to 1 from border to border, as ``grid_sample`` wants it.
    """
    dims = len(size)
    part, first = part or size, first or [0] * dims
    offsets = []
    for axis, length in enumerate(size):
        line = torch.arange(length, device=device, dtype=torch.float32) - (length - 1) / 2
        offsets.append(line.reshape(*(-1 if other == axis else 1 for other in range(dims))))
    rows = matrix.tolist()  # as numbers, nothing has to be copied to a GPU
    columns = []  # grid_sample wants the last axis first
    for row, length in reversed(list(enumerate(part))):
        # The sum over three broadcast lines: no matrix product, so no loss of precision to TF32 on a GPU.
        position = sum((rows[row][axis] * offsets[axis] for axis in range(dims)), torch.zeros((), device=device))
        if displacement is not None:
            position = position + displacement[row]
        # So far from the centre of the patch, which need not be that of the part.
        away = first[row] + (length - size[row]) / 2
        columns.append((position - away if away else position) * (2.0 / length))
    return torch.stack(columns, dim=-1)


def warp(images: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Sample images linearly and labels by the nearest voxel.

    What comes from outside looks as padding does: intensity 0, label ``IGNORE_INDEX``.

    Args:
        images: (N, C, *S), floating point.
        labels: (N, *S), integer, at least -1.
        grid: (N, *size, D) of :func:`sampling_grid`.

    Returns:
        Images (N, C, *size) and labels (N, *size) of the same types.
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


def _control_points(length: int, distance: float) -> int:
    """Control points along an axis of so many voxels: one before it, one or two beyond its end."""
    return int((length - 1) / distance) + 4


def _plane_rotation(angle: Tensor, axis: int, dims: int) -> Tensor:
    """(N, dims, dims) rotation about one axis in 3D, in the plane in 2D."""
    first, second = ((axis + 1) % 3, (axis + 2) % 3) if dims == 3 else (0, 1)
    matrix = torch.eye(dims).repeat(len(angle), 1, 1)
    matrix[:, first, first] = matrix[:, second, second] = angle.cos()
    matrix[:, first, second], matrix[:, second, first] = -angle.sin(), angle.sin()
    return matrix
