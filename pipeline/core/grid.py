"""A grid: where the voxels of a volume are in the world, how axes are turned, and boxes of voxels.

World coordinates are RAS+ in mm everywhere inside the project. An *orientation* is a string of three axis codes, each
naming the direction in which the voxel index grows: ``"RAS"`` means i → Right, j → Anterior, k → Superior. This is the
one place that converts between axis orders, flips and world conventions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import hypot
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Box:
    """A box of voxels: where something lies in a volume, or the part of it that is worth computing.

    Args:
        start: First voxel along each axis.
        stop: One past the last voxel.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def of(cls, slices: Sequence[slice]) -> Self:
        """The box that an index of slices with both ends stands for."""
        return cls(tuple(int(part.start) for part in slices), tuple(int(part.stop) for part in slices))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Self:
        """The box of a whole volume."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> Self | None:
        """The smallest box that holds every true voxel; None if there is none."""
        start, stop = [], []
        for axis in range(mask.ndim):
            places = np.flatnonzero(mask.any(axis=tuple(n for n in range(mask.ndim) if n != axis)))
            if not len(places):
                return None
            start.append(int(places[0]))
            stop.append(int(places[-1]) + 1)
        return cls(tuple(start), tuple(stop))

    @classmethod
    def union(cls, boxes: Iterable[Box]) -> Self | None:
        """The smallest box that holds all of some boxes; None if there is none."""
        found = list(boxes)
        if not found:
            return None
        start, stop = zip(*(box.start for box in found), strict=True), zip(*(box.stop for box in found), strict=True)
        return cls(tuple(map(min, start)), tuple(map(max, stop)))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    def grown(self, voxels: int | Sequence[int], shape: Sequence[int]) -> Box:
        """The box with a margin, along all axes or along each, as far as a volume of that shape goes."""
        margins = (voxels,) * len(shape) if isinstance(voxels, int) else voxels
        start = tuple(max(0, a - n) for a, n in zip(self.start, margins, strict=True))
        return Box(start, tuple(min(size, b + n) for b, n, size in zip(self.stop, margins, shape, strict=True)))

    def resized(self, shape: Sequence[int], target: Sequence[int]) -> Box:
        """The voxels of a grid of another shape, same field of view, that are interpolated from the box alone."""
        start, stop = [], []
        for a, b, n, m in zip(self.start, self.stop, shape, target, strict=True):
            first = 0 if a == 0 else -(-((2 * a + 1) * m - n) // (2 * n))  # centre not before that of voxel a
            # The centre of the other grid's voxel must not lie behind that of voxel b - 1. Integers, so that nothing is
            # rounded.
            last = m - 1 if b == n else ((2 * b - 1) * m - n) // (2 * n)
            start.append(first)
            stop.append(max(first, last + 1))
        return Box(tuple(start), tuple(stop))

    def touches(self, labels: Any) -> bool:
        """Whether labels in the box lie on a face of it beyond which the image goes on.

        Args:
            labels: (I, J, K), tensor or array.
        """
        # At the border of the image the organ may be cut off by the image itself: no larger box would show more of it.
        inside = labels[self.slices]
        for axis, (a, b, size) in enumerate(zip(self.start, self.stop, labels.shape, strict=True)):
            first, last = ((*[slice(None)] * axis, place) for place in (0, -1))
            if (a > 0 and inside[first].any()) or (b < size and inside[last].any()):
                return True
        return False


_CODES = ("LR", "PA", "IS")  # (negative, positive) direction of each world axis
# World axis that a code lies on: L and R are 0, P and A 1, I and S 2.
_WORLD_AXIS = {code: axis for axis, pair in enumerate(_CODES) for code in pair}


def flip_world(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a (4, 4) voxel-to-world affine from RAS+ to LPS+ or back: the first two world axes are negated."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)


def axis_codes(affine: NDArray[np.float64]) -> str:
    """Closest orientation of a (4, 4) voxel-to-RAS+ affine, e.g. ``"LPS"``: three different world axes.

    Each voxel axis gets the world axis it is best aligned with; where two compete, the better aligned one wins and the
    other takes what is left.
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
    # Greedy: the best aligned pair of all first, then the best of what is left. Every world axis is taken once.
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


