"""A trained model as it takes part in a prediction: which windows its networks see, where the sums over them lie."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config.settings import InferSettings
from pipeline.core.errors import ConfigError, VolsegError, sentence
from pipeline.core.files import file_hash
from pipeline.core.grid import Box
from pipeline.core.machine import available_bytes, bytes_in_words
from pipeline.infer.cleaning import Cleaning
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.labelling import Orders
from pipeline.infer.tta import Passes, augmentation_problems, mirror_axes, rotation_of, spread
from pipeline.infer.windows import check_window, fitting_window, in_volume, prediction_window
from pipeline.model.cost import window_bytes
from pipeline.model.device import choose_dtype, enough_memory, free_bytes, out_of_memory, to_device
from pipeline.model.folder import ModelCard, fold_folder, load_network, read_card, wanted_folds
from pipeline.preprocess.plan_file import FIRST_STAGE
from pipeline.sample.augment import directions

_GPU_SHARE = 0.8  # of a GPU's free memory; the network's activations need some too
_SLICES_PER_WINDOW = 8  # a 2D window is so much smaller than a 3D one that more of them fit a network call
_OWN_STATISTICS = (nn.GroupNorm, nn.InstanceNorm2d, nn.InstanceNorm3d)  # logits depend on what else is in the window


WINDOW_ADVICE = (
    "Set infer.accumulate=float16, a smaller infer.window_size or infer.batch_size, or take a larger machine"
)
"""What to change where a prediction takes too much."""

T = TypeVar("T")


def device_with_memory(
    needed: int, what: str, device: torch.device, most: int | None = None, beside: int = 0
) -> torch.device:
    """The device for the sums: that of the network, or the CPU where a GPU has too little memory.

    It is asked before the first window, so that no prediction dies on its way.

    Args:
        needed: Bytes of the sums and of the logits of a batch of windows.
        what: Of what they are, for the error.
        device: Of the network.
        most: Bytes that these may take, on whatever device; None for all that are free.
        beside: Bytes that a GPU needs as well: for the image, and what the network makes of a window.

    Raises:
        VolsegError: If there is too little memory, with the numbers.
    """
    free = free_bytes(device) if device.type == "cuda" else None
    fits = free is not None and needed + beside <= _GPU_SHARE * free
    there = [n for n in (None if fits else available_bytes(), most) if n is not None]
    if there and needed > min(there):
        rule = f"at least {bytes_in_words(needed)} for {what}"
        raise VolsegError(sentence("memory", rule, bytes_in_words(min(there)), WINDOW_ADVICE))
    return device if fits or device.type == "mps" else torch.device("cpu")


def with_room(models: Sequence[TrainedModel], work: Callable[[Sequence[TrainedModel]], T]) -> T:
    """The result of work on windows; where a GPU runs out of memory on the way, once more with the sums on the CPU.

    Args:
        models: Those that take part.
        work: Predicts something with the models that it is given, from the beginning on; called twice at most.

    Raises:
        VolsegError: If that was not enough, or the CPU ran out of memory.
    """
    devices = dict.fromkeys(device for model in models for device in model.devices)
    if any(device.type == "cuda" for device in devices) and not all(model.sums_on_cpu for model in models):
        try:
            return work(models)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # After the except block: while the error lives, its traceback holds the tensors of the failed work.
        torch.cuda.empty_cache()
        models = [model.with_sums_on_cpu() for model in models]
    with enough_memory(", ".join(map(str, devices)), "a batch of windows", WINDOW_ADVICE):
        return work(models)


class SliceNetwork(nn.Module):
    """A 2D network that takes 3D windows, so that it runs through the same inferer as a 3D network.

    The window is usually one voxel thick along ``axis``; a thicker one is a batch of slices. ``divisor``, ``margin``
    and ``legal_size`` are those of the network, along i, j, k; across slices there is no rule.

    Args:
        network: 2D network: (B, C, H, W) → logits (B, L, H', W'), with ``divisor``, ``margin`` and ``legal_size`` if it
            has rules.
        axis: Spatial axis (0, 1 or 2) across which the slices lie. H and W are the other two, in their order.

    Raises:
        ValueError: If the axis is not 0, 1 or 2.
    """

    def __init__(self, network: nn.Module, axis: int) -> None:
        super().__init__()
        if axis not in (0, 1, 2):
            raise ValueError(f"slice axis: expected 0, 1 or 2, got {axis}. Choose the axis across the slices.")
        self.network, self.axis = network, axis
        self.divisor: tuple[int, ...] = self._across(getattr(network, "divisor", (1, 1)), 1)
        self.margin: tuple[int, ...] = self._across(getattr(network, "margin", (0, 0)), 0)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Logits (B, L, I, J, K) of every slice of (B, C, I, J, K), in plane smaller by the margin on either side."""
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


