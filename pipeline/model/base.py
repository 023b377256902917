"""What every network of the project has in common: checked inputs, one output contract, initialization."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from pipeline.core.errors import DataError, sentence
from pipeline.model.network_options import LevelOptions, NetworkOptions
from pipeline.model.sizes import SizeRule, size_rule

Heads = dict[str, Tensor]
"""Logits of every head of deep supervision by name, the head that predictions come from first."""

_OUTPUT = re.compile(r"(^|\.)(heads?|final|seg_layers)(\.|$)")  # what networks call the layers that give logits
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class SegmentationNetwork(nn.Module):
    """Base of all networks: image batch in, logits out.

    ``network(x)`` takes (B, C, *spatial) and returns logits (B, L, *spatial_out), where spatial_out is
    ``network.output_size(spatial)``: the input's size for padded networks, smaller by ``network.margin`` on either side
    for networks of valid convolutions. In training mode with deep supervision it returns the logits of all heads by
    name instead, the one that predictions come from first, each at its own resolution; in evaluation mode it is a
    single tensor, always.

    A subclass implements :meth:`segment`, which may rely on a plain tensor of a legal size.

    As the second stage of a cascade (``stage_classes`` above 0) it takes the class index that the first stage found as
    the last channel, and sees it as one channel per foreground class: see :func:`with_stage_channels`.

    Args:
        dims: Number of spatial axes.
        in_channels: Channels of the image, C, those of a first stage included.
        out_channels: Channels of the logits, L.
        options: The validated options the network is built from, kept for its description.
        sizes: Spatial sizes it takes.
        batch_norm: Whether it normalizes over the batch, so that training needs two values per channel everywhere.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        *,
        options: NetworkOptions,
        sizes: SizeRule,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.options = options
        self.sizes = sizes
        self.batch_norm = batch_norm
        self.stage_classes = 0

    @property
    def divisor(self) -> tuple[int, ...]:
        """Distance of legal sizes along each axis."""
        return self.sizes.step

    @property
    def margin(self) -> tuple[int, ...]:
        """Voxels of context that the network needs on either side of its logits; 0 for padded networks."""
        return self.sizes.margin

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """See :meth:`SizeRule.output_size`."""
        return self.sizes.output_size(size)

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """See :meth:`SizeRule.legal_size`."""
        return self.sizes.legal_size(size)

    def forward(self, x: Tensor) -> Tensor | Heads:
        """Logits of an image batch.

        Args:
            x: (B, C, *spatial), normalized intensities; a MONAI ``MetaTensor`` is taken for the tensor it holds.

        Returns:
            Logits (B, L, *spatial_out), or in training mode with deep supervision those of all heads by name.

        Raises:
            DataError: If the number of axes or channels is wrong or the spatial size is not legal.
        """
        if isinstance(x, MetaTensor):
            x = x.as_tensor()
        if self.stage_classes and x.dim() == self.dims + 2 and x.shape[1] != self.in_channels:
            x = with_stage_channels(x, self.stage_classes)
        # A traced graph is fixed to its size anyway, and every comparison would warn.
        if not torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            self._require_input(x)
        return self.segment(x)

    def segment(self, x: Tensor) -> Tensor | Heads:
        """Logits of a checked batch; see :meth:`forward`."""
        raise NotImplementedError

    def _require_input(self, x: Tensor) -> None:
        if x.dim() != self.dims + 2 or x.shape[1] != self.in_channels:
            axes = ", ".join("IJK"[: self.dims])
            expected = f"shape (B, {self.in_channels}, {axes})"
            raise DataError(sentence("network input", expected, tuple(x.shape), "Check batch and channel axis"))
        size = tuple(x.shape[2:])
        self.sizes.require(size)
        # PyTorch itself refuses this deep inside the network, without saying where.
        if self.training and self.batch_norm and x.shape[0] == 1 and size == self.sizes.smallest:
            expected = "two or more values per channel at the lowest resolution, as batch normalization needs"
            got = f"one patch of size {size}, which leaves one value"
            raise DataError(sentence("training batch", expected, got, "Take larger patches or a larger batch"))


