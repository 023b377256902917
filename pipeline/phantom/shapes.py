"""What a torso is made of: shapes as data with their signed distances, parts of them, and smooth random fields.

Lengths are mm in body coordinates (RAS+): x grows to the patient's right, y to the front, z to the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Triple = tuple[float, float, float]
Points = NDArray[np.float32]
"""(3, I, J, K) positions in mm."""
Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Lower and upper corner, (3,) each, in mm."""


@dataclass(frozen=True)
class Ball:
    """Ellipsoid: its semi-axes, tilted about x, y and z in this order."""

    centre_mm: Triple
    radii_mm: Triple
    tilt_deg: Triple = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Tube:
    """Chain of rounded cones along a polyline of two or more corners, with a radius at each."""

    points_mm: tuple[Triple, ...]
    radii_mm: tuple[float, ...]


@dataclass(frozen=True)
class Trunk:
    """Upright column without ends; its cross sections are superellipses: of power 2 ellipses, above that boxier.

    ``stations_mm`` are (z, half width, half depth), ascending in z; in between is interpolated.
    """

    stations_mm: tuple[Triple, ...]
    power: float = 2.4


@dataclass(frozen=True)
class Half:
    """Half of the space: all points whose coordinate along an axis (0, 1, 2 for x, y, z) exceeds a limit."""

    axis: int
    above_mm: float


@dataclass(frozen=True)
class Rings:
    """Parallel slabs, such as intervertebral discs or, seen against the chest wall, ribs.

    ``slope`` is their rise in z per mm of y towards the back; there are none below ``above_mm``.
    """

    pitch_mm: float
    thickness_mm: float
    slope: float = 0.0
    above_mm: float = -1e4


Shape = Ball | Tube | Trunk | Half | Rings


def distance_mm(shape: Shape, points: Points) -> NDArray[np.float32]:
    """Signed distance (I, J, K) to the surface of a shape, negative inside; exact to first order near the surface."""
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

    The radii of a tube take the mean of the three factors of the stretch.
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
    # The distance to an ellipsoid has no closed form. k0 (k0 - 1) / k1 is exact on the surface and has unit slope
    # there; k0 is the scaled radius, k1 half its gradient.
    turn = Rotation.from_euler("xyz", shape.tilt_deg, degrees=True).as_matrix().T.astype(np.float32)
    inverse = (1.0 / np.array(shape.radii_mm, dtype=np.float32)).reshape(3, 1, 1, 1)
    local = points - np.array(shape.centre_mm, dtype=np.float32).reshape(3, 1, 1, 1)
    scaled = np.tensordot(turn, local, axes=1) * inverse
    k0 = np.maximum(np.sqrt((scaled**2).sum(axis=0)), 1e-3)
    k1 = np.maximum(np.sqrt(((scaled * inverse) ** 2).sum(axis=0)), 1e-3 * float(inverse.min()))
    return np.asarray(k0 * (k0 - 1.0) / k1, dtype=np.float32)


def _tube(shape: Tube, points: Points) -> NDArray[np.float32]:
    # Of every cone the distance to its axis, less the radius at the nearest point; the union is the minimum.
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
    # The implicit function of a superellipse, divided by its slope: distance to first order, as for a ball.
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


# Parts: one frozen value per organ, bone, muscle or vessel, and short ways to write them.

Role = Literal["organ", "other", "detail"]
"""An organ sets its label, anything else takes labels away, a detail changes intensities only."""

WALL_MM = 13.0
"""Thickness of the muscular wall; organs lie deeper."""


