"""One matrix per axis: what resampling between axis-aligned grids comes down to.

Spline interpolation is linear in the voxel values and separable, so resizing an axis from ``n`` to ``m`` voxels is one
``(m, n)`` matrix (prefilter folded in), and resizing a volume is three matrix products. The matrices are dense on paper
but banded in effect; :func:`apply_operator` skips what is outside the band.

``volseg export`` copies this module into bundles: it may import nothing of this package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, zoom

Operator = NDArray[np.float32]
"""(n_out, n_in): what each voxel before contributes to each voxel after."""

Order = Literal[0, 1, 3]
"""Spline order: nearest, linear, cubic."""

_BLOCK = 64  # output voxels computed together: enough for fast products, few enough to profit from the band
_NEGLIGIBLE = 1e-9  # weights below this cannot change a float32 result


@lru_cache(maxsize=128)
def resize_operator(n_in: int, n_out: int, order: Order, anti_alias: bool = False) -> Operator:
    """Matrix that resizes one axis over the same field of view (voxel edges stay in place).

    Applying it along each axis equals ``scipy.ndimage.zoom(..., grid_mode=True, mode="nearest")``, which is what
    ``skimage.transform.resize(..., mode="edge", anti_aliasing=False)`` calls, to float32 precision.

    Args:
        n_in: Voxels before, at least 1.
        n_out: Voxels after, at least 1.
        order: Spline order: 0 nearest, 1 linear, 3 cubic.
        anti_alias: Smooth before downsampling by a Gaussian of SD (n_in / n_out - 1) / 2 voxels, as
            ``skimage.transform.resize(anti_aliasing=True)`` does.

    Returns:
        (n_out, n_in), float32, read-only; rows sum to 1. The identity if the sizes agree.

    Raises:
        ValueError: If a size is below 1 or the order is not 0, 1 or 3.
    """
    if n_in < 1 or n_out < 1:
        raise ValueError(f"axis size: expected at least 1 voxel, got {n_in} to {n_out}. Check the shape and spacing.")
    if order not in (0, 1, 3):
        raise ValueError(f"spline order: expected 0, 1 or 3, got {order}. Use 3 for images and 1 for logits.")
    matrix = np.eye(n_in)
    if n_in != n_out:
        factor = n_out / n_in
        # Interpolation is linear in the values, so its answers to unit impulses are the columns of its matrix.
        responses = [zoom(unit, factor, order=order, mode="nearest", grid_mode=True) for unit in list(matrix)]
        matrix = np.stack(responses, axis=1)
    if anti_alias and n_out < n_in:
        matrix = matrix @ gaussian_filter1d(np.eye(n_in), (n_in / n_out - 1) / 2, axis=0, mode="nearest")
    operator = matrix.astype(np.float32)
    operator.flags.writeable = False
    return operator


def resize_operators(
    shape: Sequence[int], target: Sequence[int], order: Order | Sequence[Order], anti_alias: bool = False
) -> list[Operator | None]:
    """One matrix, as of :func:`resize_operator`, per axis that changes size; None for the others."""
    orders = order if isinstance(order, Sequence) else [order] * len(shape)
    axes = zip((int(n) for n in shape), (int(n) for n in target), orders, strict=True)
    return [None if a == b else resize_operator(a, b, spline, anti_alias) for a, b, spline in axes]


def band(rows: Operator) -> tuple[int, int]:
    """First and one past the last column that carries weight in rows (m, n) of an operator; ``0, 0`` if none does."""
    used = np.flatnonzero((np.abs(rows) > _NEGLIGIBLE).any(axis=0))
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)


def apply_operator(values: torch.Tensor, operator: Operator, axis: int) -> torch.Tensor:
    """Multiply one axis of a tensor by a matrix, in float32 even under autocast.

    Args:
        values: Any shape with ``n`` entries along ``axis``.
        operator: (m, n).
        axis: 0 or above.

    Returns:
        New float32 tensor with ``m`` entries along ``axis``, on the same device, without gradients.
    """
    lead, trail = math.prod(values.shape[:axis]), math.prod(values.shape[axis + 1 :])
    source = values.float().reshape(lead, operator.shape[1], trail)
    result = source.new_empty((lead, operator.shape[0], trail))
    with torch.no_grad(), torch.autocast(device_type=values.device.type, enabled=False):
        for first in range(0, operator.shape[0], _BLOCK):
            rows = operator[first : first + _BLOCK]
            start, stop = band(rows)
            weights = torch.tensor(rows[:, start:stop], device=values.device)
            # Outside the band the weights are 0: leaving them out saves most of the multiplications.
            used, part = source[:, start:stop], result[:, first : first + _BLOCK]
            if trail == 1:  # the last axis: one product instead of many matrix-vector products
                torch.mm(used[:, :, 0], weights.T, out=part[:, :, 0])
            else:
                torch.bmm(weights.expand(lead, -1, -1), used, out=part)
    return result.reshape(*values.shape[:axis], operator.shape[0], *values.shape[axis + 1 :])


def apply_operators(values: torch.Tensor, operators: Sequence[Operator | None]) -> torch.Tensor:
    """Multiply each spatial axis by its matrix, in the order of axes that costs least.

    Args:
        values: (C, I, J, K).
        operators: One per spatial axis, (m, n); None leaves the axis alone.

    Returns:
        float32 (C, I', J', K'); shares memory with the input if it is float32 and no axis changes.
    """
    values = values.float()
    changes = {axis: operator for axis, operator in enumerate(operators) if operator is not None}
    sizes = {axis: operator.shape[0] for axis, operator in changes.items()}
    for axis in _cheapest_order(values.shape[1:], sizes):
        values = apply_operator(values, changes[axis], axis + 1)
    return values


def _cheapest_order(shape: Sequence[int], sizes: dict[int, int]) -> tuple[int, ...]:
    """Order in which to bring axes to their new sizes with the fewest multiplications."""

    def multiplications(order: tuple[int, ...]) -> int:
        current, total = list(shape), 0
        for axis in order:
            total += math.prod(current) * sizes[axis]
            current[axis] = sizes[axis]
        return total

    # At most six orders. Shrinking axes first leaves less to multiply along the others.
    return min(permutations(sizes), key=multiplications)


@overload
def resample(
    array: NDArray[np.floating[Any]], shape: Sequence[int], order: Order | Sequence[Order], *, anti_alias: bool = False
) -> NDArray[np.float32]: ...
@overload
def resample(
    array: torch.Tensor, shape: Sequence[int], order: Order | Sequence[Order], *, anti_alias: bool = False
) -> torch.Tensor: ...
def resample(
    array: NDArray[np.floating[Any]] | torch.Tensor,
    shape: Sequence[int],
    order: Order | Sequence[Order],
    *,
    anti_alias: bool = False,
) -> NDArray[np.float32] | torch.Tensor:
    """Resize intensities, probabilities or logits over the same field of view.

    Cubic results are clipped to each channel's own range, because splines overshoot at edges; where only some axes are
    cubic, to the range of each slice that these span.

    Args:
        array: (C, I, J, K) or (I, J, K), NumPy or torch, finite.
        shape: Voxels wanted along i, j, k.
        order: Spline order: 0 nearest, 1 linear, 3 cubic; of all axes or of each, such as (3, 3, 0) for thick slices,
            which are no continuation of one another.
        anti_alias: Smooth axes that get shorter first (see :func:`resize_operator`).

    Returns:
        float32, (C, *shape) or ``shape``, of the kind given; a tensor stays on its device. If the shapes agree, the
        values are unchanged and may share memory with the input.

    Raises:
        ValueError: If a size is below 1 or the order is not 0, 1 or 3.

    Reference: equals ``skimage.transform.resize(channel, shape, order, mode="edge", anti_aliasing=False,
        preserve_range=True)`` of each channel; with two orders, nnU-Net's separate resampling of the coarse axis.
    """
    if isinstance(array, np.ndarray):
        tensor = torch.from_numpy(np.require(array, np.float32, ["C_CONTIGUOUS", "WRITEABLE"]))
        return np.asarray(resample(tensor, shape, order, anti_alias=anti_alias).numpy())
    values = array if array.ndim == 4 else array[None]
    operators = resize_operators(values.shape[1:], shape, order, anti_alias)
    orders = order if isinstance(order, Sequence) else [order] * 3
    # Cubic axes first: they overshoot, and what lies beyond the range is clipped before slices are blended.
    curved = [operator if spline > 1 else None for operator, spline in zip(operators, orders, strict=True)]
    result = apply_operators(values, curved)
    if any(operator is not None for operator in curved):
        spanned = tuple(axis for axis, spline in enumerate(orders, start=1) if spline > 1)
        low, high = values.amin(dim=spanned, keepdim=True), values.amax(dim=spanned, keepdim=True)
        result = result.clamp_(low.float(), high.float())
    result = apply_operators(result, [None if spline > 1 else op for op, spline in zip(operators, orders, strict=True)])
    return result if array.ndim == 4 else result[0]
