"""What a MONAI bundle does beside MONAI's own transforms: the transforms, and the inferer, that masks depend on.

``volseg export`` copies this module into bundles, with the modules that it imports: it runs where volseg is not
installed, needs MONAI, PyTorch, NumPy and SciPy, and gives the masks that ``volseg predict`` gives. Where volseg
streams, a bundle holds the logits of all classes on the grid of the network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from pipeline.infer.labelling import PlaneLabels
from pipeline.infer.windows import Blend, Placement, Tiling, fitting_window, importance_map, prediction_window
from pipeline.model.sizes import SizeRule
from pipeline.preprocess.interpolation import Order, resample
from pipeline.preprocess.normalization import normalize
from pipeline.preprocess.spacing import coarse_axis

_SHAPE, _AFFINE, _ORDERS = "volseg_shape", "volseg_affine", "volseg_orders"  # what an image notes of the way back
_PLANES = 16  # of logits that are decided together
_ROUNDING = 1e-6  # voxels: 0.3 ml of voxels of 0.1 ml are 3 voxels, not 3.0000000000000004
_CORNERS = np.ones((3, 3, 3), dtype=bool)  # voxels that share a corner are neighbours


def cases(folder: str, channels: int) -> list[dict[str, Any]]:
    """The images of a folder, for a MONAI dataset.

    Args:
        folder: With NIfTI files: one per case or, where the network sees several channels, CASE_0000.nii.gz,
            CASE_0001.nii.gz, …
        channels: How many the network sees.

    Returns:
        For each case its name (``case``) and its file, or files in the order of the channels (``image``).

    Raises:
        ValueError: If there is none, or a case has other channels.
    """
    suffixes = (".nii.gz", ".nii")
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(Path(folder).iterdir()):
        suffix = next((suffix for suffix in suffixes if path.name.endswith(suffix)), None)
        if suffix is not None:
            name = path.name.removesuffix(suffix)
            found[name if channels == 1 else name.rpartition("_")[0]].append(str(path))
    wrong = next((name for name, files in found.items() if len(files) != channels), None)
    if not found or wrong is not None:
        rule = "NIfTI files" if channels == 1 else f"{channels} files CASE_0000.nii.gz, … per case"
        got = "none" if wrong is None else f"{len(found[wrong])} of {wrong!r}"
        raise ValueError(f"{folder}: expected {rule}, got {got}. Set dataset_dir, or put them there.")
    return [{"case": name, "image": files[0] if channels == 1 else files} for name, files in found.items()]


@dataclass(frozen=True)
class Channel:
    """How a channel is normalized.

    Args:
        scheme: ``ct``: clip to [low, high], then (x - mean) / sd. ``zscore``: mean and SD of the image itself.
            ``zscore_nonzero``: those of the voxels in which some channel is not 0, and of holes in between. ``range``:
            the image's own range to 0 and 1. ``none``.
        mean: See ``ct``.
        sd: See ``ct``.
        low: None: nothing is clipped.
        high: As ``low``.
    """

    scheme: str
    mean: float = 0.0
    sd: float = 1.0
    low: float | None = None
    high: float | None = None


class Normalized(MapTransform):  # type: ignore[misc]  # MONAI is untyped
    """Normalize intensities channel by channel; ``channels`` holds the arguments of a :class:`Channel` for each."""

    def __init__(self, keys: str | Sequence[str], channels: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(keys)
        self.channels = [Channel(**channel) for channel in channels]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace images by float32 copies."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            result[key] = _of(image, normalize(image.as_tensor(), self.channels), image.meta)
        return result


class Resampled(MapTransform):  # type: ignore[misc]
    """Bring images to the grid of the network over the same field of view; :class:`Decided` takes the way back.

    Args:
        keys: Of images (C, I, J, K) as MetaTensors.
        spacing_mm: Spacing along i, j, k in mm.
        shape: Voxels wanted instead, whatever the spacing.
        order: Spline order.
        coarse_order: That along a coarse axis: more than 3 times coarser than the finest, before or after.
        separate: Whether there is such an axis.
        told_by: What tells it after resampling: ``voxels``, the spacing that whole voxels make, or ``spacing_mm``.
        own_axis: Axis along which the image keeps its spacing.
        logit_coarse_order: Spline order of logits, on the way back, along a coarse axis; else they are linear.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        spacing_mm: Sequence[float],
        shape: Sequence[int] | None = None,
        *,
        order: Order = 3,
        coarse_order: Order = 0,
        separate: bool = True,
        told_by: Literal["voxels", "spacing_mm"] = "voxels",
        own_axis: int | None = None,
        logit_coarse_order: int = 1,
    ) -> None:
        super().__init__(keys)
        self.spacing_mm, self.shape = tuple(spacing_mm), shape
        self.order, self.coarse_order = order, min(order, coarse_order)
        self.separate, self.told_by, self.own_axis = separate, told_by, own_axis
        self.logit_coarse_order = logit_coarse_order

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace images by float32 ones; their meta data say how to get back."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            affine = np.asarray(image.affine, dtype=np.float64)
            before = [int(n) for n in image.shape[1:]]
            spacing = [float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0)]
            axes = enumerate(zip(self.spacing_mm, spacing, strict=True))
            wanted = [own if axis == self.own_axis else mm for axis, (mm, own) in axes]
            by_spacing = [max(1, round(n * own / mm)) for n, own, mm in zip(before, spacing, wanted, strict=True)]
            after = list(self.shape or by_spacing)
            factor = np.array(before) / np.array(after)
            if self.told_by == "voxels":
                wanted = [float(mm) for mm in np.array(spacing) * factor]
            coarse, back = self._coarse(spacing, wanted), self._coarse(wanted, spacing)
            orders: list[Order] = [self.coarse_order if axis == coarse else self.order for axis in range(3)]
            resized = affine.copy()
            resized[:3, :3] = affine[:3, :3] * factor
            resized[:3, 3] += affine[:3, :3] @ (0.5 * factor - 0.5)  # voxel edges, not centres, stay in place
            logit_orders = [self.logit_coarse_order if axis == back else 1 for axis in range(3)]
            way = {_SHAPE: torch.tensor(before), _AFFINE: torch.tensor(affine), _ORDERS: torch.tensor(logit_orders)}
            meta = {**image.meta, **way, "affine": torch.tensor(resized)}
            result[key] = _of(image, resample(image.as_tensor(), after, orders), meta)
        return result

    def _coarse(self, spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
        return coarse_axis(spacing_mm, target_mm) if self.separate else None


class _Sizes:
    """Sizes of windows (i, j, k) that a network takes; a 2D one sees slices across an axis, of any number."""

    def __init__(self, rule: SizeRule, slice_axis: int | None) -> None:
        self.rule, self.slice_axis = rule, slice_axis
        self.divisor, self.margin = self._across(rule.step, 1), self._across(rule.margin, 0)

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The next legal window of at least a size."""
        if self.slice_axis is None:
            return self.rule.legal_size(size)
        in_plane = [n for axis, n in enumerate(size) if axis != self.slice_axis]
        return self._across(self.rule.legal_size(in_plane), size[self.slice_axis])

    def _across(self, in_plane: Sequence[int], across: int) -> tuple[int, ...]:
        sizes = list(in_plane)
        if self.slice_axis is not None:
            sizes.insert(self.slice_axis, across)
        return tuple(sizes)


class Windows(Inferer):  # type: ignore[misc]
    """Run a network over windows, and blend its logits where they overlap.

    Args:
        patch: Window (i, j, k) of the training.
        sizes: Arguments of a :class:`SizeRule`: sizes that the network takes.
        choice: Which windows: ``patch``; ``fit``: :func:`fitting_window`; ``margin``: :func:`prediction_window`.
        overlap: Fraction of a window that neighbours share, in [0, 1).
        blend: How voxels of a window weigh, see :func:`importance_map`.
        placement: Where windows lie, see :class:`Tiling`.
        batch: Windows per call of the network.
        slice_axis: Of a 2D network: the axis across its slices.
        axes: Axes of the image in the order in which the network sees them.
    """

    def __init__(
        self,
        patch: Sequence[int],
        sizes: Mapping[str, Any],
        *,
        choice: Literal["patch", "fit", "margin"] = "patch",
        overlap: float = 0.5,
        blend: Blend = "gaussian",
        placement: Placement = "even",
        batch: int = 4,
        slice_axis: int | None = None,
        axes: Sequence[int] = (0, 1, 2),
    ) -> None:
        super().__init__()
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, Sequence) else value for key, value in sizes.items()
        }
        self.patch, self.sizes, self.choice = tuple(patch), _Sizes(SizeRule(**values), slice_axis), choice
        self.overlap, self.blend, self.placement = overlap, blend, placement
        self.batch, self.axes = batch, tuple(axes)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, L, I, J, K) of images (B, C, I, J, K)."""
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        turned = plain.permute(0, 1, *(axis + 2 for axis in self.axes))
        logits = torch.stack([self._logits(volume, network) for volume in turned])
        return logits.permute(0, 1, *(self.axes.index(axis) + 2 for axis in range(3)))

    def _logits(self, volume: Tensor, network: Callable[..., Tensor]) -> Tensor:
        shape, margin = volume.shape[1:], self.sizes.margin
        tiling = Tiling.of(self._window(shape), self.overlap, margin, self.sizes.divisor, self.placement)
        starts, tile = tiling.starts(shape, 0), tiling.tile
        # Windows may reach beyond the volume: both it and the sums are as large as they need.
        low = [max(0, -min(along)) for along in zip(*starts, strict=True)]
        high = [
            max(0, max(along) + size - n) for along, size, n in zip(zip(*starts, strict=True), tile, shape, strict=True)
        ]
        seen = _extended(volume, [a + m for a, m in zip(low, margin, strict=True)], high, margin)
        weights = importance_map(tile, self.blend).to(volume.device)
        total = volume.new_zeros([a + n + b for a, n, b in zip(low, shape, high, strict=True)])
        sums: Tensor | None = None
        for first in range(0, len(starts), self.batch):
            places = [[s + a for s, a in zip(start, low, strict=True)] for start in starts[first : first + self.batch]]
            windows = torch.stack([seen[(slice(None), *_part(place, tiling.window))] for place in places])
            for place, logits in zip(places, network(windows), strict=True):
                part = _part(place, tile)
                sums = logits.new_zeros((len(logits), *total.shape)) if sums is None else sums
                sums[(slice(None), *part)] += logits * weights
                total[part] += weights
        assert sums is not None  # there is a window
        inside = _part(low, shape)
        return sums[(slice(None), *inside)] / total[inside]

    def _window(self, shape: Sequence[int]) -> tuple[int, ...]:
        if self.choice == "patch":
            return self.patch
        chosen = fitting_window if self.choice == "fit" else prediction_window
        return chosen(self.sizes, self.patch, shape)


def _extended(volume: Tensor, low: Sequence[int], high: Sequence[int], margin: Sequence[int]) -> Tensor:
    """A volume (C, I, J, K) with voxels around it: zeros, of networks with a margin its mirror image."""
    for axis, (before, after, lost) in enumerate(zip(low, high, margin, strict=True), start=1):
        size = volume.shape[axis]
        index = torch.arange(-before, size + after + lost, device=volume.device)
        if any(margin):  # the border voxel itself is not repeated
            period = max(2 * (size - 1), 1)
            folded = index % period
            volume = volume.index_select(axis, torch.minimum(folded, period - folded) if size > 1 else index * 0)
            continue
        wide = volume.new_zeros([*volume.shape[:axis], len(index), *volume.shape[axis + 1 :]])
        wide.narrow(axis, before, size).copy_(volume)
        volume = wide
    return volume


def _part(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))


