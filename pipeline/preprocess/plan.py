"""The plan: how a dataset is prepared and which patches fit it. One JSON file a person can read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import PreprocessSettings
from pipeline.core.errors import VolsegError
from pipeline.core.files import read_json, text_hash, write_json
from pipeline.core.labels import LabelTable
from pipeline.data.layouts import Dataset
from pipeline.preprocess.fingerprint import CaseFingerprint, ChannelStatistics, channel_statistics
from pipeline.preprocess.patch_rules import batch_size, plan_patch, target_spacing

__all__ = ["Normalization", "PatchPlan", "Plan", "make_plan", "read_plan", "write_plan"]

_MASK_SHARE = 0.75  # crops that keep less of the volume than this have a border that z-scores should not see


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Normalization(_Value):
    """How one channel's intensities are normalized.

    ``ct``: clip to [low, high], then (x - mean) / sd, all from the dataset's foreground. ``zscore``: mean and SD of
    the image itself. ``zscore_nonzero``: mean and SD of its voxels that are not 0, which alone are changed. ``none``.
    """

    scheme: Literal["ct", "zscore", "zscore_nonzero", "none"]
    mean: float = 0.0
    sd: float = 1.0
    low: float | None = None
    high: float | None = None


class PatchPlan(_Value):
    """Patch and batch of one kind of network; sizes along the axes the network sees."""

    patch_size: tuple[int, ...]
    batch_size: int


class Plan(_Value):
    """Everything preprocessing, training and prediction must agree on.

    Args:
        dataset: Name of the dataset.
        channels: Channel names in order.
        labels: ``LabelTable.to_json()`` of the dataset.
        orientation: Axis codes of the prepared data.
        crop: ``nonzero`` or ``none``.
        spacing_mm: Target spacing along the axes of the orientation; with a target shape, its median.
        shape: Voxels that every case is resized to instead, or None.
        image_order: Spline order of image resampling.
        coarse_axis_order: Its order along an axis more than 3 times coarser than the finest.
        store_dtype: Type of stored intensities.
        normalization: One entry per channel.
        median_shape: Median shape of the cropped cases at the target spacing.
        slice_axis: Axis across which 2D networks see slices: that of pictures, else the coarsest, the last where they
            tie.
        patch_3d: Patch of 3D networks.
        patch_2d: Patch of 2D networks, along the two other axes.
        extra: Class names of the user's further MONAI transforms, which must be given again to predict.
        reasons: One sentence per choice.
    """

    format_version: Literal[1] = 1
    dataset: str
    channels: tuple[str, ...]
    labels: dict[str, Any]
    orientation: str
    crop: Literal["nonzero", "none"]
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int] | None = None
    image_order: Literal[0, 1, 3]
    coarse_axis_order: Literal[0, 1, 3] = 0
    store_dtype: Literal["float16", "float32"]
    normalization: tuple[Normalization, ...]
    median_shape: tuple[int, int, int]
    slice_axis: Literal[0, 1, 2]
    patch_3d: PatchPlan
    patch_2d: PatchPlan
    extra: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def label_table(self) -> LabelTable:
        """The labels as a table."""
        return LabelTable.from_json(self.labels)

    @property
    def recipe(self) -> str:
        """Hash of what prepared cases depend on: everything but name, patches, batches and reasons."""
        passive = {"reasons", "patch_2d", "patch_3d", "median_shape", "slice_axis", "dataset"}
        return text_hash(json.dumps(self.model_dump(mode="json", exclude=passive)))

    def axes(self, dims: Literal[2, 3]) -> tuple[int, ...]:
        """Volume axes that a network of so many dimensions sees."""
        return (0, 1, 2) if dims == 3 else tuple(axis for axis in range(3) if axis != self.slice_axis)


def make_plan(
    dataset: Dataset, fingerprints: Sequence[CaseFingerprint], settings: PreprocessSettings, memory_gb: float
) -> Plan:
    """Plan from fingerprints; what the settings fix is taken from them.

    Args:
        dataset: The dataset.
        fingerprints: One per usable case, at least one.
        settings: Section ``preprocess``.
        memory_gb: GPU memory to plan patch and batch for.
    """
    spacing, resampled = _targets(fingerprints, settings)
    exact = np.median(resampled, axis=0)
    median = tuple(int(n) for n in exact.round())
    axis = _slice_axis(spacing, median)

    def patch(axes: Sequence[int], given: tuple[int, ...] | None) -> PatchPlan:
        mm, outputs = [spacing[a] for a in axes], dataset.labels.outputs
        size = given or plan_patch([float(exact[a]) for a in axes], mm, outputs, memory_gb)
        voxels = float(np.prod(exact)) * len(dataset.cases)
        return PatchPlan(patch_size=size, batch_size=batch_size(size, mm, outputs, memory_gb, voxels))

    kept = float(np.median([math.prod(f.cropped_shape) / math.prod(f.shape) for f in fingerprints]))
    normalization = tuple(
        _normalization(settings.normalization, name, statistics, kept)
        for name, statistics in zip(dataset.channels, channel_statistics(fingerprints), strict=True)
    )
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
        # raw intensities may lie beyond float16's range
        store_dtype="float32" if any(entry.scheme == "none" for entry in normalization) else settings.store_dtype,
        normalization=normalization,
        median_shape=(median[0], median[1], median[2]),
        slice_axis=axis,
        patch_3d=patch((0, 1, 2), settings.patch_size),
        patch_2d=patch([a for a in range(3) if a != axis], settings.patch_size_2d),
        reasons=_reasons(settings, spacing, kept, normalization, axis, memory_gb),
    )


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan as JSON."""
    write_json(path, plan.model_dump(mode="json"))


