"""The settings file: its sections, with their defaults, types and meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.fields import Positive, Section, Size
from pipeline.config.preparation import AugmentSettings, PreprocessSettings, SampleSettings
from pipeline.config.training import LossSettings, ModelSettings, TrainSettings

__all__ = [
    "AugmentSettings",
    "InferSettings",
    "LossSettings",
    "ModelSettings",
    "PreprocessSettings",
    "SampleSettings",
    "Settings",
    "TrainSettings",
]


class InferSettings(Section):
    """Sliding-window prediction."""

    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Overlap of neighbouring windows as a fraction of the window."""
    blend: Literal["gaussian", "hann", "constant"] = "gaussian"
    """Weight of a window's voxels where windows overlap."""
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
