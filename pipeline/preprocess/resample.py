"""Resampling of images and label maps to another spacing over the same field of view."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.core.errors import DataError, sentence
from pipeline.core.grid import Box, Grid
from pipeline.core.machine import available_bytes, bytes_in_words
from pipeline.preprocess.interpolation import Order, apply_operators, band, resample, resize_operator
from pipeline.preprocess.spacing import coarse_axis

_Integer = TypeVar("_Integer", bound=np.integer[Any])

MOST_BYTES = "most_bytes"
"""Key beside the volumes: memory that resampling one of them may take; by default all that is free."""

_TIE = 1e-6  # votes closer than this count as equal, so that rounding never decides between classes


@overload
def resample_labels(
    label: NDArray[_Integer], shape: Sequence[int], orders: Sequence[Literal[0, 1]] = ...
) -> NDArray[_Integer]: ...
@overload
def resample_labels(
    label: torch.Tensor, shape: Sequence[int], orders: Sequence[Literal[0, 1]] = ...
) -> torch.Tensor: ...
def resample_labels(
    label: NDArray[_Integer] | torch.Tensor, shape: Sequence[int], orders: Sequence[Literal[0, 1]] = (1, 1, 1)
) -> NDArray[_Integer] | torch.Tensor:
    """Resample a label map over the same field of view: every value is interpolated linearly, the largest vote wins.

    Only one value is interpolated at a time, and only inside its bounding box.

    Args:
        label: (I, J, K), integers of any sign, NumPy or torch.
        shape: Voxels wanted along i, j, k.
        orders: Spline order along each axis; 0 takes the nearest slice.

    Returns:
        ``shape``, of the same kind and type, a tensor on its device; ties go to the lower value. The input itself if
        the shapes agree.

    Raises:
        ValueError: If a size is below 1.
    """
    target = (int(shape[0]), int(shape[1]), int(shape[2]))
    if tuple(label.shape) == target:
        return label
    if isinstance(label, np.ndarray):
        winner = _winners(torch.from_numpy(label.astype(np.int32)), target, orders)
        return winner.numpy().astype(label.dtype)
    return _winners(label.to(torch.int32), target, orders).to(label.dtype)


def _winners(label: torch.Tensor, target: tuple[int, int, int], orders: Sequence[Literal[0, 1]]) -> torch.Tensor:
    # One value in memory at a time: a one-hot copy of 100 organs would take 100 volumes.
    best = torch.zeros(target, device=label.device)
    winner = torch.full(target, int(label.min()), dtype=label.dtype, device=label.device)
    for value, box in _boxes(label):
        where, operators = [], []
        for part, n_in, n_out, order in zip(box.slices, label.shape, target, orders, strict=True):
            # Only the columns inside the value's box, and of the rows those that they reach.
            columns = resize_operator(n_in, n_out, order)[:, part]
            start, stop = band(columns.T)
            where.append(slice(start, stop))
            operators.append(columns[start:stop])
        votes = apply_operators((label[box.slices] == value)[None], operators)[0]
        there = tuple(where)
        better = votes > best[there] + _TIE
        best[there] = torch.where(better, votes, best[there])
        winner[there] = winner[there].masked_fill_(better, value)
    return winner


def _boxes(label: torch.Tensor) -> Iterator[tuple[int, Box]]:
    """The values that occur, the lowest first, and the box that holds each."""
    if label.device.type != "cpu":
        yield from _boxes_on_device(label)
        return
    lowest = int(label.min())
    for value, slices in enumerate(find_objects(label.numpy() - (lowest - 1)), start=lowest):
        if slices is not None:
            yield value, Box.of(slices)


def _boxes_on_device(label: torch.Tensor) -> Iterator[tuple[int, Box]]:
    for value in torch.unique(label).tolist():
        mask = label == value
        used = [torch.nonzero(mask.any(dim=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        yield value, Box(tuple(int(places[0]) for places in used), tuple(int(places[-1]) + 1 for places in used))


class Resampled(MapTransform):  # type: ignore[misc]  # MONAI is untyped
    """MONAI dictionary transform that resamples to a target spacing or shape over the same field of view.

    The voxel count along each axis is rounded, so the spacing is met as closely as whole voxels allow; voxel edges,
    not centres, stay in place, and the affine says so. The way back is a
    :class:`~pipeline.preprocess.grid_history.GridHistory`.

    Args:
        keys: Keys of images, MetaTensors (C, I, J, K).
        spacing_mm: Target spacing along i, j, k in mm, each > 0.
        label_keys: Keys of label maps, MetaTensors (C, I, J, K) of whole numbers, resampled by :func:`resample_labels`.
        order: Spline order of images.
        coarse_order: Spline order along an axis that is more than 3 times coarser than the finest, before or after; at
            most ``order``, for label maps at most 1.
        shape: Voxels wanted along i, j, k whatever the spacing; None to go by the spacing.
        rule: Tells of a volume's grid the spacing in mm to resample it to and the coarse axis, in place of
            ``spacing_mm`` and the rule above.
        allow_missing_keys: Pass over keys that are not there.

    Raises:
        ValueError: If a spacing is not above 0 or a size below 1; on call, if a volume carries no affine or a label
            map holds fractions.
        DataError: On call, if the memory is too small.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        spacing_mm: Sequence[float],
        *,
        label_keys: Sequence[str] = (),
        order: Order = 3,
        coarse_order: Order = 0,
        shape: Sequence[int] | None = None,
        rule: Callable[[Grid], tuple[Sequence[float], int | None]] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        images = (keys,) if isinstance(keys, str) else tuple(keys)
        super().__init__((*images, *label_keys), allow_missing_keys)
        if len(spacing_mm) != 3 or not all(0 < spacing < float("inf") for spacing in spacing_mm):
            raise ValueError(f"target spacing: expected three numbers above 0 mm, got {spacing_mm}. Correct them.")
        self.spacing_mm = tuple(float(spacing) for spacing in spacing_mm)
        self.label_keys = frozenset(label_keys)
        self.order = order
        self.coarse_order: Order = min(coarse_order, order)
        self.rule = rule
        self.shape = None if shape is None else tuple(shape)
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1):
            raise ValueError(f"target shape: expected three integers above 0, got {self.shape}. Correct them.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the volumes by resampled ones; images become float32, label maps keep their type.

        Where the memory is too small, or less than what ``data`` has under :data:`MOST_BYTES`, the case is refused.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            volume = result[key]
            if not isinstance(volume, MetaTensor):
                raise ValueError(
                    f"{key}: expected a MetaTensor with an affine, got {type(volume).__name__}. "
                    "Load it with LoadImaged(image_only=True)."
                )
            i, j, k = (int(size) for size in volume.shape[1:])
            grid = Grid((i, j, k), np.asarray(volume.affine, dtype=np.float64))
            spacing, coarse = self.rule(grid) if self.rule else (self.spacing_mm, None)
            target = grid.resampled(spacing) if self.shape is None else grid.resized(self.shape)
            if self.rule is None:
                coarse = coarse_axis(grid.spacing_mm, target.spacing_mm)
            plain = volume.as_tensor()
            needed, limits = _needed_bytes(plain.shape, target.shape), (available_bytes(), data.get(MOST_BYTES))
            if any(limit is not None and needed > limit for limit in limits):
                raise _too_large(needed, grid, target, limits, str(data.get("id", "")) or None)
            # Thick slices are no continuation of one another: a cubic spline across them would ring.
            orders = [self.coarse_order if axis == coarse else self.order for axis in range(3)]
            try:
                if key in self.label_keys:
                    values = _resample_label_tensor(plain, target.shape, [1 if n else 0 for n in orders], str(key))
                else:
                    values = resample(plain, target.shape, orders)
            except (MemoryError, RuntimeError) as error:  # a batch system's limit, say, which no one can ask for
                if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                    raise _too_large(needed, grid, target, (None, None), str(data.get("id", "")) or None) from None
                raise
            result[key] = MetaTensor(values, meta={**volume.meta, "affine": torch.tensor(target.affine)})
        return result


def _needed_bytes(shape: Sequence[int], target: Sequence[int]) -> int:
    """Memory for the result of resampling (C, I, J, K), and for what its last axis is made from; at least that."""
    voxels = math.prod(target)
    if tuple(shape[1:]) == tuple(target):
        return 0
    before = voxels / max(1.0, *(new / old for old, new in zip(shape[1:], target, strict=True)))
    return int(shape[0] * (voxels + before)) * torch.float32.itemsize


def _too_large(
    needed: int, grid: Grid, target: Grid, limits: tuple[int | None, int | None], case: str | None
) -> DataError:
    """``limits``: bytes that are free, and bytes that a user allows."""
    spacing, wanted, size = (
        " x ".join(f"{n:.4g}" for n in numbers) for numbers in (grid.spacing_mm, target.spacing_mm, target.shape)
    )
    room = min((n for n in limits if n is not None), default=None)
    what = f"image of spacing {spacing} mm, resampled to the model's spacing of {wanted} mm"
    rule = f"at most {bytes_in_words(room)} of memory" if room else "no more than the memory holds"
    advice = "Check the header's spacing and unit, cut the image, or take a machine with more memory"
    if room is not None and room == limits[1]:
        advice = "Check the header's spacing and unit, cut the image, or raise --max-memory"
    return DataError(sentence(what, rule, f"{bytes_in_words(needed)} for {size} voxels", advice, case=case))


def _resample_label_tensor(
    label: torch.Tensor, shape: Sequence[int], orders: Sequence[Literal[0, 1]], key: str
) -> torch.Tensor:
    """Vote on each channel of a label map stored as any type."""
    whole = label.to(torch.int32) if label.is_floating_point() else label
    if not torch.equal(whole.to(label.dtype), label):
        raise ValueError(f"{key}: expected whole numbers, got fractions. Give label maps under label_keys only.")
    return torch.stack([resample_labels(channel, shape, orders) for channel in whole]).to(label.dtype)
