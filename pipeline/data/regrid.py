"""Bringing a label map or an image onto another grid by world coordinates, whatever lies between the two."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  # its usual name
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.core.grid import Box, Grid
from pipeline.core.volume import LabelMap
from pipeline.data.itk import itk_array, itk_image

SNAP_VOXELS = 0.25
"""Grids of one shape that differ by no more than this are the same grid with a rounded header; a voxel's nearest
neighbour is then still itself."""

_WHOLE = (
    0.05  # voxels off a whole number of them; the vote of the voxel itself then wins, however many neighbours differ
)
_TIE = 1e-6  # votes closer than this count as equal, so that rounding never decides between classes
_PROBES = 24  # points per axis that stand for a grid
_EDGE = 0.5 + 1e-6  # voxels reach half a voxel beyond their centres


def regrid_labels(label_map: LabelMap, grid: Grid) -> LabelMap:
    """Resample a label map onto a grid that may be shifted, flipped, permuted, differently spaced or oblique.

    Every label value is interpolated linearly, one at a time and only inside its bounding box; the largest vote wins.

    Returns:
        Labels of the same type; background outside the label map. Ties go to the lower value. Voxels that coincide keep
        their value exactly.
    """
    present, position = np.unique(label_map.array, return_inverse=True)
    boxes = find_objects(position.reshape(label_map.array.shape) + 1)  # values may be far apart: their ranks are not
    best = np.zeros(grid.shape, dtype=np.float32)
    # What all organs together vote: the rest of 1 is the background's.
    total = np.zeros(grid.shape, dtype=np.float32)
    winner = np.zeros(grid.shape, dtype=label_map.array.dtype)
    for value, slices in zip(present, boxes, strict=True):
        if value == 0:
            continue
        # One voxel more on each side, so that votes fade out there instead of ending at the box.
        box = Box.of(slices).grown(1, label_map.grid.shape)
        source = label_map.grid.cropped(box.start, box.stop)
        reach = _reached(source, grid)
        if min(reach.shape) < 1:
            continue
        mask = label_map.array[box.slices] == value
        votes = _resampled(mask.astype(np.uint8), source, grid.cropped(reach.start, reach.stop), 0.0)
        total[reach.slices] += votes
        better = votes > best[reach.slices] + _TIE
        best[reach.slices][better] = votes[better]
        winner[reach.slices][better] = value
    winner[best <= 1.0 - total + _TIE] = 0  # what the organs leave is the background's vote
    return LabelMap(winner, grid)


def regrid_image(array: NDArray[Any], source: Grid, grid: Grid) -> NDArray[np.float32]:
    """Resample finite intensities (I, J, K) linearly onto another grid; outside theirs the smallest value there is."""
    return _resampled(array.astype(np.float32), source, grid, float(array.min()))


def doubt(grid: Grid, image: Grid, *, drawn: bool) -> str:
    """Why two headers do not prove that a volume lies where its own header says; empty if they do.

    No pair of headers proves anything if the axes are swapped without a word, or if one header was copied. A label map
    that was drawn on an image is proven by what no lost, default or copied header brings about: it has the image's
    voxels along other axes, a box of them (cut out, or padded) at a place of its own, or the image's field of view at
    another spacing.

    Args:
        grid: Grid of the volume.
        image: Grid of the image.
        drawn: Whether the volume was drawn on the image, so that one of the three must hold.

    Returns:
        What the volume has, for a message.
    """
    turned = grid.reoriented(image.orientation)
    if turned.shape != image.shape and sorted(turned.shape) == sorted(image.shape):
        return "the image's axes in another order, which its header does not say (as arrays z, y, x saved as x, y, z)"
    # All in voxels of the image, along its axes.
    change = np.linalg.inv(image.affine) @ turned.affine
    size, reach = np.array(image.shape), np.array(turned.shape) - 1
    step, first = np.diag(change)[:3], change[:3, 3]
    last = first + step * reach
    stepwise = np.abs(step - 1) * np.maximum(reach, 1) <= SNAP_VOXELS
    at_start = np.abs(first) <= SNAP_VOXELS
    if (stepwise & at_start).all() and turned.shape != image.shape:
        return "the image's position and spacing with another shape, so its header was copied"
    if not drawn:
        return ""
    if (np.abs(change[:3, :3] - np.diag(step)) @ reach).max() > SNAP_VOXELS:
        return "axes turned against the image's"
    same = stepwise & at_start & (size - 1 == reach)
    if turned.shape == image.shape:
        return "" if same.all() else "the image's shape at another place or spacing"
    whole = stepwise & (np.abs(first - np.rint(first)) <= _WHOLE)
    within, around = (first >= -_WHOLE) & (last <= size - 1 + _WHOLE), (first <= _WHOLE) & (last >= size - 1 - _WHOLE)
    if (whole & (within | around)).all():
        lost = not grid.affine[:3, 3].any() and bool(image.affine[:3, 3].any())
        return "a first voxel at the world's origin, as headers without a position have" if lost else ""
    # Both ends of the field of view, by a voxel of the coarser grid: tools round the shape up or down.
    ends = np.stack([first - step / 2 + 0.5, last + step / 2 - size + 0.5])
    view = ~stepwise & (np.abs(ends) <= np.maximum(step, 1.0)).all(axis=0)
    return "" if (same | view).all() else "neither the image's voxels nor its field of view"


def covered_share(grid: Grid, other: Grid) -> float:
    """How much of a grid's field of view lies inside another's, 0 to 1, by probes spread evenly over it."""
    # Probes in the middle of equal parts: 14,000 of them tell a share well enough to decide.
    axes = [(np.arange(_PROBES) + 0.5) / _PROBES * n - 0.5 for n in grid.shape]
    probes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return float(_inside(grid.to_world(probes), other).mean())


def labelled_share_inside(label_map: LabelMap, grid: Grid) -> float:
    """Share of the labelled voxels whose centres lie inside a grid's field of view; 1 if there are none."""
    labelled = inside = 0
    for k in range(label_map.grid.shape[2]):  # slice by slice: positions take 24 times the memory of labels
        i, j = np.nonzero(label_map.array[:, :, k])
        labelled += i.size
        world = label_map.grid.to_world(np.stack([i, j, np.full_like(i, k)], axis=-1))
        inside += int(np.count_nonzero(_inside(world, grid)))
    return inside / labelled if labelled else 1.0


