"""The MONAI transforms that turn a case's files into arrays on the prepared grid.

:func:`transforms` puts them together: ``LoadImaged`` → ``CheckGridd`` → ``EnsureChannelFirstd`` →
``Turned`` → ``CropNonzerod`` → ``Normalized`` → ``Resampled``. Any further MONAI dictionary transform can be
appended. Models of TotalSegmentator see images resampled, ``Rounded`` and then normalized.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Identityd, LoadImaged, MapTransform

from pipeline.core.errors import DataError
from pipeline.core.grid import Box, Grid, orientation_change
from pipeline.core.labels import LabelTable
from pipeline.core.volume import require_same_grid
from pipeline.data.monai_reader import PLACE, VolumeReader
from pipeline.data.nibabel_alone import without_pydicom
from pipeline.preprocess.fingerprint import foreground_box, require_finite
from pipeline.preprocess.normalization import normalize
from pipeline.preprocess.plan_file import Normalization, Plan
from pipeline.preprocess.resample import Resampled


def grid_of(volume: MetaTensor) -> Grid:
    """Grid of a MetaTensor whose last three axes are spatial."""
    i, j, k = volume.shape[-3:]
    place = volume.meta.get(PLACE, "header")
    return Grid((int(i), int(j), int(k)), np.asarray(volume.affine, dtype=np.float64), place)


class CheckGridd(MapTransform):  # type: ignore[misc]
    """Refuse a case whose volumes are not on one grid, or whose image holds NaN or infinity.

    Args:
        keys: Keys of the volumes, the image first.

    Raises:
        DataError: On call, naming the difference in mm or the number of voxels.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check, and note the grid of the first volume under ``source_shape`` and ``source_affine``."""
        case = str(data.get("id", "")) or None
        grid = grid_of(data[self.keys[0]])
        for key in self.keys[1:]:
            if key in data:
                require_same_grid(grid, grid_of(data[key]), f"{key} grid", "the image grid", case=case)
                if grid.place != "header":  # pictures match by their shapes: from here on they have one resolution
                    data[key].affine = data[self.keys[0]].affine.clone()
        require_finite(data[self.keys[0]].numpy(), case)
        # Plain numbers, because MONAI's list_data_collate knows no grids.
        return {**data, "source_shape": grid.shape, "source_affine": grid.affine.copy()}


class Turned(MapTransform):  # type: ignore[misc]
    """Turn volumes to an orientation: permute and flip their axes.

    MONAI's ``Orientationd`` is no faster and not the same: for 4 of 192 grids at odd multiples of 45 degrees it takes
    other axes than :class:`Grid`, which leads predictions back, and elsewhere its affines differ by rounding.

    Args:
        keys: Keys of volumes (C, I, J, K).
        orientation: Axis codes wanted, e.g. RAS, or a function that tells them of a volume's grid. Which axes a volume
            has is decided as :class:`Grid` does.
    """

    def __init__(self, keys: Sequence[str], orientation: str | Callable[[Grid], str]) -> None:
        super().__init__(keys)
        self.orientation = orientation

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the volumes that lie otherwise."""
        result = dict(data)
        for key in self.key_iterator(result):
            volume, grid = result[key], grid_of(result[key])
            wanted = self.orientation if isinstance(self.orientation, str) else self.orientation(grid)
            if grid.orientation == wanted:
                continue
            order, flips = orientation_change(grid.orientation, wanted)
            # Contiguous at the end, because what follows reads the volume along its last axis.
            turned = volume.as_tensor().permute(0, *(axis + 1 for axis in order))
            turned = turned.flip([axis + 1 for axis, flipped in enumerate(flips) if flipped])
            affine = torch.from_numpy(grid.reoriented(wanted).affine.copy())
            result[key] = MetaTensor(turned.contiguous(), affine=affine)
        return result


