"""One-dimensional linear operators as small dense matrices, applied along one axis of a batch.

Blur, loss of resolution and smooth displacement fields are separable: one matrix per axis. Matrices are batched, so
that every sample may have its own strength, and they need no padding: borders are part of the matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def blur_operator(length: int, sigma: Tensor) -> Tensor:
    """Gaussian smoothing with an SD (N,) in voxels, (N, n, n): beyond the border is nothing, and rows sum to 1."""
    places = torch.arange(length, device=sigma.device, dtype=sigma.dtype)
    distance = (places[:, None] - places[None, :]) / sigma.clamp(min=1e-3)[:, None, None]
    # Beyond 6 SD weights vanish in float32; as denormal numbers they would make the product many times slower.
    weights = torch.exp(-0.5 * distance.square()).masked_fill(distance.abs() > 6, 0.0)
    return weights / weights.sum(dim=2, keepdim=True)


def low_resolution_operator(length: int, zoom: Tensor) -> Tensor:
    """Keep the nearest of every few voxels, then interpolate linearly back to the old length.

    Equals ``interpolate(mode="nearest-exact")`` to ``round(n * zoom)`` voxels, then ``interpolate(mode="linear")``.

    Args:
        length: Voxels n along the axis.
        zoom: (N,) in (0, 1]; 1 is the identity.

    Returns:
        (N, n, n).
    """
    kept = (length * zoom).round().clamp(min=1, max=length)[:, None]
    places = torch.arange(length, device=zoom.device, dtype=zoom.dtype)
    coarse = ((places + 0.5) * kept / length - 0.5).clamp(min=0)
    lower = torch.minimum(coarse.floor(), kept - 1)
    upper = torch.minimum(lower + 1, kept - 1)
    fraction = (coarse - lower).clamp(max=1)
    operator = zoom.new_zeros((len(zoom), length, length))
    for place, weight in ((lower, 1 - fraction), (upper, fraction)):
        source = ((place + 0.5) * length / kept).floor().clamp(max=length - 1).long()
        operator.scatter_add_(2, source[..., None], weight[..., None])
    return operator


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
