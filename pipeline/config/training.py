"""Settings of what is trained and how: network, loss, optimization."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.config.duration import parse_duration_s
from pipeline.config.fields import Positive, Section, Size

__all__ = ["LossSettings", "ModelSettings", "TrainSettings"]


class ModelSettings(Section):
    """The network."""

    name: str = "unet"
    """One of those that `volseg networks` lists."""
    dims: Literal[2, 3] = 3
    """2: the network sees single slices. 3: volumes."""
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
    batch_dice: bool = False
    """Soft Dice over the whole batch instead of the mean over patches."""
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
    head_weights: Literal["halving", "equal"] = "halving"
    """Deep supervision: 1, 1/2, 1/4, … from the head that predicts, or the same weight for every head."""

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
    """Validate on the first so many cases only; the final validation always takes all."""
    patience: Size | None = None
    """Stop after so many validations without a better mean Dice."""
    checkpoint_minutes: Positive = 10.0
    """A checkpoint is written after every epoch, and within long ones whenever so much time has passed."""
    keep_checkpoints: Size = 1
    """Number of checkpoints to keep, the last one included."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, sampling and augmentation."""
    mlflow: str | None = None
    """Tracking URI of an MLflow server, e.g. http://localhost:5000, that settings, epochs and curves are sent to."""

    @field_validator("budget", mode="before")
    @classmethod
    def _budget(cls, value: Any) -> Any:
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
            if value.strip():  # settings are written into the model folder
                got, advice = "one with a password", "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            raise ValueError(f"expected a URI without a password, got {got}. {advice}.")
        return value
