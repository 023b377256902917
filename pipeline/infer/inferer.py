"""Sliding-window inference in bounded memory: a network that sees windows gives logits or labels of a whole volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from pipeline.core.regions import PaintingStep
from pipeline.infer.accumulate import Padding, Skip, Stream, WindowBatches
from pipeline.infer.labelling import SlabLabels, SlabLogits, both
from pipeline.infer.tta import Network, Passes, passes_of
from pipeline.infer.windows import Blend, Tiling, importance_map

Progress = Callable[[int, int], None]
"""Called with the windows of a volume done so far and their number."""

_SUMS = {"float32": torch.float32, "float16": torch.float16}


class StreamingInferer(Inferer):  # type: ignore[misc]  # MONAI is untyped
    """Logits or labels of whole volumes from overlapping windows; a drop-in for MONAI's ``SlidingStreamingInferer``.

    Windows are visited along one axis. A plane that no later window touches is finished at once, so that only as many
    planes as a window is thick are held with all their classes. Full logits equal MONAI's; labels are those of the full
    logits, which never exist.

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
        axis: Along which windows are visited; ``auto`` for the one along which the planes held are the least.
        skip: Windows to leave out, see :data:`~pipeline.infer.accumulate.Skip`. Where there is no other, logits
            are 0 and labels background.
        accumulate: Type of the sums: ``float32`` (float64 if the network returns that), or ``float16`` for half the
            memory and rounding in the fourth digit; several passes then hold the mean of one more batch in float32.
        margin: The network's margin along each axis: the voxels of a window on either side that get no logits. None
            for networks whose logits are as large as their input.
        step: The network's divisor along each axis: with a margin, tiles start at its multiples. None for 1.
        spacing: Of the windows, see :class:`~pipeline.infer.windows.Tiling`.
        padding: What a window sees where the volume is smaller. With a margin, always the mirror image.
        fill: The constant of padding.
        box: First voxel, and one past the last, along each axis of what is looked at; where no window is, logits are 0
            and labels background. None for everything.
        progress: Told after every network call how many windows are done.

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
        spacing: Literal["interval", "even"] = "interval",
        padding: Padding = "constant",
        fill: float = 0.0,
        box: tuple[tuple[int, int], ...] | None = None,
        progress: Progress = lambda done, number: None,
    ) -> None:
        self.tiling = replace(Tiling.of(window, overlap, margin, step, spacing), box=box)
        axes = len(self.tiling.window)
        if batch < 1:
            raise ValueError(f"window batch: expected at least 1, got {batch}. Raise it.")
        if axis != "auto" and axis not in range(axes):
            raise ValueError(f"streaming axis: expected auto or one of 0 to {axes - 1}, got {axis!r}. Correct it.")
        if accumulate not in _SUMS:
            raise ValueError(f"accumulate: expected one of {', '.join(_SUMS)}, got {accumulate!r}. Choose one of them.")
        self.batch, self.axis, self.skip, self.sums = batch, axis, skip, _SUMS[accumulate]
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
        shape, called = volumes.shape[2:], passes_of(network, args, kwargs)
        totals: list[Tensor] = []
        for number, volume in enumerate(volumes):
            stream = self._stream(shape)
            for first, heads in stream.planes(volume, called, self.progress):
                totals = totals or [values.new_empty((len(volumes), values.shape[-1], *shape)) for values in heads]
                for total, values in zip(totals, heads, strict=True):
                    part = total[number].movedim(stream.axis + 1, 1)[:, first : first + len(values)]
                    part.copy_(values.movedim(-1, 0).reshape(part.shape))
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
        axis, found = self._stream(shape).axis, None
        for number, volume in enumerate(volumes):
            for first, labels in self.labels(volume, network, target, painting=painting):
                if found is None:
                    found = labels.new_empty((len(volumes), *target))
                part = found[number].movedim(axis, 0)[first : first + len(labels)]
                part.copy_(labels.reshape(part.shape))
        assert found is not None  # volumes are not empty
        return found

    @torch.no_grad()
    def labels(
        self, volume: Tensor, network: Network | Passes, target: Sequence[int], *, painting: Sequence[PaintingStep] = ()
    ) -> Iterator[tuple[int, Tensor]]:
        """Labels of one volume as they are finished; see :meth:`label_map`.

        Args:
            volume: (C, *spatial).
            network: As for :meth:`label_map`.
            target: Voxels of the labels along each axis.
            painting: As for :meth:`label_map`.

        Yields:
            First row along :meth:`streaming_axis` of the volume, and rows of labels (n, a, b), b being 1 in images of
            two axes.
        """
        slabs = SlabLabels(*self._turned(volume, target), painting)
        for planes in self._planes(volume, network, painting):
            yield from slabs.add(planes)

    @torch.no_grad()
    def labelled_rows(
        self, volume: Tensor, network: Network | Passes, target: Sequence[int], *, painting: Sequence[PaintingStep] = ()
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Labels of one volume as they are finished, just those of :meth:`labels`, and the logits they come from.

        Args and order are those of :meth:`labels`, and of the logits those of :meth:`logit_rows`, up to a number that
        is the same for all classes of a voxel.

        Yields:
            First row, labels (n, a, b) and logits (n, a, b, L).
        """
        shapes = self._turned(volume, target)
        yield from both(self._planes(volume, network, painting), SlabLabels(*shapes, painting), SlabLogits(*shapes))

    @torch.no_grad()
    def logit_rows(
        self, volume: Tensor, network: Network | Passes, target: Sequence[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Resampled logits of one volume as they are finished.

        Args:
            volume: (C, *spatial).
            network: As for :meth:`label_map`.
            target: Voxels of the result along each axis.

        Yields:
            First row along :meth:`streaming_axis` of the volume, and logits (n, a, b, L), float32, b being 1 in images
            of two axes; valid until the next ones are asked for.
        """
        slabs = SlabLogits(*self._turned(volume, target))
        for planes in self._planes(volume, network):
            yield from slabs.add(planes)

    def streaming_axis(self, shape: Sequence[int]) -> int:
        """The axis along which a volume of a shape is finished."""
        return self.tiling.thinnest(shape) if self.axis == "auto" else self.axis

    def planes_held(self, shape: Sequence[int], passes: int = 1) -> int:
        """Planes of a volume of a shape whose sums are held at one time, with so many passes over each window."""
        return self._stream(shape).visits.thickness(shape, passes)

    def _planes(
        self, volume: Tensor, network: Network | Passes, painting: Sequence[PaintingStep] | None = None
    ) -> Iterator[Tensor]:
        """Finished planes (n, a, b, L) of the first output.

        Where they are only compared (``painting`` is empty), float16 sums are of logits relative to the highest: a
        difference has more of its few digits.
        """
        stream = self._stream(volume.shape[1:])
        relative = self.sums == torch.float16 and painting is not None and not painting
        return (heads[0] for _, heads in stream.planes(volume, passes_of(network), self.progress, relative))

    def _turned(self, volume: Tensor, target: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Voxels of a volume and of its result, the streaming axis first."""
        stream = self._stream(volume.shape[1:])
        return stream.turned(volume.shape[1:], 1), stream.turned(target, 1)

    def _stream(self, shape: Sequence[int]) -> Stream:
        axis = self.streaming_axis(shape)
        visits = WindowBatches(self.tiling, self.batch, axis, self.skip, self.padding, self.fill)
        return Stream(visits, self.importance, self.sums)

    def _checked(self, inputs: Tensor) -> Tensor:
        axes = len(self.tiling.window)
        if inputs.ndim != axes + 2 or 0 in inputs.shape:
            raise ValueError(
                f"inference input: expected (B, C, {axes} spatial axes), none of them empty, "
                f"got shape {tuple(inputs.shape)}. Add the batch and channel axes."
            )
        plain: Tensor = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return plain
