"""The anatomy behind a synthetic fundus photograph: outlines of disc and cup, the field of view, and the vessels.

The vessels are trees that leave the disc up and down, arch around the macula and branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import Box

Plane = NDArray[np.float32]
"""(H, W): one number per pixel."""

Vector = NDArray[np.float64]
"""(2,): x and y."""

_Real = TypeVar("_Real", bound=np.floating[Any])

_WAVES = 3  # an outline goes in and out 2, 3 and 4 times
_CUP_TO_DISC = (0.45, 0.85)  # of the diameters; glaucoma is suspected above about 0.6, and most of Drishti-GS1 has it
_RIM = 0.08  # the cup stays this share of the disc's radius away from its border
_OUTLINE_STEPS = 180


@dataclass(frozen=True, eq=False)
class Outline:
    """An ellipse with a slightly irregular border.

    Args:
        centre: Pixels.
        radii: Half axes in pixels before turning.
        angle: Rad by which the ellipse is turned.
        waves: (3, 2) cosine and sine amplitudes of the radius, relative, for 2, 3 and 4 waves around.
    """

    centre: Vector
    radii: Vector
    angle: float
    waves: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Eye:
    """What is photographed, in pixels: the round field of view, the optic disc and the cup in it.

    ``temporal`` is +1 if the temple is to the right, -1 if to the left.
    """

    size: tuple[int, int]
    view_centre: Vector
    view_radius: float
    disc: Outline
    cup: Outline
    temporal: int


def draw_eye(size: tuple[int, int], rng: np.random.Generator) -> Eye:
    """Draw an eye: where its disc is, how large, and how large the cup is in it."""
    width, height = size
    middle = np.array([width, height]) / 2
    temporal = 1 if rng.random() < 0.5 else -1
    view_radius = width * rng.uniform(0.455, 0.495)
    shift = rng.uniform(-1.0, 1.0, 2) * (0.17 * width, 0.14 * height)
    radius = width * rng.uniform(0.080, 0.115)  # photographs of 30 degrees, discs of 4 to 7
    disc = Outline(
        middle + shift,
        radius * np.array([rng.uniform(0.84, 0.99), 1.0]),
        rng.normal(0.0, 0.15),
        _irregular(0.012, rng),
    )
    return Eye(size, middle + rng.normal(0.0, 3.0, 2), view_radius, disc, _draw_cup(disc, temporal, rng), temporal)


def signed_distance(outline: Outline, size: tuple[int, int], box: Box | None = None) -> Plane:
    """About how many pixels each pixel is outside an outline, negative inside; (H, W) of the picture or of a box."""
    x, y = _offsets(outline.centre, size, box)
    cosine, sine = np.float32(np.cos(outline.angle)), np.float32(np.sin(outline.angle))
    u = (cosine * x + sine * y) / np.float32(outline.radii[0])
    v = (cosine * y - sine * x) / np.float32(outline.radii[1])
    reach = np.maximum(np.hypot(u, v), np.float32(1e-6))
    relative = reach - _border(outline, u / reach, v / reach)
    return np.asarray(relative * outline.radii.mean(), dtype=np.float32)


def outline_angle(outline: Outline, size: tuple[int, int]) -> Plane:
    """Direction in which each pixel lies from the centre, in rad of the image: 0 right, pi/2 down."""
    x, y = _offsets(outline.centre, size)
    return np.asarray(np.arctan2(y, x))


def _draw_cup(disc: Outline, temporal: int, rng: np.random.Generator) -> Outline:
    """A cup of a random size, moved towards the temple as far as the disc allows."""
    ratio = rng.uniform(*_CUP_TO_DISC)
    radii = disc.radii * ratio * np.array([rng.uniform(0.92, 1.06), 1.0])
    room = np.maximum(0.0, disc.radii * (1.0 - _RIM) - radii)
    shift = room * np.array([temporal * rng.uniform(-0.1, 0.5), rng.uniform(-0.3, 0.3)])
    cup = Outline(disc.centre + shift, radii, disc.angle + rng.normal(0.0, 0.1), _irregular(0.02, rng))
    # Irregular borders may cross although the ellipses do not: then the cup shrinks until a rim is left all around.
    share = _reach(cup, disc) / (1.0 - 0.5 * _RIM)
    return cup if share <= 1.0 else Outline(cup.centre, cup.radii / share, cup.angle, cup.waves)


def _reach(inner: Outline, outer: Outline) -> float:
    """How far an outline gets towards the border of another one around it; 1 where they touch."""
    theta = np.linspace(0.0, 2.0 * np.pi, _OUTLINE_STEPS, endpoint=False)
    cosine, sine = np.cos(theta), np.sin(theta)
    edge = _border(inner, cosine, sine) * np.stack([cosine * inner.radii[0], sine * inner.radii[1]])
    x, y = _turn(edge, inner.angle) + (inner.centre - outer.centre)[:, None]
    u, v = _turn(np.stack([x, y]), -outer.angle) / outer.radii[:, None]
    reach = np.hypot(u, v)
    return float((reach / _border(outer, u / reach, v / reach)).max())


def _irregular(amplitude: float, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.normal(0.0, amplitude, (_WAVES, 2))


def _border(outline: Outline, cosine: NDArray[_Real], sine: NDArray[_Real]) -> NDArray[_Real]:
    """Relative radius of an outline in a direction of its own axes."""
    border, c, s = np.ones_like(cosine), cosine, sine
    for along, across in outline.waves.astype(cosine.dtype):
        c, s = c * cosine - s * sine, s * cosine + c * sine  # of twice, three, four times the angle
        border += along * c + across * s
    return border


def _offsets(centre: Vector, size: tuple[int, int], box: Box | None = None) -> tuple[Plane, Plane]:
    """Distance of pixels from a place along x (1, W) and y (H, 1)."""
    rows, columns = (slice(None), slice(None)) if box is None else box.slices
    x = np.arange(size[0], dtype=np.float32)[None, columns]
    return x - np.float32(centre[0]), np.arange(size[1], dtype=np.float32)[rows, None] - np.float32(centre[1])


def _turn(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]]) @ points


_STEP = 1.0  # pixels between two points of a vessel
_THINNEST = 0.55  # SD of the profile in pixels at which a vessel ends
_REACH = 2.4  # SDs of the profile that are drawn
_CALM = 20  # steps over which a vessel's direction is smooth
_TAPER = 9.0  # disc radii over which a vessel loses two thirds of its width


@dataclass
class _Sprout:
    """A vessel about to grow: where, in which direction (rad), how wide (SD, pixels), how strongly it curves."""

    place: NDArray[np.float64]
    heading: float
    width: float
    curvature: float
    branches: int


def draw_vessels(eye: Eye, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """How much of each pixel arteries and veins cover, 0 to 1, each (H, W); they start in the cup."""
    planes = []
    for kind, scale in (("artery", 0.78), ("vein", 1.0)):
        points: list[NDArray[np.float64]] = []
        for upwards in (-1, 1):
            for rank in range(2):
                points += _tree(_root(eye, upwards, rank, scale, kind == "vein", rng), eye, rng)
        planes.append(_rasterized(np.concatenate(points), eye.size))
    return planes[0], planes[1]


def _root(eye: Eye, upwards: int, rank: int, scale: float, vein: bool, rng: np.random.Generator) -> _Sprout:
    """The first or second trunk up or down: the first arches towards the temple, the second goes to the nose."""
    radius = float(eye.disc.radii.mean())
    nasal = -eye.temporal
    place = eye.cup.centre + np.array([nasal * 0.45 * eye.cup.radii[0], upwards * 0.1 * radius])
    place = place + rng.normal(0.0, 0.05 * radius, 2) + np.array([0.0, (1 if vein else -1) * 0.05 * radius])
    lean = rng.uniform(-0.05, 0.45) if rank == 0 else -rng.uniform(0.5, 1.1)  # towards the temple
    heading = np.arctan2(upwards * np.cos(lean), eye.temporal * np.sin(lean))
    bend = rng.uniform(0.55, 1.0) if rank == 0 else rng.uniform(-0.3, 0.3)  # rad over the radius of the field of view
    width = radius * (0.062 if rank == 0 else 0.045) * scale * rng.uniform(0.85, 1.15)
    curvature = -upwards * eye.temporal * bend / eye.view_radius
    return _Sprout(place, float(heading), width, curvature, 4 if rank == 0 else 3)


def _tree(root: _Sprout, eye: Eye, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Points (n, 3) of all vessels of a tree: x, y and width."""
    grown, waiting = [], [root]
    while waiting:
        sprout = waiting.pop()
        path, children = _grown(sprout, eye, rng)
        grown.append(path)
        waiting += children
    return grown


