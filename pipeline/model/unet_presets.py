"""The classical U-Nets: one class, the options of each publication or release as defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.model.options import Norm, Size
from pipeline.model.unet import DropoutAt, HeadSize, Padding, UNetOptions, UpFeatures

__all__ = [
    "CicekUNetOptions",
    "PhsegUNetOptions",
    "UNet32Options",
    "UNet2015Options",
    "UpConvUNetOptions",
    "WideUNetOptions",
]


class UNet2015Options(UNetOptions):
    """Options of ``unet2015``: valid convolutions with bias, no normalization.

    Reference: Ronneberger et al. 2015 (arXiv 1505.04597), figure 1.
    """

    padding: Padding = "valid"
    """Zeros around what a convolution sees, or none: valid logits are smaller than the input and skips are cropped."""
    norm: Norm = "none"
    """Normalization; group makes 8 groups, or as many as divide both 8 and the channels."""
    bias: bool = True
    """Whether the convolutions of units have a bias."""
    head_size: HeadSize = "full"
    """Heads of deep supervision at their own resolution, or linearly interpolated to that of the output."""


class PhsegUNetOptions(UNet2015Options):
    """Options of ``unet_phseg_v5``: what the network released with the paper has beside the paper's text.

    Reference: phseg_v5.prototxt of the u-net release, University of Freiburg, 2015.
    """

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Probability of zeroing a value, where dropout_at says."""
    dropout_at: DropoutAt = "deep"
    """Dropout behind every unit, or behind the last unit of the two deepest encoder stages alone."""
    up_features: UpFeatures = "last_kept"
    """Channels of a step up: those of the stage it leads to, those it is given, or that in the last step alone."""
    up_activation: bool = True
    """Whether the activation follows transposed convolutions."""


class UpConvUNetOptions(UNetOptions):
    """Options of ``unet_upconv``: padded, normalized, interpolation and a convolution instead of transposed ones."""

    bias: bool = True
    """Whether the convolutions of units have a bias."""
    up: Literal["transposed", "nearest", "linear"] = "nearest"
    """Transposed convolution, or interpolation followed by a convolution unit."""


class UNet32Options(UNetOptions):
    """Options of ``unet32``: the baseline of UNet++.

    Reference: Zhou et al. 2018 (arXiv 1807.10165), table 2.
    """

    features: tuple[Size, ...] = Field(default=(32, 64, 128, 256, 512), min_length=2)
    """Channels of each stage, full resolution first; their number is the number of stages."""
    norm: Norm = "none"
    """Normalization; group makes 8 groups, or as many as divide both 8 and the channels."""
    bias: bool = True
    """Whether the convolutions of units have a bias."""


class WideUNetOptions(UNet32Options):
    """Options of ``wide_unet``: the second baseline of UNet++, widened to its number of parameters.

    The paper gives 9.13 million parameters, which its widths do not.

    Reference: Zhou et al. 2018 (arXiv 1807.10165), table 2.
    """

    features: tuple[Size, ...] = Field(default=(35, 70, 140, 280, 560), min_length=2)
    """Channels of each stage, full resolution first; their number is the number of stages."""


class CicekUNetOptions(UNetOptions):
    """Options of ``unet3d_cicek``: channels double before pooling, up-convolutions keep them and have no bias.

    The paper counts 19,069,955 parameters, without scale and shift of batch normalization.

    Reference: Çiçek et al. 2016 (arXiv 1606.06650), figure 2.
    """

    features: tuple[Size, ...] = Field(default=(64, 128, 256, 512), min_length=2)
    """Channels of each stage, full resolution first; their number is the number of stages."""
    padding: Padding = "valid"
    """Zeros around what a convolution sees, or none: valid logits are smaller than the input and skips are cropped."""
    bias: bool = True
    """Whether the convolutions of units have a bias."""
    narrow_start: bool = True
    """Whether the units of an encoder stage have half its channels but for the last one."""
    up_features: UpFeatures = "kept"
    """Channels of a step up: those of the stage it leads to, those it is given, or that in the last step alone."""
    up_bias: bool = False
    """Whether transposed convolutions have a bias."""
    head_size: HeadSize = "full"
    """Heads of deep supervision at their own resolution, or linearly interpolated to that of the output."""
