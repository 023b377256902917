"""What a model may be shown at test time: mirrored and rotated windows of the kinds that it was trained with."""

from __future__ import annotations

from typing import Literal

from pipeline.config import AugmentSettings, InferSettings, Settings
from pipeline.core.errors import sentence
from pipeline.infer.mirror import Rotation
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan import Plan
from pipeline.sample.augment import directions
from pipeline.sample.spatial import coarse_axis

__all__ = ["augmentation_problems", "mirror_axes", "rotation_of"]

_ALIKE = 0.01  # spacings that differ by less are taken for equal: a quarter turn stretches no more
_ADVICE = "Set it to false"


def mirror_axes(plan: Plan, dims: Literal[2, 3], settings: Settings) -> tuple[int, ...]:
    """Volume axes that training mirrors: the network knows no other mirror images.

    Args:
        plan: The dataset's plan.
        dims: Spatial axes of the network.
        settings: Section ``augment``.
    """
    flips = settings.augment.flip_axes if settings.augment.enabled else ()
    named = directions(plan.orientation)
    return tuple(axis for axis in plan.axes(dims) if named[axis] in flips)


def rotation_of(plan: Plan, spec: NetworkSpec) -> Rotation:
    """The plane in which windows are rotated: that of a 2D network, in 3D across the coarse axis, else across slices.

    Args:
        plan: The dataset's plan.
        spec: The network's description.
    """
    axes = plan.axes(spec.dims)
    if spec.dims == 3:
        coarse = coarse_axis(spec.patch_size, plan.spacing_mm)
        across = plan.slice_axis if coarse is None else coarse
        axes = tuple(axis for axis in axes if axis != across)
    one, other = axes
    low, high = sorted((plan.spacing_mm[one], plan.spacing_mm[other]))
    return Rotation((one, other), quarter=high <= low * (1 + _ALIKE))


def augmentation_problems(plan: Plan, spec: NetworkSpec, settings: Settings, infer: InferSettings) -> list[str]:
    """Why a model cannot be shown what is asked for, a sentence for each reason.

    Args:
        plan: The dataset's plan.
        spec: The network's description.
        settings: What the model is trained with.
        infer: What is asked for.
    """
    problems = []
    if infer.mirror and not mirror_axes(plan, spec.dims, settings):
        problems.append(sentence("infer.mirror", "a model trained with flips", "one without", _ADVICE))
    if not infer.rotate:
        return problems
    largest = _largest_rotation(settings.augment)
    if largest < 180:
        got = f"one with up to {largest:g}" if largest else "one without"
        rule = "a model trained with rotations of up to 180 degrees (augment.rotate_degrees)"
        problems.append(sentence("infer.rotate", rule, got, _ADVICE))
    sides = directions(plan.orientation).index("LR")
    pairs = plan.label_table.output_side_pairs()
    if pairs and sides in rotation_of(plan, spec).axes and sides in mirror_axes(plan, spec.dims, settings):
        rule = "no left and right organs where training mirrors left and right, which a rotation confuses"
        problems.append(sentence("infer.rotate", rule, f"{len(pairs)} pairs", _ADVICE))
    return problems


def _largest_rotation(augment: AugmentSettings) -> float:
    return augment.rotate_degrees if augment.enabled and augment.rotate_p > 0 else 0.0