class Decided(MapTransform):  # type: ignore[misc]
    """Logits on the grid of the network → class indices on the grid that :class:`Resampled` was given.

    Args:
        keys: Of logits (L, I, J, K).
        image_key: Of the image that they are of; its affine becomes that of the class indices.
        painting: Of regions: (channels, class) in their order, each painted where all its channels are above 0; none
            for classes, of which the highest logit wins.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        image_key: str = "image",
        painting: Sequence[tuple[Sequence[int], int]] = (),
    ) -> None:
        super().__init__(keys)
        self.image_key, self.painting = image_key, [(tuple(channels), painted) for channels, painted in painting]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace logits by (1, I', J', K') int16."""
        result = dict(data)
        image = result[self.image_key]
        target, orders = ([int(n) for n in image.meta[key]] for key in (_SHAPE, _ORDERS))
        image.affine = image.meta[_AFFINE]  # so that MONAI's way back begins on the right grid
        for key in self.key_iterator(result):
            logits = torch.as_tensor(result[key]).movedim(0, -1)
            labels = PlaneLabels(logits.shape[:3], target, self.painting, orders)
            parts = (logits[first : first + _PLANES].contiguous() for first in range(0, len(logits), _PLANES))
            planes = [found for part in parts for _, found in labels.add(part)]
            result[key] = MetaTensor(torch.cat(planes)[None].to(torch.int16), meta=dict(image.meta))
        return result


