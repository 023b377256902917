"""Weights of classes in the cross-entropy: given by the user, or from how often the classes occur."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.config.settings import LossSettings, SampleSettings
from pipeline.core.errors import ConfigError, sentence
from pipeline.core.regions import Regions
from pipeline.preprocess.plan_file import Plan
from pipeline.sample.cut import Sliceable

_SLAB = 64  # slices read at once, as many as a compressed chunk of the store has


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


def planned_weights(settings: LossSettings, plan: Plan) -> LossSettings:
    """Put the weights that a plan proposes in place of the word ``plan``.

    Returns:
        The section with one number per class, background 1, or per region, which weighs what its lightest organ does;
        with ``none`` where the plan proposes no weights. Unchanged if it does not ask for the plan's.
    """
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
        settings: Section ``loss``, after :func:`planned_weights`.
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
        raise ValueError("class_weights: expected numbers, got 'plan'. Call planned_weights first.")
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
        for start in range(0, label.shape[0], _SLAB):
            raised = torch.as_tensor(label[(slice(start, start + _SLAB),)]).flatten().long() + 1  # the ignored become 0
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
