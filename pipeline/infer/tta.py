"""Test-time augmentation: several networks, each on its device, that see a window mirrored and rotated.

A pass is one network that sees windows in one way. Its logits go into the accumulator of the volume as they are, not
turned back and not averaged before, so that more passes take no more memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.config.settings import InferSettings, Settings
from pipeline.core.errors import sentence
from pipeline.model.device import autocast
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan_file import Plan
from pipeline.sample.augment import directions
from pipeline.sample.spatial import coarse_axis, largest_rotation, swap_sides

_SAME_SPACING = 0.01  # spacings that differ by less are taken for equal: a quarter turn stretches no more
_ADVICE = "Set it to false"


@dataclass(frozen=True)
class Rotation:
    """Rotations in a plane, by right angles, which need no interpolation.

    Args:
        axes: The two spatial axes of the plane, 0 for the first.
        quarter: Whether also by 90 and 270 degrees, where a window is as long along both axes; else by 180 only.
    """

    axes: tuple[int, int]
    quarter: bool = True

    def within(self, *sizes: Sequence[int]) -> Rotation:
        """The rotations that leave all of some sizes (voxels along each axis) as they are."""
        one, other = self.axes
        return replace(self, quarter=self.quarter and all(size[one] == size[other] for size in sizes))


@dataclass(frozen=True)
class View:
    """One way for the network to see a window.

    Args:
        swapped: Two axes that change places, first; none in a view that leaves all where they are.
        flips: Axes that are reversed then.
        mirrored: Axes over which it was mirrored; what a rotation reverses is not among them.
    """

    swapped: tuple[int, ...] = ()
    flips: tuple[int, ...] = ()
    mirrored: tuple[int, ...] = ()

    def of(self, windows: Tensor) -> Tensor:
        """Windows (n, C, *window) as the network sees them: a copy."""
        return torch.flip(self._exchanged(windows), [axis + 2 for axis in self.flips])

    def back(self, logits: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Logits (n, L, *tile) of such windows with their axes in place, without a copy, and the axes to reverse."""
        places = dict(zip(self.swapped, reversed(self.swapped), strict=True))
        return self._exchanged(logits), tuple(places.get(axis, axis) for axis in self.flips)

    def _exchanged(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(*(axis + 2 for axis in self.swapped)) if self.swapped else tensor


def views(axes: Sequence[int], rotation: Rotation | None = None) -> tuple[View, ...]:
    """All that a window can be turned to by mirroring along axes and by rotations, each once, the plain one first.

    Args:
        axes: Spatial axes to mirror.
        rotation: In which plane to rotate; None for no rotation.

    Returns:
        8 for mirroring along three axes; 8 of a plane with rotations and mirroring along any axis of it.
    """
    distinct = sorted(set(axes))
    turns: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    if rotation is not None:
        turns.append(((), rotation.axes))
        if rotation.quarter:
            turns += [(rotation.axes, (axis,)) for axis in rotation.axes]
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], View] = {}
    for count in range(len(distinct) + 1):
        for mirrors in combinations(distinct, count):
            for swapped, reverses in turns:
                flips = tuple(sorted(set(mirrors) ^ set(reverses)))
                found.setdefault((swapped, flips), View(swapped, flips, mirrors))
    return tuple(found.values())


# What a model may be shown at test time: mirrored and rotated windows of the kinds that it was trained with.


def mirror_axes(plan: Plan, dims: Literal[2, 3], settings: Settings) -> tuple[int, ...]:
    """Volume axes that training mirrors: the network knows no other mirror images."""
    if plan.conventions is not None:
        return plan.conventions.mirror_axes
    flips = settings.augment.flip_axes if settings.augment.enabled else ()
    named = directions(plan.orientation)
    return tuple(axis for axis in plan.axes(dims) if named[axis] in flips)


def rotation_of(plan: Plan, spec: NetworkSpec) -> Rotation:
    """The plane in which windows are rotated: that of a 2D network, in 3D across the coarse axis or across slices."""
    axes = plan.axes(spec.dims)
    if spec.dims == 3:
        coarse = coarse_axis(spec.patch_size, plan.spacing_mm)
        across = plan.slice_axis if coarse is None else coarse
        axes = tuple(axis for axis in axes if axis != across)
    one, other = axes
    low, high = sorted((plan.spacing_mm[one], plan.spacing_mm[other]))
    return Rotation((one, other), quarter=high <= low * (1 + _SAME_SPACING))


def augmentation_problems(plan: Plan, spec: NetworkSpec, settings: Settings, infer: InferSettings) -> list[str]:
    """Why a model trained with some settings cannot be shown what ``infer`` asks for, a sentence for each reason."""
    problems = []
    if infer.mirror and not mirror_axes(plan, spec.dims, settings):
        problems.append(sentence("infer.mirror", "a model trained with flips", "one without", _ADVICE))
    if not infer.rotate:
        return problems
    augment = settings.augment
    spacing = [plan.spacing_mm[axis] for axis in plan.axes(spec.dims)]
    rotates = augment.enabled and augment.rotate_p > 0
    largest = largest_rotation(augment.rotate_degrees, spec.patch_size, spacing) if rotates else 0.0
    if largest < 180:
        got = f"one with up to {largest:g}" if largest else "one without"
        rule = "a model trained with rotations of up to 180 degrees (augment.rotate_degrees)"
        problems.append(sentence("infer.rotate", rule, got, _ADVICE))
    sides = directions(plan.orientation).index("LR")
    pairs = plan.label_table.output_side_pairs()
    if pairs and sides in rotation_of(plan, spec).axes and sides in mirror_axes(plan, spec.dims, settings):
        rule = "no left and right organs where training mirrors left and right, which a rotation confuses"
        problems.append(sentence("infer.rotate", rule, f"{len(pairs)} pairs", _ADVICE))
    return problems