class CropNonzerod(MapTransform):  # type: ignore[misc]
    """Crop to the smallest box that holds every voxel in which some channel is not 0; nothing if all are.

    MONAI's ``CropForegroundd`` does the same in 14 times the time.

    Args:
        keys: Keys of volumes on one grid, the image first. They become views, whose affine says where the box lies.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop, and note ``crop_start`` and ``crop_stop``: first voxels and one past the last, along i, j, k."""
        result = dict(data)
        box = foreground_box(result[self.keys[0]].as_tensor().numpy())
        result |= {"crop_start": box.start, "crop_stop": box.stop}
        if box == Box.whole(result[self.keys[0]].shape[1:]):
            return result
        for key in self.key_iterator(result):
            volume = result[key]
            shift = np.eye(4)
            shift[:3, 3] = box.start
            affine = np.asarray(volume.affine, dtype=np.float64) @ shift
            result[key] = MetaTensor(volume.as_tensor()[:, *box.slices], affine=torch.from_numpy(affine))
        return result


class LabelIndexd(MapTransform):  # type: ignore[misc]
    """Label values → class indices of a label table; ignored voxels become -1. Other values are refused."""

    def __init__(self, keys: Sequence[str], labels: LabelTable) -> None:
        super().__init__(keys)
        self.labels = labels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the label maps."""
        result = dict(data)
        for key in self.key_iterator(result):
            label = result[key]
            try:
                index = self.labels.to_index(label.as_tensor().numpy().astype(np.int64))
            except ValueError as error:
                raise DataError(f"case {data.get('id', '')}: {error}") from None
            result[key] = MetaTensor(torch.from_numpy(index), affine=label.affine)
        return result


class Normalized(MapTransform):  # type: ignore[misc]
    """Normalize intensities channel by channel as planned, one entry per channel."""

    def __init__(self, keys: Sequence[str], normalization: Sequence[Normalization]) -> None:
        super().__init__(keys)
        self.normalization = tuple(normalization)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the images by float32 copies."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            normalized = normalize(image.as_tensor(), self.normalization)
            result[key] = MetaTensor(normalized, affine=image.affine)
        return result


class Rounded(MapTransform):  # type: ignore[misc]
    """Round images to whole numbers; halves go to the even one."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the images by float32 copies."""
        result = dict(data)
        for key in self.key_iterator(result):
            rounded = result[key].as_tensor().to(torch.float32).round()
            result[key] = MetaTensor(rounded, affine=result[key].affine)
        return result


def _loader(key: str, reader: VolumeReader, **options: Any) -> LoadImaged:
    # Beside ours MONAI makes all its own readers, one of which complains that no GPU decodes DICOM.
    with without_pydicom():
        return LoadImaged([key], reader=reader, image_only=True, **options)


def transforms(plan: Plan, *, with_label: bool = True, load: bool = True, extra: Sequence[Any] = ()) -> Compose:
    """The chain from ``{"id", "image", "label"}`` to arrays on the prepared grid.

    Args:
        plan: The dataset's plan.
        with_label: Whether there is a label map too.
        load: Whether the entries are paths; otherwise they are MetaTensors (C, I, J, K).
        extra: Further MONAI dictionary transforms, run last.

    Returns:
        A MONAI ``Compose``.
    """
    keys = ["image", "label"] if with_label else ["image"]
    chain: list[Any] = []
    if load:
        chain.append(_loader("image", VolumeReader()))
    if load and with_label:  # without a dtype: MONAI would round labels through float32
        chain.append(_loader("label", VolumeReader(labels=True), dtype=None))
    chain += [
        CheckGridd(keys),
        EnsureChannelFirstd(keys) if load else Identityd(keys),
        Turned(keys, plan.orientation_of),
    ]
    if with_label:
        chain.append(LabelIndexd(["label"], plan.label_table))
    if plan.crop == "nonzero":
        chain.append(CropNonzerod(keys))
    normalized = Normalized(["image"], plan.normalization)
    resampled = Resampled(
        ["image"],
        plan.spacing_mm,
        label_keys=keys[1:],
        order=plan.image_order,
        coarse_order=plan.coarse_axis_order,
        shape=plan.shape,
        rule=None if plan.conventions is None else plan.resampling_of,
    )
    if plan.conventions is not None and plan.conventions.whole_numbers:
        chain += [resampled, Rounded(["image"]), normalized]
    else:
        chain += [normalized, resampled]
    return Compose([*chain, *extra])
