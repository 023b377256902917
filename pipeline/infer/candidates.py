"""The winner among many classes between voxels, from the few classes that can win there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.infer.taps import Taps, corners, interpolated

__all__ = ["winners"]

_CANDIDATES = 8  # classes kept per cell; cells with more are interpolated in full
_CELLS = 8192  # looked through together: their logits stay in the cache
_POINTS = 65536


def winners(planes: Tensor, mixed: Tensor, taps: Sequence[Taps]) -> Tensor:
    """Class of the highest logit at points between voxels.

    Args:
        planes: Logits (n, a, b, L).
        mixed: Cells (n - 1, a - 1, b - 1) in which all points lie.
        taps: For each of the three axes, of P points.

    Returns:
        (P,) int16; of equal logits the lowest class.
    """
    cells = mixed.nonzero()
    rank = torch.zeros(mixed.shape, dtype=torch.int64, device=planes.device)
    rank[mixed] = torch.arange(len(cells), device=planes.device)
    number = rank[tuple(one.low for one in taps)]
    classes, values, narrow = _candidates(planes, cells)
    found = torch.empty_like(number, dtype=torch.int16)
    sure = narrow[number]
    inside = sure.nonzero()[:, 0]
    for first in range(0, len(inside), _POINTS):
        part = inside[first : first + _POINTS]
        own = number[part]
        total = torch.zeros((len(part), values.shape[-1]), device=planes.device)
        for corner, (_, weight) in enumerate(corners([one.at(part) for one in taps], planes.shape[:3])):
            total.addcmul_(values[corner].index_select(0, own), weight[:, None])
        found[part] = classes[own].gather(1, total.argmax(dim=1, keepdim=True))[:, 0]
    others = (~sure).nonzero()[:, 0]
    for some, logits in interpolated(planes, [one.at(others) for one in taps]):
        found[others[some]] = logits.argmax(dim=1).to(torch.int16)
    return found


def _candidates(planes: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Classes that can win in cells, ascending, their logits at the corners, and whether these classes are all.

    Args:
        planes: (n, a, b, L).
        cells: (C, 3).

    Returns:
        (C, M) int16, (8, C, M) and (C,) bool.
    """
    count, kept = len(cells), min(_CANDIDATES, planes.shape[-1])
    flat = planes.reshape(-1, planes.shape[-1])
    classes = torch.empty((count, kept), dtype=torch.int16, device=planes.device)
    values = torch.empty((8, count, kept), device=planes.device)
    narrow = torch.empty(count, dtype=torch.bool, device=planes.device)
    for first in range(0, count, _CELLS):
        part = slice(first, min(first + _CELLS, count))
        whole = [Taps(low, torch.zeros_like(low, dtype=torch.float32)) for low in cells[part].T]
        logits = [flat.index_select(0, index) for index, _ in corners(whole, planes.shape[:3])]
        highest, lowest = logits[0].clone(), logits[0].clone()
        for corner in logits[1:]:
            torch.maximum(highest, corner, out=highest)
            torch.minimum(lowest, corner, out=lowest)
        possible = highest >= lowest.amax(dim=1, keepdim=True)
        narrow[part] = possible.sum(dim=1) <= kept
        best = highest.topk(kept, dim=1, sorted=False).indices.sort(dim=1).values
        classes[part] = best.to(torch.int16)
        for number, corner in enumerate(logits):
            values[number, part] = corner.gather(1, best)
    return classes, values, narrow
