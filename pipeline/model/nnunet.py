"""The networks of nnU-Net, in 2D and 3D: plain and residual encoders, with nnU-Net's names for their weights."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.core import sentence
from pipeline.model.base import Heads, SegmentationNetwork
from pipeline.model.blocks import style_of
from pipeline.model.nnunet_blocks import Decoder, Encoder, residual_stage, stacked_units
from pipeline.model.options import Activation, LevelOptions, Norm, PerStage, Size, spread
from pipeline.model.sizes import size_rule

__all__ = [
    "NNUNetOptions",
    "PlainOptions",
    "PlainUNet",
    "ResidualOptions",
    "ResidualUNet",
]

_BLOCKS = (1, 3, 4)  # of the first stages of a residual encoder; every further one has
_MORE_BLOCKS = 6


class NNUNetOptions(LevelOptions):
    """Options that nnU-Net's networks share; the defaults are those of its 3D plans with six stages."""

    features: tuple[Size, ...] = Field(default=(32, 64, 128, 256, 320, 320), min_length=2)
    """Channels of each stage, full resolution first; their number is the number of stages."""
    norm: Norm = "instance"
    """Normalization; group makes 8 groups, or as many as divide both 8 and the channels."""
    activation: Activation = "leaky_relu"
    """Activation of every convolution unit."""
    bias: bool = True
    """Whether convolutions and up-convolutions have a bias; heads always have one, shortcuts never."""
    convs_decoder: PerStage = 2
    """Convolution units of the decoder's stages: one number, or one per decoder stage, the deepest first, as nnU-Net
    writes them."""

    @model_validator(mode="after")
    def _decoder_fits(self) -> Self:
        wanted, given = len(self.features) - 1, self.convs_decoder
        if isinstance(given, tuple) and len(given) != wanted:
            expected = f"one entry for each of the {wanted} stages of the decoder"
            raise ValueError(sentence("convs_decoder", expected, len(given), "Give as many"))
        return self


class PlainOptions(NNUNetOptions):
    """Options of ``nnunet_plain``."""

    per_stage: ClassVar[tuple[str, ...]] = (*LevelOptions.per_stage, "convs_per_stage")

    convs_per_stage: PerStage = 2
    """Convolution units of the encoder's stages: one number, or one per stage."""


class ResidualOptions(NNUNetOptions):
    """Options of ``nnunet_resenc``."""

    per_stage: ClassVar[tuple[str, ...]] = (*LevelOptions.per_stage, "blocks_per_stage")

    blocks_per_stage: PerStage | None = None
    """Residual blocks of the encoder's stages: one number, or one per stage; null for 1, 3, 4 and then 6."""
    convs_decoder: PerStage = 1
    """Convolution units of the decoder's stages: one number, or one per decoder stage, the deepest first, as nnU-Net
    writes them."""


class _NNUNet(SegmentationNetwork):
    """An encoder and nnU-Net's decoder."""

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, options: NNUNetOptions, encoder: nn.Module
    ) -> None:
        stages = options.stages(dims)
        sizes = size_rule([stage.stride for stage in stages], lone_cell=options.norm != "instance")
        super().__init__(
            dims, in_channels, out_channels, options=options, sizes=sizes, batch_norm=options.norm == "batch"
        )
        self.deep_supervision = options.deep_supervision
        self.encoder = encoder
        convs, style = spread(options.convs_decoder, len(stages) - 1), style_of(options, dims)
        self.decoder = Decoder(stages, convs, style, out_channels, every_head=options.deep_supervision)

    def segment(self, x: Tensor) -> Tensor | Heads:
        """Logits at full resolution; in training mode with deep supervision those of all heads, finest first."""
        several = self.training and self.deep_supervision
        logits: list[Tensor] = self.decoder(self.encoder(x), several)
        return {f"level{n}": output for n, output in enumerate(logits)} if several else logits[0]


class PlainUNet(_NNUNet):
    """nnU-Net's ``PlainConvUNet``, in 2D or 3D, for isotropic and anisotropic voxels.

    Convolution units with strides go down, transposed convolutions up. With deep supervision every level of the decoder
    has a head, the deepest one too, to which nnU-Net's own loss gives the weight 0; without it, the finest alone. The
    state dict has nnU-Net's names and shapes, see :func:`~pipeline.model.nnunet_plans.nnunet_weights`.

    Args:
        dims: 2 or 3.
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        options: Stages, normalization and so on.

    Raises:
        ConfigError: If a per-axis option has another number of axes than ``dims``.

    Reference: Isensee et al. 2021 (10.1038/s41592-020-01008-z).
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: PlainOptions) -> None:
        stages, style = options.stages(dims), style_of(options, dims)
        convs, widths = spread(options.convs_per_stage, len(stages)), (in_channels, *options.features)
        encoder = Encoder(
            [
                nn.Sequential(stacked_units(width, stage, style, count, stage.stride))
                for width, stage, count in zip(widths, stages, convs, strict=False)
            ]
        )
        super().__init__(dims, in_channels, out_channels, options, encoder)


class ResidualUNet(_NNUNet):
    """nnU-Net's ``ResidualEncoderUNet``: a stem, residual blocks in the encoder, and the decoder of :class:`PlainUNet`.

    Args:
        dims: 2 or 3.
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        options: Stages, blocks, normalization and so on.

    Raises:
        ConfigError: If a per-axis option has another number of axes than ``dims``.

    Reference: Isensee et al. 2024 (arXiv 2404.09556); He et al. 2019 (arXiv 1812.01187) for the shortcut.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: ResidualOptions) -> None:
        stages, style = options.stages(dims), style_of(options, dims)
        usual = (*_BLOCKS, *[_MORE_BLOCKS] * len(stages))[: len(stages)]
        counts = usual if options.blocks_per_stage is None else spread(options.blocks_per_stage, len(stages))
        stem = stacked_units(in_channels, stages[0], style, 1)
        encoder = Encoder(
            [
                residual_stage(width, stage, style, count)
                for width, stage, count in zip((stages[0].features, *options.features), stages, counts, strict=False)
            ],
            stem,
        )
        super().__init__(dims, in_channels, out_channels, options, encoder)
