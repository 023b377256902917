"""Planes of a volume as they are seen on a screen: which of the patient's sides lies where, and the letters for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER = "RAS"
"""Axis codes of the volumes that planes are cut from."""


class Plane(NamedTuple):
    """How a volume (I, J, K) in RAS order is seen.

    Args:
        name: Of the plane.
        right: Axis along the width of the screen.
        up: Axis that grows to the top of the screen.
        cut: The axis that is cut.
        letters: The patient's sides at the left, right, lower and upper edge.
        mirrored: Whether the first axis grows to the left of the screen.
    """

    name: str
    right: int
    up: int
    cut: int
    letters: str
    mirrored: bool

    def slice(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """One plane of a volume, rows upwards and columns to the right."""
        found: NDArray[Any] = np.take(volume, index, axis=self.cut).T
        return found[:, ::-1] if self.mirrored else found


RADIOLOGICAL = (
    Plane("Axial", 0, 1, 2, "RLPA", True),
    Plane("Coronal", 0, 2, 1, "RLIS", True),
    Plane("Sagittal", 1, 2, 0, "APIS", True),
)
"""As radiologists and most viewers of DICOM have it: the patient's left is on the right, and the nose on the left."""

NEUROLOGICAL = (
    Plane("Axial", 0, 1, 2, "LRPA", False),
    Plane("Coronal", 0, 2, 1, "LRIS", False),
    Plane("Sagittal", 1, 2, 0, "PAIS", False),
)
"""The patient's left is on the left, and the nose on the right. Pictures, whose i grows to the right, too."""


def planes(*, neurological: bool) -> tuple[Plane, ...]:
    """The three planes of a volume."""
    return NEUROLOGICAL if neurological else RADIOLOGICAL


def shown_planes(shape: Sequence[int], *, neurological: bool) -> tuple[Plane, ...]:
    """The planes of a volume of a shape that are more than a line; the axial one where all are."""
    every = planes(neurological=neurological)
    return tuple(plane for plane in every if min(shape[plane.right], shape[plane.up]) > 1) or every[:1]
