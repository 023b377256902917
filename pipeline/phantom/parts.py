"""What a torso is made of: one frozen value per organ, bone, muscle or vessel, and short ways to write them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pipeline.phantom.shapes import Ball, Shape, Triple, Tube

__all__ = ["WALL_MM", "Part", "Role", "both_sides", "filler", "inner", "organ"]

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
