"""U-Nets of dense blocks: one for any stages, in 2D and 3D, and the 2D network of H-DenseUNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from monai.networks.layers.factories import Pool
from pydantic import Field
from torch import Tensor, nn

from pipeline.model.base import SegmentationNetwork
from pipeline.model.blocks import (
    Style,
    activation_layer,
    conv_stage,
    conv_unit,
    convolution,
    head,
    norm_layer,
    style_of,
    upsampling,
)
from pipeline.model.network_options import LevelOptions, NetworkOptions, PerStage, Size, Stage, spread
from pipeline.model.sizes import size_rule
from pipeline.model.unet import UShape, level_heads


class DenseBlock(nn.Module):
    """Layers that each see the block's input and the outputs of all layers before.

    Args:
        layers: The n-th takes the channels of the input and of the n layers before it, in this order.

    Reference: Huang et al. 2017 (arXiv 1608.06993), section 3.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) → (B, C + channels of all layers, *spatial): the input, then what each layer gives."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Scale(nn.Module):
    """A learned factor and offset per channel, at first 1 and 0.

    Beside a normalization's own they add nothing a network could express; networks converted from Caffe, whose batch
    normalization has none, carry them, and published parameter counts include them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) → the same shape."""
        shape = (-1, *[1] * (x.dim() - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


def norm_activation(channels: int, dims: int, *, scale: bool = False) -> nn.Sequential:
    """Batch normalization → ReLU, with a :class:`Scale` between them on demand."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(norm=norm_layer("batch", dims, channels))
    if scale:
        layers["scale"] = Scale(channels)
    layers["activation"] = activation_layer("relu")
    return nn.Sequential(layers)


def densenet_stem(in_channels: int, out_channels: int, dims: int, *, scale: bool = False) -> nn.Sequential:
    """7×7 convolution of stride 2, batch normalization, ReLU: (B, in, *spatial) → (B, out, *spatial / 2)."""
    conv = convolution(dims, in_channels, out_channels, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, norm_activation(out_channels, dims, scale=scale))


def densenet_block(
    in_channels: int, layers: int, growth: int, dims: int, *, bottleneck: int = 4, scale: bool = False
) -> DenseBlock:
    """Dense block of DenseNet-B layers: (B, in, *spatial) → (B, in + layers * growth, *spatial).

    A layer is a pre-activated 1×1 convolution of ``bottleneck * growth`` channels and a pre-activated 3×3 convolution.
    """
    inner = bottleneck * growth
    return DenseBlock(
        [
            nn.Sequential(
                _preactivated(in_channels + n * growth, inner, 1, dims, scale),
                _preactivated(inner, growth, 3, dims, scale),
            )
            for n in range(layers)
        ]
    )


def densenet_transition(in_channels: int, out_channels: int, dims: int, *, scale: bool = False) -> nn.Sequential:
    """Pre-activated 1×1 convolution and average pooling: (B, in, *spatial) → (B, out, *spatial / 2)."""
    return nn.Sequential(
        OrderedDict(
            unit=_preactivated(in_channels, out_channels, 1, dims, scale),
            pool=Pool[Pool.AVG, dims](kernel_size=2, stride=2),
        )
    )


def _preactivated(in_channels: int, out_channels: int, kernel: int, dims: int, scale: bool) -> nn.Sequential:
    conv = convolution(dims, in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(norm_activation(in_channels, dims, scale=scale), conv)


class DenseUNetOptions(LevelOptions):
    """Options of ``dense_unet``."""

    per_stage: ClassVar[tuple[str, ...]] = (*LevelOptions.per_stage, "layers_per_stage", "growth")

    features: tuple[Size, ...] = Field(default=(32, 64, 128, 256, 512), min_length=2)
    """Channels that each stage gives, full resolution first; their number is the number of stages."""
    layers_per_stage: PerStage = 4
    """Layers of the dense blocks: one number, or one per stage, in the encoder as in the decoder."""
    growth: PerStage | None = None
    """Channels that every layer of a dense block adds: one number, or one per stage; null for a quarter of the stage's
    features. Four layers then double the channels, and the unit behind the block halves them again."""
    down: Literal["pool", "stride"] = "pool"
    """Max-pooling before a stage, or strides in its first convolution."""
    up: Literal["transposed", "nearest", "linear"] = "transposed"
    """Transposed convolution, or interpolation followed by a convolution unit."""


class DenseUNet(UShape):
    """U-Net of dense blocks, in 2D or 3D, for isotropic and anisotropic voxels.

    A stage is a convolution unit, a dense block of such units, and a 1×1 unit that compresses what has been collected
    to the stage's channels. Units normalize and activate what they give, not what they get, unlike a DenseNet's: so
    every channel is normalized and stored once, not once for each later layer, which is what makes dense blocks
    affordable in volumes. Levels and heads are those of :class:`~pipeline.model.unet.UNet`.

    Reference: Huang et al. 2017 (arXiv 1608.06993) for dense blocks and compression; Jégou et al. 2017 (arXiv
    1611.09326) for dense blocks along a U-Net. The arrangement is this project's own.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: DenseUNetOptions) -> None:
        super().__init__(dims, in_channels, out_channels, options)
        stages, style = options.stages(dims), style_of(options, dims)
        layers = spread(options.layers_per_stage, len(stages))
        quarter = tuple(max(1, n // 4) for n in options.features)
        growth = quarter if options.growth is None else spread(options.growth, len(stages))
        blocks = list(zip(stages, layers, growth, strict=True))
        widths = (in_channels, *options.features)
        self.encoder = nn.ModuleList(
            _dense_stage(width, *block, style, options.down) for width, block in zip(widths, blocks, strict=False)
        )
        self.upsamplings = nn.ModuleList(
            upsampling(lower, upper, style, options.up) for upper, lower in pairwise(stages)
        )
        self.decoder = nn.ModuleList(_dense_stage(2 * block[0].features, *block, style) for block in blocks[:-1])
        self.heads = level_heads(dims, options.features[:-1], out_channels, options.deep_supervision)


class DenseUNet167Options(NetworkOptions):
    """Options of ``dense_unet167``; the defaults are the published ones."""

    stem_features: Size = 96
    """Channels of the first convolution."""
    growth: Size = 48
    """Channels that every layer of a dense block adds."""
    blocks: tuple[Size, ...] = Field(default=(6, 12, 36, 24), min_length=1)
    """Layers of each dense block."""
    bottleneck: Size = 4
    """Channels of a layer's 1×1 convolution, in units of the growth."""
    compression: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of a dense block's channels that the transition behind it keeps."""
    last_features: tuple[Size, Size] = (96, 64)
    """Channels of the decoder's last two stages; those before have the channels of the skip they are added to."""
    last_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Probability of zeroing a value of the decoder's last convolution."""
    scale_layers: bool = False
    """Whether the encoder's normalizations are followed by a second learned factor and offset, as in the original."""


class DenseUNet167(SegmentationNetwork):
    """The 2D network of H-DenseUNet: a DenseNet-161 whose skips are added to the decoder's upsampled features.

    ``stem``, then ``blocks`` with ``transitions`` between them. The last skip reaches the channels of the deepest block
    by the 1×1 convolution ``line``; the others have the decoder's channels.

    Reference: Li et al. 2018 (arXiv 1709.07330), with the details of the authors' code (nearest-neighbour upsampling,
    biases in ``line`` and the decoder alone, dropout before the last normalization); Huang et al. 2017 (arXiv
    1608.06993) for DenseNet-161.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: DenseUNet167Options) -> None:
        sizes = size_rule([(2,) * dims] * (len(options.blocks) + 1))
        super().__init__(dims, in_channels, out_channels, options=options, sizes=sizes, batch_norm=True)
        scale, growth = options.scale_layers, options.growth
        self.stem = densenet_stem(in_channels, options.stem_features, dims, scale=scale)
        self.pool = Pool[Pool.MAX, dims](kernel_size=3, stride=2, padding=1)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        skips, width = [options.stem_features], options.stem_features
        for index, layers in enumerate(options.blocks):
            if index > 0:
                skips.append(width)
                # Rounded down, as in DenseNet.
                kept = max(1, int(width * options.compression))
                self.transitions.append(densenet_transition(width, kept, dims, scale=scale))
                width = kept
            self.blocks.append(densenet_block(width, layers, growth, dims, bottleneck=options.bottleneck, scale=scale))
            width += layers * growth
        self.last = norm_activation(width, dims, scale=scale)
        self.line = convolution(dims, skips[-1], width, 1)
        self.decoder = _additive_decoder([width, *skips[-2::-1], *options.last_features], dims, options.last_dropout)
        self.head = head(dims, options.last_features[-1], out_channels)

    def segment(self, x: Tensor) -> Tensor:
        """Logits at full resolution."""
        skips = [self.stem(x)]
        x = self.blocks[0](self.pool(skips[0]))
        for transition, block in zip(self.transitions, self.blocks[1:], strict=True):
            skips.append(x)
            x = block(transition(x))
        x = self.last(x)
        skips[-1] = self.line(skips[-1])
        for stage in self.decoder:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = stage((x + skips.pop()) if skips else x)
        logits: Tensor = self.head(x)
        return logits


def _dense_stage(
    in_channels: int,
    stage: Stage,
    layers: int,
    growth: int,
    style: Style,
    down: Literal["pool", "stride"] | None = None,
) -> nn.Sequential:
    """(B, in, *spatial) → (B, stage.features, *spatial / stage.stride)."""
    units = [conv_unit(stage.features + n * growth, growth, stage.kernel, style) for n in range(layers)]
    collected = stage.features + layers * growth
    return nn.Sequential(
        OrderedDict(
            entry=conv_stage(in_channels, stage, style, convs=1, down=down),
            block=DenseBlock(units),
            compression=conv_unit(collected, stage.features, (1,) * style.dims, style),
        )
    )


def _additive_decoder(widths: list[int], dims: int, last_dropout: float) -> nn.ModuleList:
    """Units of the decoder, deepest first; the last one has dropout between convolution and normalization."""
    style = Style(dims, bias=True)
    units: list[nn.Module] = [conv_unit(given, wanted, (3,) * dims, style) for given, wanted in pairwise(widths)]
    last = OrderedDict(units[-1].named_children())
    # Not named dropout: normalized right behind, it does not change how large the initial weights should be.
    units[-1] = nn.Sequential(OrderedDict(conv=last.pop("conv"), random=nn.Dropout(last_dropout), **last))
    return nn.ModuleList(units)
