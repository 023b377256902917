"""Painting a body onto a grid, with partial volume.

Distances are evaluated on a coarse lattice of a few mm. What is interpolated to the voxels is the depth of each
voxel below a part's surface measured in voxel widths along the surface's normal: clipped to [-0.5, 0.5] and raised by
0.5 it is the share of the voxel that the part fills. So partial volume costs no supersampling, on grids of any spacing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import Box, Grid
from pipeline.phantom.anatomy import ORGANS, TRUNK
from pipeline.phantom.body import Body, from_world, to_world
from pipeline.phantom.shapes import Part, Points, Waves, bounds_mm, distance_mm, wave_sum
from pipeline.phantom.tissue import Scanner, add_noise

_LATTICE_MM = 4.5
_SLAB_VOXELS = 1_000_000
_Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Layer:
    """One coat of paint: depth in voxel widths on a box of the lattice, its tissue value, its label and role."""

    box: Box
    depth: _Array
    value: float
    label: int
    keeps_labels: bool


@dataclass(frozen=True, eq=False)
class _Lattice:
    """World coordinates of the nodes along x, y, z, and what is known at every node (I, J, K)."""

    nodes: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
    world: Points
    points: Points
    trunk: _Array
    reach_mm: float


def render(
    body: Body, scanner: Scanner, grid: Grid, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Intensities and label values of a body, (I, J, K) both, on an axis-aligned grid in RAS order.

    The label is the organ that fills the largest share of the voxel, or 0 where what is no organ fills more.
    """
    lattice = _lattice(body, grid)
    layers = list(_layers(body, scanner, grid, lattice))
    image = np.empty(grid.shape, dtype=np.float32)
    labels = np.empty(grid.shape, dtype=np.uint8)
    # Slab by slab, so that a full-size volume needs no second volume of shares; the noise of slices is independent.
    slices = max(1, _SLAB_VOXELS // (grid.shape[0] * grid.shape[1]))
    centres = [grid.affine[axis, 3] + grid.spacing_mm[axis] * np.arange(grid.shape[axis]) for axis in range(3)]
    for first in range(0, grid.shape[2], slices):
        part = slice(first, first + slices)
        slab_centres = (centres[0], centres[1], centres[2][part])
        slab, labels[..., part] = _paint(layers, lattice, slab_centres, scanner.values["air"])
        if scanner.bias is not None:
            slab *= _sensitivity(scanner.bias, lattice, slab_centres)
        image[..., part] = add_noise(slab, scanner, rng)
    return image, labels


def _lattice(body: Body, grid: Grid) -> _Lattice:
    start = grid.affine[:3, 3]
    extents = [(n - 1) * s for n, s in zip(grid.shape, grid.spacing_mm, strict=True)]
    x, y, z = (
        np.linspace(a, a + extent, max(2, int(np.ceil(extent / _LATTICE_MM)) + 1))
        for a, extent in zip(start, extents, strict=True)
    )
    world = np.stack(np.meshgrid(x, y, z, indexing="ij")).astype(np.float32)
    points = from_world(body, world)
    # Displaced are the coordinates at which shapes are evaluated, not the shapes: so all of them bend together.
    displacement = wave_sum(body.waves, points)
    points += displacement
    reach = float(np.abs(displacement).max())
    return _Lattice((x, y, z), world, points, distance_mm(TRUNK, points), reach)


def _layers(body: Body, scanner: Scanner, grid: Grid, lattice: _Lattice) -> Iterator[_Layer]:
    """Coats in the order they are painted; parts outside the field of view are left out."""
    seen: dict[str, tuple[Box, _Array]] = {}
    for part in body.parts:
        if part.inside and part.inside not in seen:
            continue
        box = _box(part, body, lattice, seen)
        if box is None:
            continue
        distance = _distance(part, body, box, lattice, seen)
        seen[part.name] = (box, distance)
        width = _voxel_width(distance, lattice, grid)
        if part.halo_mm:  # fat around an organ, which takes labels away
            yield _Layer(box, (part.halo_mm - distance) / width, scanner.values["fat"], 0, False)
        label = ORGANS.index(part.name) + 1 if part.role == "organ" else 0
        yield _Layer(box, -distance / width, scanner.values[part.tissue], label, part.role == "detail")


def _box(part: Part, body: Body, lattice: _Lattice, seen: dict[str, tuple[Box, _Array]]) -> Box | None:
    """Range of nodes that a part, its halo and a margin can reach; None if that is outside the field of view."""
    # By the corners of the part's own box, turned into the world and grown by what the displacement can move.
    lower = np.array([nodes[0] for nodes in lattice.nodes])
    upper = np.array([nodes[-1] for nodes in lattice.nodes])
    boxes = [bounds_mm(shape) for shape in part.shapes]
    finite = [box for box in boxes if box is not None]
    if finite and len(finite) == len(boxes) and not part.fixed:
        margin = lattice.reach_mm + part.halo_mm + part.blend_mm / 4
        corners = np.array(
            [np.min([b[0] for b in finite], axis=0) - margin, np.max([b[1] for b in finite], axis=0) + margin]
        )
        world = to_world(
            body, np.array([[corners[i, 0], corners[j, 1], corners[k, 2]] for i, j, k in product((0, 1), repeat=3)])
        )
        lower, upper = np.maximum(lower, world.min(axis=0)), np.minimum(upper, world.max(axis=0))
    ranges = []
    for axis, nodes in enumerate(lattice.nodes):
        step = nodes[1] - nodes[0]
        first = max(0, int(np.floor((lower[axis] - nodes[0]) / step)) - 1)
        stop = min(len(nodes), int(np.ceil((upper[axis] - nodes[0]) / step)) + 2)
        if part.inside:
            host = seen[part.inside][0]
            first, stop = max(first, host.start[axis]), min(stop, host.stop[axis])
        if stop - first < 2:
            return None
        ranges.append(slice(first, stop))
    return Box.of(ranges)


def _distance(part: Part, body: Body, box: Box, lattice: _Lattice, seen: dict[str, tuple[Box, _Array]]) -> _Array:
    """Signed distance of a part on its box in body mm: union of its shapes, cut by depth and by its host."""
    if part.fixed:
        points = lattice.world[:, *box.slices] - body.offset_mm.astype(np.float32).reshape(3, 1, 1, 1)
    else:
        points = lattice.points[:, *box.slices]
    limits: list[_Array] = []
    if part.shapes:
        distance = distance_mm(part.shapes[0], points)
        for shape in part.shapes[1:]:
            distance = _union(distance, distance_mm(shape, points), part.blend_mm)
        limits.append(distance)
    if part.depth_mm is not None:
        limits.append(lattice.trunk[box.slices] + np.float32(part.depth_mm))
    if part.depth_stop_mm is not None:
        limits.append(-lattice.trunk[box.slices] - np.float32(part.depth_stop_mm))
    if part.inside:
        host_box, host = seen[part.inside]
        inner = tuple(slice(b.start - h, b.stop - h) for b, h in zip(box.slices, host_box.start, strict=True))
        limits.append(host[inner] + np.float32(part.inset_mm))
    return limits[0] if len(limits) == 1 else np.maximum.reduce(limits)


def _union(first: _Array, second: _Array, blend_mm: float) -> _Array:
    """Smooth minimum of two distances (polynomial, Quilez 2013)."""
    if blend_mm <= 0:
        return np.minimum(first, second)
    near = np.maximum(blend_mm - np.abs(first - second), 0.0) / np.float32(blend_mm)
    return np.asarray(np.minimum(first, second) - near**2 * np.float32(blend_mm / 4), dtype=np.float32)


def _voxel_width(distance: _Array, lattice: _Lattice, grid: Grid) -> _Array:
    """How much the distance changes across one voxel, along the steepest way that the voxel's shape allows."""
    steps = [float(nodes[1] - nodes[0]) for nodes in lattice.nodes]
    width = np.zeros_like(distance)
    for axis, (step, spacing) in enumerate(zip(steps, grid.spacing_mm, strict=True)):
        width += (np.gradient(distance, axis=axis) * np.float32(spacing / step)) ** 2
    # Where a distance has a ridge its gradient is 0, and the depth in voxel widths would be infinite.
    return np.maximum(np.sqrt(width), np.float32(0.3 * min(grid.spacing_mm)))


def _paint(
    layers: Sequence[_Layer], lattice: _Lattice, centres: Sequence[NDArray[np.float64]], air: float
) -> tuple[_Array, NDArray[np.uint8]]:
    """Noise-free intensities and labels of the voxels with the given centres along x, y, z."""
    shape = tuple(len(axis) for axis in centres)
    image = np.full(shape, air, dtype=np.float32)
    labels = np.zeros(shape, dtype=np.uint8)
    largest, organs = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for layer in layers:
        box, share = _interpolate(layer.depth, layer.box, lattice, centres)
        if share.size == 0:
            continue
        where = box.slices
        share += np.float32(0.5)
        np.clip(share, 0.0, 1.0, out=share)
        image[where] += share * (np.float32(layer.value) - image[where])
        if layer.keeps_labels:
            continue
        # What is painted takes its share of the voxel from everything below. The label is that of the largest share.
        rest = 1 - share
        largest[where] *= rest
        organs[where] *= rest
        if layer.label:
            organs[where] += share
            wins = share > largest[where]
            labels[where][wins] = layer.label
            np.maximum(largest[where], share, out=largest[where])
    labels[largest < 1 - organs] = 0
    return image, labels


def _interpolate(
    field: _Array, box: Box, lattice: _Lattice, centres: Sequence[NDArray[np.float64]]
) -> tuple[Box, _Array]:
    """Linear interpolation of a field on a lattice box to the voxels inside it; the voxels' ranges and the values."""
    ranges, operators = [], []
    for nodes, part, positions in zip(lattice.nodes, box.slices, centres, strict=True):
        inner = nodes[part]
        first = int(np.searchsorted(positions, inner[0] - 1e-6))
        stop = int(np.searchsorted(positions, inner[-1] + 1e-6))
        ranges.append(slice(first, stop))
        offset = np.clip((positions[first:stop, None] - inner[None, :]) / (inner[1] - inner[0]), -1.0, 1.0)
        operators.append((1.0 - np.abs(offset)).astype(np.float32))
    where = Box.of(ranges)
    if any(size <= 0 for size in where.shape):
        return where, np.zeros((0, 0, 0), dtype=np.float32)
    # Linear interpolation on a lattice is one small matrix per axis.
    values = operators[1] @ (field @ operators[2].T)
    values = (operators[0] @ values.reshape(values.shape[0], -1)).reshape(-1, *values.shape[1:])
    return where, values


def _sensitivity(bias: Waves, lattice: _Lattice, centres: Sequence[NDArray[np.float64]]) -> _Array:
    """Sensitivity of the coil at the voxels, about 1."""
    field = wave_sum(bias, lattice.world)[0]
    _, values = _interpolate(field, Box.whole(field.shape), lattice, centres)
    return np.exp(values)
