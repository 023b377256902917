"""Cleaning of label maps after inference: which organs, from the settings or learnt by cross-validation, and how.

A target is taken away, or added, as a rule says: what becomes of every class. So regions that lie within each other are
cleaned like organs that exclude each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cc3d
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy.ndimage import find_objects

from pipeline.config.settings import InferSettings, Positive
from pipeline.core.documents import conform, read_json
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.grid import Box
from pipeline.core.labels import LabelTable
from pipeline.core.paths import is_named
from pipeline.core.regions import joined_with

POSTPROCESSING_FILE = "postprocessing.json"
"""In a model folder: what cross-validation found to help."""

Connectivity = Literal[6, 18, 26]
"""Neighbours of a voxel: those that share a face, also those that share an edge, also those that share a corner."""

_ROUNDING = 1e-6  # voxels: 0.3 ml of voxels of 0.1 ml are 3 voxels, not 3.0000000000000004
_BLOCK = 16
_SMALL = 2**18  # voxels of a mask that is not worth dividing


@dataclass(frozen=True)
class Cleaning:
    """What is done to a label map, in this order; regions count as organs.

    Args:
        keep_largest: Organs of which only the largest connected component is kept.
        remove_small_ml: Organ → volume in mL that a connected component must have to stay.
        fill_holes: Organs whose enclosed holes are filled.
    """

    keep_largest: tuple[str, ...] = ()
    remove_small_ml: Mapping[str, float] = field(default_factory=dict)
    fill_holes: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: InferSettings) -> Cleaning:
        """What the settings ask for."""
        return cls(settings.keep_largest, settings.remove_small_ml, settings.fill_holes)

    def __bool__(self) -> bool:
        """Whether anything is done."""
        return bool(self.keep_largest or self.remove_small_ml or self.fill_holes)

    def __or__(self, other: Cleaning) -> Cleaning:
        """What either does; of two smallest volumes the larger."""
        volumes = dict(self.remove_small_ml)
        for name, volume in other.remove_small_ml.items():
            volumes[name] = max(volume, volumes.get(name, 0.0))
        largest = tuple(dict.fromkeys((*self.keep_largest, *other.keep_largest)))
        return Cleaning(largest, volumes, tuple(dict.fromkeys((*self.fill_holes, *other.fill_holes))))

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {
            "keep_largest": list(self.keep_largest),
            "remove_small_ml": dict(self.remove_small_ml),
            "fill_holes": list(self.fill_holes),
        }

    def names(self) -> tuple[str, ...]:
        """Every organ that is cleaned, each once."""
        return tuple(dict.fromkeys((*self.keep_largest, *self.remove_small_ml, *self.fill_holes)))

    def apply(self, index: NDArray[np.integer[Any]], labels: LabelTable, voxel_ml: float) -> NDArray[np.integer[Any]]:
        """Clean a label map.

        Args:
            index: (I, J, K) class indices.
            labels: Label table whose classes these are.
            voxel_ml: Volume of a voxel in mL.

        Returns:
            The same shape and type; a new array if anything is done.

        Raises:
            KeyError: If an organ is not in the label table.
        """
        if self.keep_largest:
            index = keep_largest(index, [labels.without(name) for name in self.keep_largest])
        if self.remove_small_ml:
            fewest = {name: volume / voxel_ml - _ROUNDING for name, volume in self.remove_small_ml.items()}
            index = remove_small(index, [(labels.without(name), count) for name, count in fewest.items()])
        if self.fill_holes:
            index = fill_holes(index, [(labels.without(name), classes_with(labels, name)) for name in self.fill_holes])
        return index


class _Kept(BaseModel):
    keep_largest: tuple[str, ...]
    remove_small_ml: dict[str, Positive]
    fill_holes: tuple[str, ...]


class _Postprocessing(BaseModel):
    """What is read of ``postprocessing.json``."""

    kept: _Kept


def read_cleaning(folder: Path, labels: LabelTable) -> Cleaning:
    """What cross-validation found to help a model; nothing if the folder has no such file.

    Raises:
        VolsegError: If the file is damaged, or of another model.
    """
    path = folder / POSTPROCESSING_FILE
    if not is_named(path):
        return Cleaning()
    advice = "Write it again with `volseg cross-validate`, or delete it"
    kept = conform(read_json(path), _Postprocessing, path, advice).kept
    found = Cleaning(kept.keep_largest, kept.remove_small_ml, kept.fill_holes)
    unknown = [name for name in found.names() if name not in labels.targets]
    if unknown:
        rule, advice = f"organs of the model ({', '.join(labels.targets)})", "Delete it: it is of another model"
        raise VolsegError(sentence("post-processing", rule, ", ".join(map(str, unknown)), advice, file=path))
    return found


def classes_with(labels: LabelTable, target: str) -> tuple[int, ...]:
    """What becomes of each class, background first, where a target is added: a class index.

    The background becomes the organ, other organs stay. Of regions, a class becomes the one that lies in this region
    as well; where there is none, it stays.

    Raises:
        KeyError: If there is no such organ.
    """
    table = labels.indexed()
    joined = joined_with(target, table.regions, table.painted) if table.regions else {0: table.value_of(target)}
    return tuple(joined.get(n, n) for n in range(table.classes))


def keep_largest(
    index: NDArray[np.integer[Any]], without: Iterable[Sequence[int]], connectivity: Connectivity = 26
) -> NDArray[np.integer[Any]]:
    """Keep only the largest connected component of some organs or regions, one after the other.

    Args:
        index: (I, J, K) class indices.
        without: For each organ or region :meth:`~pipeline.core.labels.LabelTable.without` of it: what becomes of every
            class where it is taken away. Those that are absent are skipped.
        connectivity: Neighbours of a voxel.

    Returns:
        A copy of the same shape and type. Of components of equal size, the one that comes first in the array stays.

    Raises:
        ValueError: If the connectivity is not 6, 18 or 26.
    """
    cleaned, boxes = index.copy(), label_boxes(index)
    for rest in without:
        _take_away(cleaned, rest, boxes, connectivity, _all_but_largest)
    return cleaned


def remove_small(
    index: NDArray[np.integer[Any]],
    without: Iterable[tuple[Sequence[int], float]],
    connectivity: Connectivity = 26,
) -> NDArray[np.integer[Any]]:
    """Remove the small connected components of some organs or regions, one after the other, even if none is left.

    Args:
        index: (I, J, K) class indices.
        without: For each organ or region :meth:`~pipeline.core.labels.LabelTable.without` of it, and the fewest voxels
            of a component that stays.
        connectivity: Neighbours of a voxel.

    Returns:
        A copy of the same shape and type.

    Raises:
        ValueError: If the connectivity is not 6, 18 or 26.
    """
    cleaned, boxes = index.copy(), label_boxes(index)
    for rest, fewest in without:
        _take_away(cleaned, rest, boxes, connectivity, partial(_smaller, fewest=fewest))
    return cleaned


def fill_holes(
    index: NDArray[np.integer[Any]], targets: Iterable[tuple[Sequence[int], Sequence[int]]]
) -> NDArray[np.integer[Any]]:
    """Fill what some organs or regions enclose on all sides, one after the other.

    A hole is a set of voxels from which no way over voxel faces leads out of the organ or to the border of the volume.
    In volumes of a single slice this holds within the slice.

    Args:
        index: (I, J, K) class indices.
        targets: For each organ or region, what becomes of every class where it is taken away, and where it is added
            (:func:`classes_with`): other organs in a hole stay what they are.

    Returns:
        A copy of the same shape and type.
    """
    cleaned, boxes = index.copy(), label_boxes(index)
    flat = [size == 1 for size in index.shape]
    for rest, added in targets:
        held = _held(rest)
        box = Box.union(boxes[n] for n in held if n in boxes)
        if box is None:
            continue
        part, grown = cleaned[box.slices], set()
        for piece in connected_pieces(_lies_in(part, held)):  # what encloses a hole is connected
            inside = part[piece.box.slices]
            holes = _enclosed(piece.components > 0, flat)
            inside[holes] = np.array(added, dtype=index.dtype)[inside[holes]]
            grown |= set(np.unique(inside[holes]).tolist()) - {0}
        for n in grown:  # these classes may have grown beyond their boxes
            boxes[n] = Box.union([box, boxes.get(n, box)]) or box
    return cleaned


def label_boxes(index: NDArray[np.integer[Any]]) -> dict[int, Box]:
    """Label (not 0) → the smallest box that holds it; labels that are absent are left out."""
    # Not cc3d.statistics, which refuses labels above the number of voxels.
    found = find_objects(index.astype(np.int32, copy=False))
    return {n: Box.of(box) for n, box in enumerate(found, start=1) if box is not None}


class Piece(NamedTuple):
    """Some of the connected components of a mask.

    Args:
        box: Where in the mask.
        components: (i, j, k) their numbers there, from 1; 0 elsewhere.
        sizes: Voxels of each.
    """

    box: Box
    components: NDArray[np.integer[Any]]
    sizes: NDArray[np.integer[Any]]


def connected_pieces(mask: NDArray[np.bool_], connectivity: Connectivity = 26) -> list[Piece]:
    """Connected components, a few at a time, so that specks far apart do not cost as much as the volume between them.

    Returns:
        Boxes that together hold every component, each once: of a large mask those around what touches in blocks of 16
        voxels, else the mask itself.
    """
    if mask.size <= _SMALL:
        return [_piece(Box.whole(mask.shape), mask, connectivity)]
    # Whether there is a voxel in each block; blocks at the far ends may be smaller.
    occupied = mask
    for axis in range(3):
        occupied = np.logical_or.reduceat(occupied, np.arange(0, mask.shape[axis], _BLOCK), axis=axis)
    # Voxels that touch lie in blocks that touch, so no component is in two groups of blocks.
    groups = _components(occupied, 26)
    pieces = []
    for number, box in label_boxes(groups).items():
        own = groups[box.slices] == number
        for axis in range(3):
            own = np.repeat(own, _BLOCK, axis=axis)
        stop = (min(_BLOCK * n, size) for n, size in zip(box.stop, mask.shape, strict=True))
        whole = Box(tuple(_BLOCK * n for n in box.start), tuple(stop))
        part = mask[whole.slices]
        pieces.append(_piece(whole, part & own[tuple(slice(size) for size in part.shape)], connectivity))
    return pieces


def _piece(box: Box, mask: NDArray[np.bool_], connectivity: Connectivity) -> Piece:
    components = _components(mask, connectivity)
    return Piece(box, components, np.bincount(components.ravel(order="K"))[1:])


def _components(mask: NDArray[np.bool_], connectivity: Connectivity) -> NDArray[np.integer[Any]]:
    if connectivity not in (6, 18, 26):
        raise ValueError(f"connectivity: expected 6, 18 or 26, got {connectivity}. Use 26 unless you know better.")
    # cc3d 4.1 fails with 18 and 26 neighbours on some masks that are a single line, where all are the same.
    line = sum(size > 1 for size in mask.shape) < 2
    components: NDArray[np.integer[Any]] = cc3d.connected_components(mask, connectivity=6 if line else connectivity)
    return components


def _take_away(
    cleaned: NDArray[np.integer[Any]],
    rest: Sequence[int],
    boxes: dict[int, Box],
    connectivity: Connectivity,
    stray: Callable[[Sequence[Piece]], list[NDArray[np.bool_]]],
) -> None:
    """Take a target away, in place, where it is in stray components.

    Args:
        cleaned: Class indices.
        rest: What becomes of every class.
        boxes: Of each class; they stay valid, as what is left of a class lies in no region that it does not lie in.
        connectivity: Neighbours of a voxel.
        stray: Which of the components of every piece go.
    """
    held = _held(rest)
    box = Box.union(boxes[n] for n in held if n in boxes)
    if box is None:
        return
    # Views all the way: what is written into a piece is written into the label map.
    part = cleaned[box.slices]
    pieces = connected_pieces(_lies_in(part, held), connectivity)
    for piece, goes in zip(pieces, stray(pieces), strict=True):
        inside = part[piece.box.slices]
        gone = np.concatenate([[False], goes])[piece.components]
        inside[gone] = np.array(rest, dtype=cleaned.dtype)[inside[gone]]


def _all_but_largest(pieces: Sequence[Piece]) -> list[NDArray[np.bool_]]:
    """Of components of equal size, the one that comes first in the array stays."""
    most = max((int(piece.sizes.max(initial=0)) for piece in pieces), default=0)
    equal = [(n, int(c)) for n, piece in enumerate(pieces) for c in np.flatnonzero(piece.sizes == most)]
    goes = [np.ones(len(piece.sizes), dtype=bool) for piece in pieces]
    if equal:
        # The first voxel is looked for only where sizes are equal: it costs a pass over the piece.
        if len(equal) > 1:
            equal.sort(key=lambda at: _first_voxel(pieces[at[0]], at[1] + 1))
        number, component = equal[0]
        goes[number][component] = False
    return goes


def _smaller(pieces: Sequence[Piece], fewest: float) -> list[NDArray[np.bool_]]:
    return [piece.sizes < fewest for piece in pieces]


def _first_voxel(piece: Piece, number: int) -> tuple[int, ...]:
    at = np.unravel_index(int(np.argmax(piece.components == number)), piece.components.shape)
    return tuple(int(n) + start for n, start in zip(at, piece.box.start, strict=True))


def _lies_in(index: NDArray[np.integer[Any]], held: Sequence[int]) -> NDArray[np.bool_]:
    return np.asarray(index == held[0] if len(held) == 1 else np.isin(index, held))


def _enclosed(mask: NDArray[np.bool_], flat: Sequence[bool]) -> NDArray[np.bool_]:
    """Voxels that are not in the mask (i, j, k) and cannot be reached from around it, where it is not flat."""
    around = [(0, 0) if thin else (1, 1) for thin in flat]
    components = cc3d.connected_components(~np.pad(mask, around), connectivity=6)
    inner = components[tuple(slice(a, size + a) for (a, _), size in zip(around, mask.shape, strict=True))]
    return np.asarray((inner > 0) & (inner != components.flat[0]))


def _held(rest: Sequence[int]) -> list[int]:
    """Classes of a target."""
    return [n for n, left in enumerate(rest) if left != n]
