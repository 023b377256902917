"""Shapes an organ is built from, as data, and their signed distances.

Lengths are mm in body coordinates (RAS+): x grows to the patient's right, y to the front, z to the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

__all__ = [
    "Ball",
    "Bounds",
    "Half",
    "Points",
    "Rings",
    "Shape",
    "Triple",
    "Trunk",
    "Tube",
    "bounds_mm",
    "distance_mm",
    "moved",
]

Triple = tuple[float, float, float]
Points = NDArray[np.float32]
"""(3, I, J, K) positions in mm."""
Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Lower and upper corner, (3,) each, in mm."""


@dataclass(frozen=True)
class Ball:
    """Ellipsoid.

    Args:
        centre_mm: Centre.
        radii_mm: Semi-axes before the tilt.
        tilt_deg: Rotation about x, y, z, in this order.
    """

    centre_mm: Triple
    radii_mm: Triple
    tilt_deg: Triple = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Tube:
    """Chain of rounded cones along a polyline.

    Args:
        points_mm: Corners of the polyline, at least two.
        radii_mm: Radius at each corner.
    """

    points_mm: tuple[Triple, ...]
    radii_mm: tuple[float, ...]


@dataclass(frozen=True)
class Trunk:
    """Upright column whose cross sections are superellipses; without ends.

    Args:
        stations_mm: (z, half width, half depth), ascending z; in between is interpolated.
        power: 2 is an ellipse; larger is boxier.
    """

    stations_mm: tuple[Triple, ...]
    power: float = 2.4


@dataclass(frozen=True)
class Half:
    """Half of the space: all points whose coordinate exceeds a limit.

    Args:
        axis: 0, 1 or 2 for x, y or z.
        above_mm: The limit.
    """

    axis: int
    above_mm: float


@dataclass(frozen=True)
class Rings:
    """Parallel slabs, such as intervertebral discs or, seen against the chest wall, ribs.

    Args:
        pitch_mm: Distance from slab to slab.
        thickness_mm: Thickness of a slab.
        slope: Rise in z per mm of y towards the back.
        above_mm: There are no slabs below this height.
    """

    pitch_mm: float
    thickness_mm: float
    slope: float = 0.0
    above_mm: float = -1e4


Shape = Ball | Tube | Trunk | Half | Rings


def distance_mm(shape: Shape, points: Points) -> NDArray[np.float32]:
    """Signed distance to the surface of a shape, negative inside; exact to first order near the surface.

    Args:
        shape: Any shape.
        points: (3, I, J, K) positions in mm.

    Returns:
        (I, J, K) in mm.
    """
    return _DISTANCES[type(shape)](shape, points)


def bounds_mm(shape: Shape) -> Bounds | None:
    """Corners of an upright box around a shape, or None for a shape without end."""
    if isinstance(shape, Ball):
        turn = Rotation.from_euler("xyz", shape.tilt_deg, degrees=True).as_matrix()
        reach = np.linalg.norm(turn * np.array(shape.radii_mm), axis=1)
        centre = np.array(shape.centre_mm)
        return centre - reach, centre + reach
    if isinstance(shape, Tube):
        points, radii = np.array(shape.points_mm), np.array(shape.radii_mm)[:, None]
        return (points - radii).min(axis=0), (points + radii).max(axis=0)
    return None


def moved(shape: Shape, pivot_mm: Triple, shift_mm: Triple, stretch: Triple, turn_deg: Triple) -> Shape:
    """A ball or tube stretched and turned about a pivot and then shifted; other shapes are returned as they are.

    Args:
        shape: Any shape.
        pivot_mm: Fixed point of stretch and turn.
        shift_mm: Shift along x, y, z.
        stretch: Factor along x, y, z; a tube's radii take the mean factor.
        turn_deg: Rotation about x, y, z.
    """
    turn = Rotation.from_euler("xyz", turn_deg, degrees=True)

    def place(point: Triple) -> Triple:
        local = (np.array(point) - pivot_mm) * stretch
        x, y, z = turn.apply(local) + pivot_mm + shift_mm
        return float(x), float(y), float(z)

    if isinstance(shape, Ball):
        rx, ry, rz = (float(r * s) for r, s in zip(shape.radii_mm, stretch, strict=True))
        tilt = (turn * Rotation.from_euler("xyz", shape.tilt_deg, degrees=True)).as_euler("xyz", degrees=True)
        return Ball(place(shape.centre_mm), (rx, ry, rz), (float(tilt[0]), float(tilt[1]), float(tilt[2])))
    if isinstance(shape, Tube):
        mean = float(np.mean(stretch))
        return replace(
            shape, points_mm=tuple(map(place, shape.points_mm)), radii_mm=tuple(r * mean for r in shape.radii_mm)
        )
    return shape