# Networks and views together: the passes over every window.

Network = Callable[..., Any]
"""Takes (B, C, *window), returns logits (B, L, *window), smaller by the margin on either side if there is one, or
several of them in a sequence or mapping."""


@dataclass(frozen=True)
class Pass:
    """One network that sees windows in one way.

    Args:
        run: Takes windows (n, C, *window), turned already, and returns all outputs of the network.
        view: How windows are turned.
        swapped: Pairs of channels of the logits that have changed places.
        device: Where the network is; None for that of the windows.
    """

    run: Callable[[Tensor], list[Tensor]]
    view: View = field(default_factory=View)
    swapped: tuple[tuple[int, int], ...] = ()
    device: torch.device | None = None

    def __call__(self, windows: Tensor) -> list[Tensor]:
        """All outputs of the network for windows (n, C, *window) on its device, turned as it sees them."""
        return self.run(self.view.of(windows))


class Passes:
    """Networks, and how each of them sees a window: the inferer averages the logits of all passes.

    Where a pass mirrors left and right, a left organ looks like its right twin, so the channels of the pairs are
    swapped back; a rotation leaves them.

    Args:
        networks: At least one; each takes (n, C, *window) and returns logits, or several of them in a sequence or
            mapping.
        dtype: Type of their arithmetic; None for that of the caller.
        axes: Spatial axes to mirror, 0 for the first: 2, 4 or 8 passes of each network.
        sides: Spatial axis that runs from left to right, or None.
        side_pairs: (left, right) channels of the logits.
        rotation: In which plane to rotate. Windows that are not as long along both of its axes are rotated by 180
            degrees only.
        stage_pairs: (left, right) class indices in the last channel of the windows, where that is what the first stage
            of a cascade found: they swap in mirrored windows, as they did in training.

    Attributes:
        packed: Puts the outputs of all passes together, from a list into what the networks return them in.

    Reference: Isensee et al., nnU-Net, Nature Methods 2021 (mirroring at test time); Ronneberger et al. 2015
    (arXiv 1505.04597), section 4 (the mean over rotated versions of the input).
    """

    def __init__(
        self,
        networks: Sequence[Network],
        dtype: torch.dtype | None = torch.float32,
        axes: Sequence[int] = (),
        sides: int | None = None,
        side_pairs: Sequence[tuple[int, int]] = (),
        rotation: Rotation | None = None,
        stage_pairs: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.stage_pairs = tuple(stage_pairs)
        self.networks, self.dtype, self.axes = list(networks), dtype, tuple(axes)
        self.sides, self.side_pairs, self.rotation = sides, tuple(side_pairs), rotation
        self.devices = [_device_of(network) for network in self.networks]
        self.packed: Callable[[list[Tensor]], Any] = lambda outputs: outputs[0]

    def each(self, window: Sequence[int], tile: Sequence[int]) -> list[Pass]:
        """All passes.

        Args:
            window: Voxels that networks see along each axis.
            tile: Voxels of their logits.
        """
        rotation = self.rotation and self.rotation.within(window, tile)
        # Networks change faster than views: passes that follow each other are on different devices, as far as there
        # are several, so that these compute at the same time.
        passes = []
        for view in views(self.axes, rotation):
            swapped = self.side_pairs if self.sides in view.mirrored else ()
            stage_pairs = self.stage_pairs if self.sides in view.mirrored else ()
            for network, device in zip(self.networks, self.devices, strict=True):
                passes.append(Pass(partial(self._outputs, network, device, stage_pairs), view, swapped, device))
        return passes

    def _outputs(
        self,
        network: Network,
        device: torch.device | None,
        stage_pairs: Sequence[tuple[int, int]],
        windows: Tensor,
    ) -> list[Tensor]:
        """All outputs of a network, whatever it returns them in, for windows on its device."""
        if stage_pairs:
            windows = torch.cat([windows[:, :-1], swap_sides(windows[:, -1:], stage_pairs)], dim=1)
        with nullcontext() if self.dtype is None else autocast(device or windows.device, self.dtype):
            found = network(windows)
        if isinstance(found, Mapping):
            names = list(found)
            self.packed = lambda outputs: dict(zip(names, outputs, strict=True))
            return list(found.values())
        if isinstance(found, tuple | list):
            self.packed = tuple
            return list(found)
        return [found]


def spread(count: int, devices: torch.device | Sequence[torch.device]) -> list[torch.device]:
    """The device of each of some networks: one after the other, and again from the first."""
    places = [devices] if isinstance(devices, torch.device) else devices
    return [places[number % len(places)] for number in range(count)]


def _device_of(network: Network) -> torch.device | None:
    """Where the parameters of a network are; None for one without."""
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), None)
