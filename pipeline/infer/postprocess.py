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
    label: NDArray[np.integer[Any]], classes: Iterable[int], connectivity: Literal[6, 18, 26] = 26
) -> NDArray[np.integer[Any]]:
    """Keep only the largest connected component of some classes; the rest of them becomes background.

    Args:
        label: (I, J, K), class indices or label values, 0 background.
        classes: Those to clean, each at least 1; absent ones are skipped.
        connectivity: Neighbours of a voxel: 6 (faces), 18 (also edges) or 26 (also corners).

    Returns:
        A copy of the same shape and type. Of components of equal size, the one that comes first in the array stays.

    Raises:
        ValueError: If a class is below 1 or the connectivity is not 6, 18 or 26.
    """
    wanted = sorted(set(classes))
    if wanted and wanted[0] < 1:
        raise ValueError(f"keep_largest: expected classes of at least 1, got {wanted[0]}. The background is 0.")
    if connectivity not in _SHARED_AXES:
        raise ValueError(f"connectivity: expected 6, 18 or 26, got {connectivity}. Use 26 unless you know better.")
    structure = generate_binary_structure(3, _SHARED_AXES[connectivity])
    cleaned = label.copy()
    organs = label.astype(np.int32, copy=False)
    boxes: Sequence[tuple[slice, ...] | None] = find_objects(organs, max_label=max(wanted, default=0))
    for value in wanted:
        box = boxes[value - 1]
        if box is None:
            continue
        mask = label[box] == value
        components, count = connected_components(mask, structure)
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
            cleaned[box][mask & (components != largest)] = 0
    return cleaned
