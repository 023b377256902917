"""Settings of the data: preprocessing, augmentation, folds and patches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.fields import Positive, PositiveRange, Probability, Range, Section, Size
from pipeline.core.orientation import check_orientation

__all__ = ["AugmentSettings", "PreprocessSettings", "SampleSettings"]


class PreprocessSettings(Section):
    """How volumes become prepared cases."""

    orientation: str = "RAS"
    """Axis codes every case is turned to, e.g. RAS."""
    crop: Literal["nonzero", "none"] = "nonzero"
    """Cut away the border in which every channel is exactly 0, or keep the whole volume."""
    spacing_mm: tuple[Positive, Positive, Positive] | None = None
    """Target spacing along the axes of `orientation`; by default planned from the dataset."""
    shape: tuple[Size, Size, Size] | None = None
    """Resize every case to this many voxels instead, whatever its size, e.g. photographs to [224, 224, 1]."""
    resolution: Literal["full", "low"] = "full"
    """low: the coarser grid that the plan proposes where a 3D patch sees less than a quarter of the median case."""
    normalization: Literal["auto", "ct", "zscore", "zscore_nonzero", "none"] = "auto"
    """auto: ct for CT, zscore otherwise. ct: clip to the dataset's foreground percentiles, then its mean and SD."""
    image_order: Literal[0, 1, 3] = 3
    """Spline order of image resampling."""
    coarse_axis_order: Literal[0, 1, 3] = 0
    """Its order along an axis more than 3 times coarser than the finest: 0 takes the nearest slice, as nnU-Net does."""
    patch_size: tuple[Size, Size, Size] | None = None
    """3D patch along the axes of `orientation`; by default planned."""
    patch_size_2d: tuple[Size, Size] | None = None
    """2D patch along the two in-plane axes; by default planned."""
    memory_gb: Positive | None = None
    """GPU memory to plan patch and batch for, counted as nnU-Net does; by default what this machine has, up to 24."""
    store_dtype: Literal["int16", "float32"] = "int16"
    """Type of stored intensities. int16 is half the size, off by less than 0.001 SD; float32 where it would be more."""

    @field_validator("orientation")
    @classmethod
    def _orientation(cls, value: str) -> str:
        return check_orientation(value)

    @model_validator(mode="after")
    def _one_target(self) -> PreprocessSettings:
        if self.spacing_mm is not None and self.shape is not None:
            raise ValueError("spacing_mm, shape: expected at most one of them, got both. Remove one.")
        return self


class AugmentSettings(Section):
    """Random changes of training patches; probabilities per patch, ranges are drawn uniformly."""

    enabled: bool = True
    """Switch all augmentation off with false."""
    flip_axes: tuple[Literal["LR", "AP", "SI"], ...] = ("LR", "AP", "SI")
    """Anatomical directions to mirror, each with probability 0.5. On an LR flip, left and right organs swap labels."""
    rotate_p: Probability = 0.2
    """Probability of a rotation."""
    rotate_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 30.0
    """Largest rotation about each axis."""
    scale_p: Probability = 0.2
    """Probability of zooming."""
    scale: PositiveRange = (0.7, 1.4)
    """Zoom factor."""
    elastic_p: Probability = 0.0
    """Probability of an elastic deformation."""
    elastic_sigma_voxels: Annotated[float, Field(ge=0.0)] = 4.0
    """SD of the random displacements of the coarse control grid."""
    elastic_grid_voxels: Annotated[float, Field(gt=1.0)] = 32.0
    """Distance of the control points."""
    noise_p: Probability = 0.1
    """Probability of Gaussian noise."""
    noise_variance: Range = (0.0, 0.1)
    """Variance of the noise, in normalized intensity units."""
    blur_p: Probability = 0.2
    """Probability of Gaussian blur."""
    blur_sigma_voxels: PositiveRange = (0.5, 1.0)
    """SD of the blur."""
    brightness_p: Probability = 0.15
    """Probability of multiplying all intensities."""
    brightness: PositiveRange = (0.75, 1.25)
    """Factor."""
    contrast_p: Probability = 0.15
    """Probability of stretching intensities about their mean, clipped to the old range."""
    contrast: PositiveRange = (0.75, 1.25)
    """Factor."""
    gamma_p: Probability = 0.3
    """Probability of a gamma curve that keeps mean and SD."""
    gamma: PositiveRange = (0.7, 1.5)
    """Exponent."""
    gamma_invert_p: Probability = 0.1
    """Probability of a gamma curve on the inverted image."""
    low_resolution_p: Probability = 0.25
    """Probability of simulating a coarser scan."""
    low_resolution: PositiveRange = (0.5, 1.0)
    """Zoom of the coarser scan."""


class SampleSettings(Section):
    """Which cases train, and how patches are drawn from them."""

    folds: Annotated[int, Field(ge=2)] = 5
    """Number of cross-validation folds, written to splits.json, which you may edit; one if the dataset fixes it."""
    split_seed: int = 12345
    """Seed of the shuffle that makes the folds."""
    strategy: Literal["balanced", "sliding"] = "balanced"
    """balanced: random patches with a forced share of foreground. sliding: a regular grid over every volume."""
    foreground_share: Probability = 0.33
    """Share of balanced patches that are centred on a foreground voxel, its class uniform among those present."""
    class_weights: Literal["none", "plan"] = "none"
    """plan: that class is drawn in proportion to the weights that plan.yaml proposes for tiny organs."""
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Overlap of sliding patches. With 0 an epoch sees every voxel once, or twice where the last window is moved in."""
    skip_empty: bool = False
    """Leave out sliding patches without any foreground."""
    patch_size: tuple[Size, ...] | None = None
    """2 or 3 numbers; by default the plan's."""
    batch_size: Size | None = None
    """Patches per iteration; by default the plan's."""
    cache_mb: Annotated[int, Field(ge=0)] = 8192
    """Prepared cases kept in memory up to this size; the rest is read from disk patch by patch."""