@dataclass(frozen=True)
class Part:
    """One thing that is painted.

    Args:
        name: Unique name; for organs a name of the label table.
        tissue: What it is made of, a key of the tissue tables.
        shapes: Their smooth union is the part; none means everywhere within the other limits.
        role: What painting it does to the labels.
        depth_mm: Least depth below the muscle surface of the trunk (the skin is at negative depth); None is no limit.
        depth_stop_mm: Greatest depth, or None.
        inside: Name of an earlier part that contains it, or "".
        inset_mm: Least distance from the surface of that part.
        blend_mm: Width of the fillets where shapes meet.
        halo_mm: Thickness of the fat painted around it beforehand.
        varies: How much place and shape differ between patients; 1 is an organ's usual amount, 0 none.
        fixed: Whether it belongs to the scanner (the table) rather than to the patient.
    """

    name: str
    tissue: str
    shapes: tuple[Shape, ...] = ()
    role: Role = "other"
    depth_mm: float | None = None
    depth_stop_mm: float | None = None
    inside: str = ""
    inset_mm: float = 0.0
    blend_mm: float = 0.0
    halo_mm: float = 0.0
    varies: float = 0.0
    fixed: bool = False


def organ(name: str, tissue: str, *shapes: Shape, varies: float, blend_mm: float = 0.0, halo_mm: float = 0.0) -> Part:
    """A labelled part within the muscular wall."""
    return Part(name, tissue, shapes, "organ", WALL_MM, blend_mm=blend_mm, halo_mm=halo_mm, varies=varies)


def filler(name: str, tissue: str, *shapes: Shape, varies: float = 0.0, blend_mm: float = 0.0) -> Part:
    """An unlabelled part within the muscular wall, there to distract."""
    return Part(name, tissue, shapes, depth_mm=WALL_MM, blend_mm=blend_mm, varies=varies)


def inner(name: str, tissue: str, inside: str, inset_mm: float, *shapes: Shape) -> Part:
    """A detail inside another part, at least so deep below its surface."""
    return Part(name, tissue, shapes, "detail", inside=inside, inset_mm=inset_mm)


def both_sides(part: Part) -> tuple[Part, Part]:
    """A part on the right (x > 0) and its mirror image on the left."""
    right = replace(part, name=f"{part.name}_right", inside=part.inside and f"{part.inside}_right")
    left = replace(part, name=f"{part.name}_left", inside=part.inside and f"{part.inside}_left")
    return right, replace(left, shapes=tuple(map(_mirrored, part.shapes)))


def _mirrored(shape: Shape) -> Shape:
    def flip(point: Triple) -> Triple:
        return -point[0], point[1], point[2]

    if isinstance(shape, Ball):
        x, y, z = shape.tilt_deg
        return replace(shape, centre_mm=flip(shape.centre_mm), tilt_deg=(x, -y, -z))
    if isinstance(shape, Tube):
        return replace(shape, points_mm=tuple(map(flip, shape.points_mm)))
    return shape


# Smooth random fields: displacements of the anatomy and bias fields of coils.


@dataclass(frozen=True, eq=False)
class Waves:
    """Sum of plane waves, a smooth random field that needs no grid.

    Args:
        vectors: (n, 3) wave vectors in rad/mm.
        amplitudes: (n, c), one column per component of the field.
        phases: (n,) in rad.
    """

    vectors: NDArray[np.float32]
    amplitudes: NDArray[np.float32]
    phases: NDArray[np.float32]


def wave_sum(waves: Waves, points: Points) -> NDArray[np.float32]:
    """The field (c, I, J, K) at positions (3, I, J, K)."""
    total = np.zeros((waves.amplitudes.shape[1], *points.shape[1:]), dtype=np.float32)
    for vector, amplitude, phase in zip(waves.vectors, waves.amplitudes, waves.phases, strict=True):
        wave = np.sin(np.tensordot(vector, points, axes=1) + phase)
        for component, factor in zip(total, amplitude, strict=True):
            component += factor * wave
    return total


def draw_waves(
    rng: np.random.Generator, count: int, length_mm: tuple[float, float], amplitude: float, components: int
) -> Waves:
    """Draw waves of random directions, with wavelengths in a range and amplitudes of a standard deviation."""
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    vectors = direction * (2.0 * np.pi / rng.uniform(*length_mm, size=(count, 1)))
    amplitudes = amplitude * np.clip(rng.standard_normal((count, components)), -2.0, 2.0)
    phases = rng.uniform(0.0, 2.0 * np.pi, size=count)
    return Waves(vectors.astype(np.float32), amplitudes.astype(np.float32), phases.astype(np.float32))
