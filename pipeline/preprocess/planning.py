"""From fingerprints to a plan, each choice with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import PreprocessSettings
from pipeline.core.errors import VolsegError, sentence
from pipeline.data.dataset import Dataset
from pipeline.preprocess.fingerprint import CaseFingerprint, ChannelStatistics, channel_statistics
from pipeline.preprocess.nnunet_rules import batch_size, low_resolution_spacing, plan_patch
from pipeline.preprocess.plan_file import LowResolution, Normalization, PatchPlan, Plan
from pipeline.preprocess.spacing import Spacing, target_spacing

_LARGEST_WEIGHT = 10.0  # so that no handful of voxels, perhaps mislabelled ones, rules a training
_BALANCED = 2.0  # below this, i.e. with at least a quarter of the median share, weights are not worth their noise
_NAMED = 3  # organs that the reason names
_MASK_SHARE = 0.75  # crops that keep less of the volume than this have a border that z-scores should not see
_SLICES = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}


def propose_class_weights(
    names: Sequence[str], fingerprints: Iterable[CaseFingerprint]
) -> tuple[dict[str, float] | None, str]:
    """Weigh the organs that have less of the foreground than the median organ.

    An organ weighs the square root of the median share over its own, at most 10, rounded to a digit; the median is over
    organs that occur, so that neither a huge organ nor one that no case has moves it.

    Args:
        names: Organ names in the order of classes 1, 2, ….
        fingerprints: One per usable case.

    Returns:
        Organ → weight above 1, the largest first, and the reason in a sentence or two; organs left out weigh 1. None
        for the weights where the organs are about equally frequent.

    Reference: median frequency balancing, Eigen and Fergus 2015 (arXiv 1411.4734), section 6.3; the square root as in
    Mahajan et al. 2018 (arXiv 1805.00932), section 2.3.
    """
    volumes, present, cases = np.zeros(len(names)), np.zeros(len(names), np.int64), 0
    for case in fingerprints:
        voxels = np.array(case.class_voxels[1:], np.float64)
        # Volumes, not voxels: cases may have different spacings.
        volumes += voxels * np.prod(case.spacing_mm)
        present += voxels > 0
        cases += 1
    found = volumes > 0
    shares = volumes / max(float(volumes.sum()), np.finfo(float).tiny)
    weights = np.ones(len(names))
    if found.any():
        weights[found] = np.sqrt(np.median(shares[found]) / shares[found]).clip(1.0, _LARGEST_WEIGHT).round(1)
    if weights.max(initial=1.0) < _BALANCED:
        return None, "None proposed: no organ has less than a quarter of the median organ's share of the foreground."
    rarest = [int(n) for n in np.argsort(shares) if weights[n] > 1.0]
    named = [f"{names[n]}: {100 * shares[n]:.2g} % of it, in {present[n]} of {cases} cases" for n in rarest[:_NAMED]]
    more = f"; and {len(rarest) - _NAMED} more" if len(rarest) > _NAMED else ""
    why = (
        "A proposal for organs with little of the foreground, used only where loss.class_weights or "
        "sample.class_weights says plan; may be edited at any time. Square root of the median organ's share over the "
        f"organ's, at most {_LARGEST_WEIGHT:g}; others weigh 1. {'; '.join(named)}{more}."
    )
    return {names[n]: float(weights[n]) for n in rarest}, why


def plan_from_fingerprints(
    dataset: Dataset, fingerprints: Sequence[CaseFingerprint], settings: PreprocessSettings, memory_gb: float
) -> Plan:
    """Plan from fingerprints; what the settings fix is taken from them.

    Raises:
        VolsegError: If the settings want the low resolution, or a cascade, of a dataset that needs none.
    """
    cases, outputs = len(dataset.cases), dataset.labels.outputs
    spacing, why_spacing, exact, low = _grids(fingerprints, settings, outputs, memory_gb, cases)
    median = tuple(int(n) for n in exact.round())
    axis = _slice_axis(spacing, median)

    def patch(axes: Sequence[int], given: tuple[int, ...] | None) -> PatchPlan:
        mm = [spacing[a] for a in axes]
        size = given or plan_patch([float(exact[a]) for a in axes], mm, outputs, memory_gb)
        voxels = float(np.prod(exact)) * cases
        return PatchPlan(patch_size=size, batch_size=batch_size(size, mm, outputs, memory_gb, voxels))

    kept = float(np.median([math.prod(f.cropped_shape) / math.prod(f.shape) for f in fingerprints]))
    normalization = tuple(
        _normalization(settings.normalization, name, statistics, kept)
        for name, statistics in zip(dataset.channels, channel_statistics(fingerprints), strict=True)
    )
    weights, why_weights = propose_class_weights(dataset.labels.organs, fingerprints)
    reasons = {
        "spacing_mm": why_spacing,
        **_reasons(cases, settings, kept, axis, memory_gb),
        "class_weights": why_weights,
    }
    return Plan(
        dataset=dataset.name,
        channels=dataset.channels,
        labels=dataset.labels.to_json(),
        orientation=settings.orientation,
        crop=settings.crop,
        spacing_mm=spacing,
        shape=settings.shape,
        image_order=settings.image_order,
        coarse_axis_order=settings.coarse_axis_order,
        store_dtype=settings.store_dtype,
        normalization=normalization,
        median_shape=(median[0], median[1], median[2]),
        slice_axis=axis,
        patch_3d=patch((0, 1, 2), settings.patch_size),
        patch_2d=patch([a for a in range(3) if a != axis], settings.patch_size_2d),
        low_resolution=low,
        cascade=settings.resolution == "cascade",
        class_weights=weights,
        reasons=reasons,
    )


def _targets(
    fingerprints: Sequence[CaseFingerprint], settings: PreprocessSettings
) -> tuple[Spacing, str, NDArray[np.int_]]:
    """Target spacing, why it is that one, and the shape every case gets."""
    fields_mm = np.array([np.multiply(case.cropped_shape, case.spacing_mm) for case in fingerprints])
    if settings.shape is not None:
        i, j, k = np.median(fields_mm / settings.shape, axis=0).round(6).tolist()
        return (i, j, k), "What the shape makes of the median case.", np.array([settings.shape] * len(fingerprints))
    if settings.spacing_mm is not None:
        spacing, why = settings.spacing_mm, "As set."
    else:
        spacings, shapes = zip(*((case.spacing_mm, case.cropped_shape) for case in fingerprints), strict=True)
        spacing, why = target_spacing(spacings, shapes)
    return spacing, why, np.maximum(1, (fields_mm / spacing).round().astype(int))


def _grids(
    fingerprints: Sequence[CaseFingerprint], settings: PreprocessSettings, outputs: int, memory_gb: float, cases: int
) -> tuple[Spacing, str, NDArray[np.float64], LowResolution | None]:
    """Spacing to prepare at and why, the median shape there, and the low resolution that could be taken instead."""
    spacing, why, resampled = _targets(fingerprints, settings)
    exact: NDArray[np.float64] = np.median(resampled, axis=0)
    # A fixed shape has no other resolution, and pictures have no third axis to see more of.
    low = None if settings.shape or exact.min() == 1 else _low_resolution(exact, spacing, outputs, memory_gb, cases)
    if settings.resolution == "full":
        return spacing, why, exact, low
    if low is None:
        rule, advice = "full, as a 3D patch already covers a quarter of the median case", "Leave the setting out"
        raise VolsegError(sentence("preprocess.resolution", rule, settings.resolution, advice))
    if settings.resolution == "cascade":  # its first stage is planned from this plan, see Plan.first_stage
        return spacing, why, exact, low
    why = "The low resolution: full resolution made coarser until a patch covers a quarter of the median case."
    return low.spacing_mm, why, np.array(low.median_shape, dtype=np.float64), None


def _low_resolution(
    shape: NDArray[np.float64], spacing_mm: Spacing, outputs: int, memory_gb: float, cases: int
) -> LowResolution | None:
    """The coarser grid on which a patch covers a quarter of the median case, if the patch of this one does not."""
    low_mm = low_resolution_spacing(shape.tolist(), spacing_mm, outputs, memory_gb)
    if low_mm is None:
        return None
    exact = np.divide(spacing_mm, low_mm) * shape
    i, j, k = (round(n) for n in exact.tolist())
    patch = plan_patch((i, j, k), low_mm, outputs, memory_gb)
    batch = batch_size(patch, low_mm, outputs, memory_gb, float(exact.prod()) * cases)
    return LowResolution(
        spacing_mm=low_mm, median_shape=(i, j, k), patch_size=(patch[0], patch[1], patch[2]), batch_size=batch
    )


def _slice_axis(spacing_mm: Sequence[float], shape: Sequence[int]) -> Literal[0, 1, 2]:
    """Across single slices; else the coarsest axis, of equals the one closest to the end (axial slices in RAS)."""
    # An axis of one voxel is that of single pictures, whatever its made-up spacing.
    if min(shape) == 1:
        spacing_mm = [float(size == 1) for size in shape]
    coarsest = max(spacing_mm)
    if math.isclose(spacing_mm[2], coarsest, rel_tol=1e-3):
        return 2
    return 1 if math.isclose(spacing_mm[1], coarsest, rel_tol=1e-3) else 0


def _normalization(scheme: str, channel: str, statistics: ChannelStatistics, kept: float) -> Normalization:
    if scheme == "auto":
        scheme = "ct" if channel.strip().upper() == "CT" else "zscore_nonzero" if kept < _MASK_SHARE else "zscore"
    if scheme != "ct":
        return Normalization.model_validate({"scheme": scheme})
    finite = math.isfinite(statistics.percentile_00_5)
    return Normalization(
        scheme="ct",
        mean=statistics.mean,
        sd=statistics.sd,
        low=statistics.percentile_00_5 if finite else None,
        high=statistics.percentile_99_5 if finite else None,
    )


def _reasons(cases: int, settings: PreprocessSettings, kept: float, axis: int, memory_gb: float) -> dict[str, str]:
    """Why the other keys are what they are; keys that only copy the settings have no reason."""
    shared = f"at most 5 % of the voxels of all {cases} cases in a batch, at least 2 patches"
    patch = f"What a plain U-Net trains on in {memory_gb:g} GB, no larger than the median case needs; {shared}."
    schemes = "Channels called CT by percentiles, mean and SD of all foreground, others by mean and SD of the image."
    border = f"Cropping keeps {kept:.0%} of the median volume{', so zeros stay out' if kept < _MASK_SHARE else ''}."
    stages = "As set: the first stage is prepared in low_resolution/, what it finds are channels of the second."
    return {
        **({"cascade": stages} if settings.resolution == "cascade" else {}),
        "normalization": f"{schemes} {border}" if settings.normalization == "auto" else f"As set. {border}",
        "slice_axis": f"{_SLICES[settings.orientation[axis]]} slices: that axis has one slice or the coarsest spacing.",
        "patch_3d": "As set." if settings.patch_size else patch,
        "patch_2d": "As set." if settings.patch_size_2d else patch,
        "low_resolution": "A grid on which a 3D patch sees a quarter of the median case; null if one does already. To "
        "train with that much context: volseg preprocess into another folder with --set preprocess.resolution=low, or "
        "=cascade to let a network of the full resolution see what one of the low resolution found.",
    }