def _inside(world_mm: NDArray[np.float64], grid: Grid) -> NDArray[np.bool_]:
    voxels = grid.to_voxel(world_mm)
    return np.asarray(((voxels >= -_EDGE) & (voxels <= np.array(grid.shape) - 1 + _EDGE)).all(axis=-1))


def _reached(source: Grid, grid: Grid) -> Box:
    """The part of a grid that another grid, voxel edges included, can reach; it may be empty."""
    edges = np.array(list(product(*((-0.5, n - 0.5) for n in source.shape))))
    voxels = grid.to_voxel(source.to_world(edges))
    start, stop = np.floor(voxels.min(axis=0)), np.ceil(voxels.max(axis=0)) + 1
    inside = [np.clip(ends, 0, grid.shape).astype(int).tolist() for ends in (start, stop)]
    return Box(tuple(inside[0]), tuple(inside[1]))


def _resampled(array: NDArray[Any], source: Grid, grid: Grid, outside: float) -> NDArray[np.float32]:
    """Linear interpolation; SimpleITK counts half a voxel beyond the last centres as inside."""
    like = itk_image(np.zeros(grid.shape, dtype=np.uint8), grid)
    image = itk_image(array, source)
    return itk_array(sitk.Resample(image, like, sitk.Transform(), sitk.sitkLinear, outside, sitk.sitkFloat32))
