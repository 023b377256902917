"""From a prepared image to logits or labels: which windows networks see, in which precision, mirrored how."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config.settings import InferSettings
from pipeline.core.box import Box
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import file_hash
from pipeline.core.machine import available_bytes, bytes_in_words
from pipeline.infer.cleaning import Cleaning
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.tta import Passes, Rotation, augmentation_problems, mirror_axes, rotation_of, spread
from pipeline.infer.windows import check_window, fitting_window, in_volume, prediction_window
from pipeline.model.device import choose_dtype, free_bytes, to_device
from pipeline.model.folder import ModelCard, fold_folder, load_network, read_card, wanted_folds
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan_file import Plan
from pipeline.sample.augment import directions

# Where the sums over windows have room: asked before the first window, so that no prediction dies on its way.

_SHARE = 0.8  # of a GPU's free memory; the network's activations need some too


def device_with_memory(needed: int, what: str, device: torch.device, most: int | None = None) -> torch.device:
    """The device for the sums: that of the network, or the CPU where a GPU has too little memory.

    Args:
        needed: Bytes of the sums and of the logits of a batch of windows.
        what: Of what they are, for the error.
        device: Of the network.
        most: Bytes that a prediction may take on the CPU; None for all that are free.

    Raises:
        VolsegError: If there is too little memory, with the numbers.
    """
    if device.type == "cuda":
        free = free_bytes(device)
        if free is not None and needed <= _SHARE * free:
            return device
    there = [n for n in (available_bytes(), most) if n is not None]
    if there and needed > min(there):
        advice = (
            "Set infer.accumulate=float16, a smaller infer.window_size or infer.batch_size, or take a larger machine"
        )
        rule = f"at least {bytes_in_words(needed)} for {what}"
        raise VolsegError(sentence("memory", rule, bytes_in_words(min(there)), advice))
    return device if device.type == "mps" else torch.device("cpu")


# 2D networks on volumes, slice by slice.


class SliceNetwork(nn.Module):
    """A 2D network that takes 3D windows, so that it runs through the same inferer as a 3D network.

    The window is usually one voxel thick along ``axis``; a thicker one is a batch of slices.

    Args:
        network: 2D network: (B, C, H, W) → logits (B, L, H', W'), with ``divisor``, ``margin`` and ``legal_size`` if it
            has rules.
        axis: Spatial axis (0, 1 or 2) across which the slices lie. H and W are the other two, in their order.

    Raises:
        ValueError: If the axis is not 0, 1 or 2.

    Attributes:
        divisor: Distance of legal sizes of the window along i, j, k; 1 across slices.
        margin: Voxels along i, j, k that get no logits on either side of the window; 0 across slices.
    """

    def __init__(self, network: nn.Module, axis: int) -> None:
        super().__init__()
        if axis not in (0, 1, 2):
            raise ValueError(f"slice axis: expected 0, 1 or 2, got {axis}. Choose the axis across the slices.")
        self.network = network
        self.axis = axis
        self.divisor: tuple[int, ...] = self._across(getattr(network, "divisor", (1, 1)), 1)
        self.margin: tuple[int, ...] = self._across(getattr(network, "margin", (0, 0)), 0)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Run the network on every slice.

        Args:
            volume: (B, C, I, J, K).

        Returns:
            Logits (B, L, I, J, K), in plane smaller by the margin on either side.
        """
        slices = volume.movedim(2 + self.axis, 1)  # (B, n, C, H, W)
        logits: torch.Tensor = self.network(slices.flatten(0, 1))
        return logits.reshape(*slices.shape[:2], *logits.shape[1:]).movedim(1, 2 + self.axis)

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The next legal window of at least ``size`` voxels along i, j, k."""
        in_plane = tuple(size[: self.axis]) + tuple(size[self.axis + 1 :])
        rule: Callable[[Sequence[int]], Sequence[int]] = getattr(self.network, "legal_size", tuple)
        return self._across(rule(in_plane), size[self.axis])

    def _across(self, in_plane: Sequence[int], across: int) -> tuple[int, ...]:
        values = [int(value) for value in in_plane]
        values.insert(self.axis, int(across))
        return tuple(values)


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


# A trained model as it takes part in a prediction: from prepared images to logits, from logits to class indices.


class TrainedModel:
    """A trained model: one network per fold, whose logits are averaged.

    Args:
        card: Description of the model.
        networks: One per fold, at least one.
        device: Where to compute, or several devices over which the networks are spread; sums are on the first.
        settings: Section ``infer``; by default the one the model was trained with.
        most_bytes: Memory that the sums over windows may take on the CPU; by default all that is free.
        sources: Content hashes of the files it was loaded from.

    Raises:
        ConfigError: If there is no network, or the settings do not suit the model (see :func:`check_inference`).
    """

    def __init__(
        self,
        card: ModelCard,
        networks: Sequence[nn.Module],
        device: torch.device | Sequence[torch.device],
        settings: InferSettings | None = None,
        most_bytes: int | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        if not networks:
            raise ConfigError(["prediction: expected at least one network, got none. Load a trained model."])
        self.card, self.most_bytes, self.sources = card, most_bytes, tuple(sources)
        self.devices = spread(len(networks), [device] if isinstance(device, torch.device) else device)
        self.device = self.devices[0]
        self.settings = settings or card.settings.infer
        self.dtype = choose_dtype(self.device, card.settings.train.precision)
        check_inference(card, self.settings)
        self.mirror_axes = mirror_axes(card.plan, card.network.dims, card.settings) if self.settings.mirror else ()
        self.rotation = rotation_of(card.plan, card.network) if self.settings.rotate else None
        pairs = zip(networks, self.devices, strict=True)
        self.networks = [to_device(network, place).eval() for network, place in pairs]
        self.inference = CaseInference(
            self.networks, card.network, card.plan, self.settings, self.dtype, self.mirror_axes, self.rotation
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device | Sequence[torch.device],
        folds: Sequence[int] | None = None,
        settings: InferSettings | None = None,
        most_bytes: int | None = None,
    ) -> TrainedModel:
        """Load a model folder.

        Args:
            folder: What ``volseg train`` wrote.
            device: As for the class.
            folds: Folds to average; by default all that are trained.
            settings: Section ``infer``; by default the model's own.
            most_bytes: As for the class.

        Raises:
            VolsegError: If the folder holds no trained model, or not the folds asked for.
        """
        card = read_card(folder)
        wanted = wanted_folds(folder, folds)
        files = (folder / "model.json", *(fold_folder(folder, fold) / "model.safetensors" for fold in wanted))
        networks = [load_network(folder, card, fold) for fold in wanted]
        return cls(card, networks, device, settings, most_bytes, [file_hash(file) for file in files])

    def labels(
        self, prepared: NDArray[np.floating[Any]], target: Sequence[int], part: Tensor | Box | None = None
    ) -> tuple[int, Iterator[tuple[int, Tensor]]]:
        """Class indices of a prepared image, see :meth:`~pipeline.infer.trained_model.CaseInference.labels`.

        Args:
            prepared: (C, I, J, K) on the plan's grid.
            target: Voxels of the labels.
            part: What to look at; None for everything.
        """
        return self.inference.labels(self._image(prepared), target, part)

    def labelled_rows(
        self, prepared: NDArray[np.floating[Any]], target: Sequence[int]
    ) -> tuple[int, Iterator[tuple[int, Tensor, Tensor]]]:
        """Class indices and logits, see :meth:`~pipeline.infer.trained_model.CaseInference.labelled_rows`.

        Args:
            prepared: (C, I, J, K) on the plan's grid.
            target: Voxels of the labels.
        """
        return self.inference.labelled_rows(self._image(prepared), target)

    def logit_rows(
        self, prepared: NDArray[np.floating[Any]], target: Sequence[int], axis: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Resampled logits of a prepared image, see :meth:`~pipeline.infer.trained_model.CaseInference.logit_rows`.

        Args:
            prepared: (C, I, J, K) on the plan's grid.
            target: Voxels of the result.
            axis: Along which they come.
        """
        yield from self.inference.logit_rows(self._image(prepared), target, axis)

    def _image(self, prepared: NDArray[np.floating[Any]]) -> Tensor:
        """The image where the sums over its windows have room."""
        place = device_with_memory(*self.inference.needed_bytes(prepared.shape[1:]), self.device, self.most_bytes)
        return torch.from_numpy(np.ascontiguousarray(prepared, dtype=np.float32)).to(place)


def check_inference(card: ModelCard, settings: InferSettings) -> None:
    """Refuse settings of inference that a model cannot follow; training asks before it begins.

    Args:
        card: Description of the model.
        settings: Section ``infer``.

    Raises:
        ConfigError: If mirroring or rotation is asked of a network that saw no such patches, an organ to clean is not
            known, or the window is none the network can tile volumes with.
    """
    known = card.plan.label_table.targets
    for key, names in Cleaning.of(settings).to_json().items():
        unknown = [name for name in names if name not in known]
        if unknown:
            got = ", ".join(unknown)
            raise ConfigError([f"infer.{key}: expected some of {', '.join(known)}, got {got}. Correct it."])
    problems = augmentation_problems(card.plan, card.network, card.settings, settings)
    if problems:
        raise ConfigError(problems)
    check_window(card.network, settings)
