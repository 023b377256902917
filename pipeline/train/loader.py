"""The batches of a training: patches of prepared cases, cut, augmented, and made ahead by a thread.

A batch depends on its number alone, so that a training that is continued sees what it would have seen. Cases are kept
in memory up to a budget; the rest is read from disk patch by patch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pipeline.config.settings import AugmentSettings, SampleSettings
from pipeline.core.errors import DataError
from pipeline.data.store import open_prepared, read_class_voxels
from pipeline.sample.augment import PatchGeometry, augment
from pipeline.sample.cut import cut_batch
from pipeline.sample.patches import Balance, CaseInfo, Patch, balanced_patches, sliding_patches
from pipeline.sample.randomness import BatchRandom, seeded

T = TypeVar("T")

Pair = tuple[Tensor, Tensor]
"""Images (B, C, *S) and class indices (B, *S)."""

Part = tuple[Tensor, ...]
"""A pair and, where the loss wants them, the weights (B, *S') of narrow gaps."""

_GPU_SHARE = 0.4  # of the free memory, for cached cases; the rest is for the network


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
    ) -> None:
        if not cases:
            raise DataError(f"{folder}: expected at least one training case, got none. Check splits.json.")
        self.patch_size, self.batch_size = patch_size, batch_size
        self.settings, self.device, self.squeeze_axis, self.margin = settings, device, squeeze_axis, margin
        self.class_weights, self.seed, self.parts = class_weights, seed, parts
        # Patches are placed by what the network gives logits for; its margin is cut around them as context.
        i, j, k = (size - 2 * lost for size, lost in zip(patch_size, margin, strict=True))
        self.target_size = i, j, k
        self.volumes: dict[str, tuple[Any, Any]] = {}
        self.infos: list[CaseInfo] = []
        left = settings.cache_mb * 2**20
        left_on_gpu = _GPU_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0.0
        for case in cases:
            image, label = open_prepared(folder, case)
            self.infos.append(CaseInfo(case, tuple(label.shape), read_class_voxels(folder, case)))
            size = int(image.nbytes) + int(label.nbytes)
            left, left_on_gpu = left - size, left_on_gpu - size
            # A GPU keeps the first cases, the processor's memory the next, the disk the rest.
            if left < 0:
                self.volumes[case] = (image, label)
                continue
            place = device if left_on_gpu >= 0 else torch.device("cpu")
            self.volumes[case] = (image.load(place), label.load(place))

    def batches_per_epoch(self, balanced: int) -> int:
        """Batches of one epoch: ``balanced`` for random patches, as many as the windows need for sliding ones."""
        if self.settings.strategy == "balanced":
            return balanced
        if not self.windows:
            raise DataError("sliding patches: expected some with foreground, got none. Set sample.skip_empty to false.")
        return -(-len(self.windows) // (self.batch_size * self.parts))

    def batch(self, number: int, part: int = 0) -> tuple[Tensor, Tensor, range]:
        """A batch of the training, or a part of it, whichever were made before.

        Returns:
            Images (B, C, *S) float32 and class indices (B, *S) int64, on the device, and the places of these patches in
            the whole batch. The last batch of sliding patches of an epoch may be smaller.
        """
        patches = self.patches(number)
        # Every n-th patch, not one run of them: the patches forced onto foreground are the last of a batch.
        places = range(part, len(patches), self.parts)
        chosen, size, margin = [patches[place] for place in places], self.patch_size, self.margin
        images, labels = cut_batch(self.volumes, chosen, size, margin=margin, device=self.device)
        if self.squeeze_axis is not None:
            images, labels = images.squeeze(self.squeeze_axis + 2), labels.squeeze(self.squeeze_axis + 1)
        return images, labels, places

    def patches(self, number: int) -> list[Patch]:
        """Where the patches of a whole batch lie; number as in :meth:`batch`."""
        size = self.batch_size * self.parts
        if self.settings.strategy == "balanced":
            balance = Balance(self.target_size, size, self.settings.foreground_share, self.class_weights)
            return balanced_patches(self.infos, balance, seeded(self.seed, number), first=number)
        # Every epoch sees every window once, in an order of its own.
        epoch, place = divmod(number, self.batches_per_epoch(0))
        order = seeded(self.seed, epoch).permutation(len(self.windows))
        chosen = order[place * size : (place + 1) * size].tolist()
        missing = max(0, self.parts - len(chosen))  # every part has at least one
        return [self.windows[n] for n in [*chosen, *order[:missing].tolist()]]

    @cached_property
    def windows(self) -> list[Patch]:
        """Every sliding window of all cases."""
        skip = self._label_map if self.settings.skip_empty else None
        return sliding_patches(self.infos, self.target_size, self.settings.overlap, label_map=skip)

    def _label_map(self, case: str) -> Any:
        label = self.volumes[case][1]
        return label.cpu().numpy() if isinstance(label, Tensor) else label[...]


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
        made = [self._part(number, part) for part in self.parts]
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
            return [self._weighted(self._part(number, part)) for part in self.parts], None
        # Kernels of a stream of its own run beside those of the training; the event says when they are done.
        with torch.cuda.stream(self.stream):
            made = [self._weighted(self._part(number, part)) for part in self.parts]
            return made, self.stream.record_event()

    def _weighted(self, pair: Pair) -> Part:
        # Here, not in the step: objects are found on the processor, for which a training on a GPU would have to wait.
        border = self.border(pair[1])
        return pair if border is None else (*pair, border)

    def _part(self, number: int, part: int) -> Pair:
        images, labels, places = self.source.batch(number, part)
        return augment(images, labels, self.settings, BatchRandom(self.source.seed, number, places), self.geometry)


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
