"""From a prepared image to logits or labels: which windows networks see, in which precision, mirrored how."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.config import InferSettings
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.mirror import Rotation
from pipeline.infer.passes import Passes
from pipeline.infer.roi import Box
from pipeline.infer.slices import SliceNetwork
from pipeline.infer.window_size import fitting_window, in_volume, prediction_window
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan import Plan
from pipeline.sample.augment import directions

__all__ = ["CaseInference"]

_SLICES_PER_WINDOW = 8  # a 2D window is so much smaller than a 3D one that more of them fit a network call
_OWN_STATISTICS = (nn.GroupNorm, nn.InstanceNorm2d, nn.InstanceNorm3d)


class CaseInference:
    """How networks of one design predict an image on the prepared grid.

    A 2D network sees every slice. Mirror images and networks are averaged in the sums over windows, so that memory does
    not grow with them. Tiles of networks with a margin agree where they overlap and are therefore laid side by side,
    unless the networks normalize every window by itself.

    Args:
        networks: In evaluation mode, at least one; each may be on a device of its own. One without ``margin`` is taken
            for padded.
        spec: The networks' description.
        plan: The dataset's plan.
        settings: Section ``infer``.
        dtype: Type of the networks' arithmetic.
        mirror_axes: Volume axes over whose mirrorings the logits are averaged.
        rotation: Of windows, over which they are averaged too.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        spec: NetworkSpec,
        plan: Plan,
        settings: InferSettings,
        dtype: torch.dtype = torch.float32,
        mirror_axes: Sequence[int] = (),
        rotation: Rotation | None = None,
    ) -> None:
        runners: list[Any] = [n if spec.dims == 3 else SliceNetwork(n, plan.slice_axis) for n in networks]
        self.spec, self.plan, self.settings = spec, plan, settings
        self.first: Any = runners[0]
        self.margin = getattr(self.first, "margin", (0, 0, 0))
        self.agree = any(self.margin) and not _normalizes_windows(networks[0])
        sides, pairs = directions(plan.orientation).index("LR"), plan.label_table.output_side_pairs()
        self.network = Passes(runners, dtype, mirror_axes, sides, pairs, rotation)

    def logits(self, image: Tensor) -> Tensor:
        """Logits (L, I, J, K), float32, of a prepared image (C, I, J, K), on its device.

        Raises:
            ConfigError: If the window that the settings ask for is none the network can take.
        """
        logits: Tensor = self._inferer(image.shape[1:])(image[None], self.network)[0]
        return logits

    def labels(
        self, image: Tensor, target: Sequence[int], part: Tensor | Box | None = None
    ) -> tuple[int, Iterator[tuple[int, Tensor]]]:
        """Class indices, resampled, in bounded memory.

        Args:
            image: (C, I, J, K), prepared.
            target: Voxels of the labels over the same field of view.
            part: What to look at, all else is background: a mask (I, J, K), outside which windows are left out, or a
                box, which windows cover as they would a volume. None for everything.

        Returns:
            The axis along which they come, and rows of them: first row and (n, a, b), that axis first, the others in
            their order.

        Raises:
            ConfigError: As for :meth:`logits`.
        """
        shape = image.shape[1:]
        inferer, painting = self._inferer(shape, part=part), self.plan.label_table.painting()
        return inferer.streaming_axis(shape), inferer.labels(image, self.network, target, painting=painting)

    def labelled_rows(self, image: Tensor, target: Sequence[int]) -> tuple[int, Iterator[tuple[int, Tensor, Tensor]]]:
        """Class indices as of :meth:`labels`, and the resampled logits (n, a, b, L) that they come from."""
        shape = image.shape[1:]
        inferer, painting = self._inferer(shape), self.plan.label_table.painting()
        return inferer.streaming_axis(shape), inferer.labelled_rows(image, self.network, target, painting=painting)

    def needed_bytes(self, shape: Sequence[int]) -> tuple[int, str]:
        """Memory for the sums over windows and the logits of a batch of them, and what of, in words.

        Args:
            shape: Voxels of the image on the prepared grid.
        """
        inferer, classes = self._inferer(shape), self.spec.out_channels
        axis, tile = inferer.streaming_axis(shape), inferer.tiling.tile
        planes, across = (
            inferer.planes_held(shape, self.passes(shape)),
            [n for other, n in enumerate(shape) if other != axis],
        )
        sums = classes * planes * math.prod(across) * inferer.sums.itemsize
        windows = 2 * classes * math.prod(tile) * inferer.batch * torch.float32.itemsize
        return sums + windows, f"{classes} classes x {planes} planes of {' x '.join(map(str, across))} voxels"

    def streaming_axis(self, shape: Sequence[int]) -> int:
        """The axis along which an image of a shape is finished where none is asked for."""
        return self._inferer(shape).streaming_axis(shape)

    def logit_rows(self, image: Tensor, target: Sequence[int], axis: int) -> Iterator[tuple[int, Tensor]]:
        """Resampled logits in bounded memory.

        Args:
            image: (C, I, J, K), prepared.
            target: Voxels of the result over the same field of view.
            axis: Along which they come.

        Yields:
            First row and logits (n, a, b, L), float32, that axis first, the others in their order.
        """
        yield from self._inferer(image.shape[1:], axis).logit_rows(image, self.network, target)

    def windows(self, shape: Sequence[int], part: Tensor | Box | None = None) -> int:
        """How many windows an image of a shape takes, or a part of it; see :meth:`labels`."""
        inferer = self._inferer(shape, part=part)
        places = inferer.tiling.places(shape, inferer.streaming_axis(shape))
        return sum(not isinstance(part, Tensor) or inferer.tiling.reaches(place, part) for place in places)

    def passes(self, shape: Sequence[int]) -> int:
        """How many passes each window takes: networks times views."""
        tiling = self._inferer(shape).tiling
        return len(self.network.each(tiling.window, tiling.tile))

    def _inferer(
        self, shape: Sequence[int], axis: int | Literal["auto"] = "auto", part: Tensor | Box | None = None
    ) -> StreamingInferer:
        """For an image of a shape on the prepared grid."""
        spec, plan, settings = self.spec, self.plan, self.settings
        batch = settings.batch_size if spec.dims == 3 else settings.batch_size * _SLICES_PER_WINDOW
        patch = window = in_volume(spec.patch_size, plan, spec)
        if isinstance(settings.window_size, tuple):
            window = in_volume(settings.window_size, plan, spec)
        elif any(self.margin):
            window = prediction_window(self.first, patch, shape)
        elif settings.window_size == "fit" and self.network.rotation is None:
            window = fitting_window(self.first, patch, shape)
        if not isinstance(settings.window_size, tuple):  # no more voxels than so many patches
            batch = max(1, min(batch, batch * math.prod(patch) // math.prod(window)))
        return StreamingInferer(
            window,
            0.0 if self.agree else settings.overlap,
            settings.blend,
            batch,
            axis,
            part if isinstance(part, Tensor) else None,
            accumulate=settings.accumulate,
            margin=self.margin,
            step=getattr(self.first, "divisor", (1, 1, 1)),
            spacing="even",
            box=tuple(zip(part.start, part.stop, strict=True)) if isinstance(part, Box) else None,
        )


def _normalizes_windows(network: nn.Module) -> bool:
    """Whether logits depend on what else is in the window, by the mean and variance of its features."""
    return any(isinstance(layer, _OWN_STATISTICS) for layer in network.modules())
