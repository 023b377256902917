"""Where training patches lie: balanced random positions, or a regular grid of windows over every volume.

Positions are plain values; cutting them out of volumes is :mod:`pipeline.sample.cut`. A 2D patch is a patch of size 1
along the slice axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]
"""Numbers along i, j, k."""

_BLOCK = 8  # voxels


@dataclass(frozen=True, eq=False)
class CaseInfo:
    """What the choice of patches needs to know of a prepared case.

    Args:
        id: Case id.
        shape: Voxels along i, j, k.
        class_voxels: Foreground class index → (N, 3) voxel indices, a random subsample of bounded size. Absent
            classes are left out or have N = 0.
    """

    id: str
    shape: Triple
    class_voxels: Mapping[int, NDArray[np.int32]]


@dataclass(frozen=True)
class Patch:
    """Position of a patch.

    Args:
        case: Case id.
        start: First voxel along i, j, k; negative, or so high that the patch overhangs, where the volume is smaller
            than the patch. Of networks with a margin it is the place of the logits; the margin lies around it.
    """

    case: str
    start: Triple


@dataclass(frozen=True)
class Balance:
    """How random patches are drawn.

    Args:
        size: Patch voxels along i, j, k.
        batch_size: Patches per batch.
        foreground_share: Share of them that is centred on foreground, in [0, 1].
        class_weights: Class index → weight with which the class is drawn among those present, 1 for classes left out;
            None for the uniform choice.
    """

    size: Triple
    batch_size: int
    foreground_share: float
    class_weights: Mapping[int, float] | None = None


def balanced_patches(
    cases: Sequence[CaseInfo], balance: Balance, rng: np.random.Generator, *, batches: int = 1, first: int = 0
) -> list[Patch]:
    """Draw random patches of which a fixed share is centred on foreground.

    The last ``round(foreground_share * batch_size)`` patches of every batch are forced onto foreground: a case that has
    any, a class uniform among those present in it, a voxel uniform among that class's. Where that rounds to 0 although
    the share is not, one patch is forced in as many batches as the share says. The other patches lie anywhere, uniform
    over cases and positions. Patches stay inside the volume; along an axis shorter than the patch, the volume is
    centred in it.

    Args:
        cases: The training cases; at least one.
        balance: Size, number and share.
        rng: Source of all draws.
        batches: Number of batches.
        first: Number of the first batch, where these are not the first ones of a training.

    Returns:
        ``batches * batch_size`` patches, batch after batch. Without foreground in any case all lie anywhere.

    Raises:
        ValueError: If there are no cases.

    Reference: Isensee et al., nnU-Net, Nature Methods 2021, supplementary information (oversampling of foreground).
    """
    if not cases:
        raise ValueError("cases: expected at least one to draw patches from, got none. Check the training split.")
    # The last patches of a batch are the forced ones: parts of a batch (every n-th patch) share them evenly.
    with_foreground = [case for case in cases if _present(case)]
    patches = []
    for forced in _forced_counts(balance, batches, first):
        for place in range(balance.batch_size):
            if place >= balance.batch_size - forced and with_foreground:
                case = with_foreground[int(rng.integers(len(with_foreground)))]
                patches.append(_on_foreground(case, balance, rng))
            else:
                patches.append(_anywhere(cases[int(rng.integers(len(cases)))], balance.size, rng))
    return patches


def sliding_patches(
    cases: Sequence[CaseInfo],
    size: Triple,
    overlap: float = 0.0,
    *,
    foreground: Callable[[str], Foreground] | None = None,
    rng: np.random.Generator | None = None,
) -> list[Patch]:
    """Lay a regular grid of windows over every volume.

    Windows are ``round(size * (1 - overlap))`` voxels apart; the last one along an axis is moved back to end with the
    volume. Without overlap every voxel lies in exactly one window, or in two along an axis where the last was moved.

    Given a source of draws, the grid of every volume is shifted towards its beginning by a random number of voxels
    along each axis, of which the first window is moved in: at most so far that the last one just reaches the end, so
    that the number of windows stays. Without room for that, where windows fit exactly, they stay where they are.

    Args:
        cases: The training cases; none gives no patches.
        size: Patch voxels along i, j, k.
        overlap: Fraction of the window shared with its neighbour, in [0, 1).
        foreground: Case id → where it has foreground, made for windows of this size. Given, windows without any are
            left out; ``class_voxels`` would not do, a subsample.
        rng: Source of the shifts; by default there are none.

    Returns:
        The patches in the order of the cases and of the axes, k fastest.

    Raises:
        ValueError: If the overlap is not in [0, 1).
    """
    if not 0.0 <= overlap < 1.0:
        raise ValueError(f"overlap: expected a fraction in [0, 1), got {overlap}. Write for example 0.5.")
    patches = []
    for case in cases:
        starts = _grid_starts(case.shape, size, overlap, rng)
        if foreground is not None:
            starts = foreground(case.id).shown_by(starts)
        patches += [Patch(case.id, start) for start in starts]
    return patches


class Foreground:
    """Where a case has foreground, for windows of one size: exact, and small enough to be kept for every case.

    The label map is read once, and of every block of up to 8 x 8 x 8 voxels one bit is kept: whether it has any. That
    answers for most windows: one that holds a whole block with foreground shows some, one that touches none does not.
    Only of the others, with foreground at their rim at most, the voxels are read again.

    Args:
        read: Gives the class indices of a part of the case, a slice for each axis.
        shape: Voxels of the case along i, j, k.
        size: Voxels of the windows along i, j, k.
    """

    def __init__(self, read: Callable[[tuple[slice, ...]], NDArray[np.integer[Any]]], shape: Triple, size: Triple):
        self.read, self.shape, self.size = read, shape, size
        # A window is at least four blocks long, so that most of it are whole ones; slices of 2D windows are apart.
        self.edges = [min(_BLOCK, max(1, length // 4)) for length in size]
        blocks = np.asarray(read((slice(None),) * 3)) > 0
        for axis, edge in enumerate(self.edges):
            blocks = np.logical_or.reduceat(blocks, range(0, shape[axis], edge), axis=axis)
        self._counts, self._bits = blocks.shape, np.packbits(blocks)

    def shown_by(self, starts: Sequence[Triple]) -> list[Triple]:
        """Those of some windows, given by their first voxels, that show any foreground class."""
        bits = np.unpackbits(self._bits, count=math.prod(self._counts))
        blocks = bits.view(np.bool_).reshape(self._counts)
        return [start for start in starts if self._is_shown(blocks, start)]

    def _is_shown(self, blocks: NDArray[np.bool_], start: Triple) -> bool:
        whole, touched = [], []
        for first, window, length, edge in zip(start, self.size, self.shape, self.edges, strict=True):
            low, high = max(first, 0), min(first + window, length)
            end = -(-high // edge)
            touched.append(slice(low // edge, end))
            # The last block of the volume may be cut short by its border; it is whole all the same.
            whole.append(slice(-(-low // edge), end if high == length else high // edge))
        if blocks[tuple(whole)].any():
            return True
        return bool(blocks[tuple(touched)].any() and (self.read(_inside(start, self.size)) > 0).any())


def _present(case: CaseInfo) -> list[int]:
    return [label for label, voxels in sorted(case.class_voxels.items()) if len(voxels)]


def _forced_counts(balance: Balance, batches: int, first: int) -> list[int]:
    """Forced patches in each batch."""
    wanted = balance.foreground_share * balance.batch_size
    each = int(wanted + 0.5)
    if each:
        return [each] * batches
    # So small a share that no batch would get one: 1 in every 1 / (share * batch_size) batches.
    reached = np.floor(wanted * np.arange(first, first + batches + 1) + 0.5).astype(int)
    return [int(count) for count in np.diff(reached)]


def _on_foreground(case: CaseInfo, balance: Balance, rng: np.random.Generator) -> Patch:
    # First a class, then one of its voxels: a small organ is drawn as often as a large one.
    present = _present(case)
    if balance.class_weights is None:
        chosen = present[int(rng.integers(len(present)))]
    else:
        weights = np.array([balance.class_weights.get(label, 1.0) for label in present])
        chosen = int(rng.choice(present, p=weights / weights.sum()))
    voxels, size = case.class_voxels[chosen], balance.size
    centre = voxels[rng.integers(len(voxels))]
    i, j, k = (
        min(max(int(centre[axis]) - size[axis] // 2, low), high)
        for axis, (low, high) in enumerate(_bounds(case.shape, size))
    )
    return Patch(case.id, (i, j, k))


def _anywhere(case: CaseInfo, size: Triple, rng: np.random.Generator) -> Patch:
    i, j, k = (int(rng.integers(low, high + 1)) for low, high in _bounds(case.shape, size))
    return Patch(case.id, (i, j, k))


def _bounds(shape: Triple, size: Triple) -> list[tuple[int, int]]:
    """Lowest and highest start along each axis; equal where the patch is at least as long as the volume."""
    # A shorter volume lies in the middle of the patch, so that padding is the same on both sides.
    return [
        (0, length - window) if window <= length else (-((window - length) // 2),) * 2
        for length, window in zip(shape, size, strict=True)
    ]


def _grid_starts(shape: Triple, size: Triple, overlap: float, rng: np.random.Generator | None) -> list[Triple]:
    axes = []
    for (low, high), window in zip(_bounds(shape, size), size, strict=True):
        step = max(1, round(window * (1.0 - overlap)))
        regular = [*range(low, high, step), low + step * -(-(high - low) // step)]
        shift = 0 if rng is None else int(rng.integers(regular[-1] - high + 1))
        axes.append([min(max(start - shift, low), high) for start in regular])
    return [(i, j, k) for i, j, k in product(*axes)]


def _inside(start: Triple, size: Triple) -> tuple[slice, ...]:
    return tuple(slice(max(first, 0), first + window) for first, window in zip(start, size, strict=True))