def _ball(shape: Ball, points: Points) -> NDArray[np.float32]:
    # k0 (k0 - 1) / k1 is exact on the surface and has unit slope there; k0 is the scaled radius, k1 half its gradient.
    turn = Rotation.from_euler("xyz", shape.tilt_deg, degrees=True).as_matrix().T.astype(np.float32)
    inverse = (1.0 / np.array(shape.radii_mm, dtype=np.float32)).reshape(3, 1, 1, 1)
    local = points - np.array(shape.centre_mm, dtype=np.float32).reshape(3, 1, 1, 1)
    scaled = np.tensordot(turn, local, axes=1) * inverse
    k0 = np.maximum(np.sqrt((scaled**2).sum(axis=0)), 1e-3)
    k1 = np.maximum(np.sqrt(((scaled * inverse) ** 2).sum(axis=0)), 1e-3 * float(inverse.min()))
    return np.asarray(k0 * (k0 - 1.0) / k1, dtype=np.float32)


def _tube(shape: Tube, points: Points) -> NDArray[np.float32]:
    best = np.full(points.shape[1:], np.inf, dtype=np.float32)
    corners = np.array(shape.points_mm, dtype=np.float32)
    for start, stop, r0, r1 in zip(corners, corners[1:], shape.radii_mm, shape.radii_mm[1:], strict=False):
        along = stop - start
        local = points - start.reshape(3, 1, 1, 1)
        t = np.clip(np.tensordot(along, local, axes=1) / max(float(along @ along), 1e-6), 0.0, 1.0)
        local -= along.reshape(3, 1, 1, 1) * t
        np.minimum(best, np.sqrt((local**2).sum(axis=0)) - (np.float32(r0) + np.float32(r1 - r0) * t), out=best)
    return best


def _trunk(shape: Trunk, points: Points) -> NDArray[np.float32]:
    z, width, depth = np.array(shape.stations_mm).T
    power = np.float32(shape.power)
    half_width = np.interp(points[2], z, width).astype(np.float32)
    half_depth = np.interp(points[2], z, depth).astype(np.float32)
    across, deep = np.abs(points[0]) / half_width + 1e-3, np.abs(points[1]) / half_depth + 1e-3
    across_less, deep_less = across ** (power - 1), deep ** (power - 1)
    radius = (across * across_less + deep * deep_less) ** (1 / power)
    slope = np.hypot(across_less / half_width, deep_less / half_depth) / radius ** (power - 1)
    return np.asarray((radius - 1.0) / slope, dtype=np.float32)


def _half(shape: Half, points: Points) -> NDArray[np.float32]:
    return np.asarray(np.float32(shape.above_mm) - points[shape.axis], dtype=np.float32)


def _rings(shape: Rings, points: Points) -> NDArray[np.float32]:
    height = points[2] + np.float32(shape.slope) * points[1]
    from_middle = np.abs(np.mod(height, np.float32(shape.pitch_mm)) - np.float32(shape.pitch_mm / 2))
    slabs = (from_middle - np.float32(shape.thickness_mm / 2)) / np.float32(np.hypot(1.0, shape.slope))
    return np.asarray(np.maximum(slabs, np.float32(shape.above_mm) - height), dtype=np.float32)


_DISTANCES: dict[type, Callable[[Any, Points], NDArray[np.float32]]] = {
    Ball: _ball,
    Tube: _tube,
    Trunk: _trunk,
    Half: _half,
    Rings: _rings,
}
