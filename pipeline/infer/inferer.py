"""Sliding-window inference in bounded memory: a network that sees windows gives logits or labels of a whole volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from pipeline.core.machine import keep_freed_memory, large_pages
from pipeline.core.regions import PaintingStep
from pipeline.core.signals import Progress, silent
from pipeline.infer.accumulate import (
    MANY_CLASSES,
    Accumulator,
    Padding,
    PlaneBuffer,
    Skip,
    WindowBatches,
    WindowLogits,
    finished_planes,
)
from pipeline.infer.labelling import PlaneLabels, PlaneLogits, labels_and_logits
from pipeline.infer.tta import Network, Passes
from pipeline.infer.windows import Blend, Tiling, importance_map

_SUM_TYPES = {"float32": torch.float32, "float16": torch.float16}
_KEPT_BYTES = 16 << 20  # of a tensor, with many classes: small ones take a piece of its place, and it needs another one

# On import, because PyTorch decides before its first tensor.
large_pages(True)


class StreamingInferer(Inferer):  # type: ignore[misc]  # MONAI is untyped
    """Logits or labels of whole volumes from overlapping windows; a drop-in for MONAI's ``SlidingWindowInferer``.

    Windows are computed in their order along one axis. A plane that no later window touches is finished at once, so
    that only as many planes as a window is thick are held with all their classes. Full logits equal MONAI's; labels are
    those of the full logits, which never exist.

    Networks of valid convolutions, which give logits for less than they see, tile the volume by the overlap-tile
    strategy: windows see the image around their tile of logits as it is, mirrored at the border of the volume only.
    Where normalization does not depend on the window, the result is that of the network applied once to the whole
    mirrored volume, whatever the overlap: overlapping tiles agree, so that 0 is enough.

    The input is never written to, and no gradients are kept. Where the memory of the device is too small for a batch of
    windows, it goes on from there with half as many.

    Args:
        window: Voxels of the window along each of 2 or 3 axes, a size the network takes.
        overlap: Fraction of the window (of its logits) that neighbours share, or one per axis, each in [0, 1).
        blend: Weight of a window's voxels where windows overlap: ``gaussian``, ``hann`` or ``constant``.
        batch: Windows per network call, at least 1.
        axis: The streaming axis, along which planes are finished; ``auto`` for the one with the least planes held.
        skip: Windows to leave out, see :data:`~pipeline.infer.accumulate.Skip`. Where there is no other, logits
            are 0 and labels background.
        accumulate: Type of the sums: ``float32`` (float64 if the network returns that), or ``float16`` for half the
            memory and rounding in the fourth digit; several passes then hold the mean of one more batch in float32.
        margin: The network's margin along each axis: the voxels of a window on either side that get no logits. None
            for networks whose logits are as large as their input.
        step: The network's divisor along each axis: with a margin, tiles start at its multiples. None for 1.
        placement: Of the windows, see :class:`~pipeline.infer.windows.Tiling`.
        padding: What a window sees where the volume is smaller. With a margin, always the mirror image.
        fill: The constant of padding.
        box: First voxel, and one past the last, along each axis of what is looked at; where no window is, logits are 0
            and labels background. None for everything.
        progress: Called after every batch of windows: how many of a volume are done, how many there are, "windows".

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> inferer = StreamingInferer((4, 4, 4), overlap=0.5)
        >>> inferer(torch.ones(1, 1, 9, 6, 3), network=lambda window: 2 * window).unique()
        tensor([2.])
        >>> inferer.label_map(torch.ones(1, 1, 9, 6, 3), lambda window: torch.cat([window, 2 * window], 1)).unique()
        tensor([1], dtype=torch.uint8)

    Reference: Ronneberger et al. 2015 (arXiv 1505.04597), figure 2, for the overlap-tile strategy.
    """

    def __init__(
        self,
        window: Sequence[int],
        overlap: float | Sequence[float] = 0.5,
        blend: Blend = "gaussian",
        batch: int = 1,
        axis: int | Literal["auto"] = "auto",
        skip: Skip = None,
        accumulate: Literal["float32", "float16"] = "float32",
        *,
        margin: Sequence[int] | None = None,
        step: Sequence[int] | None = None,
        placement: Literal["interval", "even"] = "interval",
        padding: Padding = "constant",
        fill: float = 0.0,
        box: tuple[tuple[int, int], ...] | None = None,
        progress: Progress = silent,
    ) -> None:
        self.tiling = replace(Tiling.of(window, overlap, margin, step, placement), box=box)
        axes = len(self.tiling.window)
        if batch < 1:
            raise ValueError(f"window batch: expected at least 1, got {batch}. Raise it.")
        if axis != "auto" and axis not in range(axes):
            raise ValueError(f"streaming axis: expected auto or one of 0 to {axes - 1}, got {axis!r}. Correct it.")
        if accumulate not in _SUM_TYPES:
            raise ValueError(
                f"accumulate: expected one of {', '.join(_SUM_TYPES)}, got {accumulate!r}. Choose one of them."
            )
        self.batch, self.axis, self.skip, self.sum_type = batch, axis, skip, _SUM_TYPES[accumulate]
        self.padding, self.fill, self.progress = padding, fill, progress
        self.importance = importance_map(self.tiling.tile, blend)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Network | Passes, *args: Any, **kwargs: Any) -> Any:
        """Run the network over all windows and blend what it returns.

        Args:
            inputs: (B, C, *spatial) with as many spatial axes as the window.
            network: Takes (n, C, *window), returns logits (n, L, *window), less the margin, of any floating type; or
                several of them in a sequence or mapping. Or :class:`~pipeline.infer.tta.Passes`, to average several
                networks and mirror images in the memory of one.
            args: Handed to the network.
            kwargs: Handed to the network.

        Returns:
            Logits (B, L, *spatial), float32 or float64, on the device of the inputs; in a tuple or a dictionary if the
            network returns several.

        Raises:
            ValueError: If the inputs or the network's output do not have these shapes, or a margin leaves tiles smaller
                than the step for a volume that needs several.
        """
        volumes = self._checked(inputs)
        shape, axis = volumes.shape[2:], self.streaming_axis(volumes.shape[2:])
        called = network if isinstance(network, Passes) else Passes([lambda x: network(x, *args, **kwargs)], dtype=None)
        totals: list[Tensor] = []
        for number, volume in enumerate(volumes):
            for first, outputs in self._planes(volume, called):
                totals = totals or [planes.new_empty((len(volumes), planes.shape[-1], *shape)) for planes in outputs]
                for total, planes in zip(totals, outputs, strict=True):
                    part = total[number].movedim(axis + 1, 1)[:, first : first + len(planes)]
                    part.copy_(planes.movedim(-1, 0).reshape(part.shape))
        return called.packed(totals)

    @torch.no_grad()
    def label_map(
        self,
        inputs: Tensor,
        network: Network | Passes,
        output_shape: Sequence[int] | None = None,
        *,
        painting: Sequence[PaintingStep] = (),
    ) -> Tensor:
        """Class index of every voxel; the logits of all classes never exist for more planes than a window is thick.

        Args:
            inputs: As for calling the inferer.
            network: As there; of several outputs the first one counts.
            output_shape: Voxels of the labels along each axis, over the same field of view: logits are resampled
                linearly before the decision. None for those of the inputs.
            painting: How regions become classes, see :func:`~pipeline.infer.labelling.decode`; empty for a softmax.

        Returns:
            (B, *output_shape): uint8 up to 256 classes, else uint16, on the device of the inputs. Of equal logits the
            lowest class wins.

        Raises:
            ValueError: As for calling the inferer; or if logits are not finite.
        """
        volumes = self._checked(inputs)
        shape = tuple(volumes.shape[2:])
        target = shape if output_shape is None else tuple(int(n) for n in output_shape)
        if len(target) != len(shape) or min(target) < 1:
            raise ValueError(f"output_shape: expected {len(shape)} sizes of at least 1, got {target}. Correct it.")
        axis, found = self.streaming_axis(shape), None
        for number, volume in enumerate(volumes):
            for first, labels in self.label_planes(volume, network, target, painting=painting):
                if found is None:
                    found = labels.new_empty((len(volumes), *target))
                part = found[number].movedim(axis, 0)[first : first + len(labels)]
                part.copy_(labels.reshape(part.shape))
        assert found is not None  # volumes are not empty
        return found

    @torch.no_grad()
    def label_planes(
        self, volume: Tensor, network: Network | Passes, target: Sequence[int], *, painting: Sequence[PaintingStep] = ()
    ) -> Iterator[tuple[int, Tensor]]:
        """Labels of one volume as they are finished; see :meth:`label_map`.

        Args:
            volume: (C, *spatial).
            network: As for :meth:`label_map`.
            target: Voxels of the labels along each axis.
            painting: As for :meth:`label_map`.

        Yields:
            First plane along :meth:`streaming_axis` of the volume, and planes of labels (n, a, b), b being 1 in images
            of two axes.
        """
        labels = PlaneLabels(*self._shapes(volume, target), painting)
        for planes in self._first_output(volume, network, relative=not painting):
            yield from labels.add(planes)

    @torch.no_grad()
    def labelled_planes(
        self, volume: Tensor, network: Network | Passes, target: Sequence[int], *, painting: Sequence[PaintingStep] = ()
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Labels of one volume as they are finished, and the logits they come from.

        The labels are just those of :meth:`label_planes`, the logits those of :meth:`logit_planes`, up to a number that
        is the same for all classes of a voxel.

        Yields:
            First plane, labels (n, a, b) and logits (n, a, b, L).
        """
        shapes = self._shapes(volume, target)
        planes = self._first_output(volume, network, relative=not painting)
        yield from labels_and_logits(planes, PlaneLabels(*shapes, painting), PlaneLogits(*shapes))

    @torch.no_grad()
    def logit_planes(
        self, volume: Tensor, network: Network | Passes, target: Sequence[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Resampled logits of one volume as they are finished.

        Args:
            volume: (C, *spatial).
            network: As for :meth:`label_map`.
            target: Voxels of the result along each axis.

        Yields:
            First plane along :meth:`streaming_axis` of the volume, and logits (n, a, b, L), float32, b being 1 in
            images of two axes; valid until the next ones are asked for.
        """
        logits = PlaneLogits(*self._shapes(volume, target))
        for planes in self._first_output(volume, network, relative=False):
            yield from logits.add(planes)

    def streaming_axis(self, shape: Sequence[int]) -> int:
        """The axis along which a volume of a shape is finished."""
        return self.tiling.thinnest(shape) if self.axis == "auto" else self.axis

    def planes_held(self, shape: Sequence[int], passes: int = 1) -> int:
        """Planes of a volume of a shape whose sums are held at one time, with so many passes over each window."""
        return self._batches(shape).thickness(shape, passes)

    def window_count(self, shape: Sequence[int]) -> int:
        """How many windows a volume of a shape takes, without those that a mask leaves out."""
        starts = self.tiling.starts(shape, self.streaming_axis(shape))
        mask = self.skip if isinstance(self.skip, Tensor) else None
        return sum(mask is None or self.tiling.reaches(start, mask) for start in starts)

    def _planes(self, volume: Tensor, network: Passes, *, relative: bool = False) -> Iterator[tuple[int, list[Tensor]]]:
        """Finished planes of a volume, in their order, a few at a time.

        Args:
            volume: (C, *spatial).
            network: The logits of all its passes are averaged.
            relative: Whether it is enough to know logits relative to the highest of a voxel of a window.

        Yields:
            First plane along the streaming axis and, for every output of the network, mean logits (n, a, b, L); b is 1
            in images of two axes. Valid until the next ones are asked for.
        """
        shape, batches = volume.shape[1:], self._batches(volume.shape[1:])
        passes = network.each(self.tiling.window, self.tiling.tile)
        # How many outputs and channels there are is known once the first window went through the network.
        accumulators: list[Accumulator] = []
        with ExitStack() as stack:
            for window in batches.each(volume, passes, self.progress):
                if not accumulators and isinstance(window, WindowLogits):
                    accumulators = [
                        self._accumulator(volume, logits, batches, len(passes), relative) for logits in window.outputs
                    ]
                    stack.enter_context(keep_freed_memory(_not_kept(window.outputs)))
                first = window if isinstance(window, int) else window.first
                yield from finished_planes([each.buffer for each in accumulators], max(0, first))
                if isinstance(window, int):
                    continue
                _add(window, batches.axis, accumulators)
                del window  # before the network makes the next logits: the name would hold these
            yield from finished_planes([each.buffer for each in accumulators], shape[batches.axis])

    def _first_output(self, volume: Tensor, network: Network | Passes, *, relative: bool) -> Iterator[Tensor]:
        """Finished planes (n, a, b, L) of the first output.

        Args:
            volume: (C, *spatial).
            network: As for calling the inferer.
            relative: Whether logits are only compared. Then float16 sums are of logits relative to the highest: a
                difference has more of its few digits.
        """
        passes = network if isinstance(network, Passes) else Passes([network], dtype=None)
        found = self._planes(volume, passes, relative=relative and self.sum_type == torch.float16)
        return (outputs[0] for _, outputs in found)

    def _accumulator(
        self, volume: Tensor, logits: Tensor, batches: WindowBatches, passes: int, relative: bool
    ) -> Accumulator:
        """For a volume and an output (L, *tile) of so many passes."""
        half = self.sum_type == torch.float16
        dtype = self.sum_type if half else torch.promote_types(logits.dtype, self.sum_type)
        shape = volume.shape[1:]
        thickness, across = batches.thickness(shape, passes), _streaming_first(shape, batches.axis, 1)[1:]
        buffer = PlaneBuffer(thickness, across, len(logits), dtype, volume.device, relative)
        # The few digits of float16 would lose many small numbers added to a large one, and logits that a GPU computes
        # for sums on the CPU had better go there once: then the mean over the passes of a window is made first.
        apart = passes > 1 and (half or logits.device != volume.device)
        importance = _planes_first(self.importance[None], batches.axis)[0]
        return Accumulator(buffer, importance, passes, logits.device if apart else None)

    def _batches(self, shape: Sequence[int]) -> WindowBatches:
        axis = self.streaming_axis(shape)
        return WindowBatches(self.tiling, self.batch, axis, self.skip, self.padding, self.fill)

    def _shapes(self, volume: Tensor, target: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Voxels of a volume and of its result, the streaming axis first."""
        axis = self.streaming_axis(volume.shape[1:])
        return _streaming_first(volume.shape[1:], axis, 1), _streaming_first(target, axis, 1)

    def _checked(self, inputs: Tensor) -> Tensor:
        axes = len(self.tiling.window)
        if inputs.ndim != axes + 2 or 0 in inputs.shape:
            raise ValueError(
                f"inference input: expected (B, C, {axes} spatial axes), none of them empty, "
                f"got shape {tuple(inputs.shape)}. Add the batch and channel axes."
            )
        plain: Tensor = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return plain


def _add(window: WindowLogits, axis: int, accumulators: Sequence[Accumulator]) -> None:
    """Add what one pass over a window gives, one accumulator for each output; planes are counted along the axis."""
    order, start = _streaming_first(range(len(window.start)), axis, 2), _streaming_first(window.start, axis, 0)
    for accumulator, logits in zip(accumulators, window.outputs, strict=True):
        back, reversed_axes = window.seen.view.back(logits[None])
        flips = tuple(order.index(reversed_axis) for reversed_axis in reversed_axes)
        accumulator.add(start, _planes_first(back[0], axis), flips, window.seen.swapped)


def _streaming_first(numbers: Sequence[int], axis: int, last: int) -> tuple[int, ...]:
    """Numbers per axis, that of the streaming axis first; ``last`` stands for a third axis that is not there."""
    others = [n for other, n in enumerate(numbers) if other != axis]
    return (numbers[axis], *others, *[last] * (2 - len(others)))


def _planes_first(logits: Tensor, axis: int) -> Tensor:
    """(L, *spatial) as (L, t, a, b), the streaming axis first."""
    turned = logits.movedim(axis + 1, 1)
    return turned if turned.ndim == 4 else turned[..., None]


def _not_kept(outputs: Sequence[Tensor]) -> int | None:
    """Bytes from which freed memory is not kept: with many classes those of a batch of logits, or less."""
    large = [logits.untyped_storage().nbytes() for logits in outputs if len(logits) > MANY_CLASSES]
    return min(_KEPT_BYTES, *large) if large else None
