"""What a picture of patches shows: patches as they are cut, changed, and which slices of them to draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.labels import IGNORE_INDEX
from pipeline.export.planes import Plane, shown_planes
from pipeline.export.scene import display_range

__all__ = ["PatchRow", "PatchScene", "PatchView", "telling_slices"]


@dataclass(frozen=True, eq=False)
class PatchView:
    """A patch in RAS order, or as pictures look; that of a 2D network has one voxel along the axis across the slices.

    Args:
        image: (C, I, J, K) normalized intensities.
        label: (I, J, K) class indices, -1 where neither loss nor score look.
    """

    image: NDArray[np.floating[Any]]
    label: NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, eq=False)
class PatchRow:
    """A patch and what augmentation makes of it.

    Args:
        text: Where it lies and what is in it.
        cut: As it is cut.
        versions: Augmented.
    """

    text: str
    cut: PatchView
    versions: tuple[PatchView, ...]


@dataclass(frozen=True, eq=False)
class PatchScene:
    """Everything on the picture.

    Args:
        heading: Lines above.
        rows: At least one; all patches of the same shape.
        changes: Caption → a patch after a single change.
        spacing_mm: Along the RAS axes.
        axis: RAS axis that the slices of augmented patches cut.
        organs: Names, in the order of classes 1, 2, ….
        channel: Which channel to show in grey; None shows three as red, green and blue.
        margin: Voxels along the RAS axes on either side for which the network gives no logits.
        pictures: Whether the cases are pictures: no one knows the patient's sides.
    """

    heading: tuple[str, ...]
    rows: tuple[PatchRow, ...]
    changes: tuple[tuple[str, PatchView], ...]
    spacing_mm: tuple[float, float, float]
    axis: int
    organs: tuple[str, ...]
    channel: int | None
    margin: tuple[int, int, int] = (0, 0, 0)
    pictures: bool = False

    @property
    def planes(self) -> tuple[Plane, ...]:
        """Planes in which patches are shown as cut."""
        return shown_planes(self.rows[0].cut.label.shape)

    @property
    def main(self) -> Plane:
        """The plane in which augmented patches are shown."""
        return next((plane for plane in self.planes if plane.cut == self.axis), self.planes[0])

    @property
    def window(self) -> tuple[float, float]:
        """Intensities to show as black and white, the same everywhere.

        They are the display range of patches as cut, without padding, widened where organs are darker or brighter.
        """
        images = [row.cut.image if self.channel is None else row.cut.image[[self.channel]] for row in self.rows]
        parts = list(zip(images, (row.cut.label for row in self.rows), strict=True))
        known = np.concatenate([image[:, label != IGNORE_INDEX].ravel() for image, label in parts])
        organs = np.concatenate([image[:, label > 0].ravel() for image, label in parts])
        low, high = display_range(known)
        if not organs.size:
            return low, high
        darkest, brightest = np.percentile(organs, [2.0, 98.0])
        return min(low, float(darkest)), max(high, float(brightest))

    def views(self) -> Iterator[PatchView]:
        """All patches shown."""
        for row in self.rows:
            yield from (row.cut, *row.versions)
        yield from (view for _, view in self.changes)

    def seen(self) -> tuple[int, ...]:
        """Class indices of the organs in any patch shown, ascending."""
        found = set().union(*(np.unique(view.label).tolist() for view in self.views()))
        return tuple(sorted(value for value in found if value > 0))

    def extent_mm(self, plane: Plane) -> tuple[float, float]:
        """Width and height of a plane of a patch."""
        shape = self.rows[0].cut.label.shape
        return shape[plane.right] * self.spacing_mm[plane.right], shape[plane.up] * self.spacing_mm[plane.up]


def telling_slices(label: NDArray[np.signedinteger[Any]]) -> tuple[int, int, int]:
    """The slice along each axis that shows most of the organs, small ones counting as much as large ones.

    Args:
        label: (I, J, K) class indices.

    Returns:
        Index along i, j, k; the middle of a patch without foreground.
    """
    foreground = np.maximum(label, 0)
    count = np.bincount(foreground.ravel())
    if len(count) == 1:
        i, j, k = (length // 2 for length in label.shape)
        return i, j, k
    worth = np.zeros(len(count))
    present = count[1:] > 0
    worth[1:][present] = 1 / count[1:][present]
    share = worth[foreground]
    i, j, k = (int(share.sum(axis=tuple({0, 1, 2} - {axis})).round(9).argmax()) for axis in range(3))
    return i, j, k