def _grown(sprout: _Sprout, eye: Eye, rng: np.random.Generator) -> tuple[NDArray[np.float64], list[_Sprout]]:
    """One vessel from its start until it is too thin or leaves the picture, and its branches."""
    radius = float(eye.disc.radii.mean())
    longest = min(2.2 * eye.view_radius, _TAPER * radius * max(0.0, np.log(sprout.width / _THINNEST)))
    steps = int(longest / _STEP) + 1
    width = sprout.width * np.exp(-np.arange(steps) * _STEP / (_TAPER * radius))
    # The difference of a random walk over some steps is smooth: a vessel wavers, but has no kinks.
    drift = np.cumsum(rng.normal(0.0, 0.0034, steps + _CALM))
    headings = sprout.heading + np.cumsum(sprout.curvature * _STEP + drift[_CALM:] - drift[:-_CALM])
    moves = _STEP * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    places = sprout.place + np.cumsum(moves, axis=0)
    inside = (places > -5).all(axis=1) & (places < np.array(eye.size) + 5).all(axis=1)
    length = steps if inside.all() else int(np.argmin(inside))
    children = []
    for number in range(sprout.branches if length > 30 else 0):
        at = int(length * (number + rng.uniform(0.25, 1.0)) / (sprout.branches + 0.5))
        side = 1 if rng.random() < 0.5 else -1
        turn = side * rng.uniform(0.35, 0.9)
        share = rng.uniform(0.5, 0.8)
        curvature = -0.5 * turn / eye.view_radius
        children.append(_Sprout(places[at], headings[at] + turn, width[at] * share, curvature, sprout.branches // 3))
    stepped = _over_the_cup(places[:length], headings[:length], eye.cup, 0.12 * radius * rng.uniform(-1.0, 1.0))
    return np.column_stack([stepped, width[:length]]), children


def _over_the_cup(
    places: NDArray[np.float64], headings: NDArray[np.float64], cup: Outline, shift: float
) -> NDArray[np.float64]:
    """Move what is in the cup sideways, so that a vessel bends where it climbs over the cup's border."""
    depth = np.hypot(*((places - cup.centre) / cup.radii).T) - 1.0
    inside = 1.0 / (1.0 + np.exp(np.clip(depth * cup.radii.mean() / 1.5, -30.0, 30.0)))
    across = np.stack([-np.sin(headings), np.cos(headings)], axis=1)
    return np.asarray(places + (shift * inside)[:, None] * across)


def _rasterized(points: NDArray[np.float64], size: tuple[int, int]) -> Plane:
    """Gaussian profiles around points, the strongest at every pixel."""
    canvas = np.zeros((size[1], size[0]), np.float32)
    # By classes of width, because thin vessels need only few pixels around a point.
    for low, widest in pairwise((0.0, 0.8, 1.5, 2.5, np.inf)):
        chosen = points[(points[:, 2] > low) & (points[:, 2] <= widest)].astype(np.float32)
        if not len(chosen):
            continue
        reach = int(np.ceil(_REACH * chosen[:, 2].max()))
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1, 1).astype(np.int64)
        column, row = np.rint(chosen[:, 0]).astype(np.int64) + x, np.rint(chosen[:, 1]).astype(np.int64) + y
        distance = (column - chosen[:, 0]) ** 2 + (row - chosen[:, 1]) ** 2
        profile = np.exp(-0.5 * distance / chosen[:, 2] ** 2).astype(np.float32)
        held = (column >= 0) & (column < size[0]) & (row >= 0) & (row < size[1])
        np.maximum.at(canvas, (row[held], column[held]), profile[held])
    return canvas
