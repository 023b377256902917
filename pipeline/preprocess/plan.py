"""The plan: how a dataset is prepared and which patches fit it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from pipeline.core.files import text_hash
from pipeline.core.labels import LabelTable

__all__ = ["LowResolution", "Normalization", "PatchPlan", "Plan"]


_PASSIVE = {
    "class_weights",
    "dataset",
    "low_resolution",
    "median_shape",
    "patch_2d",
    "patch_3d",
    "reasons",
    "slice_axis",
}
"""Keys that prepared cases do not depend on."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Normalization(_Value):
    """How one channel's intensities are normalized.

    ``ct``: clip to [low, high], then (x - mean) / sd, all from the dataset's foreground. ``zscore``: mean and SD of
    the image itself. ``zscore_nonzero``: those of the voxels in which some channel is not 0 and of holes in between;
    the others stay 0. ``none``.
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


class LowResolution(_Value):
    """A coarser grid on which a 3D patch sees a quarter of the median case; ``preprocess.resolution: low`` takes it."""

    spacing_mm: tuple[float, float, float]
    median_shape: tuple[int, int, int]
    patch_size: tuple[int, int, int]
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
        store_dtype: Type of stored intensities; int16 counts steps so small that the error stays below 0.001.
        normalization: One entry per channel.
        median_shape: Median shape of the cropped cases at the target spacing.
        slice_axis: Axis across which 2D networks see slices: that of pictures, else the coarsest, the last where they
            tie.
        patch_3d: Patch of 3D networks.
        patch_2d: Patch of 2D networks, along the two other axes.
        low_resolution: A coarser grid for large organs and context, or None where a patch sees enough.
        class_weights: Organ → weight in loss and sampling, for those who ask for them; organs left out weigh 1. None
            where none are proposed.
        extra: Class names of the user's further MONAI transforms, which must be given again to predict.
        reasons: Why, for each key that was chosen and not copied.
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
    store_dtype: Literal["int16", "float32"]
    normalization: tuple[Normalization, ...]
    median_shape: tuple[int, int, int]
    slice_axis: Literal[0, 1, 2]
    patch_3d: PatchPlan
    patch_2d: PatchPlan
    low_resolution: LowResolution | None = None
    class_weights: Mapping[str, Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] | None = None
    extra: tuple[str, ...] = ()
    reasons: Mapping[str, str] = Field(default_factory=dict)

    @field_validator("class_weights")
    @classmethod
    def _known_organs(cls, value: Mapping[str, float] | None, info: ValidationInfo) -> Mapping[str, float] | None:
        names = info.data.get("labels", {}).get("names")
        known = names.values() if isinstance(names, Mapping) else ()
        unknown = [name for name in value or {} if name not in known]
        if unknown:
            raise ValueError(f"no such organ: {', '.join(unknown)}")
        return value

    @property
    def label_table(self) -> LabelTable:
        """The labels as a table."""
        return LabelTable.from_json(self.labels)

    @property
    def recipe(self) -> str:
        """Hash of what prepared cases depend on: everything but name, patches, batches, weights and reasons."""
        return text_hash(json.dumps(self.model_dump(mode="json", exclude=_PASSIVE)))

    def lines(self) -> tuple[str, ...]:
        """The choices for reading: spacing, normalization, patches and batches."""
        schemes = ", ".join(entry.scheme for entry in self.normalization)
        lines = [f"spacing {_times(self.spacing_mm)} mm, normalization {schemes}"]
        for name, patch in (("3D", self.patch_3d), ("2D", self.patch_2d)):
            lines.append(f"{name} patch {_times(patch.patch_size)}, batch {patch.batch_size}")
        if self.low_resolution is not None:
            spacing = _times(self.low_resolution.spacing_mm)
            lines.append(f"low resolution for more context: {spacing} mm (--set preprocess.resolution=low)")
        return tuple(lines)

    def axes(self, dims: Literal[2, 3]) -> tuple[int, ...]:
        """Volume axes that a network of so many dimensions sees."""
        return (0, 1, 2) if dims == 3 else tuple(axis for axis in range(3) if axis != self.slice_axis)


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(str(number) if isinstance(number, int) else f"{number:.3g}" for number in numbers)
