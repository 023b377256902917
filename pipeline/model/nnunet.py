"""The networks of nnU-Net, in 2D and 3D: plain and residual encoders, with nnU-Net's names for their weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar, Self, TypeVar

import torch
from monai.networks.layers.factories import Pool
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, sentence
from pipeline.model.base import Heads, LevelNetwork
from pipeline.model.blocks import Style, activation_layer, conv_unit, head, style_of, upsampling
from pipeline.model.network_options import Activation, LevelOptions, Norm, PerStage, Size, Stage, spread

# The attributes of these modules have nnU-Net's names, because state dicts of nnU-Net are loaded into them.


class Encoder(nn.Module):
    """Stages one after the other.

    Args:
        stages: Full resolution first.
        stem: What comes before them; None for nothing.
    """

    def __init__(self, stages: Sequence[nn.Module], stem: nn.Module | None = None) -> None:
        super().__init__()
        # nnU-Net's plain encoder has no stem; the identity adds nothing to the state dict.
        self.stem = nn.Identity() if stem is None else stem
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *spatial) → what each stage gives, full resolution first."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """Up-convolutions, stages and heads, each list the deepest first.

    Args:
        stages: Resolution levels, full resolution first.
        convs: Units of each stage of the decoder, the deepest first.
        style: Of the units; up-convolutions have a bias where units have one.
        out_channels: Channels of the logits.
        every_head: Whether every stage has a head; else the last alone, under the number it would have then.
    """

    def __init__(
        self, stages: Sequence[Stage], convs: Sequence[int], style: Style, out_channels: int, *, every_head: bool
    ) -> None:
        super().__init__()
        self.transpconvs, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        for level, (lower, upper) in enumerate(pairwise(reversed(stages))):
            self.transpconvs.append(upsampling(lower, upper, style, "transposed", bias=style.bias))
            self.stages.append(stacked_units(2 * upper.features, upper, style, convs[level]))
            # A head keeps its number, so that weights with and without deep supervision have one name.
            if every_head or level == len(convs) - 1:
                self.seg_layers[str(level)] = head(style.dims, upper.features, out_channels)

    def forward(self, skips: Sequence[Tensor], every_head: bool) -> list[Tensor]:
        """Logits of every head, or of the last alone, full resolution first, of what the encoder's stages give."""
        x, logits = skips[-1], []
        for level, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat([up(x), skips[-2 - level]], dim=1))
            if every_head or level == len(self.stages) - 1:
                logits.append(self.seg_layers[str(level)](x))
        return logits[::-1]


class BasicBlock(nn.Module):
    """Two convolution units, the second added to the shortcut before its activation.

    The shortcut averages where the block has a stride, and has a 1×1 convolution without bias and a normalization where
    the channels change; else it is the input.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: Odd kernel size per axis.
        stride: Stride per axis.
        style: Of the units; dropout follows the first alone.

    Reference: He et al. 2019 (arXiv 1812.01187), ResNet-D.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, ...], stride: tuple[int, ...], style: Style
    ) -> None:
        super().__init__()
        self.conv1 = conv_unit(in_channels, out_channels, kernel, style, stride)
        self.conv2 = conv_unit(out_channels, out_channels, kernel, style, activate=False)
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            shortcut.append(Pool[Pool.AVG, style.dims](kernel_size=stride, stride=stride))
        if in_channels != out_channels:
            projection = replace(style, bias=False)
            shortcut.append(conv_unit(in_channels, out_channels, (1,) * style.dims, projection, activate=False))
        self.skip = nn.Sequential(*shortcut)
        self.activation = activation_layer(style.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, *spatial) → (B, out, *spatial / stride)."""
        result: Tensor = self.activation(self.conv2(self.conv1(x)) + self.skip(x))
        return result


def stacked_units(
    in_channels: int, stage: Stage, style: Style, count: int, stride: tuple[int, ...] | None = None
) -> nn.Sequential:
    """``count`` convolution units, the first with the stride: (B, in, *spatial) → (B, features, *spatial / stride)."""
    widths = [in_channels, *[stage.features] * count]
    units = [
        conv_unit(given, wanted, stage.kernel, style, stride if index == 0 else None)
        for index, (given, wanted) in enumerate(pairwise(widths))
    ]
    return nn.Sequential(OrderedDict(convs=nn.Sequential(*units)))