class TrainedModel:
    """A trained model: one network per fold, whose logits are averaged.

    A 2D network sees every slice. Mirror images and networks are averaged in the sums over windows, so that memory does
    not grow with them.

    Args:
        card: Description of the model.
        networks: One per fold, at least one, in evaluation mode; each on its device. One without ``margin`` is taken
            for padded.
        device: Where the networks are; of several devices, in turn. Sums are on the first.
        settings: Section ``infer``; by default the one the model was trained with.
        most_bytes: Memory that the sums over windows may take, on whatever device; by default all that is free.
        sources: Content hashes of the files it was loaded from.
        first_stage: Of a cascade, the model whose labels the networks see beside the image. Without it they are given
            with the image, as its last channel.

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
        first_stage: TrainedModel | None = None,
    ) -> None:
        self.first_stage = first_stage
        if not networks:
            raise ConfigError([sentence("prediction", "at least one network", "none", "Load a trained model")])
        self.card, self.networks, self.most_bytes, self.sources = card, list(networks), most_bytes, tuple(sources)
        self.devices = spread(len(networks), device)
        self.device = self.devices[0]
        self.settings = settings or card.settings.infer
        check_inference(card, self.settings)
        spec, plan = card.network, card.plan
        self.labels = plan.label_table
        self.painting = plan.painting()
        self.sums_on_cpu = False
        self._window_bytes: dict[tuple[int, ...], int] = {}
        runners: list[Any] = [n if spec.dims == 3 else SliceNetwork(n, plan.slice_axis) for n in networks]
        self.first: Any = runners[0]
        self.margin = getattr(self.first, "margin", (0, 0, 0))
        own_statistics = any(isinstance(layer, _OWN_STATISTICS) for layer in networks[0].modules())
        # Tiles of networks with a margin agree where they overlap, unless windows are normalized by themselves.
        self.overlap = 0.0 if any(self.margin) and not own_statistics else self.settings.overlap
        self.mirror_axes = mirror_axes(plan, spec.dims, card.settings) if self.settings.mirror else ()
        # Another tool's training left the labels of mirrored organs as they were.
        paired = plan.conventions is None
        self.passes = Passes(
            runners,
            _precision(card, self.device),
            self.mirror_axes,
            directions(plan.orientation).index("LR") if paired else None,
            self.labels.output_side_pairs() if paired else (),
            rotation_of(plan, spec) if self.settings.rotate else None,
            self.labels.side_pairs() if plan.cascade and paired else (),
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        card: ModelCard,
        device: torch.device | Sequence[torch.device],
        folds: Sequence[int] | None = None,
        settings: InferSettings | None = None,
        most_bytes: int | None = None,
        *,
        alone: bool = False,
    ) -> TrainedModel:
        """Load a model folder, of a cascade both stages.

        Args:
            folder: What ``volseg train`` wrote.
            card: Content of its ``model.json``.
            device: Where to compute, or several devices over which the networks are spread.
            folds: Folds to average, of a cascade in both stages; by default all that are trained.
            settings: Section ``infer``; by default the model's own. The first stage of a cascade keeps its own, because
                the second was trained on what it finds with them.
            most_bytes: As for the class.
            alone: Leave out the first stage of a cascade.

        Raises:
            VolsegError: If the folder holds no trained network, or not the folds asked for.
        """
        wanted = wanted_folds(folder, folds)
        files = (folder / "model.json", *(fold_folder(folder, fold) / "model.safetensors" for fold in wanted))
        places = spread(len(wanted), device)
        networks = [to_device(load_network(folder, card, n), place) for n, place in zip(wanted, places, strict=True)]
        sources, first = [file_hash(file) for file in files], None
        if card.plan.cascade and not alone:
            home = folder / FIRST_STAGE
            first = cls.load(home, read_card(home), device, folds, None, most_bytes)
            sources += first.sources
        return cls(card, networks, places, settings, most_bytes, sources, first)

    def inferer(
        self, shape: Sequence[int], axis: int | Literal["auto"] = "auto", part: Tensor | Box | None = None
    ) -> StreamingInferer:
        """The inferer for an image, which takes :attr:`passes` as its network.

        Args:
            shape: Voxels of the image on the prepared grid.
            axis: The streaming axis.
            part: What to look at, all else is background: a mask (I, J, K), outside which windows are left out, or a
                box, which windows cover as they would a volume. None for everything.

        Raises:
            ConfigError: If the window that the settings ask for is none the network can take.
        """
        spec, plan, settings = self.card.network, self.card.plan, self.settings
        batch = settings.batch_size if spec.dims == 3 else settings.batch_size * _SLICES_PER_WINDOW
        patch = window = in_volume(spec.patch_size, plan, spec)
        if isinstance(settings.window_size, tuple):
            window = in_volume(settings.window_size, plan, spec)
        elif any(self.margin):
            window = prediction_window(self.first, patch, shape)
        elif settings.window_size == "fit" and self.passes.rotation is None:  # a quarter turn needs square windows
            window = fitting_window(self.first, patch, shape)
        # A batch has no more voxels than so many patches. A window that the user chose is left to the user.
        if not isinstance(settings.window_size, tuple):
            batch = max(1, min(batch, batch * math.prod(patch) // math.prod(window)))
        return StreamingInferer(
            window,
            self.overlap,
            settings.blend,
            batch,
            axis,
            part if isinstance(part, Tensor) else None,
            accumulate=settings.accumulate,
            margin=self.margin,
            step=getattr(self.first, "divisor", (1, 1, 1)),
            placement="nnunet" if settings.blend == "nnunet" else "even",
            box=tuple(zip(part.start, part.stop, strict=True)) if isinstance(part, Box) else None,
        )

    def label_planes(
        self,
        prepared: NDArray[np.floating[Any]],
        target: Sequence[int],
        inferer: StreamingInferer | None = None,
        orders: Orders | None = None,
    ) -> tuple[int, Iterator[tuple[int, Tensor]]]:
        """Class indices of an image, resampled, in bounded memory.

        Args:
            prepared: (C, I, J, K) on the plan's grid.
            target: Voxels of the labels over the same field of view.
            inferer: One of :meth:`inferer`; by default that for the whole image.
            orders: Spline order of the logits along each axis; by default linear.

        Returns:
            The axis along which they come, and planes of them: first plane and (n, a, b), that axis first, the others
            in their order.

        Raises:
            ConfigError: As for :meth:`inferer`.
            VolsegError: If there is too little memory for the sums over windows.
        """
        inferer = inferer or self.inferer(prepared.shape[1:])
        image = self.placed(prepared, inferer)  # before the first window, so that no prediction dies on its way
        planes = inferer.label_planes(image, self.passes, target, painting=self.painting, orders=orders)
        return inferer.streaming_axis(image.shape[1:]), planes

    def label_map(self, prepared: NDArray[np.floating[Any]]) -> Tensor:
        """Class indices (I, J, K) of an image on its own grid, on the CPU; arguments and errors as above."""
        inferer = self.inferer(prepared.shape[1:])
        image = self.placed(prepared, inferer)
        return inferer.label_map(image[None], self.passes, painting=self.painting)[0].cpu()

    def placed(self, prepared: NDArray[np.floating[Any]], inferer: StreamingInferer) -> Tensor:
        """The image where the sums over its windows and the logits of a batch of them have room.

        Raises:
            VolsegError: If there is too little memory, with the numbers.
        """
        shape, axis = prepared.shape[1:], inferer.streaming_axis(prepared.shape[1:])
        classes, planes = self.card.network.out_channels, inferer.planes_held(shape, self.pass_count(inferer))
        across = " x ".join(str(n) for other, n in enumerate(shape) if other != axis)
        what = f"{classes} classes x {planes} planes of {across} voxels"
        device = torch.device("cpu") if self.sums_on_cpu else self.device
        needed = self._sums_bytes(shape, inferer)
        beside = self.bytes_on_gpu(prepared.shape, inferer) - needed if device.type == "cuda" else 0
        place = device_with_memory(needed, what, device, self.most_bytes, beside)
        return torch.from_numpy(np.ascontiguousarray(prepared, dtype=np.float32)).to(place)

    def bytes_on_gpu(self, shape: Sequence[int], inferer: StreamingInferer | None = None) -> int:
        """Bytes that an image (C, I, J, K) of a shape takes on a GPU, with sums, logits and the work on a window."""
        inferer = inferer or self.inferer(shape[1:])
        window = tuple(inferer.tiling.window)
        if window not in self._window_bytes:
            dtype = _precision(self.card, self.device)
            # One window: where a GPU has no room for several, it goes on with fewer.
            self._window_bytes[window] = window_bytes(self.first, (1, shape[0], *window), dtype)
        image = math.prod(shape) * torch.float32.itemsize
        return self._sums_bytes(shape[1:], inferer) + image + self._window_bytes[window]

    def _sums_bytes(self, shape: Sequence[int], inferer: StreamingInferer) -> int:
        """Bytes of the sums over the windows of an image (I, J, K), and of the logits of a batch of windows."""
        classes, axis = self.card.network.out_channels, inferer.streaming_axis(shape)
        planes = inferer.planes_held(shape, self.pass_count(inferer))
        across = math.prod(n for other, n in enumerate(shape) if other != axis)
        sums = classes * planes * across * inferer.sum_type.itemsize
        # Logits of a batch count twice: those that are added, and those that the network makes meanwhile.
        return sums + 2 * classes * math.prod(inferer.tiling.tile) * inferer.batch * torch.float32.itemsize

    def with_sums_on_cpu(self) -> TrainedModel:
        """The same model, whose sums over windows are on the CPU however much memory a GPU has."""
        other = copy.copy(self)
        other.sums_on_cpu = True
        return other

    def pass_count(self, inferer: StreamingInferer) -> int:
        """How many passes each window takes: networks times views."""
        return len(self.passes.each(inferer.tiling.window, inferer.tiling.tile))


def _precision(card: ModelCard, device: torch.device) -> torch.dtype:
    """Type of the networks' arithmetic; for models of nnU-Net the one that it predicts with."""
    if card.plan.conventions is not None:
        return torch.float16 if device.type == "cuda" else torch.float32
    return choose_dtype(device, card.settings.train.precision)


def check_inference(card: ModelCard, settings: InferSettings) -> None:
    """Refuse settings of inference that a model cannot follow; training asks before it begins.

    Raises:
        ConfigError: If mirroring or rotation is asked of a network that saw no such patches, an organ to clean is not
            known, or the window is none the network can tile volumes with.
    """
    known = card.plan.label_table.targets
    for key, names in Cleaning.of(settings).to_json().items():
        unknown = [name for name in names if name not in known]
        if unknown:
            rule, got = f"some of {', '.join(known)}", ", ".join(unknown)
            raise ConfigError([sentence(f"infer.{key}", rule, got, "Correct it")])
    if card.plan.cascade and settings.roi in ("organs", "auto"):
        advice = "Its first stage has looked at everything already"
        raise ConfigError([sentence("infer.roi", "none or body for a cascade", settings.roi, advice)])
    problems = augmentation_problems(card.plan, card.network, card.settings, settings)
    if problems:
        raise ConfigError(problems)
    check_window(card.network, settings)
