"""From logits to class indices: the winner of a softmax, or regions painted over each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.core.regions import PaintingStep

__all__ = ["decode"]


def decode(logits: Tensor, painting: Sequence[PaintingStep] = ()) -> Tensor:
    """Class index of every voxel.

    A region is found where its logit is above 0, that is, its probability above 0.5; at exactly 0.5 it is not.

    Args:
        logits: (L, *S), one channel per class, or one per region.
        painting: For regions, :meth:`~pipeline.core.labels.LabelTable.painting`: (channels, class), each painted where
            all its channels were found, later ones over earlier ones; empty for classes.

    Returns:
        (*S) int64 on the same device. Without regions the class of the highest logit, of equal ones the lowest class.

    Raises:
        ValueError: If the painting needs channels that are not there.
    """
    if not painting:
        return logits.max(dim=0).indices
    needed = 1 + max(channel for channels, _ in painting for channel in channels)
    if len(logits) != needed:
        raise ValueError(
            f"logits: expected {needed} channels, one per region, got {len(logits)}. "
            "Check that the network belongs to this label table."
        )
    found = logits > 0
    index = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
    for channels, painted in painting:
        index[found[list(channels)].all(dim=0)] = painted
    return index