def with_stage_channels(x: Tensor, classes: int) -> Tensor:
    """What the second stage of a cascade sees: the last channel, class indices, as one channel of 0 and 1 per class.

    Made for a window or a batch of patches, and here alone: for a whole volume it would take a number per class and
    voxel.

    Args:
        x: (B, C + 1, *spatial), the last channel the class index that the first stage found, 0 for background.
        classes: Foreground classes, K.

    Returns:
        (B, C + K, *spatial) of the same type; background is 0 in all of the last K channels.

    Reference: Isensee et al., nnU-Net, Nature Methods 2021 (3D U-Net cascade).
    """
    numbers = torch.arange(1, classes + 1, device=x.device, dtype=x.dtype).reshape(-1, *(1,) * (x.dim() - 2))
    return torch.cat([x[:, :-1], (x[:, -1:] == numbers).to(x.dtype)], dim=1)


class LevelNetwork(SegmentationNetwork):
    """A padded encoder-decoder, whose legal sizes and rules of training follow from the options of its levels.

    Raises:
        ConfigError: If a per-axis option has another number of axes than ``dims``.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: LevelOptions) -> None:
        # Instance norm has nothing to normalize where one voxel is left, batch norm where there is one patch as well.
        strides = [stage.stride for stage in options.stages(dims)]
        sizes = size_rule(strides, lone_cell=options.norm != "instance")
        batch_norm = options.norm == "batch"
        super().__init__(dims, in_channels, out_channels, options=options, sizes=sizes, batch_norm=batch_norm)
        self.deep_supervision = options.deep_supervision


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Draw every convolution's weights from N(0, sqrt(2 / N)) and set its bias to 0, in place, from torch's global RNG.

    N is the number of inputs that one output value sums over: of a transposed convolution, its kernel divided by its
    stride (PyTorch's own He initialization takes the output channels instead). Where dropout p follows in the same
    unit, the variance is multiplied by 1 - p, because dropout divides the signal's mean square by that: uncorrected,
    the 0.5 of UNet++ doubles it at every convolution, and training starts at a cross-entropy of 50. Other layers keep
    their defaults.

    Reference: He et al. 2015 (arXiv 1502.01852), section 2.2; Ronneberger et al. 2015 (arXiv 1505.04597), section 3;
    Hendrycks and Gimpel 2016 (arXiv 1607.02488) for dropout.
    """
    # Dropout belongs to the convolution of its own unit, not to every layer after it.
    kept = {}
    for unit in network.modules():
        convolution, dropout = getattr(unit, "conv", None), getattr(unit, "dropout", None)
        if isinstance(dropout, nn.Dropout):
            kept[convolution] = 1 - dropout.p
    for layer in network.modules():
        if not isinstance(layer, _CONVOLUTIONS):
            continue
        # A transposed convolution spreads its kernel over stride outputs, so each sums over that part of it.
        inputs = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        share = math.prod(layer.stride) if layer.transposed else 1
        nn.init.normal_(layer.weight, std=math.sqrt(2 * share * kept.get(layer, 1.0) / inputs))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def is_output(name: str) -> bool:
    """Whether a layer or tensor of a network, by its name, belongs to the layers that give logits."""
    return _OUTPUT.search(name) is not None


def start_outputs_at(network: SegmentationNetwork, probability: float) -> None:
    """Set the biases of all output layers so that sigmoids begin about at a probability instead of at 0.5, in place.

    Where organs fill a hundredth of the image, a network that begins at 0.5 spends its first hundreds of steps on
    lowering the background, and until then soft Dice sees little else.

    Args:
        network: Any network of this package.
        probability: In (0, 1), about the share of the image that organs fill.

    Reference: Lin et al. 2017 (arXiv 1708.02002), section 3.3.
    """
    for name, layer in network.named_modules():
        # Heads alone: attention gates and blocks also have 1×1 convolutions with bias.
        output = is_output(name) and isinstance(layer, _CONVOLUTIONS) and layer.out_channels == network.out_channels
        if output and layer.bias is not None and (layer.transposed or set(layer.kernel_size) == {1}):
            nn.init.constant_(layer.bias, math.log(probability / (1 - probability)))
