"""One patient and the grid it is scanned on.

:func:`draw_body` varies the average torso in size, build, organ shapes, bowel, lesions and pose. :func:`draw_grid`
draws spacing, orientation and field of view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pipeline.core.grid import Grid
from pipeline.phantom.anatomy import ATLAS, TRUNK
from pipeline.phantom.shapes import WALL_MM, Ball, Half, Part, Points, Triple, Tube, Waves, bounds_mm, draw_waves, moved

_BOWEL_LOOPS = 9


@dataclass(frozen=True, eq=False)
class Body:
    """A patient on the table.

    Args:
        parts: What to paint, in this order.
        rotation: (3, 3), body to world.
        scale: (3,), world mm per body mm.
        offset_mm: (3,), world position of the body's origin.
        fat_mm: Thickness of the fat under the skin, in body mm.
        waves: Displacement of body coordinates in mm, 3 components.
    """

    parts: tuple[Part, ...]
    rotation: NDArray[np.float64]
    scale: NDArray[np.float64]
    offset_mm: NDArray[np.float64]
    fat_mm: float
    waves: Waves


def draw_body(rng: np.random.Generator) -> Body:
    """Draw a patient: rotated by at most 8 degrees about each axis, of 0.9 to 1.1 times the average size."""
    fat_mm = float(rng.uniform(8.0, 28.0))
    scale = rng.uniform(0.93, 1.07) * rng.uniform(0.97, 1.03, size=3)
    angles = rng.uniform(-1.0, 1.0, size=3) * (4.0, 4.0, 8.0)
    # The table lies under the back, however thick the fat of this patient is.
    back_mm = max(depth for _, _, depth in TRUNK.stations_mm) * scale[1] + fat_mm
    parts: list[Part] = []
    for part in ATLAS:
        if part.fixed:
            part = replace(
                part,
                shapes=tuple(moved(s, (0, 0, 0), (0, 130 - back_mm, 0), (1, 1, 1), (0, 0, 0)) for s in part.shapes),
            )
        elif part.name == "skin":
            part = replace(part, depth_mm=-fat_mm)
        parts.append(_varied(part, rng) if part.varies else part)
        if part.name == "mesentery":
            parts += _bowel(rng)
        elif part.name == "hepatic_vein" and rng.random() < 0.4:
            parts.append(_lesion(rng))
        elif part.name.startswith("colon"):
            parts += _content(part, rng)
    return Body(
        parts=tuple(parts),
        rotation=Rotation.from_euler("xyz", angles, degrees=True).as_matrix(),
        scale=scale,
        offset_mm=rng.uniform(-80.0, 80.0, size=3),
        fat_mm=fat_mm,
        waves=_draw_waves(rng),
    )


def from_world(body: Body, positions_mm: Points) -> Points:
    """Body coordinates (3, I, J, K) of world positions (3, I, J, K), without the displacement."""
    matrix = (np.diag(1.0 / body.scale) @ body.rotation.T).astype(np.float32)
    return np.tensordot(matrix, positions_mm - body.offset_mm.astype(np.float32).reshape(3, 1, 1, 1), axes=1)


def to_world(body: Body, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """World positions (n, 3) of body coordinates (n, 3), without the displacement."""
    return (points_mm * body.scale) @ body.rotation.T + body.offset_mm


def _draw_waves(rng: np.random.Generator) -> Waves:
    long, short = draw_waves(rng, 5, (130.0, 280.0), 2.5, 3), draw_waves(rng, 4, (50.0, 90.0), 0.8, 3)
    return Waves(
        np.concatenate([long.vectors, short.vectors]),
        np.concatenate([long.amplitudes, short.amplitudes]),
        np.concatenate([long.phases, short.phases]),
    )


def _varied(part: Part, rng: np.random.Generator) -> Part:
    boxes = [box for box in map(bounds_mm, part.shapes) if box is not None]
    low, high = np.min([b[0] for b in boxes], axis=0), np.max([b[1] for b in boxes], axis=0)
    shift = np.clip(rng.standard_normal(3), -2.0, 2.0) * 2.5 * part.varies
    stretch = 1.0 + rng.uniform(-0.09, 0.09, size=3) * part.varies
    turn = rng.uniform(-8.0, 8.0, size=3) * part.varies
    place = _triple((low + high) / 2), _triple(shift), _triple(stretch), _triple(turn)
    return replace(part, shapes=tuple(moved(shape, *place) for shape in part.shapes))


def _bowel(rng: np.random.Generator) -> list[Part]:
    parts: list[Part] = []
    for number in range(_BOWEL_LOOPS):
        start = rng.uniform((-75.0, 0.0, -135.0), (65.0, 55.0, -50.0))
        points = [start]
        for _ in range(3):
            step = rng.standard_normal(3) * (30.0, 14.0, 20.0)
            points.append(np.clip(points[-1] + step, (-80.0, -5.0, -140.0), (70.0, 62.0, -45.0)))
        tube = Tube(tuple(map(_triple, points)), (float(rng.uniform(10.0, 14.0)),) * 4)
        loop = Part(f"bowel_{number}", "bowel", (tube,), depth_mm=WALL_MM)
        parts += [loop, *_content(loop, rng)]
    return parts


def _content(part: Part, rng: np.random.Generator) -> list[Part]:
    """Food or fluid in a bowel part and, in some, gas above it: the patient lies on the back, so gas is in front."""
    tissue = str(rng.choice(["food", "water", "stool"]))
    content = [Part(f"{part.name}_content", tissue, role="detail", inside=part.name, inset_mm=3.5)]
    gas_share, level = rng.random(), rng.uniform(-4.0, 8.0)
    if gas_share < 0.4:
        box = bounds_mm(part.shapes[0])
        middle = 0.0 if box is None else float((box[0][1] + box[1][1]) / 2)
        content.append(
            Part(f"{part.name}_gas", "air", (Half(1, middle + level),), "detail", inside=part.name, inset_mm=3.5)
        )
    return content


def _lesion(rng: np.random.Generator) -> Part:
    ball = Ball(_triple(rng.uniform((40.0, -40.0, 0.0), (110.0, 45.0, 60.0))), (float(rng.uniform(8.0, 15.0)),) * 3)
    return Part("lesion", "lesion", (ball,), "detail", inside="liver", inset_mm=2.0)


def _triple(values: NDArray[np.float64]) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z


Size = Literal["small", "full"]

SPACINGS_MM: dict[Size, tuple[tuple[float, float, float], ...]] = {
    "small": (
        (2.8, 2.8, 4.0),
        (3.0, 3.0, 5.0),
        (3.0, 3.0, 3.0),
        (2.4, 2.4, 5.0),
        (3.2, 5.0, 3.2),
        (3.4, 3.4, 2.5),
        (5.0, 2.9, 2.9),
        (3.3, 3.3, 0.8),
        (2.6, 2.6, 4.5),
        (1.6, 1.6, 5.0),
        (3.1, 3.1, 2.0),
    ),
    "full": ((0.8, 0.8, 5.0), (0.8, 0.8, 2.5), (0.8, 0.8, 1.5), (0.9, 0.9, 3.0), (0.85, 0.85, 2.0)),
}
"""Spacings along the patient's x, y, z: mostly axial slices, some coronal, sagittal and nearly isotropic."""

