"""The pixel classifier N4 of 2012: one window of the image per pixel, or all of them at once."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.model.base import SegmentationNetwork
from pipeline.model.network_options import NetworkOptions, Size
from pipeline.model.sizes import SizeRule

WINDOW = 95
"""Pixels along each side of the window that a pixel is classified by."""

_KERNELS = (4, 5, 4, 4)
_LAST_MAP = 3  # pixels along each side of what the four convolutions and poolings leave of a window


class CiresanOptions(NetworkOptions):
    """Options of ``ciresan_n4``."""

    features: tuple[Size, Size, Size, Size] = (48, 48, 48, 48)
    """Maps of the four convolutions, whose kernels are 4, 5, 4 and 4."""
    hidden: Size = 200
    """Neurons of the fully connected layer before the logits."""
    activation: Literal["scaled_tanh", "relu"] = "scaled_tanh"
    """Of all layers but the last. scaled_tanh: 1.7159 tanh(2x / 3)."""


class Ciresan(SegmentationNetwork):
    """A classifier of the pixel at the centre of a 95×95 window: four convolutions, each pooled by 2, and two layers.

    The fully connected layers are stored as convolutions. An image of a single window goes through it as published. On
    a larger one, all windows are computed at once, each intermediate value a single time: poolings go on in steps of
    one pixel, and what follows a pooling is dilated twice as far. The numbers are those of the windows one by one.

    The activation is the scaled hyperbolic tangent of the authors' other networks of that year (arXiv 1202.2745), which
    public reproductions of N4 use as well. It may come before or after max-pooling, as it is monotonic.

    Args:
        dims: 2.
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        options: Widths and activation.

    Reference: Ciresan et al. 2012, Deep Neural Networks Segment Neuronal Membranes in Electron Microscopy Images,
    network N4; LeCun et al. 1998, Efficient BackProp, for the activation; Giusti et al. 2013 (arXiv 1302.1700) for
    computing all windows at once.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: CiresanOptions) -> None:
        sizes = SizeRule((1,) * dims, (WINDOW,) * dims, border=(WINDOW // 2,) * dims)
        super().__init__(dims, in_channels, out_channels, options=options, sizes=sizes)
        self.activation = options.activation
        widths = (in_channels, *options.features)
        self.convolutions = nn.ModuleList(
            _Convolution(widths[n], widths[n + 1], kernel) for n, kernel in enumerate(_KERNELS)
        )
        self.hidden = _Convolution(widths[-1], options.hidden, _LAST_MAP)
        self.head = nn.Conv2d(options.hidden, out_channels, 1)

    def segment(self, x: Tensor) -> Tensor:
        """Logits of all pixels that are at least 47 pixels from every border."""
        # A traced graph may see other sizes later, and the form for many windows holds for one as well.
        traced = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        single = not traced and tuple(x.shape[2:]) == (WINDOW, WINDOW)
        dilation = 1
        for convolution in self.convolutions:
            x = self._activate(convolution(x, dilation))
            # A window of its own is pooled in steps of two, as published.
            if single:
                x = F.max_pool2d(x, 2)
            else:
                x = F.max_pool2d(x, 2, stride=1, dilation=dilation)
                dilation *= 2
        logits: Tensor = self.head(self._activate(self.hidden(x, dilation)))
        return logits

    def _activate(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.activation == "relu" else 1.7159 * torch.tanh(x * (2 / 3))


class _Convolution(nn.Conv2d):
    """A convolution without padding whose dilation is an argument of every call."""

    def forward(self, x: Tensor, dilation: int = 1) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, dilation=dilation)


@torch.no_grad()
def scan(network: SegmentationNetwork, image: Tensor, *, batch_size: int = 32) -> Tensor:
    """Logits window by window, as the paper computed them; much slower than calling the network on the image.

    Args:
        network: The classifier, in evaluation mode.
        image: (B, C, I, J), each side at least 95 pixels.
        batch_size: Windows at a time.

    Returns:
        (B, L, I - 94, J - 94), equal to ``network(image)`` but for rounding.

    Raises:
        DataError: If the image does not fit the network.
    """
    count, channels = image.shape[:2]
    rows, columns = network.output_size(image.shape[2:])
    windows = image.unfold(2, WINDOW, 1).unfold(3, WINDOW, 1).movedim(1, 3)  # a view (B, I', J', C, 95, 95)
    parts = []
    for start in range(0, count * rows * columns, batch_size):
        index = torch.arange(start, min(start + batch_size, count * rows * columns), device=image.device)
        # From a running number to image, row and column.
        pixels = (index // (rows * columns), index // columns % rows, index % columns)
        parts.append(network(windows[pixels].reshape(-1, channels, WINDOW, WINDOW)).flatten(1))
    return torch.cat(parts).reshape(count, rows, columns, -1).movedim(3, 1)
