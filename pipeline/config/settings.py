"""The sections and keys of the settings file, with their defaults, types and meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.config.duration import parse_duration_s
from pipeline.core.orientation import check_orientation

__all__ = [
    "AugmentSettings",
    "InferSettings",
    "ModelSettings",
    "PreprocessSettings",
    "SampleSettings",
    "Settings",
    "TrainSettings",
]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1]:
        raise ValueError(f"expected 0 <= low <= high, got {list(value)}. Swap or correct them.")
    return value


def _above_zero(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"expected 0 < low <= high, got {list(value)}. Swap or correct them.")
    return value


Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Size = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
PositiveRange = Annotated[tuple[float, float], AfterValidator(_above_zero)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class PreprocessSettings(_Section):
    """How volumes become prepared cases."""

    orientation: str = "RAS"
    """Axis codes every case is turned to, e.g. RAS."""
    crop: Literal["nonzero", "none"] = "nonzero"
    """Cut away the border in which every channel is exactly 0, or keep the whole volume."""
    spacing_mm: tuple[Positive, Positive, Positive] | None = None
    """Target spacing along the axes of `orientation`; by default planned from the dataset."""
    normalization: Literal["auto", "ct", "zscore", "zscore_nonzero", "none"] = "auto"
    """auto: ct for CT, zscore otherwise. ct: clip to the dataset's foreground percentiles, then its mean and SD."""
    image_order: Literal[0, 1, 3] = 3
    """Spline order of image resampling."""
    patch_size: tuple[Size, Size, Size] | None = None
    """3D patch along the axes of `orientation`; by default planned."""
    patch_size_2d: tuple[Size, Size] | None = None
    """2D patch along the two in-plane axes; by default planned."""
    max_patch_voxels: Annotated[int, Field(ge=512)] = 128**3
    """Planned 3D patches have at most this many voxels."""
    max_patch_pixels: Annotated[int, Field(ge=64)] = 512**2
    """Planned 2D patches have at most this many pixels."""
    store_dtype: Literal["float16", "float32"] = "float16"
    """Type of stored intensities; after normalization float16 keeps three digits."""

    @field_validator("orientation")
    @classmethod
    def _orientation(cls, value: str) -> str:
        return check_orientation(value)


class AugmentSettings(_Section):
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


class SampleSettings(_Section):
    """Which cases train, and how patches are drawn from them."""

    folds: Annotated[int, Field(ge=2)] = 5
    """Number of cross-validation folds; written to splits.json, which you may edit."""
    split_seed: int = 12345
    """Seed of the shuffle that makes the folds."""
    strategy: Literal["balanced", "sliding"] = "balanced"
    """balanced: random patches with a forced share of foreground. sliding: a regular grid over every volume."""
    foreground_share: Probability = 0.33
    """Share of balanced patches that are centred on a foreground voxel, its class uniform among those present."""
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


class ModelSettings(_Section):
    """The network."""

    name: str = "unet"
    """One of those that `volseg networks` lists."""
    dims: Literal[2, 3] = 3
    """2: the network sees single slices. 3: volumes."""
    deep_supervision: bool = True
    """Also supervise coarser decoder levels."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the network, e.g. {features: [16, 32, 64, 128], norm: batch}; by default the plan's."""


class TrainSettings(_Section):
    """Optimization."""

    optimizer: Literal["adamw", "sgd"] = "sgd"
    """sgd is with Nesterov momentum."""
    learning_rate: Positive = 1e-2
    """Highest learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 3e-5
    """Decoupled for adamw, L2 for sgd."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Of sgd."""
    schedule: Literal["poly", "cosine", "onecycle", "constant"] = "poly"
    """How the learning rate falls over the whole training."""
    warmup_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the training in which the learning rate rises linearly from 0."""
    epochs: Size = 100
    """Number of epochs, unless a budget is given."""
    iterations_per_epoch: Size = 250
    """Batches per epoch with balanced patches (sliding: as many as the windows need)."""
    budget: str | None = None
    """Wall-clock time of the whole training, e.g. 10m or 1h30m; the step time is measured and the epochs are fitted."""
    dice_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the soft Dice loss."""
    ce_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the cross-entropy."""
    batch_dice: bool = False
    """Soft Dice over the whole batch instead of the mean over patches."""
    gradient_clip: Positive | None = 12.0
    """Largest gradient norm."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Validate and keep an exponential moving average of the weights; 0 switches it off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device computes it natively, else fp16 on GPUs and fp32 on CPUs."""
    validate_every: Size = 5
    """Epochs between two full-volume validations."""
    validation_cases: Size | None = None
    """Validate on the first so many cases only; the final validation always takes all."""
    patience: Size | None = None
    """Stop after so many validations without a better mean Dice."""
    seed: int = 0
    """Seed of weights, sampling and augmentation."""

    @field_validator("budget", mode="before")
    @classmethod
    def _budget(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = f"{value}s"
        if isinstance(value, str):
            parse_duration_s(value)
        return value

    @model_validator(mode="after")
    def _some_loss(self) -> TrainSettings:
        if self.dice_weight + self.ce_weight == 0:
            raise ValueError("dice_weight, ce_weight: expected at least one above 0, got 0 and 0. Raise one.")
        return self


class InferSettings(_Section):
    """Sliding-window prediction."""

    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Overlap of neighbouring windows as a fraction of the window."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """Weight of a window's voxels where windows overlap."""
    batch_size: Size = 4
    """Windows per network call (2D: slices, 8 times as many)."""
    mirror: bool = False
    """Average over mirrored windows (8 passes in 3D, 4 in 2D); left and right organs are swapped back."""
    keep_largest: tuple[str, ...] = ()
    """Organs of which only the largest connected component is kept."""


class Settings(_Section):
    """All settings of a run; every section and every key has a default."""

    preprocess: PreprocessSettings = PreprocessSettings()
    """`volseg preprocess`."""
    sample: SampleSettings = SampleSettings()
    """Folds and patches."""
    augment: AugmentSettings = AugmentSettings()
    """Random changes of training patches."""
    model: ModelSettings = ModelSettings()
    """Which network is trained."""
    train: TrainSettings = TrainSettings()
    """`volseg train`."""
    infer: InferSettings = InferSettings()
    """`volseg predict`, and validation during training."""
