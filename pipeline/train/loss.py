"""What training minimizes: cross-entropy plus overlap, in float32, with an ignore label and deep supervision.

Organs share a softmax, regions have a sigmoid each. Both come down to the probability of the truth at every voxel and
three sums per organ (:class:`Terms`), from which cross-entropy and overlap follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate, log_softmax, logsigmoid, pad

from pipeline.config.settings import LossSettings, SampleSettings
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.labels import IGNORE_INDEX
from pipeline.core.regions import Regions
from pipeline.preprocess.plan_file import Plan
from pipeline.sample.cut import Sliceable
from pipeline.train.border_weights import border_map
from pipeline.train.distributed import SINGLE, Processes

# Weights of classes in the cross-entropy: given by the user, or from how often the classes occur.

_SLICES = 64  # slices read at once, as many as a compressed chunk of the store has


def require_class_weights(settings: LossSettings, outputs: Sequence[str]) -> None:
    """Refuse a list of class weights that does not fit the names of the network's outputs.

    Raises:
        ConfigError: If there are more or fewer weights than names.
    """
    given = settings.class_weights
    if isinstance(given, tuple) and len(given) != len(outputs):
        expected = f"{len(outputs)} numbers ({', '.join(outputs)})"
        got = f"{len(given)}: {list(given)}"
        raise ConfigError([sentence("loss.class_weights", expected, got, "Give one for each, or write balanced")])


def planned_loss(settings: LossSettings, plan: Plan, dims: int) -> LossSettings:
    """Put what follows from a plan in place of the words ``plan`` and ``auto``.

    Args:
        settings: Section ``loss``.
        plan: Plan of the dataset.
        dims: Axes that the network sees.

    Returns:
        The section with numbers for the class weights, one per class, background 1, or per region, which weighs what
        its lightest organ does; ``none`` where the plan proposes no weights. With true or false for ``batch_dice``.

    Reference: batch Dice as nnunetv2 2.8.1 plans it: in 2D, and at a full resolution that has a low one.
    """
    weighted = _planned_weights(settings, plan)
    if settings.batch_dice != "auto":
        return weighted
    return weighted.model_copy(update={"batch_dice": dims == 2 or plan.low_resolution is not None})


def _planned_weights(settings: LossSettings, plan: Plan) -> LossSettings:
    if settings.class_weights != "plan":
        return settings
    if plan.class_weights is None:
        return settings.model_copy(update={"class_weights": "none"})
    table = plan.label_table
    each = (1.0, *(plan.class_weights.get(name, 1.0) for name in table.organs))
    regions = table.region_classes()
    weights = tuple(min(each[index] for index in classes) for classes in regions) if regions else each
    return settings.model_copy(update={"class_weights": weights})


def sampling_weights(settings: SampleSettings, plan: Plan) -> dict[int, float] | None:
    """Class index → weight with which patches choose among the classes; None where all weigh the same."""
    if settings.class_weights == "none" or plan.class_weights is None:
        return None
    organs = enumerate(plan.label_table.organs, start=1)
    return {index: plan.class_weights[name] for index, name in organs if name in plan.class_weights}


def class_weights(
    settings: LossSettings,
    outputs: int,
    labels: Iterable[Sliceable],
    *,
    regions: Regions = (),
) -> Tensor | None:
    """Weights of classes or regions in the cross-entropy.

    Args:
        settings: Section ``loss``, after :func:`planned_loss`.
        outputs: Channels of the logits.
        labels: Label maps of the training cases, looked at only for ``balanced``.
        regions: Class indices of each region; empty for a softmax.

    Returns:
        (outputs,) float32 on the CPU; None where all weigh the same.

    Raises:
        ConfigError: If the number of weights is not that of the outputs.
        ValueError: If the plan's weights were not put in place.
    """
    if settings.class_weights == "plan":
        raise ValueError("class_weights: expected numbers, got 'plan'. Call planned_loss first.")
    if settings.class_weights == "none":
        return None
    if settings.class_weights == "balanced":
        return torch.tensor(balanced_weights(class_voxel_counts(labels, outputs), regions), dtype=torch.float32)
    unnamed = "region" if regions else "class"
    require_class_weights(settings, [f"{unnamed} {n}" for n in range(outputs)])
    return torch.tensor(settings.class_weights, dtype=torch.float32)


def class_voxel_counts(labels: Iterable[Sliceable], classes: int = 1) -> tuple[int, ...]:
    """Voxels of class 0, 1, … up to the highest class that occurs in label maps (I, J, K), at least ``classes``.

    Ignored voxels are left out. The label maps may be in memory, on a GPU or on disk.
    """
    counts = torch.zeros(classes, dtype=torch.int64)
    # Slab by slab: a case that is not in memory is never read as a whole.
    for label in labels:
        for start in range(0, label.shape[0], _SLICES):
            raised = (
                torch.as_tensor(label[(slice(start, start + _SLICES),)]).flatten().long() + 1
            )  # the ignored become 0
            found = torch.bincount(raised, minlength=len(counts) + 1)[1:].cpu()
            counts = pad(counts, (0, len(found) - len(counts))) + found
    return tuple(counts.tolist())


def balanced_weights(counts: Sequence[int], regions: Regions = ()) -> tuple[float, ...]:
    """Weights in inverse proportion to frequency, such that the terms of the cross-entropy weigh 1 on average.

    Of C classes that occur, class c with n_c of N voxels weighs N / (C · n_c), so the mean over voxels is 1 and every
    class weighs the same in all. Of regions every voxel has a term each, so the mean over regions is 1: region r
    weighs R / n_r divided by the sum of all 1 / n. What does not occur weighs 1.

    Args:
        counts: Voxels of class 0, 1, ….
        regions: Class indices of each region; empty for a softmax.

    Returns:
        One weight per class or region.
    """
    # Regions overlap, so a voxel counts for each that it lies in.
    if regions:
        counts = [sum(counts[n] for n in region if n < len(counts)) for region in regions]
    present = [count for count in counts if count]
    if not present:
        return (1.0,) * len(counts)
    scale = len(present) / sum(1 / count for count in present) if regions else sum(present) / len(present)
    return tuple(scale / count if count else 1.0 for count in counts)


_TINY = 1e-12  # keeps 0 / 0 and the slope of 0 ** gamma finite, and is lost in any sum that matters


class SegmentationLoss(nn.Module):
    """The loss of ``volseg train``, for a training loop of your own. Move it to the device of the logits.

    Args:
        plan: The plan of the dataset. Its labels decide: organs share a softmax, regions have a sigmoid each.
        settings: Section ``loss``; by default that of ``volseg train``.

    Raises:
        ConfigError: If the class weights do not fit the labels, or are ``balanced``: that needs the voxel counts of all
            training cases.
    """

    def __init__(self, plan: Plan, settings: LossSettings | None = None) -> None:
        super().__init__()
        # By the number of axes, which is that of the logits: a batch Dice may follow from it.
        self.planned = {dims: planned_loss(settings or LossSettings(), plan, dims) for dims in (2, 3)}
        self.settings = self.planned[3]
        if self.settings.class_weights == "balanced":
            rule, advice = "numbers, plan or none outside volseg train", "Give one number per class"
            raise ConfigError([sentence("loss.class_weights", rule, "balanced", advice)])
        self.regions, self.outputs = plan.label_table.region_classes(), plan.label_table.outputs
        weights = class_weights(self.settings, self.outputs, (), regions=self.regions)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, outputs: Tensor | Mapping[str, Tensor] | Sequence[Tensor], labels: Tensor) -> Tensor:
        """Compare the outputs of a network with labels.

        Args:
            outputs: Logits (B, L, *S), or several by name or in a list with deep supervision, the prediction first.
            labels: (B, *S) or (B, 1, *S) class indices, -1 where a voxel is ignored. They may be larger than the
                logits by a margin, which is left out.

        Returns:
            Scalar float32.

        Raises:
            VolsegError: If the shapes do not fit.
        """
        # MONAI's tensors with metadata take four times as long for every operation.
        heads = [_plain(logits) for logits in _heads(outputs)]
        first, index = heads[0], _plain(labels)
        index = index[:, 0] if index.ndim == first.ndim and index.shape[1] == 1 else index
        sizes = [*zip(first.shape[2:], index.shape[1:], strict=False)]
        if first.shape[1] != self.outputs or first.ndim != index.ndim + 1 or any(a > b for a, b in sizes):
            rule = f"logits (B, {self.outputs}, *S) and labels (B, *S) or (B, 1, *S)"
            got, advice = f"{tuple(first.shape)} and {tuple(labels.shape)}", "Check the network and the loader"
            raise VolsegError(sentence("loss", rule, got, advice))
        for axis, size in enumerate(first.shape[2:], start=1):
            index = index.narrow(axis, (index.shape[axis] - size) // 2, size)
        weights = self.get_buffer("class_weights")
        settings = self.planned[index.ndim - 1]
        return supervised_loss(heads, index, settings, regions=self.regions, class_weights=weights)


def _plain(values: Tensor) -> Tensor:
    return values.as_tensor() if isinstance(values, MetaTensor) else values


def _heads(outputs: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> list[Tensor]:
    several = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [several] if isinstance(several, Tensor) else list(several)


def supervised_loss(
    heads: Tensor | Mapping[str, Tensor] | Sequence[Tensor],
    labels: Tensor,
    settings: LossSettings,
    *,
    regions: Regions = (),
    class_weights: Tensor | None = None,
    processes: Processes = SINGLE,
    border: Tensor | None = None,
) -> Tensor:
    """Loss of a network's output: one tensor, or the weighted mean of several heads of deep supervision.

    ``ce_weight`` times the cross-entropy plus ``dice_weight`` times 1 - the Tversky index, which is the soft Dice for
    alpha = beta = 0.5. Voxels with ``IGNORE_INDEX`` count in neither.

    Args:
        heads: Logits (B, L, *S) of any floating type, or several by name, that of the prediction first; a coarser one
            is compared with labels taken at its voxels' places.
        labels: (B, *S) class indices.
        settings: Section ``loss``, after :func:`planned_loss`.
        regions: Class indices of each of L regions, which have a sigmoid each; empty for a softmax over L classes.
        class_weights: (L,) weights in the cross-entropy, one per class or region, on the labels' device.
        processes: Those that share the batch: the mean of their losses, and of their gradients, is that of the whole.
        border: What :func:`border_weights` gives for the labels, where it is known; else it is made here.

    Returns:
        Scalar float32. If every voxel is ignored, 0 with a gradient of 0.

    Raises:
        ValueError: If ``batch_dice`` is still ``auto``.

    Reference: soft Dice as in nnU-Net (background left out), Isensee et al. 2021; binary cross-entropy and Dice per
    head, Zhou et al. 2018 (arXiv 1807.10165); weight map, Ronneberger et al. 2015 (arXiv 1505.04597), eq. 2.
    """
    if settings.batch_dice == "auto":
        raise ValueError("batch_dice: expected true or false, got 'auto'. Call planned_loss first.")
    # Made once, for the finest head: coarser ones take its values at their voxels' places.
    border = border_weights(labels, settings, regions) if border is None else border
    outputs = _heads(heads)
    total = labels.new_zeros((), dtype=torch.float32)
    # A head of weight 0 is computed all the same: its gradients are 0, which several processes average like others.
    for logits, share in zip(outputs, head_weights(len(outputs), settings.head_weights), strict=True):
        size = logits.shape[2:]
        # float32: the sums over a patch exceed what half precision can hold
        scores, index = logits.float().flatten(2), _at_size(labels, size).flatten(1).long()
        terms = region_terms(scores, index, regions) if regions else softmax_terms(scores, index)
        added = None if border is None else _at_size(border, size).flatten(1)
        total = total + share * _head_loss(terms, settings, class_weights, added, processes)
    return total


def border_weights(labels: Tensor, settings: LossSettings, regions: Regions = ()) -> Tensor | None:
    """Weights (B, *S) of narrow gaps for labels (B, *S), see :func:`~.border_weights.border_map`; None for none."""
    if settings.border_weight <= 0 or settings.ce_weight <= 0:
        return None
    return border_map(labels, settings.border_weight, settings.border_sigma_voxels, regions=regions)


def _head_loss(
    terms: Terms, settings: LossSettings, class_weights: Tensor | None, border: Tensor | None, processes: Processes
) -> Tensor:
    """Loss of one head; ``border`` (B, N) is added to the weights of its voxels."""
    loss = terms.log_truth.new_zeros(())
    if settings.ce_weight > 0:
        weights = terms.weights(class_weights, border)
        cross_entropy = focal_cross_entropy(terms.log_truth, weights, settings.focal_gamma, processes)
        loss = loss + settings.ce_weight * cross_entropy
    if settings.dice_weight > 0 and (volumes := terms.volumes())[0].shape[1] > 0:  # else there is but background
        index_per_organ = tversky_index(
            volumes,
            alpha=settings.tversky_alpha,
            beta=settings.tversky_beta,
            smooth=settings.smooth,
            batch=settings.batch_dice is True,
            processes=processes,
        )
        loss = loss + settings.dice_weight * (1 - index_per_organ.mean())
    return loss


def head_weights(heads: int, kind: Literal["halving", "nnunet", "equal"] = "halving") -> tuple[float, ...]:
    """Weights of deep-supervision heads, that of the prediction first, normalized to sum 1.

    With ``halving`` 1, 1/2, 1/4, …, with ``nnunet`` the last of several 0, with ``equal`` all the same, as in UNet++.

    Reference: Isensee et al. 2021, supplementary information: no loss at the two lowest resolutions. The lowest has no
    head; nnunetv2 2.8.1 gives the next 0, where most networks here have none (:func:`pipeline.model.unet.level_heads`).
    """
    raw = [1.0 if kind == "equal" else 0.5**n for n in range(heads)]
    if kind == "nnunet" and heads > 1:
        raw[-1] = 0.0
    return tuple(weight / sum(raw) for weight in raw)


def _at_size(values: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(values.shape[1:]) == tuple(size):
        return values
    return interpolate(values[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].to(values.dtype)


@dataclass(frozen=True, eq=False)
class Terms:
    """Logits compared with labels: B patches, N voxels, T terms of cross-entropy per voxel, L classes or regions.

    Args:
        log_truth: (B, T, N) log-probability of the truth; T is 1 for a softmax, L for regions.
        truth: (B, N) class indices for a softmax, (B, L, N) whether the voxel lies in each region.
        valid: (B, 1, N), 1 where annotated, 0 where ignored.
        volumes: Gives intersection (soft), reference and prediction (soft) of foreground classes or regions, (B, K)
            each.
    """

    log_truth: Tensor
    truth: Tensor
    valid: Tensor
    volumes: Callable[[], tuple[Tensor, Tensor, Tensor]]

    def weights(self, class_weights: Tensor | None, border: Tensor | None) -> Tensor:
        """Weights (B, T, N) of the cross-entropy: class weights (L,) plus border weights (B, N), 0 where ignored."""
        if class_weights is None:
            weights = torch.ones_like(self.valid)
        elif self._has_regions:
            weights = class_weights[None, :, None]
        else:
            weights = class_weights[self.truth][:, None]
        if border is not None:
            weights = weights + border[:, None]
        return (weights * self.valid).expand_as(self.log_truth)

    @property
    def _has_regions(self) -> bool:
        return self.truth.ndim == 3


def softmax_terms(scores: Tensor, index: Tensor) -> Terms:
    """Compare logits (B, L, N) of a softmax over classes, background first, with class indices (B, N), int64."""
    truth, valid = index.clamp(min=0), (index != IGNORE_INDEX).float()
    log_truth, intersection, predicted = _Softmax.apply(scores, truth, valid)  # type: ignore[no-untyped-call]

    def volumes() -> tuple[Tensor, Tensor, Tensor]:
        # Scattered by class: a one-hot volume of 100 classes would not fit into a GPU.
        reference = torch.zeros_like(predicted).scatter_add(1, truth, valid)
        return intersection[:, 1:], reference[:, 1:], predicted[:, 1:]

    return Terms(log_truth, truth, valid[:, None], volumes)


class _Softmax(torch.autograd.Function):
    """What cross-entropy and overlap need of logits (B, L, N), by class indices (B, N) and what is annotated (B, N).

    Gives the log-probability of the truth (B, 1, N), and soft volumes (B, L): of what each class shares with the truth,
    and of what is taken for it.

    The logits of many classes take hundreds of megabytes, and PyTorch would keep three such tensors for as many steps.
    This keeps one, of probabilities, in the memory order of the logits: with channels last, others would be copied.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.axis = axis = 2 if scores.stride(1) == 1 else 1  # of the classes
        log_p, own = log_softmax(scores.transpose(1, axis), axis), truth.unsqueeze(axis)
        log_truth = log_p.gather(axis, own)
        p = log_p.exp_().mul_(valid.unsqueeze(axis))
        predicted = p.sum(3 - axis)
        shared = (log_truth.exp() * valid.unsqueeze(axis)).flatten(1)
        intersection = torch.zeros_like(predicted).scatter_add_(1, truth, shared)
        ctx.save_for_backward(p, shared, truth, valid)
        return log_truth.transpose(1, axis), intersection, predicted

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, to_log_truth: Tensor, to_intersection: Tensor, to_predicted: Tensor
    ) -> tuple[Tensor, None, None]:
        (p, shared, truth, valid), axis = ctx.saved_tensors, ctx.axis
        # What the logit of the truth gets; the softmax takes as much from all classes, by their probability.
        own = to_log_truth[:, 0] * valid + to_intersection.gather(1, truth) * shared
        gradient, own = p * to_predicted.unsqueeze(3 - axis), own.unsqueeze(axis)
        gradient.addcmul_(p, gradient.sum(axis, keepdim=True) + own, value=-1)
        gradient.scatter_add_(axis, truth.unsqueeze(axis), own)
        return gradient.transpose(1, axis), None, None


