"""How the distances from one surface to another are spread over its area."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spread"]

_RESOLUTION_MM = 1e-7  # to which percentiles are found
_SAME_MM = 1e-6  # distances closer than this are equal: they are roots of sums of squares


@dataclass(frozen=True, eq=False)
class Spread:
    """Distances over the area of a surface that was cut into N cells, in each of which they are spread evenly.

    That is exact where the distance changes linearly along an axis of the cell, and of second order otherwise.

    Args:
        area_mm2: (N,) area of each cell.
        low_mm: (N,) smallest distance in it.
        high_mm: (N,) largest distance in it.
        mean_mm: (N,) mean distance in it.
    """

    area_mm2: NDArray[np.float64]
    low_mm: NDArray[np.float64]
    high_mm: NDArray[np.float64]
    mean_mm: NDArray[np.float64]

    @property
    def total_mm2(self) -> float:
        """Area of the whole surface."""
        return float(self.area_mm2.sum())

    @property
    def integral(self) -> float:
        """Sum of distance times area; divided by the area it is the mean distance."""
        return float(self.area_mm2 @ self.mean_mm)

    @property
    def largest_mm(self) -> float:
        """Largest distance."""
        return float(self.high_mm.max())

    def within(self, distance_mm: float) -> float:
        """Area in mm² that is no further away than a distance."""
        limit = distance_mm + _SAME_MM
        reached = self.low_mm <= limit
        low, high, area = self.low_mm[reached], self.high_mm[reached], self.area_mm2[reached]
        return float(area @ _share(low, high, limit))

    def percentile(self, percent: float) -> float:
        """Smallest distance in mm within which at least this much of the area lies.

        Args:
            percent: Above 0, at most 100.
        """
        wanted = percent / 100 * self.total_mm2 * (1 - 1e-12)  # sums are rounded
        area, low, high = self.area_mm2, self.low_mm, self.high_mm
        below, above = -_SAME_MM, self.largest_mm
        settled = 0.0  # area of the cells that lie within `below`, which are not looked at again
        while above - below > _RESOLUTION_MM:
            middle = (below + above) / 2
            reached = low <= middle
            found = settled + float(area[reached] @ _share(low[reached], high[reached], middle))
            if found >= wanted:
                above, kept = middle, reached
            else:
                below, kept = middle, high > middle
                settled += float(area[~kept].sum())
            area, low, high = area[kept], low[kept], high[kept]
        return max(0.0, above)


def _share(low: NDArray[np.float64], high: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Share of each cell that is no further away than a limit, for cells of which some part is not."""
    width = np.maximum(high - low, _RESOLUTION_MM)
    return np.minimum((limit - low) / width, 1.0, where=high > low, out=np.ones_like(low))
