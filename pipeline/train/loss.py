"""What training minimizes: cross-entropy plus overlap, in float32, with an ignore label and deep supervision.

Organs share a softmax, regions have a sigmoid each; both come down to the probability of the truth at every voxel and
three sums per organ, which :mod:`pipeline.train.terms` turns into numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.config import LossSettings
from pipeline.train.border import border_map
from pipeline.train.processes import ALONE, Processes
from pipeline.train.terms import Regions, focal_cross_entropy, region_terms, softmax_terms, tversky_index

__all__ = ["head_weights", "supervised_loss"]


def head_weights(heads: int, kind: Literal["halving", "equal"] = "halving") -> tuple[float, ...]:
    """Weights of deep-supervision heads, that of the prediction first, normalized to sum 1.

    Args:
        heads: Number of heads, at least 1.
        kind: ``halving``: 1, 1/2, 1/4, … as in nnU-Net; ``equal``: all the same, as in UNet++.
    """
    raw = [0.5**n if kind == "halving" else 1.0 for n in range(heads)]
    return tuple(weight / sum(raw) for weight in raw)


def supervised_loss(
    heads: Tensor | Mapping[str, Tensor],
    labels: Tensor,
    settings: LossSettings,
    *,
    regions: Regions = (),
    class_weights: Tensor | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """Loss of a network's output: one tensor, or the weighted mean of several heads of deep supervision.

    ``ce_weight`` times the cross-entropy plus ``dice_weight`` times 1 - the Tversky index, which is the soft Dice for
    alpha = beta = 0.5. Voxels with ``IGNORE_INDEX`` count in neither.

    Args:
        heads: Logits (B, L, *S) of any floating type, or several by name, that of the prediction first; a coarser one
            is compared with labels taken at its voxels' places.
        labels: (B, *S) class indices.
        settings: Section ``loss``.
        regions: Class indices of each of L regions, which have a sigmoid each; empty for a softmax over L classes.
        class_weights: (L,) weights in the cross-entropy, one per class or region, on the labels' device.
        processes: Those that share the batch: the mean of their losses, and of their gradients, is that of the whole.

    Returns:
        Scalar float32. If every voxel is ignored, 0 with a gradient of 0.

    Reference: soft Dice as in nnU-Net (background left out), Isensee et al. 2021; binary cross-entropy and Dice per
    head, Zhou et al. 2018 (arXiv 1807.10165); weight map, Ronneberger et al. 2015 (arXiv 1505.04597), eq. 2.
    """
    border = None
    if settings.border_weight > 0 and settings.ce_weight > 0:
        border = border_map(labels, settings.border_weight, settings.border_sigma_voxels, regions=regions)
    outputs = [heads] if isinstance(heads, Tensor) else list(heads.values())
    total = labels.new_zeros((), dtype=torch.float32)
    for logits, share in zip(outputs, head_weights(len(outputs), settings.head_weights), strict=True):
        size = logits.shape[2:]
        added = None if border is None else _at_size(border, size)
        total = total + share * _head_loss(
            logits, _at_size(labels, size), settings, regions, class_weights, added, processes
        )
    return total


def _head_loss(
    logits: Tensor,
    labels: Tensor,
    settings: LossSettings,
    regions: Regions,
    class_weights: Tensor | None,
    border: Tensor | None,
    processes: Processes,
) -> Tensor:
    """Loss of one head against labels of its size; ``border`` (B, *S) is added to the weights of its voxels."""
    scores, index = logits.float().flatten(2), labels.flatten(1).long()
    terms = region_terms(scores, index, regions) if regions else softmax_terms(scores, index)
    loss = scores.new_zeros(())
    if settings.ce_weight > 0:
        weights = terms.weights(class_weights, None if border is None else border.flatten(1))
        cross_entropy = focal_cross_entropy(terms.log_truth, weights, settings.focal_gamma, processes)
        loss = loss + settings.ce_weight * cross_entropy
    if settings.dice_weight > 0 and (regions or logits.shape[1] > 1):
        index_per_organ = tversky_index(
            *terms.sums(),
            alpha=settings.tversky_alpha,
            beta=settings.tversky_beta,
            smooth=settings.smooth,
            batch=settings.batch_dice,
            processes=processes,
        )
        loss = loss + settings.dice_weight * (1 - index_per_organ.mean())
    return loss


def _at_size(values: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(values.shape[1:]) == tuple(size):
        return values
    return interpolate(values[:, None].float(), tuple(size), mode="nearest")[:, 0].to(values.dtype)