def residual_stage(in_channels: int, stage: Stage, style: Style, count: int) -> nn.Sequential:
    """``count`` residual blocks, the first with the stage's stride, as :func:`stacked_units`."""
    first = BasicBlock(in_channels, stage.features, stage.kernel, stage.stride, style)
    level = (1,) * style.dims
    others = [BasicBlock(stage.features, stage.features, stage.kernel, level, style) for _ in range(count - 1)]
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(first, *others)))


# nnU-Net's words for networks, options and layers → the ones of this project.
_NETWORKS = {"PlainConvUNet": "nnunet_plain", "ResidualEncoderUNet": "nnunet_resenc"}
_OPTIONS = {
    "features_per_stage": "features",
    "kernel_sizes": "kernel_sizes",
    "strides": "strides",
    "n_conv_per_stage": "convs_per_stage",
    "n_blocks_per_stage": "blocks_per_stage",
    "n_conv_per_stage_decoder": "convs_decoder",
    "conv_bias": "bias",
}
_LAYERS: Mapping[str, Mapping[str | None, object]] = {
    "conv_op": {"Conv2d": 2, "Conv3d": 3},
    "norm_op": {
        "InstanceNorm2d": "instance",
        "InstanceNorm3d": "instance",
        "BatchNorm2d": "batch",
        "BatchNorm3d": "batch",
    },
    "nonlin": {"LeakyReLU": "leaky_relu", "ReLU": "relu"},
    "dropout_op": {None: 0.0},
}
_Value = TypeVar("_Value")


def nnunet_options(architecture: Mapping[str, Any]) -> tuple[str, int, dict[str, Any]]:
    """The network that an nnU-Net configuration describes.

    Args:
        architecture: Entry ``architecture`` of a configuration in ``plans.json``: ``network_class_name`` and
            ``arch_kwargs``, whose layers are given by their full class names.

    Returns:
        Name, dims and options for :func:`~pipeline.model.spec.build_network`, with deep supervision, without which
        nnU-Net's weights include heads that the network has not.

    Raises:
        ConfigError: If the network or one of its layers is of another kind.

    Reference: nnU-Net v2.8 with dynamic-network-architectures 0.4.
    """
    arguments = dict(architecture["arch_kwargs"])
    problems: list[str] = []
    class_name = str(architecture["network_class_name"]).rpartition(".")[2]
    if class_name not in _NETWORKS:
        advice = "Other networks of nnU-Net cannot be built"
        problems.append(sentence("network_class_name", f"one of {', '.join(_NETWORKS)}", class_name, advice))
    layers: dict[str, object] = {}
    for name, known in _LAYERS.items():
        value = arguments.get(name)
        short = value.rpartition(".")[2] if isinstance(value, str) else value
        if short not in known:
            legal = ", ".join("null" if layer is None else layer for layer in known)
            problems.append(sentence(f"arch_kwargs.{name}", f"one of {legal}", value, "Other layers cannot be built"))
        layers[name] = known.get(short)
    if problems:
        raise ConfigError(problems, "nnU-Net architecture")
    options = {ours: arguments[theirs] for theirs, ours in _OPTIONS.items() if theirs in arguments}
    options |= {"norm": layers["norm_op"], "activation": layers["nonlin"], "deep_supervision": True}
    return _NETWORKS[class_name], 3 if layers["conv_op"] == 3 else 2, options


def nnunet_weights(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """The entries of an nnU-Net state dict, under their names, that ``nnunet_plain`` and ``nnunet_resenc`` have.

    nnU-Net lists most tensors several times: every unit's layers once more as ``all_modules``, and the whole encoder
    once more below the decoder. These repetitions are left out; all other names are the same.
    """
    return {
        name: value
        for name, value in state.items()
        if ".all_modules." not in name and not name.startswith("decoder.encoder.")
    }


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


class _NNUNet(LevelNetwork):
    """An encoder and nnU-Net's decoder."""

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, options: NNUNetOptions, encoder: nn.Module
    ) -> None:
        super().__init__(dims, in_channels, out_channels, options)
        stages = options.stages(dims)
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
    state dict has nnU-Net's names and shapes, see :func:`~pipeline.model.nnunet.nnunet_weights`.

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
