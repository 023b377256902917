"""Where training patches come from: prepared cases in memory up to a budget, the rest read from disk chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import SampleSettings
from pipeline.core.errors import DataError
from pipeline.data.store import open_prepared, read_class_voxels
from pipeline.sample.cut import cut_batch
from pipeline.sample.patches import CaseInfo, Patch, balanced_patches, sliding_patches

__all__ = ["PatchSource"]

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
    ) -> None:
        if not cases:
            raise DataError(f"{folder}: expected at least one training case, got none. Check splits.json.")
        self.patch_size, self.batch_size = patch_size, batch_size
        self.settings, self.device, self.squeeze_axis, self.margin = settings, device, squeeze_axis, margin
        self.class_weights = class_weights
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
            if left < 0:  # read from disk, patch by patch
                self.volumes[case] = (image, label)
                continue
            place = device if left_on_gpu >= 0 else torch.device("cpu")
            self.volumes[case] = (image.load(place), label.load(place))

    def batches_per_epoch(self, balanced: int) -> int:
        """Batches of one epoch: ``balanced`` for random patches, as many as the windows need for sliding ones.

        Raises:
            DataError: If every sliding window is empty and empty ones are skipped.
        """
        if self.settings.strategy == "balanced":
            return balanced
        windows = len(self._sliding(None))
        if not windows:
            raise DataError("sliding patches: expected some with foreground, got none. Set sample.skip_empty to false.")
        return -(-windows // self.batch_size)

    def epoch(self, batches: int, generator: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw one epoch.

        Args:
            batches: Number of batches, as :meth:`batches_per_epoch` gave it.
            generator: Source of all draws.

        Yields:
            Images (B, C, *S) float32 and class indices (B, *S) int64, on the device. The last sliding batch may be
            smaller.
        """
        if self.settings.strategy == "balanced":
            share = self.settings.foreground_share
            patches = balanced_patches(
                self.infos, self.target_size, self.batch_size, batches, share, generator, self.class_weights
            )
        else:
            patches = self._sliding(generator)
        for first in range(0, len(patches), self.batch_size):
            batch = patches[first : first + self.batch_size]
            images, labels = cut_batch(self.volumes, batch, self.patch_size, margin=self.margin, device=self.device)
            if self.squeeze_axis is not None:
                images, labels = images.squeeze(self.squeeze_axis + 2), labels.squeeze(self.squeeze_axis + 1)
            yield images, labels

    def _sliding(self, generator: np.random.Generator | None) -> list[Patch]:
        skip = self._label_map if self.settings.skip_empty else None
        return sliding_patches(self.infos, self.target_size, self.settings.overlap, label_map=skip, rng=generator)

    def _label_map(self, case: str) -> Any:
        label = self.volumes[case][1]
        return label.cpu().numpy() if isinstance(label, Tensor) else label[...]
