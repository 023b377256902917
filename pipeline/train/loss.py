"""Soft Dice plus cross-entropy, in float32, with an ignore label and deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax

from pipeline.config import TrainSettings
from pipeline.core.labels import IGNORE_INDEX

__all__ = ["dice_ce_loss", "head_weights", "supervised_loss"]

_SMOOTH = 1e-5


def head_weights(heads: int) -> tuple[float, ...]:
    """Weights 1, 1/2, 1/4, … of deep-supervision heads, finest first, normalized to sum 1.

    Args:
        heads: Number of heads, at least 1.
    """
    raw = [0.5**n for n in range(heads)]
    return tuple(weight / sum(raw) for weight in raw)


def dice_ce_loss(logits: Tensor, labels: Tensor, settings: TrainSettings) -> Tensor:
    """Weighted sum of cross-entropy and 1 - soft Dice of the foreground classes.

    Both come from one log-softmax; no one-hot volume is made. Voxels with ``IGNORE_INDEX`` count in neither.

    Args:
        logits: (B, L, *S), any floating type.
        labels: (B, *S) class indices.
        settings: Weights and ``batch_dice``.

    Returns:
        Scalar float32. If every voxel is ignored, 0 with a gradient of 0.

    Reference: soft Dice as in nnU-Net (smooth 1e-5, background left out), Isensee et al. 2021.
    """
    log_p = log_softmax(logits.float(), dim=1).flatten(2)
    index = labels.flatten(1).long()
    valid = index != IGNORE_INDEX
    target = index.clamp(min=0)
    log_p_target = log_p.gather(1, target[:, None])[:, 0]
    count = valid.sum().clamp(min=1)
    loss = -(log_p_target * valid).sum() / count * settings.ce_weight
    if settings.dice_weight == 0 or logits.shape[1] == 1:
        return loss
    weight = valid.float()
    zeros = log_p.new_zeros(log_p.shape[:2])
    intersection = zeros.scatter_add(1, target, log_p_target.exp() * weight)
    reference = zeros.scatter_add(1, target, weight)
    predicted = (log_p.exp() * weight[:, None]).sum(2)
    if settings.batch_dice:
        intersection, reference, predicted = (x.sum(0, keepdim=True) for x in (intersection, reference, predicted))
    dice = (2 * intersection + _SMOOTH) / (reference + predicted + _SMOOTH)
    return loss + settings.dice_weight * (1 - dice[:, 1:].mean()) * valid.any()


def supervised_loss(heads: Tensor | Sequence[Tensor], labels: Tensor, settings: TrainSettings) -> Tensor:
    """Loss of a network's output: one tensor, or heads of deep supervision with weights 1/2^n.

    Args:
        heads: (B, L, *S) or several, finest first; a coarser one is compared with labels taken at its voxels' places.
        labels: (B, *S) class indices.
        settings: Section ``train``.

    Returns:
        Scalar float32.
    """
    if isinstance(heads, Tensor):
        return dice_ce_loss(heads, labels, settings)
    total = labels.new_zeros((), dtype=torch.float32)
    for head, weight in zip(heads, head_weights(len(heads)), strict=True):
        total = total + weight * dice_ce_loss(head, _at_size(labels, head.shape[2:]), settings)
    return total


def _at_size(labels: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(labels.shape[1:]) == tuple(size):
        return labels
    return interpolate(labels[:, None].float(), tuple(size), mode="nearest")[:, 0].to(labels.dtype)
