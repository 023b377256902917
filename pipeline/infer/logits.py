"""From a prepared image to its logits: which windows a network sees, in which precision, mirrored how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.config import InferSettings
from pipeline.core.errors import ConfigError, sentence
from pipeline.infer.inferer import WindowInferer
from pipeline.infer.mirror import mirrored
from pipeline.infer.slices import SliceNetwork
from pipeline.model.device import autocast
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan import Plan
from pipeline.sample.augment import directions

__all__ = ["Sized", "check_window", "predict_logits", "prediction_window"]

_SLICES_PER_WINDOW = 8  # a 2D window is so much smaller than a 3D one that more of them fit a network call
_OWN_STATISTICS = (nn.GroupNorm, nn.InstanceNorm2d, nn.InstanceNorm3d)


class Sized(Protocol):
    """What the choice of a window needs to know of a network; all numbers per axis."""

    @property
    def margin(self) -> tuple[int, ...]:
        """Voxels on either side of a window that get no logits."""

    @property
    def divisor(self) -> tuple[int, ...]:
        """Distance of legal sizes."""

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The smallest legal size that is at least ``size``."""


def predict_logits(
    network: nn.Module,
    image: Tensor,
    spec: NetworkSpec,
    plan: Plan,
    settings: InferSettings,
    dtype: torch.dtype = torch.float32,
    mirror_axes: Sequence[int] = (),
) -> Tensor:
    """Logits of a prepared image from overlapping windows; a 2D network sees every slice.

    Tiles of networks with a margin agree where they overlap and are therefore laid side by side, unless the network
    normalizes every window by itself.

    Args:
        network: In evaluation mode, on the device that computes. One without ``margin`` is taken for padded.
        image: (C, I, J, K) on the prepared grid, on the same device.
        spec: The network's description.
        plan: The dataset's plan.
        settings: Section ``infer``.
        dtype: Type of the network's arithmetic.
        mirror_axes: Volume axes over whose mirrorings the logits are averaged.

    Returns:
        (L, I, J, K) float32 on the same device.

    Raises:
        ConfigError: If the window that the settings ask for is none the network can take.
    """
    runner: Any = network if spec.dims == 3 else SliceNetwork(network, plan.slice_axis)
    margin, step = getattr(runner, "margin", (0, 0, 0)), getattr(runner, "divisor", (1, 1, 1))
    patch = window = _in_volume(spec.patch_size, plan, spec)
    batch = settings.batch_size if spec.dims == 3 else settings.batch_size * _SLICES_PER_WINDOW
    if settings.window_size is not None:
        window = _in_volume(settings.window_size, plan, spec)
    elif any(margin):
        window = prediction_window(runner, patch, image.shape[1:])
        batch = max(1, min(batch, batch * math.prod(patch) // math.prod(window)))  # no more voxels than so many patches
    overlap = 0.0 if any(margin) and not _normalizes_windows(network) else settings.overlap
    if mirror_axes:
        pairs = plan.label_table.output_side_pairs()
        runner = mirrored(runner, mirror_axes, directions(plan.orientation).index("LR"), pairs)
    inferer = WindowInferer(window, overlap, settings.blend, batch, margin=margin, step=step)
    with torch.no_grad(), autocast(image.device, dtype):
        logits: Tensor = inferer(image[None], runner)[0]
    return logits


def prediction_window(network: Sized, patch: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The window that a network with a margin predicts a volume with, all sizes along the same axes.

    Small windows would spend most work on margins that neighbours see once more. So it is at least the training patch,
    its logits are at least as long as the margins on both sides together, and it is no larger than the volume needs.

    Args:
        network: With a margin along some axis.
        patch: Training patch.
        shape: Voxels of the volume.
    """
    margin, step = network.margin, network.divisor
    ample = [max(n, 4 * lost, one + 2 * lost) for n, lost, one in zip(patch, margin, step, strict=True)]
    enough = [n + 2 * lost for n, lost in zip(shape, margin, strict=True)]
    sizes = zip(network.legal_size(ample), network.legal_size(enough), strict=True)
    return network.legal_size([min(pair) for pair in sizes])


def check_window(spec: NetworkSpec, settings: InferSettings) -> None:
    """Refuse a window that the network cannot take, or whose logits are too few to tile a volume.

    Args:
        spec: The network's description.
        settings: Section ``infer``.

    Raises:
        ConfigError: Naming the next legal size.
    """
    wanted = settings.window_size
    if wanted is None:
        return
    if len(wanted) != spec.dims:
        rule = f"{spec.dims} numbers for a network of {spec.dims} dimensions"
        raise ConfigError([sentence("infer.window_size", rule, wanted, "Give one per axis the network sees")])
    sizes = spec.sizes()
    axes = zip(wanted, sizes.step, sizes.margin, strict=True)
    legal = sizes.legal_size([max(n, step + 2 * lost) for n, step, lost in axes])
    if legal != wanted:
        rule, advice = f"a size {spec.name} can tile volumes with", f"The next legal one is {legal}"
        raise ConfigError([sentence("infer.window_size", rule, wanted, advice)])


def _in_volume(size: Sequence[int], plan: Plan, spec: NetworkSpec) -> tuple[int, ...]:
    """A size along i, j, k, of one voxel across slices."""
    sizes = dict(zip(plan.axes(spec.dims), size, strict=True))
    return tuple(sizes.get(axis, 1) for axis in range(3))


def _normalizes_windows(network: nn.Module) -> bool:
    """Whether logits depend on what else is in the window, by the mean and variance of its features."""
    return any(isinstance(layer, _OWN_STATISTICS) for layer in network.modules())
