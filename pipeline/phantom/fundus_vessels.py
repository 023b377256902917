"""Vessels of a synthetic fundus: trees that leave the disc up and down, arch around the macula and branch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.fundus_eye import Eye, Outline, Plane

__all__ = ["draw_vessels"]

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
    """Draw arteries and veins.

    Args:
        eye: The eye; vessels start in its cup and step over the cup's border.
        rng: Source of all draws.

    Returns:
        How much of each pixel arteries and veins cover, 0 to 1, each (H, W).
    """
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
    for low, widest in pairwise((0.0, 0.8, 1.5, 2.5, np.inf)):  # thin vessels need few pixels around a point
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
