"""All settings: every section and key with its type, default and meaning.

:class:`Settings` at the end holds the sections, in the order of the steps that read them. The text under a key is its
description in the JSON schema, so it is written for users. What a key may be is its type; rules between keys are the
validators of its section.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.core.documents import short
from pipeline.core.grid import check_orientation

_NUMBER = r"(\d+(?:\.\d+)?)"
_LONGEST_S = 1e9  # 30 years
_DURATION = re.compile(rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?")


def parse_duration_s(text: str) -> float:
    """Seconds of a length of time with units d, h, m, s: ``90s``, ``10m``, ``1h30m``, ``2d``; 90 alone is seconds.

    Raises:
        ValueError: If the text is not a duration above 0.
    """
    plain = "".join(text.lower().split())
    match = _DURATION.fullmatch(f"{plain}s" if re.fullmatch(_NUMBER, plain) else plain)
    parts = match.groups(default="0") if match else ()
    total = sum(float(part) * unit_s for part, unit_s in zip(parts, (86400.0, 3600.0, 60.0, 1.0), strict=False))
    if not 0 < total < _LONGEST_S:
        raise ValueError(
            f"duration: expected a time such as 90s, 10m or 1h30m, got {short(text)}. Write number and unit."
        )
    return total


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1]:
        raise ValueError(f"expected 0 <= low <= high, got {list(value)}. Swap or correct them.")
    return value


def _above_zero(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"expected 0 < low <= high, got {list(value)}. Swap or correct them.")
    return value


Auto = Literal["auto"]
"""A key that has this word follows from the plan and the machine, see :mod:`pipeline.model.automatic`."""

_Value = TypeVar("_Value")


def decided(value: _Value | Auto) -> _Value:
    """The value of a key that may be ``auto``, once it has been decided.

    Raises:
        ValueError: If it is still ``auto``.
    """
    if value == "auto":
        raise ValueError("settings: expected decided values, got auto. Call decide first.")
    return value


Probability = Annotated[float, Field(ge=0.0, le=1.0)]
# Bounds far above what anyone wants, so that no product of two overflows.
Positive = Annotated[float, Field(gt=0.0, le=1e30)]
Millimetres = Annotated[float, Field(ge=1e-6, le=1e4)]
"""Length of a voxel: from electron microscopes to whole bodies."""
Size = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
PositiveRange = Annotated[tuple[float, float], AfterValidator(_above_zero)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, docstrings become descriptions."""

    # Defaults are validated too, so that a wrong one in a section fails at once and not for the first user of its key.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class PreprocessSettings(Section):
    """How volumes become prepared cases."""

    orientation: str = "RAS"
    """Axis codes every case is turned to, e.g. RAS."""
    crop: Literal["nonzero", "none"] = "nonzero"
    """Cut away the border in which every channel is exactly 0, or keep the whole volume."""
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres] | None = None
    """Target spacing along the axes of `orientation`; by default planned from the dataset."""
    shape: tuple[Size, Size, Size] | None = None
    """Resize every case to this many voxels instead, whatever its size, e.g. photographs to [224, 224, 1]."""
    resolution: Literal["full", "low", "cascade"] = "full"
    """low: the coarser grid that the plan proposes where a 3D patch sees less than a quarter of the median case.
    cascade: both; the network of the full resolution also sees what that of the low one found."""
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
    rotate_degrees: Annotated[float, Field(ge=0.0, le=180.0)] | Literal["auto"] = 30.0
    """Largest rotation about each axis. auto, as nnU-Net: 30, but 180 in the plane of slices, that is in 2D and for
    patches with a coarse axis, which is left alone; 15 in 2D where one side is more than 1.5 times the other."""
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
    noise_sd: Range | None = None
    """SD of the noise, which is drawn instead of the variance if it is given; nnU-Net draws 0 to 0.1."""
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
    channel_share: Probability = 1.0
    """Of patches that are blurred or made coarser: share of the channels that are, each drawn by itself; nnU-Net has
    0.5, of a single channel too."""


class SampleSettings(Section):
    """Which cases train, and how patches are drawn from them."""

    folds: Annotated[int, Field(ge=2, le=10**9)] = 5
    """Number of cross-validation folds, written to splits.json, which you may edit; one if the dataset fixes it."""
    split_seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 12345
    """Seed of the shuffle that makes the folds."""
    strategy: Literal["balanced", "sliding"] = "balanced"
    """balanced: random patches with a forced share of foreground. sliding: a regular grid over every volume, shifted by
    a random offset in every epoch, as far as there is room."""
    foreground_share: Probability = 0.33
    """Share of balanced patches that are centred on a foreground voxel, its class uniform among those present."""
    class_weights: Literal["none", "plan"] = "none"
    """plan: that class is drawn in proportion to the weights that plan.yaml proposes for tiny organs."""
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Overlap of sliding patches. With 0 an epoch sees every voxel once, or twice where a window is moved in."""
    skip_empty: bool = False
    """Leave out sliding patches without any foreground."""
    patch_size: tuple[Size, ...] | None = None
    """2 or 3 numbers; by default the plan's."""
    batch_size: Size | None = None
    """Patches per iteration; by default the plan's."""
    cache_mb: Annotated[int, Field(ge=0, le=10**9)] = 8192
    """Prepared cases kept in memory up to this size; the rest is read from disk patch by patch."""