def read_plan(path: Path) -> Plan:
    """Read and validate a plan that a person may have edited.

    Raises:
        VolsegError: If it is missing or not a plan, naming the first wrong key.
    """
    try:
        return Plan.model_validate(read_json(path, missing="Run `volseg preprocess` first."))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VolsegError(
            f"{path}: {where}: expected a valid plan, got {first['input']!r} ({first['msg']}). "
            "Correct it or run `volseg preprocess` again."
        ) from None


def _targets(
    fingerprints: Sequence[CaseFingerprint], settings: PreprocessSettings
) -> tuple[tuple[float, float, float], NDArray[np.int_]]:
    """Target spacing, and the shape every case gets."""
    fields_mm = np.array([np.multiply(case.cropped_shape, case.spacing_mm) for case in fingerprints])
    if settings.shape is not None:
        i, j, k = np.median(fields_mm / settings.shape, axis=0).round(6).tolist()
        return (i, j, k), np.array([settings.shape] * len(fingerprints))
    shapes = [fingerprint.cropped_shape for fingerprint in fingerprints]
    spacing = settings.spacing_mm or target_spacing([case.spacing_mm for case in fingerprints], shapes)
    return spacing, np.maximum(1, (fields_mm / spacing).round().astype(int))


def _slice_axis(spacing_mm: Sequence[float], shape: Sequence[int]) -> Literal[0, 1, 2]:
    """Across single slices; else the coarsest axis, of equals the one closest to the end (axial slices in RAS)."""
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


def _reasons(
    settings: PreprocessSettings,
    spacing_mm: tuple[float, float, float],
    kept: float,
    normalization: tuple[Normalization, ...],
    axis: int,
    memory_gb: float,
) -> tuple[str, ...]:
    spacing = f"spacing {tuple(round(s, 3) for s in spacing_mm)} mm"
    schemes = ", ".join(entry.scheme for entry in normalization)
    codes = settings.orientation
    names = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}
    return (
        f"shape {settings.shape}: as set; {spacing}: what follows in the median."
        if settings.shape
        else f"{spacing}: {'as set' if settings.spacing_mm else 'median of the dataset per axis'}.",
        f"normalization {schemes}: cropping keeps {kept:.0%} of the median volume.",
        f"2D networks see {names[codes[axis]]} slices: that axis has one slice or the coarsest spacing.",
        f"patches and batches: what the plain U-Net trains on in {memory_gb:g} GB, a batch at most 5% of the dataset.",
    )
