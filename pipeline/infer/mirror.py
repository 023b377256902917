"""Test-time augmentation by mirroring, aware of left and right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch

__all__ = ["mirrored"]


def mirrored(
    network: Callable[..., torch.Tensor],
    axes: Sequence[int],
    side_pairs_axis: int | None = None,
    side_pairs: Sequence[tuple[int, int]] = (),
) -> Callable[..., torch.Tensor]:
    """Wrap a network so that its logits are averaged over all mirrorings of its input.

    Every combination of the axes is one pass (8 for three axes). Where a pass mirrors left and right, a left organ
    looks like its right twin, so the channels of the pairs are swapped back.

    Args:
        network: Takes (B, C, *spatial), returns logits (B, L, *spatial_out), smaller by the same margin on either side
            or as large.
        axes: Spatial axes to mirror, 0 for the first; none gives one plain pass.
        side_pairs_axis: Spatial axis that runs from left to right, or None.
        side_pairs: (left, right) channels of the logits.

    Returns:
        A function with the network's arguments that returns float32 logits and leaves the input as it is.

    Reference: Isensee et al., nnU-Net, Nature Methods 2021 (mirroring at test time).
    """
    distinct = sorted(set(axes))
    passes = [flips for count in range(len(distinct) + 1) for flips in combinations(distinct, count)]

    def average(inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        total: torch.Tensor | None = None
        for flips in passes:
            logits = _mirrored_pass(network, inputs, flips, args, kwargs)
            if side_pairs_axis in flips:
                logits = _swapped(logits, side_pairs)
            total = logits if total is None else total.add_(logits)
        assert total is not None  # the plain pass is always there
        return total.div_(len(passes))

    return average


def _mirrored_pass(
    network: Callable[..., torch.Tensor],
    inputs: torch.Tensor,
    flips: Sequence[int],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Mirror, run, mirror back; a new float32 tensor, because ``torch.flip`` always copies."""
    dims = [axis + 2 for axis in flips]
    logits = network(torch.flip(inputs, dims), *args, **kwargs)
    return torch.flip(logits, dims).float()


def _swapped(logits: torch.Tensor, side_pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    order = list(range(logits.shape[1]))
    for left, right in side_pairs:
        order[left], order[right] = right, left
    return logits[:, order]