class ModelSettings(Section):
    """The network."""

    name: str = "unet"
    """One of those that `volseg networks` lists."""
    dims: Literal["auto", 2, 3] = "auto"
    """2: the network sees single slices. 3: volumes. auto: what `name` or `sample.patch_size` allows; of both 2 where
    cases are single slices, as pictures are, else 3."""
    deep_supervision: bool = True
    """Also supervise coarser decoder levels."""
    initialization: Literal["he", "pytorch"] = "he"
    """First weights. he: N(0, sqrt(2 / inputs)). pytorch: what its layers begin with, 2.4 times smaller, which behind a
    batch norm makes the first steps of a small learning rate as much larger."""
    foreground_prior: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Probability that sigmoids of regions begin with, about the share of the image that they fill; by default 0.5."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the network, e.g. {features: [16, 32, 64, 128], norm: batch}; by default the plan's."""


class LossSettings(Section):
    """What training minimizes: a cross-entropy of voxels plus an overlap of organs.

    Organs share a softmax; regions, which may overlap, have a sigmoid each.
    """

    ce_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the cross-entropy; for regions of the binary one."""
    dice_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of 1 - soft Dice of the foreground, or of 1 - the Tversky index."""
    batch_dice: bool | Literal["auto"] = False
    """Soft Dice over the whole batch instead of the mean over patches. auto, as nnU-Net plans: true in 2D, and in 3D
    where a patch sees so little of a case that the plan has a low resolution."""
    smooth: Annotated[float, Field(ge=0.0)] = 1e-5
    """Added to numerator and denominator of the soft Dice."""
    tversky_alpha: Annotated[float, Field(ge=0.0)] = 0.5
    """Weight of false positives in the overlap; with 0.5 and 0.5 it is the soft Dice."""
    tversky_beta: Annotated[float, Field(ge=0.0)] = 0.5
    """Weight of false negatives; above alpha it favours recall, e.g. of lesions (0.3 and 0.7)."""
    focal_gamma: Annotated[float, Field(ge=0.0)] = 0.0
    """Focal loss: the cross-entropy of a voxel times (1 - its probability) to this power."""
    class_weights: Literal["none", "balanced", "plan"] | tuple[Positive, ...] = "none"
    """Weights in the cross-entropy, which becomes a weighted mean: one per class, background first (regions: one per
    region); balanced: from the inverse frequencies of the training cases, their mean over voxels being 1. plan: those
    that plan.yaml proposes for tiny organs, at most 10, all else 1; a region weighs what its lightest organ does."""
    border_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Largest extra weight of the narrow gaps between two objects in the cross-entropy; the 2015 U-Net has 10."""
    border_sigma_voxels: Positive = 5.0
    """How narrow such a gap is."""
    head_weights: Literal["halving", "nnunet", "equal"] = "halving"
    """Deep supervision: halving: 1, 1/2, 1/4, … from the head that predicts. nnunet: the same, but 0 for the last of
    several, which nnunet_plain and nnunet_resenc have at the coarsest level, where others have none. equal: the same
    weight for every head."""

    @model_validator(mode="after")
    def _some_loss(self) -> LossSettings:
        if self.dice_weight + self.ce_weight == 0:
            raise ValueError("dice_weight, ce_weight: expected at least one above 0, got 0 and 0. Raise one.")
        if self.tversky_alpha + self.tversky_beta == 0:
            raise ValueError("tversky_alpha, tversky_beta: expected at least one above 0, got 0 and 0. Raise one.")
        return self


class TrainSettings(Section):
    """Optimization."""

    optimizer: Literal["adam", "adamw", "sgd"] = "sgd"
    """sgd is with momentum."""
    learning_rate: Positive = 1e-2
    """Highest learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 3e-5
    """Decoupled for adamw, L2 for sgd and adam."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Of sgd."""
    nesterov: bool = True
    """Whether sgd's momentum is Nesterov's."""
    schedule: Literal["poly", "cosine", "onecycle", "step", "constant"] = "poly"
    """How the learning rate falls over the whole training."""
    step_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Of step: share of the training after which the learning rate falls once more, e.g. 10 of 50 epochs."""
    step_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Of step: factor by which it falls."""
    warmup_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the training in which the learning rate rises linearly from 0."""
    epochs: Size = 100
    """Number of epochs, unless a budget is given."""
    iterations_per_epoch: Size = 250
    """Batches per epoch with balanced patches (sliding: as many as the windows need)."""
    budget: str | None = None
    """Wall-clock time of the whole training, e.g. 10m or 1h30m; the step time is measured and the epochs are fitted."""
    accumulate: Size = 1
    """Batches whose gradients are averaged for one update: as one batch so many times larger, in the memory of one."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    gradient_clip: Positive | None = 12.0
    """Largest gradient norm."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Validate and keep an exponential moving average of the weights; 0 switches it off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device computes it natively, else fp16 on GPUs and fp32 on CPUs."""
    validate_every: Size = 5
    """Epochs between two full-volume validations."""
    validation_cases: Size | None = None
    """Validate on so many cases only, chosen so that all organs are in them; the final validation always takes all."""
    select: Literal["best", "last"] = "best"
    """Weights that become the model: those of the best mean Dice of a validation, or the last."""
    patience: Size | None = None
    """Stop after so many validations without a better mean Dice."""
    checkpoint_minutes: Positive = 10.0
    """A checkpoint is written after every epoch, and within long ones whenever so much time has passed."""
    keep_checkpoints: Size = 1
    """Number of checkpoints to keep, the last one included."""
    seed: Seed = 0
    """Seed of weights, sampling and augmentation."""
    mlflow: str | None = None
    """Tracking URI of an MLflow server, e.g. http://localhost:5000, that settings, epochs and curves are sent to."""

    @field_validator("budget", mode="before")
    @classmethod
    def _budget(cls, value: Any) -> Any:
        # YAML reads 90 as a number: seconds. True would be a number too.
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = f"{value}s"
        if isinstance(value, str):
            parse_duration_s(value)
        return value

    @field_validator("mlflow")
    @classmethod
    def _mlflow(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or urlsplit(value).password is not None):
            got, advice = "none", "Write for example http://localhost:5000, or null"
            # Settings are written into the model folder, which people share.
            if value.strip():
                got, advice = "one with a password", "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            raise ValueError(f"expected a URI without a password, got {got}. {advice}.")
        return value


