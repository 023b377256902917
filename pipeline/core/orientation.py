"""The one place that converts between axis orders, flips and world conventions.

World coordinates are RAS+ in mm everywhere inside the project. An *orientation* is a string of three axis codes, each
naming the direction in which the voxel index grows: ``"RAS"`` means i → Right, j → Anterior, k → Superior.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ORIENTATIONS",
    "axis_codes",
    "check_orientation",
    "flip_world",
    "reorient_affine",
    "reorient_array",
    "steps",
]

_CODES = ("LR", "PA", "IS")  # (negative, positive) direction of each world axis
_WORLD_AXIS = {code: axis for axis, pair in enumerate(_CODES) for code in pair}


def flip_world(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a voxel-to-world affine from RAS+ to LPS+ or back (the operation is its own inverse).

    Args:
        affine: (4, 4), mm.

    Returns:
        (4, 4) with the first two world axes negated.
    """
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)


def axis_codes(affine: NDArray[np.float64]) -> str:
    """Closest orientation of an affine, e.g. ``"LPS"``.

    Each voxel axis gets the world axis it is best aligned with; where two compete, the better aligned one wins and the
    other takes what is left, so that the three codes always name three different world axes.

    Args:
        affine: (4, 4) voxel to RAS+ mm, invertible.
    """
    return _axis_codes(np.asarray(affine, dtype=np.float64)[:3, :3].tobytes())


@lru_cache(maxsize=256)
def _axis_codes(matrix: bytes) -> str:
    """Of the (3, 3) float64 matrix with these bytes: the volumes of a dataset share a few."""
    columns = np.frombuffer(matrix).reshape(3, 3)
    cosines = columns / np.linalg.norm(columns, axis=0)
    left, _, right = np.linalg.svd(cosines)
    rotation = left @ right  # the nearest orthogonal matrix: shear does not tip the choice
    strength = np.abs(rotation)
    codes = [""] * 3
    for _ in range(3):
        world, voxel = np.unravel_index(int(np.argmax(strength)), (3, 3))
        codes[voxel] = _CODES[world][int(rotation[world, voxel] > 0)]
        strength[world, :] = -1.0
        strength[:, voxel] = -1.0
    return "".join(codes)


def check_orientation(orientation: str) -> str:
    """Return the orientation in upper case.

    Raises:
        ValueError: If it is not three codes that name three different world axes.
    """
    upper = orientation.upper()
    if len(upper) != 3 or {_WORLD_AXIS.get(code) for code in upper} != {0, 1, 2}:
        raise ValueError(
            f"orientation: expected three axis codes, one each of L/R, P/A and I/S, got {orientation!r}. "
            "Write for example RAS."
        )
    return upper


def steps(source: str, target: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to turn an array from one orientation to another.

    Returns:
        ``order`` and ``flips``: target axis ``a`` is source axis ``order[a]``, reversed if ``flips[a]``.

    Raises:
        ValueError: If one of the orientations is not valid.
    """
    source, target = check_orientation(source), check_orientation(target)
    by_world = {_WORLD_AXIS[code]: axis for axis, code in enumerate(source)}
    first, second, third = (by_world[_WORLD_AXIS[code]] for code in target)
    order = (first, second, third)
    flipped = [source[axis] != code for axis, code in zip(order, target, strict=True)]
    return order, (flipped[0], flipped[1], flipped[2])


def reorient_array(array: NDArray[Any], source: str, target: str) -> NDArray[Any]:
    """Permute and flip the last three axes of an array from one orientation to another.

    Args:
        array: (..., I, J, K) in ``source`` orientation.
        source: Orientation of the array.
        target: Orientation wanted.

    Returns:
        A view of shape (..., I', J', K').
    """
    order, flips = steps(source, target)
    lead = array.ndim - 3
    turned = array.transpose(*range(lead), *(lead + axis for axis in order))
    return turned[(..., *(slice(None, None, -1) if flip else slice(None) for flip in flips))]


def reorient_affine(
    affine: NDArray[np.float64], shape: tuple[int, int, int], target: str
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Affine and shape after the array was turned to ``target``; world positions stay where they were.

    Args:
        affine: (4, 4) voxel to RAS+ mm.
        shape: Voxels along i, j, k.
        target: Orientation wanted.

    Returns:
        The new (4, 4) affine and the new shape.
    """
    order, flips = steps(axis_codes(affine), target)
    turned = np.eye(4)
    turned[:3, 3] = affine[:3, 3]
    for axis, (origin, flip) in enumerate(zip(order, flips, strict=True)):
        column = affine[:3, origin]
        turned[:3, axis] = -column if flip else column
        if flip:
            turned[:3, 3] += column * (shape[origin] - 1)
    return turned, (shape[order[0]], shape[order[1]], shape[order[2]])


ORIENTATIONS: tuple[str, ...] = tuple(
    a + b + c
    for a in "LRPAIS"
    for b in "LRPAIS"
    for c in "LRPAIS"
    if {_WORLD_AXIS[a], _WORLD_AXIS[b], _WORLD_AXIS[c]} == {0, 1, 2}
)
"""All 48 orientations: 6 axis permutations times 8 flips."""