class Finished(MapTransform):  # type: ignore[misc]
    """Class indices on the grid of the file → label values, cleaned; masks are named after their cases.

    Args:
        keys: Of class indices (1, I, J, K).
        values: Label value of every class, background first.
        keep_largest: For each organ whose largest connected component alone is kept: what becomes of every class where
            the organ is taken away.
        remove_small: For each organ whose small components are removed: the same, and the least volume in mL.
        fill_holes: For each organ whose enclosed holes are filled: the same, and what becomes of every class where it
            is added.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        values: Sequence[int],
        keep_largest: Sequence[Sequence[int]] = (),
        remove_small: Sequence[tuple[Sequence[int], float]] = (),
        fill_holes: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    ) -> None:
        super().__init__(keys)
        self.values = np.array(values)
        self.keep_largest, self.remove_small, self.fill_holes = keep_largest, remove_small, fill_holes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace class indices by label values of the same shape, int32."""
        result = dict(data)
        for key in self.key_iterator(result):
            found = result[key]
            index: NDArray[np.integer[Any]] = found.as_tensor().cpu().numpy()[0].copy()
            voxel_ml = float(abs(np.linalg.det(np.asarray(found.affine, dtype=np.float64)[:3, :3]))) / 1000
            for rest in self.keep_largest:
                _take_away(index, rest, lambda sizes: np.arange(len(sizes)) != np.argmax(sizes))
            for rest, least_ml in self.remove_small:
                fewest = least_ml / voxel_ml - _ROUNDING
                _take_away(index, rest, partial(np.greater, fewest))
            for rest, added in self.fill_holes:
                _fill(index, rest, added)
            # Of an image of several files MONAI notes channels, which a mask has not: it would be saved as a slice.
            meta = {**found.meta, "spatial_shape": np.array(index.shape), "original_channel_dim": "no_channel"}
            if "case" in result:
                meta["filename_or_obj"] = f"{result['case']}.nii.gz"
            result[key] = MetaTensor(torch.from_numpy(self.values[index].astype(np.int32))[None], meta=meta)
        return result