class InferSettings(Section):
    """Sliding-window prediction."""

    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Overlap of neighbouring windows as a fraction of the window."""
    blend: Literal["gaussian", "hann", "constant", "nnunet"] = "gaussian"
    """Weight of a window's voxels where windows overlap. nnunet: as nnU-Net weighs and places them, to the voxel."""
    window_size: tuple[Size, ...] | Literal["fit"] | None = None
    """2 or 3 numbers; by default the training patch, larger for networks whose output is smaller than their input. fit:
    as long as the volume along axes where that is at most a quarter more than the patch, which is faster."""
    batch_size: Size = 4
    """Windows per network call (2D: slices, 8 times as many)."""
    accumulate: Literal["float32", "float16"] = "float32"
    """Type of the sums over windows; float16 takes half the memory and rounds in the fourth digit."""
    mirror: bool = False
    """Average over mirrored windows (8 passes in 3D, 4 in 2D); left and right organs are swapped back."""
    rotate: bool = False
    """Average over windows rotated by 90, 180 and 270 degrees in the slice plane, for models trained with 180."""
    roi: Literal["none", "body", "organs", "auto"] = "none"
    """Which windows: all; none that shows background alone; those around the organs that a pass at twice the spacing
    finds; or organs where that pass costs little beside the rest, else body."""
    roi_margin_mm: Positive = 30.0
    """With organs: how far around them."""
    keep_largest: tuple[str, ...] = ()
    """Organs of which only the largest connected component is kept."""
    remove_small_ml: dict[str, Positive] = Field(default_factory=dict)
    """Organs of which connected components below a volume are removed, e.g. {liver: 0.5}, in mL."""
    fill_holes: tuple[str, ...] = ()
    """Organs whose enclosed holes are filled; other organs in them stay."""
    postprocessing: bool = True
    """Also clean masks as cross-validation found to help: postprocessing.json in the model folder."""


class Settings(Section):
    """All settings of a run; every section and every key has a default."""

    preprocess: PreprocessSettings = PreprocessSettings()
    """`volseg preprocess`."""
    sample: SampleSettings = SampleSettings()
    """Folds and patches."""
    augment: AugmentSettings = AugmentSettings()
    """Random changes of training patches."""
    model: ModelSettings = ModelSettings()
    """Which network is trained."""
    loss: LossSettings = LossSettings()
    """What training minimizes."""
    train: TrainSettings = TrainSettings()
    """`volseg train`."""
    infer: InferSettings = InferSettings()
    """`volseg predict`, and validation during training."""
