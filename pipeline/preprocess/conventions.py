"""How a network that another tool trained sees images, where that is not as a network of ours does.

A plan has :class:`Conventions` only for such a network. They are all that preparing, predicting and deciding need to
know of the other tool; what they leave open is as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.core.grid import Grid
from pipeline.preprocess.spacing import coarse_axis

Axis = Literal[0, 1, 2]


class Conventions(BaseModel):
    """Conventions of nnU-Net, and of TotalSegmentator around it, as far as models of them differ.

    Its windows lie and weigh as ``infer.blend: nnunet`` says.

    Args:
        file_axes: The network sees volumes as they lie in their files: axes of the file, in its order. None: turned to
            the plan's orientation.
        own_slices: Slices stay as far apart as the image has them, as its 2D networks see them.
        separate_coarse_axis: Whether a coarse axis, if there is one, is resampled apart from the others.
        logit_coarse_order: Spline order of logits along it; along other axes they are linear.
        whole_numbers: Images are resampled, and then rounded to whole numbers, before they are normalized.
        mirror_axes: Axes of the plan whose mirror images the network was trained with; left and right organs did not
            swap labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_axes: tuple[Axis, Axis, Axis] | None = None
    own_slices: bool = False
    separate_coarse_axis: bool = True
    logit_coarse_order: Literal[0, 1] = 0
    whole_numbers: bool = False
    mirror_axes: tuple[Axis, ...] = ()

    def orientation(self, grid: Grid, planned: str) -> str:
        """Axis codes that a volume on a grid is turned to; ``planned`` are those of the plan."""
        return planned if self.file_axes is None else "".join(grid.orientation[axis] for axis in self.file_axes)

    def spacing(self, planned: Sequence[float], slice_axis: int, grid: Grid) -> tuple[float, ...]:
        """Spacing in mm that a volume on a turned grid is resampled to."""
        return tuple(
            own if self.own_slices and axis == slice_axis else mm
            for axis, (mm, own) in enumerate(zip(planned, grid.spacing_mm, strict=True))
        )

    def coarse_axis(self, spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
        """The axis that is resampled apart from the others, or None."""
        return coarse_axis(spacing_mm, target_mm) if self.separate_coarse_axis else None
