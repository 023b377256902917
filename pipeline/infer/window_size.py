"""How large the windows are that networks see: the training patch, or what suits a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pipeline.config import InferSettings
from pipeline.core.errors import ConfigError, sentence
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan import Plan

__all__ = ["Sized", "check_window", "fitting_window", "in_volume", "prediction_window"]

_MOST = 1.25  # of the patch, along an axis; in 3D at most twice its voxels


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


def fitting_window(network: Any, patch: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The window that sees a volume of about the size of the training patch at once, all sizes along the same axes.

    Along an axis on which the volume needs no more than a quarter more than the patch, the window is as long as the
    volume (at least half the patch), so that neither padding nor a second window is computed; along others it is the
    patch.

    Args:
        network: Without a margin; one without ``legal_size`` takes any.
        patch: Training patch.
        shape: Voxels of the volume.
    """
    legal = getattr(network, "legal_size", tuple)
    wanted = legal([max(n, one // 2) for n, one in zip(shape, patch, strict=True)])
    return tuple(n if n <= _MOST * one else one for n, one in zip(wanted, patch, strict=True))


def check_window(spec: NetworkSpec, settings: InferSettings) -> None:
    """Refuse a window that the network cannot take, or whose logits are too few to tile a volume.

    Args:
        spec: The network's description.
        settings: Section ``infer``.

    Raises:
        ConfigError: Naming the next legal size.
    """
    wanted = settings.window_size
    if not isinstance(wanted, tuple):
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


def in_volume(size: Sequence[int], plan: Plan, spec: NetworkSpec) -> tuple[int, ...]:
    """A size along i, j, k, of one voxel across slices.

    Args:
        size: Along the axes that the network sees.
        plan: The dataset's plan.
        spec: The network's description.
    """
    sizes = dict(zip(plan.axes(spec.dims), size, strict=True))
    return tuple(sizes.get(axis, 1) for axis in range(3))
