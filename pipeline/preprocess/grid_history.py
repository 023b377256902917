"""What preprocessing did to the grid of a case, so that a prediction finds its way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.core.documents import short
from pipeline.core.errors import sentence
from pipeline.core.grid import Box, Grid, check_orientation


@dataclass(frozen=True)
class GridHistory:
    """The way from a case's grid to its prepared grid: reorient, crop, resample.

    Args:
        source: Grid of the file.
        orientation: Axis codes the volume was turned to, e.g. ``"RAS"``.
        crop_start: First voxel kept along each axis of the reoriented grid.
        crop_stop: One past the last voxel kept along each axis of the reoriented grid.
        prepared: Grid after resampling; covers the field of view of the crop.

    Raises:
        ValueError: If the crop is empty or leaves the reoriented grid, or the prepared grid does not cover the crop.
    """

    source: Grid
    orientation: str
    crop_start: tuple[int, ...]
    crop_stop: tuple[int, ...]
    prepared: Grid

    def __post_init__(self) -> None:
        """Refuse a way that does not lead from the source to the prepared grid."""
        object.__setattr__(self, "orientation", check_orientation(self.orientation))
        start, stop, shape = self.crop_start, self.crop_stop, self.reoriented.shape
        if not all(0 <= a < b <= n for a, b, n in zip(start, stop, shape, strict=True)):
            rule, got = f"0 <= start < stop <= {shape} along each axis", f"{tuple(start)} to {tuple(stop)}"
            raise ValueError(sentence("crop", rule, got, "Give it in voxels of the reoriented grid"))
        expected = self.cropped.resized(self.prepared.shape)
        if not expected.matches(self.prepared):
            rule = "the field of view of the crop within 1e-3 mm"
            got = f"a difference of {expected.difference_mm(self.prepared):.4g} mm"
            raise ValueError(sentence("prepared grid", rule, got, "Resample with Grid.resized or Grid.resampled"))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> GridHistory:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If it is no such way.
        """
        try:
            return cls(
                source=_grid(content["source"]),
                orientation=str(content["orientation"]),
                crop_start=tuple(content["crop_start"]),
                crop_stop=tuple(content["crop_stop"]),
                prepared=_grid(content["prepared"]),
            )
        except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
            got, advice = short(error), "Run `volseg preprocess` again"
            raise ValueError(sentence("grid history", "two grids and a crop", got, advice)) from None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON; affines keep every digit."""
        return {
            "source": _content(self.source),
            "orientation": self.orientation,
            "crop_start": list(self.crop_start),
            "crop_stop": list(self.crop_stop),
            "prepared": _content(self.prepared),
        }

    @property
    def reoriented(self) -> Grid:
        """Grid after turning to the orientation, before cropping."""
        return self.source.reoriented(self.orientation)

    @property
    def crop(self) -> Box:
        """What was kept of the reoriented grid."""
        return Box(self.crop_start, self.crop_stop)

    @property
    def cropped(self) -> Grid:
        """Grid after cropping, before resampling."""
        return self.reoriented.cropped(self.crop_start, self.crop_stop)


def _content(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist()}


def _grid(content: Mapping[str, Any]) -> Grid:
    return Grid(tuple(content["shape"]), content["affine"])
