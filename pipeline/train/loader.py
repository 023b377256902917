"""The batches of a training: patches of prepared cases, cut, augmented, and made ahead by a thread.

A batch depends on its number alone, so that a training that is continued sees what it would have seen. Cases are kept
in memory up to a budget; the rest is read from disk patch by patch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.config.settings import AugmentSettings, SampleSettings
from pipeline.core.errors import DataError
from pipeline.data.store import open_prepared, open_stage_map, read_class_voxels
from pipeline.sample.augment import PatchGeometry, augment, draw_moves
from pipeline.sample.cut import cut_batch
from pipeline.sample.patches import Balance, CaseInfo, Foreground, Patch, balanced_patches, sliding_patches
from pipeline.sample.randomness import BatchRandom, seeded
from pipeline.sample.spatial import Move
from pipeline.sample.stage_maps import JoinedMaps, disturbed, joined_pairs, parted

T = TypeVar("T")

Pair = tuple[Tensor, Tensor]
"""Images (B, C, *S) and class indices (B, *S). In the second stage of a cascade, the last channel of the images is the
class index that the first stage found."""

Part = tuple[Tensor, ...]
"""A pair and, where the loss wants them, the weights (B, *S') of narrow gaps."""


class PatchSource:
    """Batches of patches of some prepared cases.

    Args:
        folder: Folder of the prepared dataset.
        cases: Ids of the cases to draw from, at least one.
        patch_size: Voxels that the network sees along i, j, k; 1 across the slices of a 2D network.
        batch_size: Patches per batch.
        settings: Section ``sample``.
        device: Device that trains; cached cases and batches live there.
        squeeze_axis: Volume axis to drop from the batches of a 2D network, or None.
        margin: Voxels along i, j, k on either side for which the network gives no logits. Without these margins,
            patches are placed as ever; around them lies the image as it is, beyond its border mirrored and ignored.
        class_weights: Class index → weight with which balanced patches choose among the classes present; by default
            all weigh the same.
        seed: Of all draws.
        parts: Into how many parts of ``batch_size`` patches every batch is divided, among processes or one after the
            other.
        gpu_bytes: Memory of a GPU that cached cases may take there, what the training leaves; the others are kept in
            the processor's memory.
        stage: For the second stage of a cascade the folder of stage maps, and how many classes these have.

    Raises:
        DataError: If there is no case, or a case is damaged.
    """

    def __init__(
        self,
        folder: Path,
        cases: Sequence[str],
        patch_size: tuple[int, int, int],
        batch_size: int,
        settings: SampleSettings,
        device: torch.device,
        squeeze_axis: int | None = None,
        margin: tuple[int, int, int] = (0, 0, 0),
        class_weights: Mapping[int, float] | None = None,
        seed: int = 0,
        parts: int = 1,
        gpu_bytes: int = 0,
        stage: tuple[Path, int] | None = None,
    ) -> None:
        if not cases:
            raise DataError(f"{folder}: expected at least one training case, got none. Check splits.json.")
        self.patch_size, self.batch_size = patch_size, batch_size
        self.settings, self.device, self.squeeze_axis, self.margin = settings, device, squeeze_axis, margin
        self.class_weights, self.seed, self.parts = class_weights, seed, parts
        self.stage_classes = stage[1] if stage else 0
        # Patches are placed by what the network gives logits for; its margin is cut around them as context.
        i, j, k = (size - 2 * lost for size, lost in zip(patch_size, margin, strict=True))
        self.target_size = i, j, k
        self.volumes: dict[str, tuple[Any, Any]] = {}
        self.infos: list[CaseInfo] = []
        self._kept: tuple[int, list[Patch]] | None = None
        left, left_on_gpu = settings.cache_mb * 2**20, gpu_bytes
        for case in cases:
            image, label = open_prepared(folder, case)
            self.infos.append(CaseInfo(case, tuple(label.shape), read_class_voxels(folder, case)))
            found = open_stage_map(stage[0], case, label.shape) if stage else None
            size = sum(int(array.nbytes) for array in (image, label, found) if array is not None)
            left, left_on_gpu = left - size, left_on_gpu - size
            # A GPU keeps the first cases, the processor's memory the next, the disk the rest.
            if left < 0:
                self.volumes[case] = (image, self._labels(label, found))
                continue
            on_gpu = device.type != "cuda" or left_on_gpu >= 0
            place = device if on_gpu else torch.device("cpu")
            labels = self._labels(label.load(place), None if found is None else found.load(place))
            self.volumes[case] = (image.load(place), labels)

    def _labels(self, label: Any, found: Any) -> Any:
        """The label map of a case, in the second stage of a cascade joined with its stage map."""
        return label if found is None else JoinedMaps(label, found, self.stage_classes)

    def batches_per_epoch(self, balanced: int) -> int:
        """Batches of one epoch: ``balanced`` for random patches, as many as the windows need for sliding ones."""
        if self.settings.strategy == "balanced":
            return balanced
        if not self.windows:
            raise DataError("sliding patches: expected some with foreground, got none. Set sample.skip_empty to false.")
        return -(-len(self.windows) // (self.batch_size * self.parts))

    def batch(self, number: int, part: int = 0) -> tuple[Tensor, Tensor, range]:
        """A batch of the training, or a part of it, as it is cut, whichever were made before.

        Returns:
            Images (B, C, *S) float32 and class indices (B, *S) int64, on the device, and the places of these patches in
            the whole batch. The last batch of sliding patches of an epoch may be smaller. In the second stage of a
            cascade, joined numbers of :class:`~pipeline.sample.stage_maps.JoinedMaps` instead of class indices.
        """
        patches, places = self._part(number, part)
        return *self.cut(patches), places

    def augmented(self, number: int, part: int, settings: AugmentSettings, geometry: PatchGeometry) -> Pair:
        """A part of a batch as training sees it, like that of :meth:`batch`."""
        patches, places = self._part(number, part)
        return self.changed(patches, settings, BatchRandom(self.seed, number, places), geometry)

    def changed(
        self, patches: Sequence[Patch], settings: AugmentSettings, random: BatchRandom, geometry: PatchGeometry
    ) -> Pair:
        """Patches cut and augmented; those that are rotated, zoomed or bent show what lies around them."""
        # First the draw, then the cut: it takes as much of the surroundings as each patch shows, and of others none.
        moves = draw_moves(settings, random, network_size(self), geometry)
        images, labels = self.cut(patches, moves)
        classes = self.stage_classes
        if not classes:
            return augment(images, labels, settings, random, geometry, moved=True)
        geometry = replace(geometry, side_pairs=joined_pairs(geometry.side_pairs, classes))
        images, joined = augment(images, labels, settings, random, geometry, moved=True)
        labels, found = parted(joined, classes)
        if settings.enabled:
            found = disturbed(found, random)
        return torch.cat([images, found[:, None].to(images.dtype)], dim=1), labels

    def _part(self, number: int, part: int) -> tuple[list[Patch], range]:
        """Patches of a part, and their places in the whole batch."""
        patches = self.patches(number)
        # Every n-th patch, not one run of them: the patches forced onto foreground are the last of a batch.
        places = range(part, len(patches), self.parts)
        return [patches[place] for place in places], places

    def cut(self, patches: Sequence[Patch], moves: Mapping[int, Move] | None = None) -> Pair:
        """Patches as they lie in their cases, or some moved: place among the patches → how."""
        across = self.squeeze_axis
        axes = [axis for axis in range(3) if axis != across]
        images, labels = cut_batch(
            self.volumes, patches, self.patch_size, margin=self.margin, device=self.device, moves=moves, axes=axes
        )
        return (images, labels) if across is None else (images.squeeze(across + 2), labels.squeeze(across + 1))

    def patches(self, number: int) -> list[Patch]:
        """Where the patches of a whole batch lie; number as in :meth:`batch`."""
        size = self.batch_size * self.parts
        if self.settings.strategy == "balanced":
            balance = Balance(self.target_size, size, self.settings.foreground_share, self.class_weights)
            return balanced_patches(self.infos, balance, seeded(self.seed, number), first=number)
        # Every epoch has windows and an order of its own.
        epoch, place = divmod(number, self.batches_per_epoch(0))
        windows = self._epoch_windows(epoch)
        order = seeded(self.seed, epoch).permutation(len(windows))
        # Without its empty windows, a shifted grid may have some more or less than an epoch takes: then some are left
        # out, or some are taken twice.
        numbers = np.arange(place * size, min((place + 1) * size, len(self.windows))) % max(len(windows), 1)
        chosen = order[numbers].tolist()
        missing = max(0, self.parts - len(chosen))  # every part has at least one
        return [windows[n] for n in [*chosen, *order[:missing].tolist()]]

    @cached_property
    def windows(self) -> list[Patch]:
        """Every sliding window of all cases, where grids are not shifted: as many as an epoch has."""
        return self._windows(None)

    def _epoch_windows(self, epoch: int) -> list[Patch]:
        """Sliding windows of an epoch, their grids shifted; the last one asked for is kept."""
        kept = self._kept
        if kept is None or kept[0] != epoch:
            # None where every window of the shifted grids happens to be empty.
            kept = epoch, self._windows(seeded(self.seed, epoch, 1)) or self.windows
            self._kept = kept
        return kept[1]

    def _windows(self, rng: np.random.Generator | None) -> list[Patch]:
        skip = self._foreground.__getitem__ if self.settings.skip_empty else None
        return sliding_patches(self.infos, self.target_size, self.settings.overlap, foreground=skip, rng=rng)

    @cached_property
    def _foreground(self) -> dict[str, Foreground]:
        # Read once, not in every epoch, although their windows differ.
        return {
            info.id: Foreground(partial(self._class_indices, info.id), info.shape, self.target_size)
            for info in self.infos
        }

    def _class_indices(self, case: str, part: tuple[slice, ...]) -> Any:
        label = self.volumes[case][1]
        if isinstance(label, JoinedMaps):
            label = label.labels
        found = label[part]
        return found.cpu().numpy() if isinstance(found, Tensor) else found


def network_size(source: PatchSource) -> list[int]:
    """Voxels of a patch along the axes that the network sees."""
    return [length for axis, length in enumerate(source.patch_size) if axis != source.squeeze_axis]


class TrainingBatches:
    """Augmented batches by number; that of a number is the same in every run.

    Use it in a ``with`` block, which ends the thread that makes batches.

    Args:
        source: Where patches come from. Its parts are those of all processes.
        geometry: Axes and left/right pairs.
        settings: Section ``augment``.
        parts: Which of the source's parts this process trains on; by default all.
        border: Makes the weights of narrow gaps from class indices (B, *S), or None for none.
    """

    def __init__(
        self,
        source: PatchSource,
        geometry: PatchGeometry,
        settings: AugmentSettings,
        parts: Sequence[int] | None = None,
        border: Callable[[Tensor], Tensor | None] = lambda labels: None,
    ) -> None:
        self.source, self.geometry, self.settings, self.border = source, geometry, settings, border
        self.parts = range(source.parts) if parts is None else parts
        self.ahead = Ahead(self._make)
        # Before the training's kernels, of which many are waiting: those of a batch are few and short, and a step that
        # finds no batch has nothing to do.
        gpu = source.device.type == "cuda"
        self.stream = torch.cuda.Stream(source.device, priority=-1) if gpu else None  # type: ignore[no-untyped-call]

    def step(self, number: int) -> tuple[list[Part], float]:
        """Every part of a step's batch, on the device, and how long it waited for them."""
        (made, ready), wait_s = self.ahead.get(number)
        if ready is not None:
            here = torch.cuda.current_stream(self.source.device)
            here.wait_event(ready)
            for part in made:
                for tensor in part:
                    tensor.record_stream(here)  # its memory is not reused before this stream is done with it
        return made, wait_s

    def again(self, number: int) -> tuple[Pair, list[str]]:
        """What this process trained on in an earlier step, as one batch made once more, and the ids of its cases."""
        made = self._parts(number)
        patches, count = self.source.patches(number), self.source.parts
        cases = [patches[place].case for part in self.parts for place in range(part, len(patches), count)]
        return (torch.cat([images for images, _ in made]), torch.cat([labels for _, labels in made])), cases

    def __enter__(self) -> TrainingBatches:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of batches that were made ahead."""
        self.ahead.close()

    def _make(self, number: int) -> tuple[list[Part], torch.cuda.Event | None]:
        if self.stream is None:
            return self._weighted_parts(number), None
        # Kernels of a stream of its own run beside those of the training; the event says when they are done.
        with torch.cuda.stream(self.stream):
            return self._weighted_parts(number), self.stream.record_event()

    def _weighted_parts(self, number: int) -> list[Part]:
        # Here, not in the step: objects are found on the processor, for which a training on a GPU would have to wait.
        pairs = self._parts(number)
        borders = (self.border(labels) for _, labels in pairs)
        return [pair if border is None else (*pair, border) for pair, border in zip(pairs, borders, strict=True)]

    def _parts(self, number: int) -> list[Pair]:
        return [self.source.augmented(number, part, self.settings, self.geometry) for part in self.parts]


class Ahead(Generic[T]):
    """Values by number, of which the next few are made before they are asked for.

    What making a value raises is raised when the value is asked for.

    Args:
        make: Makes the value of a number, in a thread of its own.
        count: How many are made ahead.
    """

    def __init__(self, make: Callable[[int], T], count: int = 2) -> None:
        self.make, self.count = make, count
        self.coming: dict[int, Future[T]] = {}
        # One thread of computation: the processors belong to the training.
        self.pool = ThreadPoolExecutor(1, "batches", initializer=torch.set_num_threads, initargs=(1,))

    def get(self, number: int) -> tuple[T, float]:
        """The value of a number, and the seconds for which it had to be waited for."""
        for following in range(number, number + 1 + self.count):
            if following not in self.coming:
                self.coming[following] = self.pool.submit(self.make, following)
        began = time.monotonic()
        value = self.coming.pop(number).result()
        return value, time.monotonic() - began

    def close(self) -> None:
        """End the thread and let go of what nobody asked for."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.coming.clear()