ORIENTATIONS: tuple[str, ...] = ("LPS", "RAS", "PIR", "LAS", "SRA", "RPI", "AIL")
"""Axis codes in use."""

_VOXELS: dict[Size, int] = {"small": 2_000_000, "full": 512 * 512 * 300}
_LOWEST_MM, _HIGHEST_MM = -215.0, 232.0  # ends of a field of view that cuts nothing, in body coordinates
_MIDDLE_MM = 15.0  # a short field of view is centred on the upper abdomen
_DEAL_STREAM = 9  # apart from the streams of the cases


def draw_grid(body: Body, index: int, seed: int, size: Size, rng: np.random.Generator) -> tuple[Grid, str]:
    """Draw the grid of a case, in RAS order, and the orientation to store it in.

    Spacings and orientations are dealt in turn, in an order that the seed of the dataset shuffles, so that a small
    dataset has them all. Where thin slices would make more voxels than the size allows (about 1 million for
    ``"small"``, 512 x 512 x 60 to 300 for ``"full"``), the field of view is shorter, as in practice.
    """
    # Shuffled once per dataset and dealt by number: a case's grid does not depend on how many cases there are.
    deal = np.random.default_rng([seed, 0, _DEAL_STREAM])
    spacings = deal.permutation(np.array(SPACINGS_MM[size]))
    spacing = spacings[index % len(spacings)]
    orientation = ORIENTATIONS[int(deal.permutation(len(ORIENTATIONS))[index % len(ORIENTATIONS)])]
    lower, upper = _field_of_view(body, rng)
    if size == "full":
        half = 256 * spacing[:2]
        lower[:2], upper[:2] = -half, half
    counts = np.maximum(np.rint((upper - lower) / spacing), 8).astype(int)
    slices = min(counts[2], _VOXELS[size] // (counts[0] * counts[1]))
    if slices < counts[2]:
        middle = _MIDDLE_MM * body.scale[2]
        lower[2] = np.clip(middle - slices * spacing[2] / 2, lower[2], upper[2] - slices * spacing[2])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.round(body.offset_mm + lower + spacing / 2, 3)
    return Grid((int(counts[0]), int(counts[1]), int(slices)), affine), orientation


def _field_of_view(body: Body, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges (3,) in world mm from the body's origin; sometimes the top, the bottom or some skin is cut off."""
    half_width = max(width for _, width, _ in TRUNK.stations_mm) + body.fat_mm
    half_depth = max(depth for _, _, depth in TRUNK.stations_mm) + body.fat_mm
    margin = rng.uniform(-6.0, 22.0, size=2)
    cut = str(rng.choice(["nothing", "top", "bottom"], p=[0.65, 0.22, 0.13]))
    low, high = rng.uniform(-150.0, -75.0), rng.uniform(100.0, 190.0)
    half = np.array([half_width, half_depth]) * body.scale[:2] + margin
    lower = np.array([-half[0], -half[1] - 10.0, (low if cut == "bottom" else _LOWEST_MM) * body.scale[2]])
    upper = np.array([half[0], half[1] + 4.0, (high if cut == "top" else _HIGHEST_MM) * body.scale[2]])
    return lower, upper
