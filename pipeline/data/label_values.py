"""Whether voxels are labels: whole numbers, none negative, none rounded on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.volume_file import refuse

__all__ = ["MAX_LABEL", "label_array"]

MAX_LABEL = 2**32 - 1
"""Largest label value: what every format stores as an unsigned integer."""

_SHOWN = 5  # fractional values quoted in a message


def label_array(
    array: NDArray[Any], path: Path, *, case: str | None = None, signed: bool = False
) -> NDArray[np.integer[Any]]:
    """Check that voxels are labels, and cast whole numbers stored as floats.

    Args:
        array: Voxels, any shape.
        path: Their file, for messages.
        case: Case id for messages.
        signed: Allow negative values, which are to be replaced.

    Returns:
        The array itself if it is of an integer type, otherwise of the smallest type, unsigned unless a value is
        negative.

    Raises:
        VolumeError: If a value is fractional, negative, NaN, infinite or above MAX_LABEL.
    """
    what, advice = "label values", "Export the label map without interpolation, as integers"
    if array.dtype.kind == "f":
        strange = array.size - int(np.count_nonzero(np.isfinite(array)))
        if strange:
            got = f"NaN or infinity in {strange} voxels"
            raise refuse("labels", what, "whole numbers", got, advice, case=case, file=path)
        fractional = np.unique(array[array != np.rint(array)])
        if fractional.size:
            first = ", ".join(f"{float(value):g}" for value in fractional[:_SHOWN])
            got = f"{first}{' …' if fractional.size > _SHOWN else ''} ({fractional.size} fractional values)"
            raise refuse("labels", what, "whole numbers", got, advice, case=case, file=path)
    lowest, highest = array.min(), array.max()
    if lowest < (-MAX_LABEL if signed else 0) or highest > MAX_LABEL:
        rule, got = f"values from 0 to {MAX_LABEL}", f"{int(lowest)} to {int(highest)}"
        raise refuse("labels", what, rule, got, "Renumber the labels", case=case, file=path)
    if array.dtype.kind == "f":
        return array.astype(np.int64 if lowest < 0 else np.min_scalar_type(int(highest)))
    return array
