"""Patches of a volume, cut by the code that cuts those of a training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline.sample.cut import paste


def cut(volume: Tensor, start: Sequence[int], size: Sequence[int], fill: float | None) -> Tensor:
    """Copy a patch (C, *size) out of a volume (C, *spatial); outside it is filled, or mirrored where fill is None."""
    patch = volume.new_empty((volume.shape[0], *size))
    paste(patch, volume, start, fill)
    return patch