def orientation_change(source: str, target: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to turn an array from one orientation to another.

    Returns:
        ``order`` and ``flips``: target axis ``a`` is source axis ``order[a]``, reversed if ``flips[a]``.

    Raises:
        ValueError: If one of the orientations is not valid.
    """
    source, target = check_orientation(source), check_orientation(target)
    by_world = {_WORLD_AXIS[code]: axis for axis, code in enumerate(source)}
    i, j, k = (by_world[_WORLD_AXIS[code]] for code in target)
    return (i, j, k), (source[i] != target[0], source[j] != target[1], source[k] != target[2])


def reorient_array(array: NDArray[Any], source: str, target: str) -> NDArray[Any]:
    """Permute and flip the last three axes of an array (..., I, J, K) from one orientation to another; a view."""
    order, flips = orientation_change(source, target)
    lead = array.ndim - 3
    turned = array.transpose(*range(lead), *(lead + axis for axis in order))
    return turned[(..., *(slice(None, None, -1) if flip else slice(None) for flip in flips))]


ORIENTATIONS: tuple[str, ...] = tuple(
    "".join(codes) for codes in product("LRPAIS", repeat=3) if {_WORLD_AXIS[code] for code in codes} == {0, 1, 2}
)
"""All 48 orientations: 6 axis permutations times 8 flips."""


GRID_TOLERANCE_MM = 1e-3
"""Two grids are the same if no voxel centre moves by more than this."""

_SHEAR_TOLERANCE = 1e-3  # largest cosine between two voxel axes that still counts as a right angle
_STRAIGHTENED_COSINE = 0.02  # about one degree: rounded or badly inverted matrices; a tilted gantry leaves more


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and affine of a volume.

    Args:
        shape: Voxels along i, j, k, each at least 1.
        affine: (4, 4), voxel index to RAS+ world position in mm, of the voxel's centre. Kept as float64, read-only.
        place: What the affine comes from. Pictures have no place in the body, and often two resolutions for one thing:
            a ``picture`` matches any other picture of its shape. A ``stack`` is one whose spacing is known.

    Raises:
        ValueError: If the shape is not three positive integers, or the affine is not finite, not invertible, sheared
            or has a last row other than (0, 0, 0, 1).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    place: Literal["header", "picture", "stack"] = "header"

    def __post_init__(self) -> None:
        """Refuse what is not a grid."""
        shape = tuple(self.shape)
        if len(shape) != 3 or any(int(n) != n or n < 1 for n in shape):
            raise ValueError(f"grid shape: expected three positive integers, got {shape}. Check the volume.")
        # A copy, because the caller's array may change and the grid is hashable.
        affine = np.array(self.affine, dtype=np.float64) + 0.0  # -0.0 becomes 0.0, so that equal grids hash alike
        problem = _affine_problem(affine)
        if problem:
            raise ValueError(f"grid affine: expected {problem}. Repair the header or export the volume again.")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1]), int(self.shape[2])))
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(cls, shape: Sequence[int], spacing_mm: Sequence[float], orientation: str = "RAS") -> Grid:
        """Grid with its first voxel (in RAS order) at the world's origin.

        Args:
            shape: Voxels along i, j, k of the wanted orientation.
            spacing_mm: Spacing along the same axes.
            orientation: Axis codes.

        Raises:
            ValueError: If shape, spacing or orientation is not valid.
        """
        orientation = check_orientation(orientation)
        order, _ = orientation_change(orientation, "RAS")
        i, j, k = (int(shape[axis]) for axis in order)
        ras = cls((i, j, k), np.diag([*(float(spacing_mm[axis]) for axis in order), 1.0]))
        return ras.reoriented(orientation)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along i, j, k in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def orientation(self) -> str:
        """Closest axis codes, e.g. ``"RAS"``."""
        return axis_codes(self.affine)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in mL."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def to_world(self, index_voxels: ArrayLike) -> NDArray[np.float64]:
        """World positions (..., 3) in RAS+ mm of voxel indices (..., 3)."""
        return np.asarray(index_voxels, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxel(self, position_mm: ArrayLike) -> NDArray[np.float64]:
        """Fractional voxel indices (..., 3) of world positions (..., 3) in RAS+ mm."""
        return (np.asarray(position_mm, dtype=np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def reoriented(self, orientation: str) -> Grid:
        """The same voxels listed along other axes; no voxel moves in the world."""
        if orientation == self.orientation:
            return self
        order, flips = orientation_change(self.orientation, orientation)
        affine = np.eye(4)
        affine[:3, 3] = self.affine[:3, 3]
        for axis, (before, flipped) in enumerate(zip(order, flips, strict=True)):
            column = self.affine[:3, before]
            affine[:3, axis] = -column if flipped else column
            if flipped:  # the voxel that was last is first
                affine[:3, 3] += column * (self.shape[before] - 1)
        i, j, k = (self.shape[axis] for axis in order)
        return Grid((i, j, k), affine)

    def cropped(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """Grid of ``array[start[0]:stop[0], start[1]:stop[1], start[2]:stop[2]]``."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(start)
        i, j, k = (int(b) - int(a) for a, b in zip(start, stop, strict=True))
        return Grid((i, j, k), affine)

    def resized(self, shape: Sequence[int]) -> Grid:
        """Grid of another shape over the same field of view (voxel edges, not centres, stay in place).

        Raises:
            ValueError: If the shape is not three positive integers.
        """
        if min(shape) < 1:
            raise ValueError(f"grid shape: expected three positive integers, got {tuple(shape)}. Check the size.")
        # The centre of the first voxel moves, because half a voxel of either grid reaches to the same edge.
        factor = np.array(self.shape, dtype=np.float64) / np.array(shape, dtype=np.float64)
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * factor
        affine[:3, 3] = self.to_world(0.5 * factor - 0.5)
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def resampled(self, spacing_mm: Sequence[float]) -> Grid:
        """Grid of about the given spacing over the same field of view; the voxel count is rounded, at least 1."""
        if not all(spacing > 0 for spacing in spacing_mm):
            raise ValueError(f"spacing: expected numbers above 0, got {tuple(spacing_mm)}. Give mm per axis.")
        old = zip(self.shape, self.spacing_mm, spacing_mm, strict=True)
        return self.resized([max(1, round(n * s / t)) for n, s, t in old])

    def difference_mm(self, other: Grid) -> float:
        """Largest distance in mm that a corner voxel moves between two grids; ``inf`` if the shapes differ.

        Pictures are compared by their shapes alone.
        """
        if self.shape != other.shape:
            return float("inf")
        if {self.place, other.place} in ({"picture"}, {"picture", "stack"}):
            return 0.0
        return corner_distance_mm(self.affine, other.affine, self.shape)

    def matches(self, other: Grid, tolerance_mm: float = GRID_TOLERANCE_MM) -> bool:
        """Whether both grids have the same shape and no voxel centre differs by more than the tolerance."""
        return self.difference_mm(other) <= tolerance_mm

    def __eq__(self, other: object) -> bool:
        """Equal shape and exactly equal affine."""
        return isinstance(other, Grid) and self.shape == other.shape and bool(np.array_equal(self.affine, other.affine))

    def __hash__(self) -> int:
        """Hash of shape and affine."""
        return hash((self.shape, self.affine.tobytes()))


def corner_distance_mm(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """Largest distance in mm between the places of a corner voxel under two affines (4, 4); no voxel moves further."""
    # A difference of two affines is linear, so it is largest at a corner.
    corners = np.array([[*corner, 1.0] for corner in product(*((0, n - 1) for n in shape))])
    return float(np.linalg.norm(corners @ (one - other).T[:, :3], axis=1).max())


def straightened(affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """The nearest affine with right angles between the voxel axes, where an affine is only slightly sheared.

    Args:
        affine: (4, 4), voxel to world in mm.
        shape: Voxels along i, j, k; the middle of the volume stays in place.

    Returns:
        (4, 4) with the same spacing; the affine itself if its angles are right, or off by more than about one degree.
    """
    matrix = affine[:3, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(affine).all() or lengths.min() < 1e-6:
        return affine
    # Cosines between the axes: 0 off the diagonal where all angles are right.
    shear = np.abs((matrix / lengths).T @ (matrix / lengths) - np.eye(3)).max()
    if not _SHEAR_TOLERANCE < shear <= _STRAIGHTENED_COSINE:
        return affine
    left, _, right = np.linalg.svd(matrix / lengths)
    straight = affine.copy()
    straight[:3, :3] = (left @ right) * lengths  # the orthogonal factor of the polar decomposition is the nearest one
    # Turning the axes about the first voxel would move the far end twice as far as turning them about the middle.
    middle = (np.array(shape) - 1) / 2
    straight[:3, 3] += (matrix - straight[:3, :3]) @ middle
    return straight


def _affine_problem(affine: NDArray[np.float64]) -> str:
    """What is wrong with an affine, as ``<rule>, got <value>``; empty if nothing is."""
    if affine.shape != (4, 4):
        return f"a (4, 4) matrix, got shape {affine.shape}"
    if not np.isfinite(affine).all():
        return f"finite numbers, got {affine.tolist()}"
    *zeros, one = affine[3].tolist()
    if max(map(abs, zeros)) > 1e-8 or abs(one - 1) > 1e-5:
        return f"a last row of (0, 0, 0, 1), got {affine[3].tolist()}"
    # Grids are made by the thousand, and for so few numbers plain Python is many times faster than NumPy.
    columns = affine[:3, :3].T.tolist()
    lengths = [hypot(*column) for column in columns]
    a, b, c = ([x / max(length, 1e-12) for x in column] for column, length in zip(columns, lengths, strict=True))
    volume = _dot(a, [b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0]])
    if min(lengths) < 1e-6 or abs(volume) < 1e-6:
        rounded = [round(length, 6) for length in lengths]
        return f"an invertible matrix, got spacing {rounded} and determinant 0"
    cosine = max(abs(_dot(a, b)), abs(_dot(a, c)), abs(_dot(b, c)))
    if cosine > _SHEAR_TOLERANCE:
        return f"right angles between the voxel axes, got a shear with cosine {cosine:.4f}"
    return ""


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]


def mirrored_index(start: int, length: int, size: int) -> NDArray[np.int64]:
    """Where to read along one axis so that the volume appears mirrored at its border.

    The border voxel itself is not repeated: ``a b c`` continues as ``c b [a b c] b a b c …``, for any distance.

    Args:
        start: First position wanted; may be negative or beyond the end.
        length: Number of positions, at least 0.
        size: Voxels along the axis, at least 1.

    Returns:
        (length,) indices from 0 to size - 1.
    """
    if size < 1:
        raise ValueError(f"mirrored axis: expected at least 1 voxel, got {size}. Check the volume.")
    period = max(2 * (size - 1), 1)
    folded = np.arange(start, start + length) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros(length, dtype=np.int64)
