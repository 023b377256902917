"""Test-time augmentation by mirroring and by rotations of right angles, aware of left and right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

__all__ = ["Rotation", "View", "mirrored", "views"]


@dataclass(frozen=True)
class Rotation:
    """Rotations in a plane, by right angles, which need no interpolation.

    Args:
        axes: The two spatial axes of the plane, 0 for the first.
        quarter: Whether also by 90 and 270 degrees, where a window is as long along both axes; else by 180 only.
    """

    axes: tuple[int, int]
    quarter: bool = True


@dataclass(frozen=True)
class View:
    """One way for the network to see a window.

    Args:
        swapped: Whether the two axes of the plane of rotation change places, first.
        flips: Axes that are reversed then.
        mirrored: Axes over which it was mirrored; what a rotation reverses is not among them.
    """

    swapped: bool = False
    flips: tuple[int, ...] = ()
    mirrored: tuple[int, ...] = ()


def views(axes: Sequence[int], rotation: Rotation | None = None) -> tuple[View, ...]:
    """All that a window can be turned to by mirroring along axes and by rotations, each once, the plain one first.

    Args:
        axes: Spatial axes to mirror.
        rotation: In which plane to rotate; None for no rotation.

    Returns:
        8 for mirroring along three axes; 8 of a plane with rotations and mirroring along any axis of it.
    """
    distinct = sorted(set(axes))
    turns: list[tuple[bool, tuple[int, ...]]] = [(False, ())]
    if rotation is not None:
        one, other = rotation.axes
        turns.append((False, (one, other)))
        if rotation.quarter:
            turns += [(True, (one,)), (True, (other,))]
    found: dict[tuple[bool, tuple[int, ...]], View] = {}
    for count in range(len(distinct) + 1):
        for mirrors in combinations(distinct, count):
            for swapped, reverses in turns:
                flips = tuple(sorted(set(mirrors) ^ set(reverses)))
                found.setdefault((swapped, flips), View(swapped, flips, mirrors))
    return tuple(found.values())


def mirrored(
    network: Callable[..., torch.Tensor],
    axes: Sequence[int],
    side_pairs_axis: int | None = None,
    side_pairs: Sequence[tuple[int, int]] = (),
    rotation: Rotation | None = None,
) -> Callable[..., torch.Tensor]:
    """Wrap a network so that its logits are averaged over all mirrorings, and rotations, of its input.

    Every view is one pass (8 for three axes). Where a pass mirrors left and right, a left organ looks like its right
    twin, so the channels of the pairs are swapped back; a rotation leaves them.

    Args:
        network: Takes (B, C, *spatial), returns logits (B, L, *spatial_out), smaller by the same margin on either side
            or as large.
        axes: Spatial axes to mirror, 0 for the first; none gives one plain pass.
        side_pairs_axis: Spatial axis that runs from left to right, or None.
        side_pairs: (left, right) channels of the logits.
        rotation: In which plane to rotate. Windows, or logits, that are not as long along both of its axes are rotated
            by 180 degrees only.

    Returns:
        A function with the network's arguments that returns float32 logits and leaves the input as it is.

    Reference: Isensee et al., nnU-Net, Nature Methods 2021 (mirroring at test time); Ronneberger et al. 2015
    (arXiv 1505.04597), section 4 (the mean over rotated versions of the input).
    """
    wanted, plane = views(axes, rotation), (0, 1) if rotation is None else rotation.axes

    def average(inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        total, passes = _passed(network, inputs, wanted[0], plane, args, kwargs), 1
        square = all(_square(tensor, plane) for tensor in (inputs, total))
        for view in wanted[1:]:
            if view.swapped and not square:
                continue
            logits = _passed(network, inputs, view, plane, args, kwargs)
            total.add_(_swapped(logits, side_pairs) if side_pairs_axis in view.mirrored else logits)
            passes += 1
        return total.div_(passes)

    return average


def _passed(
    network: Callable[..., torch.Tensor],
    inputs: torch.Tensor,
    view: View,
    plane: tuple[int, int],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Turn, run, turn back; a new float32 tensor, because ``torch.flip`` always copies."""
    dims, (one, other) = [axis + 2 for axis in view.flips], (axis + 2 for axis in plane)
    seen = inputs.transpose(one, other) if view.swapped else inputs
    logits = torch.flip(network(torch.flip(seen, dims), *args, **kwargs), dims).float()
    return logits.transpose(one, other) if view.swapped else logits


def _square(tensor: torch.Tensor, plane: tuple[int, int]) -> bool:
    return tensor.shape[plane[0] + 2] == tensor.shape[plane[1] + 2]


def _swapped(logits: torch.Tensor, side_pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    order = list(range(logits.shape[1]))
    for left, right in side_pairs:
        order[left], order[right] = right, left
    return logits[:, order]
