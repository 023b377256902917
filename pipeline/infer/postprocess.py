"""Clean-up of label maps after inference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, generate_binary_structure
from scipy.ndimage import label as connected_components

__all__ = ["keep_largest"]

_SHARED_AXES = {6: 1, 18: 2, 26: 3}  # neighbours share a face, an edge or a corner


def keep_largest(
    index: NDArray[np.integer[Any]], without: Iterable[Sequence[int]], connectivity: Literal[6, 18, 26] = 26
) -> NDArray[np.integer[Any]]:
    """Keep only the largest connected component of some organs or regions, one after the other.

    Args:
        index: (I, J, K) class indices.
        without: For each organ or region :meth:`~pipeline.core.labels.LabelTable.without` of it: what becomes of every
            class where it is taken away. Those that are absent are skipped.
        connectivity: Neighbours of a voxel: 6 (faces), 18 (also edges) or 26 (also corners).

    Returns:
        A copy of the same shape and type. Of components of equal size, the one that comes first in the array stays.

    Raises:
        ValueError: If the connectivity is not 6, 18 or 26.
    """
    if connectivity not in _SHARED_AXES:
        raise ValueError(f"connectivity: expected 6, 18 or 26, got {connectivity}. Use 26 unless you know better.")
    structure = generate_binary_structure(3, _SHARED_AXES[connectivity])
    cleaned = index.copy()
    # Of each class; they stay valid, as what is left of a class lies in no region that the class does not lie in.
    boxes: Sequence[tuple[slice, ...] | None] = find_objects(index.astype(np.int32, copy=False))
    for rest in without:
        held = [n for n, left in enumerate(rest) if left != n]
        box = _union([found for n in held if n <= len(boxes) and (found := boxes[n - 1]) is not None])
        if box is None:
            continue
        part = cleaned[box]
        mask = np.isin(part, held)
        components, count = connected_components(mask, structure)
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
            stray = mask & (components != largest)
            part[stray] = np.array(rest, dtype=index.dtype)[part[stray]]
    return cleaned


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...] | None:
    """Smallest box around some boxes; None around none."""
    if not boxes:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
