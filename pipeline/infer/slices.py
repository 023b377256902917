"""2D networks on volumes, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

__all__ = ["SliceNetwork"]


class SliceNetwork(nn.Module):
    """A 2D network that takes 3D windows, so that it runs through the same inferer as a 3D network.

    The window is usually one voxel thick along ``axis``; a thicker one is a batch of slices.

    Args:
        network: 2D network: (B, C, H, W) → logits (B, L, H', W'), with ``divisor``, ``margin`` and ``legal_size`` if it
            has rules.
        axis: Spatial axis (0, 1 or 2) across which the slices lie. H and W are the other two, in their order.

    Raises:
        ValueError: If the axis is not 0, 1 or 2.

    Attributes:
        divisor: Distance of legal sizes of the window along i, j, k; 1 across slices.
        margin: Voxels along i, j, k that get no logits on either side of the window; 0 across slices.
    """

    def __init__(self, network: nn.Module, axis: int) -> None:
        super().__init__()
        if axis not in (0, 1, 2):
            raise ValueError(f"slice axis: expected 0, 1 or 2, got {axis}. Choose the axis across the slices.")
        self.network = network
        self.axis = axis
        self.divisor: tuple[int, ...] = self._across(getattr(network, "divisor", (1, 1)), 1)
        self.margin: tuple[int, ...] = self._across(getattr(network, "margin", (0, 0)), 0)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Run the network on every slice.

        Args:
            volume: (B, C, I, J, K).

        Returns:
            Logits (B, L, I, J, K), in plane smaller by the margin on either side.
        """
        slices = volume.movedim(2 + self.axis, 1)  # (B, n, C, H, W)
        logits: torch.Tensor = self.network(slices.flatten(0, 1))
        return logits.reshape(*slices.shape[:2], *logits.shape[1:]).movedim(1, 2 + self.axis)

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The next legal window of at least ``size`` voxels along i, j, k."""
        in_plane = tuple(size[: self.axis]) + tuple(size[self.axis + 1 :])
        rule: Callable[[Sequence[int]], Sequence[int]] = getattr(self.network, "legal_size", tuple)
        return self._across(rule(in_plane), size[self.axis])

    def _across(self, in_plane: Sequence[int], across: int) -> tuple[int, ...]:
        values = [int(value) for value in in_plane]
        values.insert(self.axis, int(across))
        return tuple(values)
