"""A network on a batch of any spatial size: padded to a legal one, the logits cut back."""

from __future__ import annotations

from types import EllipsisType

import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from pipeline.core.errors import DataError, sentence
from pipeline.core.grid import mirrored_index
from pipeline.model.base import SegmentationNetwork
from pipeline.model.sizes import SizeRule


def pad_to_rule(x: Tensor, rule: SizeRule) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad a batch to the next size whose logits cover it, half on either side.

    Without a margin, border voxels are repeated: unlike zeros they add no edge that an organ might be mistaken for.
    With one the image is mirrored at its border, as the overlap-tile strategy has it (Ronneberger et al. 2015).

    Args:
        x: (B, C, *spatial), each spatial size at least 1.
        rule: The sizes wanted.

    Returns:
        The batch, untouched where it is legal already, and the slices that cut the old extent from the spatial axes of
        the logits: ``logits[(..., *slices)]``.

    Raises:
        DataError: If the number of axes is wrong or a size is 0.
    """
    size = tuple(x.shape[2:])
    needed = tuple(n + 2 * lost for n, lost in zip(size, rule.margin, strict=False)) if min(size, default=0) else size
    target = rule.legal_size(needed)
    before = [(new - old) // 2 for new, old in zip(target, needed, strict=True)]
    crop = tuple(slice(start, start + old) for start, old in zip(before, size, strict=True))
    if target == size:
        return x, crop
    if any(rule.margin):
        for axis, (start, lost) in enumerate(zip(before, rule.margin, strict=True)):
            index = mirrored_index(-start - lost, target[axis], size[axis])
            x = x.index_select(axis + 2, torch.from_numpy(index).to(x.device))
        return x, crop
    widths: list[int] = []
    for start, new, old in reversed(list(zip(before, target, size, strict=True))):
        widths += [start, new - old - start]  # F.pad lists the last axis first
    return F.pad(x, widths, mode="replicate"), crop


def pad_to_legal(x: Tensor, network: SegmentationNetwork) -> tuple[Tensor, tuple[slice, ...]]:
    """:func:`pad_to_rule` with the sizes that a network takes."""
    return pad_to_rule(x, network.sizes)


def forward_any_size(network: SegmentationNetwork, x: Tensor) -> Tensor:
    """Logits of a batch of any spatial size: padded as by :func:`pad_to_legal`, the logits cut back.

    Args:
        network: A network that returns a single tensor (evaluation mode, or no deep supervision).
        x: (B, C, *spatial), each spatial size at least 1.

    Returns:
        Logits (B, L, *spatial).

    Raises:
        DataError: If the input does not fit the network or the network returns several heads.
    """
    padded, crop = pad_to_legal(x.as_tensor() if isinstance(x, MetaTensor) else x, network)
    logits = network(padded)
    if not isinstance(logits, Tensor):
        expected, got = "one tensor from the network", f"{len(logits)} heads of deep supervision"
        raise DataError(sentence("forward_any_size", expected, got, "Call network.eval() first"))
    cut: tuple[EllipsisType | slice, ...] = (..., *crop)
    return logits[cut]
