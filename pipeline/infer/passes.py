"""All passes over a window: several networks, each on its device, that see the window mirrored and rotated.

The logits of a pass go into the sums of the volume as they are, not turned back and not averaged before, so that more
passes take no more memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.infer.mirror import Rotation, View, views
from pipeline.model.device import autocast

__all__ = ["Network", "Outputs", "Pass", "Passes", "passes_of", "spread"]

Network = Callable[..., Any]
"""Takes (B, C, *window), returns logits (B, L, *window), smaller by the margin on either side if there is one, or
several of them in a sequence or mapping."""


@dataclass(frozen=True)
class Pass:
    """One network that sees windows in one way.

    Args:
        run: Takes windows (n, C, *window), turned already, and returns all outputs of the network.
        view: How they are turned.
        swapped: Pairs of channels of the logits that have changed places.
        device: Where the network is; None for that of the windows.
    """

    run: Callable[[Tensor], list[Tensor]]
    view: View = field(default_factory=View)
    swapped: tuple[tuple[int, int], ...] = ()
    device: torch.device | None = None

    def __call__(self, windows: Tensor) -> list[Tensor]:
        """All outputs of the network for windows (n, C, *window), turned as it sees them."""
        return self.run(self.view.of(windows))


class Outputs:
    """A network as it is: one pass, whose outputs are a list, whatever the network returns them in.

    Args:
        network: Any.
        args: Handed to the network.
        kwargs: Handed to the network.
    """

    def __init__(self, network: Network, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        self.network, self.args, self.kwargs = network, args, kwargs or {}
        self.packed: Callable[[list[Tensor]], Any] = tuple

    def each(self, window: Sequence[int], tile: Sequence[int]) -> list[Pass]:
        """The one pass there is."""
        return [Pass(self._run)]

    def _run(self, windows: Tensor) -> list[Tensor]:
        found = self.network(windows, *self.args, **self.kwargs)
        if isinstance(found, Mapping):
            names = list(found)
            self.packed = lambda totals: dict(zip(names, totals, strict=True))
            return list(found.values())
        if isinstance(found, tuple | list):
            return list(found)
        self.packed = lambda totals: totals[0]
        return [found]


class Passes:
    """Networks, and how each of them sees a window: the inferer averages the logits of all passes.

    Where a pass mirrors left and right, a left organ looks like its right twin, so the channels of the pairs are
    swapped back; a rotation leaves them.

    Args:
        networks: At least one; take (n, C, *window) and return one tensor of logits.
        dtype: Type of their arithmetic.
        axes: Spatial axes to mirror, 0 for the first: 2, 4 or 8 passes of each network.
        sides: Spatial axis that runs from left to right, or None.
        side_pairs: (left, right) channels of the logits.
        rotation: In which plane to rotate. Windows that are not as long along both of its axes are rotated by 180
            degrees only.

    Reference: Isensee et al., nnU-Net, Nature Methods 2021 (mirroring at test time); Ronneberger et al. 2015
    (arXiv 1505.04597), section 4 (the mean over rotated versions of the input).
    """

    def __init__(
        self,
        networks: Sequence[Network],
        dtype: torch.dtype = torch.float32,
        axes: Sequence[int] = (),
        sides: int | None = None,
        side_pairs: Sequence[tuple[int, int]] = (),
        rotation: Rotation | None = None,
    ) -> None:
        self.networks, self.dtype, self.axes = list(networks), dtype, tuple(axes)
        self.sides, self.side_pairs, self.rotation = sides, tuple(side_pairs), rotation
        self.devices = [_device_of(network) for network in self.networks]
        self.packed: Callable[[list[Tensor]], Any] = lambda totals: totals[0]

    def each(self, window: Sequence[int], tile: Sequence[int]) -> list[Pass]:
        """All passes; those that follow each other are on different devices, as far as there are several.

        Args:
            window: Voxels that networks see along each axis.
            tile: Voxels of their logits.
        """
        rotation = self.rotation and self.rotation.within(window, tile)
        return [
            Pass(self._runner(network, device), view, self.side_pairs if self.sides in view.mirrored else (), device)
            for view in views(self.axes, rotation)
            for network, device in zip(self.networks, self.devices, strict=True)
        ]

    def _runner(self, network: Network, device: torch.device | None) -> Callable[[Tensor], list[Tensor]]:
        def run(windows: Tensor) -> list[Tensor]:
            place = device or windows.device
            with autocast(place, self.dtype):
                return [network(windows.to(place))]

        return run


def passes_of(network: Network | Passes, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
    """What gives the passes of anything that counts as a network.

    Args:
        network: Any, or several passes.
        args: Handed to a network.
        kwargs: Handed to a network.
    """
    return network if isinstance(network, Passes) else Outputs(network, args, kwargs)


def spread(count: int, devices: Sequence[torch.device]) -> list[torch.device]:
    """The device of each of some networks: one after the other, and again from the first."""
    return [devices[number % len(devices)] for number in range(count)]


def _device_of(network: Network) -> torch.device | None:
    """Where the parameters of a network are; None for one without."""
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), None)
