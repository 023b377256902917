"""Positions beyond the border of a volume, mirrored back into it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["mirrored_index"]


def mirrored_index(start: int, length: int, size: int) -> NDArray[np.int64]:
    """Where to read along one axis so that the volume appears mirrored at its border.

    The border voxel itself is not repeated: ``a b c`` continues as ``c b [a b c] b a b c …``, for any distance.

    Args:
        start: First position wanted; may be negative or beyond the end.
        length: Number of positions, at least 0.
        size: Voxels along the axis, at least 1.

    Returns:
        (length,) indices from 0 to size - 1.

    Raises:
        ValueError: If the axis has no voxel.
    """
    if size < 1:
        raise ValueError(f"mirrored axis: expected at least 1 voxel, got {size}. Check the volume.")
    period = max(2 * (size - 1), 1)
    folded = np.arange(start, start + length) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros(length, dtype=np.int64)