def _take_away(
    index: NDArray[np.integer[Any]], rest: Sequence[int], stray: Callable[[NDArray[np.int64]], NDArray[np.bool_]]
) -> None:
    """Take an organ away, in place, where it is in stray components, which are told by the voxels of all."""
    components, count = ndimage.label(_held(index, rest), structure=_CORNERS)
    if count:
        gone = np.concatenate([[False], stray(np.bincount(components.ravel())[1:])])[components]
        index[gone] = np.array(rest)[index[gone]]


def _fill(index: NDArray[np.integer[Any]], rest: Sequence[int], added: Sequence[int]) -> None:
    """Add an organ, in place, where it encloses something on all sides; within the slice of a single one."""
    mask = _held(index, rest)
    flat = tuple(axis for axis, size in enumerate(mask.shape) if size == 1)
    filled = np.expand_dims(ndimage.binary_fill_holes(mask.squeeze(flat)), flat)
    holes = filled & ~mask
    index[holes] = np.array(added)[index[holes]]


def _held(index: NDArray[np.integer[Any]], rest: Sequence[int]) -> NDArray[np.bool_]:
    """Where an organ is: the classes that become others where it is taken away."""
    return np.isin(index, [n for n, left in enumerate(rest) if left != n])


def _of(image: MetaTensor, values: Tensor, meta: Mapping[str, Any]) -> MetaTensor:
    """Values that take the place of an image, with what MONAI notes of its way."""
    return MetaTensor(values, meta=dict(meta), applied_operations=image.applied_operations)
