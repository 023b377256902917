"""A reader for MONAI's ``LoadImage`` and ``LoadImaged`` that refuses what :mod:`pipeline.data.volumes` refuses."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from pipeline.core.grid import Grid
from pipeline.data.dicom import is_dicom
from pipeline.data.organ_masks import merge_organs
from pipeline.data.volume_file import refuse, split_source, volume_suffix
from pipeline.data.volumes import read_image, read_label_map

PLACE = "place"
"""Key of the metadata: what the affine comes from, as :class:`~pipeline.core.grid.Grid` has it."""

_INT32_MAX = 2**31 - 1

FileNames = Sequence[str | PathLike[str]] | str | PathLike[str]


class VolumeReader(ImageReader):  # type: ignore[misc]  # MONAI has no types
    """Reads every format that :mod:`pipeline.data.volumes` reads, with its checks.

    A list of files is a list of channels: they must be on one grid and are stacked first. A label key takes
    ``CaseFiles.label_sources``: a label map file, or a tuple of organ masks ``liver.nii.gz#label=5``, which are
    merged. The affine in the metadata is RAS+, in mm, as MONAI's convention is.

    ``LoadImage`` converts to float32 unless told otherwise, which rounds label values above 2^24; load labels with
    ``LoadImaged("label", reader=VolumeReader(labels=True), dtype=None)``.

    Args:
        labels: Read label maps: refuse fractional and negative values, give int32 (int64 if needed).

    Raises:
        VolumeError: On loading, if a file cannot be used (inside a ``Compose``, as the cause of MONAI's error).
        DataError: On loading, if channels or organ masks are on different grids.

    Example:
        >>> from monai.transforms import LoadImaged
        >>> load = LoadImaged("image", reader=VolumeReader())
    """

    def __init__(self, labels: bool = False) -> None:
        super().__init__()
        self.labels = labels

    def verify_suffix(self, filename: FileNames) -> bool:
        """Whether every file has an ending that can be read, or is DICOM."""
        return all(volume_suffix(name) or is_dicom(split_source(name)[0]) for name in _listed(filename))

    def read(self, data: FileNames, **kwargs: Any) -> tuple[Path, ...]:
        """Return the sources as they are.

        The work is left to :meth:`get_data`: when ``read`` raises, ``LoadImage`` goes on to other readers, and these
        accept files that are refused here.
        """
        return _listed(data)

    def get_data(self, img: Sequence[Path]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Array (I, J, K), or (C, I, J, K) for several channels, and MONAI's metadata."""
        # A tuple of organ masks is one label map; a tuple of images is channels.
        sources = tuple(img)
        if any(split_source(source)[1] in ("label", "soft") for source in sources):
            organs = [(number, path) for path, _, number, _ in map(split_source, sources)]
            label_map, _ = merge_organs(organs, soft=split_source(sources[0])[1] == "soft")
            return _packed(_torch_integers(label_map.array), label_map.grid)
        if self.labels and len(sources) != 1:
            advice = "Give organ masks as file#label=value"
            raise refuse("labels", "label", "one file", len(sources), advice, file=sources[0])
        if self.labels:
            label_map = read_label_map(sources[0])
            return _packed(_torch_integers(label_map.array), label_map.grid)
        image = read_image(sources)
        return _packed(image.array if len(sources) > 1 else image.array[0], image.grid)


def _listed(names: FileNames) -> tuple[Path, ...]:
    return (Path(names),) if isinstance(names, (str, PathLike)) else tuple(Path(name) for name in names)


def _torch_integers(array: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """An integer type that PyTorch handles fully."""
    return array.astype(np.int32 if int(array.max()) <= _INT32_MAX else np.int64)


def _packed(array: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], dict[str, Any]]:
    """Array and the metadata that MONAI's transforms need."""
    meta: dict[str, Any] = {
        MetaKeys.AFFINE: grid.affine.copy(),
        MetaKeys.ORIGINAL_AFFINE: grid.affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.asarray(grid.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0 if array.ndim == 4 else float("nan"),
        PLACE: grid.place,
    }
    return array, meta
