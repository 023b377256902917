"""Labels from a whole volume of logits, in the way they come from windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.regions import PaintingStep
from pipeline.infer.labelling import PlaneLabels
from pipeline.infer.segment import restore_labels as put_back
from pipeline.preprocess.grid_history import GridHistory


def restore_labels(
    logits: Any, trace: GridHistory, planes: int = 3, axis: int = 0, painting: Sequence[PaintingStep] = ()
) -> NDArray[np.unsignedinteger[Any]]:
    """Class indices on the source's grid from some planes of logits (L, I, J, K) at a time."""
    values = torch.as_tensor(logits).float().movedim(0, -1).movedim(axis, 0)
    order = [axis, *(other for other in range(3) if other != axis)]
    slabs = PlaneLabels(*([shape[n] for n in order] for shape in (logits.shape[1:], trace.cropped.shape)), painting)
    rows = (row for first in range(0, len(values), planes) for row in slabs.add(values[first : first + planes]))
    return put_back(rows, axis, trace)
