"""Where in an image it is worth looking: the body, or the box of the organs that a coarse pass finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from pipeline.core.box import Box

_COARSE = 2.0  # times the spacing: training draws scales from 0.7 to 1.4, so organs half as large are still known
_FEWEST = 8  # voxels of the coarse labels; fewer are noise


@dataclass(frozen=True)
class SearchRegion:
    """Where windows were, and why there.

    Args:
        kind: ``body``, ``organs`` or ``none`` for the whole image.
        windows: Windows that cover the prepared image.
        skipped: Those of them that were left out.
        box: Of the organs on the prepared grid, with its margin.
        why: Why the whole image was looked at although less was asked for.
    """

    kind: Literal["none", "body", "organs"]
    windows: int
    skipped: int = 0
    box: Box | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        share = round(self.skipped / self.windows, 4)
        box = None if self.box is None else [list(self.box.start), list(self.box.stop)]
        return {"looked_at": self.kind, "windows": self.windows, "skipped": share, "box": box, "why": self.why}


def body_mask(image: Tensor) -> Tensor:
    """Where an image is not its background, the lowest intensity of each channel; (C, I, J, K) to (I, J, K) bool.

    Preparation makes the background constant where it can be told from the body without a threshold: intensities of a
    CT are clipped above those of air, and what is 0 around a head stays one value.
    """
    return (image != image.amin(dim=(1, 2, 3), keepdim=True)).any(dim=0)


def coarse_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The voxels of a grid at twice the spacing; along an axis at least one."""
    return tuple(max(1, round(size / _COARSE)) for size in shape)


def organ_box(labels: Tensor, shape: Sequence[int]) -> Box | None:
    """The box of all organs in coarse labels, on a finer grid over the same field of view.

    Args:
        labels: (I, J, K), 0 where there is none.
        shape: Voxels of the finer grid.

    Returns:
        The smallest box that holds every coarse voxel of an organ; None if there are next to none.
    """
    found = labels != 0
    if int(found.sum()) < _FEWEST:
        return None
    start, stop = [], []
    for axis, size in enumerate(shape):
        others = [n for n in range(3) if n != axis]
        places = found.any(dim=others[1]).any(dim=others[0]).nonzero()[:, 0]
        scale = size / labels.shape[axis]
        start.append(math.floor(int(places[0]) * scale))
        stop.append(min(size, math.ceil((int(places[-1]) + 1) * scale)))
    return Box(tuple(start), tuple(stop))