def region_terms(scores: Tensor, index: Tensor, regions: Regions) -> Terms:
    """Compare logits (B, R, N) of a sigmoid per region with class indices (B, N), int64.

    A voxel lies in region r if its class is in ``regions[r]``.
    """
    member = _membership(tuple(map(tuple, regions)), index.device)
    # Ignored voxels get the truth of class 0; their weight is 0.
    truth = member[:, index.clamp(0, member.shape[1] - 1)].movedim(0, 1)
    valid = (index != IGNORE_INDEX).float()[:, None]

    def volumes() -> tuple[Tensor, Tensor, Tensor]:
        probabilities, reference = scores.sigmoid(), truth * valid
        predicted = (probabilities * valid).sum(2)
        return (probabilities * reference).sum(2), reference.sum(2), predicted

    return Terms(logsigmoid(torch.where(truth, scores, -scores)), truth, valid, volumes)


@lru_cache(maxsize=16)
def _membership(regions: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Whether each class lies in each region (R, classes + 1); kept, because a GPU would wait for it in every step."""
    outside = 1 + max(max(region) for region in regions)  # this class and all above are in no region
    return torch.tensor([[n in region for n in range(outside + 1)] for region in regions], device=device)


def focal_cross_entropy(
    log_truth: Tensor, weights: Tensor, gamma: float = 0.0, processes: Processes = SINGLE
) -> Tensor:
    """Weighted mean of -(1 - p)^gamma · log p; with gamma 0 the ordinary cross-entropy.

    The sum is divided by the sum of the weights, not by the number of voxels, so that a few heavy voxels change what a
    patch teaches but not how large its loss is.

    Args:
        log_truth: log p of the truth, any shape.
        weights: Same shape, at least 0.
        gamma: At least 0.
        processes: Those that share the batch: the mean of their results is the loss of the whole batch.

    Returns:
        Scalar; 0 if all weights are 0.

    Reference: Lin et al. 2017 (arXiv 1708.02002), eq. 4.
    """
    loss = -log_truth
    # expm1 keeps 1 - p exact where p is nearly 1, as it is in most voxels.
    if gamma > 0:
        loss = loss * (-torch.expm1(log_truth)).clamp(min=_TINY) ** gamma
    return (loss * weights).sum() * processes.count / processes.summed(weights.sum()).clamp(min=_TINY)


def tversky_index(
    volumes: tuple[Tensor, Tensor, Tensor],
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 0.0,
    batch: bool = False,
    processes: Processes = SINGLE,
) -> Tensor:
    """Soft Tversky index (2·TP + s) / (2·TP + 2·alpha·FP + 2·beta·FN + s); with 0.5 and 0.5 the soft Dice.

    Args:
        volumes: Of the intersection (TP, soft), the reference (TP + FN) and the prediction (TP + FP, soft), each (B, K)
            in voxels.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: s.
        batch: Whether to pool the volumes over the batch first.
        processes: Those that share the batch.

    Returns:
        (B, K), or (1, K) if pooled; 1 where reference and prediction are both empty.

    Reference: Salehi et al. 2017 (arXiv 1706.05721), eq. 4.
    """
    intersection, reference, predicted = volumes
    # Organs that are absent from most patches get a steadier gradient from the pooled batch.
    if batch:
        pooled = torch.stack(volumes).sum(1, keepdim=True)
        intersection, reference, predicted = processes.summed(pooled)
    smooth = max(smooth, _TINY)
    overlap = 2 * (1 - alpha - beta) * intersection + 2 * beta * reference + 2 * alpha * predicted
    return (2 * intersection + smooth) / (overlap + smooth)
