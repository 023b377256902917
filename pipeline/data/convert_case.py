"""One case from the files of one dataset layout to those of another: unchanged where possible, else without loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, sentence
from pipeline.core.files import text_hash
from pipeline.core.grid import Grid
from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap, require_same_grid
from pipeline.data.dataset import CaseFiles, content_hashes
from pipeline.data.dicom_labels import open_labels
from pipeline.data.header_text import copy_volume
from pipeline.data.nibabel_alone import nib
from pipeline.data.nifti import load_nifti, write_nifti
from pipeline.data.nifti_forms import unit_of
from pipeline.data.organ_masks import merge_organs
from pipeline.data.volume_file import VolumeFile, split_source, volume_suffix
from pipeline.data.volumes import (
    is_dicom_label,
    open_volume,
    read_dicom_labels,
    read_label_map,
    read_voxels,
    require_channel_grid,
    write_label_map,
)

_VERSION = "2"
"""Raised when the conversion changes, so that cases converted by an older version are made again."""


@dataclass(frozen=True)
class ConvertTask:
    """One case to convert, as it travels to a worker.

    Args:
        source: Its files.
        target: The files to write, all ``.nii.gz``; as many images as the dataset has channels.
        labels: The source's label table.
        new_labels: The target's, class by class the same.
        link: Make hard links of files that need no change, instead of copies.
        earlier: The hash that an earlier conversion of the case gave, or an empty string.
        keep_text: Keep the free text of headers.
    """

    source: CaseFiles
    target: CaseFiles
    labels: LabelTable
    new_labels: LabelTable
    link: bool = False
    earlier: str = ""
    keep_text: bool = False


@dataclass(frozen=True)
class ConversionOutcome:
    """What became of a case.

    Args:
        content_hash: Of everything the new files depend on.
        new: Whether they were written now.
        not_finite: Voxels of the image that are NaN or infinite, all channels together; 0 if nothing was written.
        shared: Voxels that several organ masks claim; the organ listed later has them.
        cleared: Whether free text of a header was cleared in a copy.
    """

    content_hash: str
    new: bool
    not_finite: int = 0
    shared: int = 0
    cleared: bool = False


def convert_case(task: ConvertTask) -> ConversionOutcome:
    """Convert one case, unless the target is that of the same files already.

    A ``.nii.gz`` file that is just what the target asks for is copied, byte by byte if its header has no free text, or
    if that is to be kept. All other volumes are written anew:
    intensities and integer types unchanged, label maps in the smallest type, everything on the grid of channel 1.

    Raises:
        VolsegError: If a file cannot be used, the files do not belong together, a label value is not in the table, or
            the target cannot be written. None of the target's files are left then.
    """
    try:
        volumes = _opened(task)
        content_hash = _content_hash(task)
        if content_hash == task.earlier and all(path.is_file() for path in task.target.files):
            return ConversionOutcome(content_hash, new=False)
        reference, shared = _reference(task, volumes[0].grid)
        not_finite, cleared = _write_images(task, volumes)
        if reference is not None:
            cleared |= _write_reference(task, reference, volumes[0].path)
    except BaseException:
        for path in task.target.files:
            path.unlink(missing_ok=True)
        raise
    return ConversionOutcome(content_hash, True, not_finite, shared, cleared)


def _opened(task: ConvertTask) -> list[VolumeFile]:
    """Headers of all channels, on one grid; voxels of a file with several are read once."""
    files, wanted = task.source, len(task.target.images)
    if wanted != len(files.images):
        advice = "Give every case all channels, in the same order"
        raise DataError(sentence("image", f"{wanted} channels", len(files.images), advice, case=files.id))
    opened: dict[Path, VolumeFile] = {}
    volumes: list[VolumeFile] = []
    for number, source in enumerate(files.images, start=1):
        volume = open_volume(source, case=files.id)
        # One file may hold all channels: its voxels are read once and kept.
        volume = opened.setdefault(volume.path, replace(volume, load=cache(volume.load)))
        volumes.append(volume)
        require_channel_grid(volumes[0].grid, volume, number, files.id)
    return volumes


def _content_hash(task: ConvertTask) -> str:
    parts = [path.name for path in (*task.source.images, *task.source.label_sources)]  # which channel, which value
    written = [path.name for path in (*task.target.images, *task.target.label_sources)]
    values = [(table.values, table.ignore_label) for table in (task.labels, task.new_labels)]
    return text_hash(_VERSION, json.dumps([parts, written, values, task.keep_text]), *content_hashes(task.source))


def _reference(task: ConvertTask, grid: Grid) -> tuple[LabelMap | None, int]:
    """Label map with the target's values, on the image's grid, and the voxels that several organ masks claim."""
    source = task.source
    if not task.target.labelled:
        return None, 0
    shared = 0
    if source.label is not None and is_dicom_label(source.label):
        read = read_dicom_labels(open_labels(source.label, case=source.id))
        found, shared, file = read.label_map, read.shared, split_source(source.label)[0]
    elif source.label is not None:
        found, file = read_label_map(source.label, case=source.id), source.label
    else:
        found, shared = merge_organs(source.organs, soft=source.soft, case=source.id)
        file = source.organs[0][1]
    require_same_grid(grid, found.grid, "label map grid", "the image grid", case=source.id, file=str(file))
    try:
        # Class n of the old table is class n of the new one, whatever their values.
        values = task.new_labels.from_index(task.labels.to_index(found.array))
    except ValueError as error:
        raise DataError(f"case {source.id}: {file}: {error}") from None
    return LabelMap(values, grid), 0 if source.soft else shared


def _write_images(task: ConvertTask, volumes: Sequence[VolumeFile]) -> tuple[int, bool]:
    """Write all channels; returns how many voxels are not finite, and whether text was cleared."""
    cleared = False
    grid, together = volumes[0].grid, split_source(task.target.images[0])[1] == "channel"
    arrays = [read_voxels(volume, source) for volume, source in zip(volumes, task.source.images, strict=True)]
    if together:
        target = split_source(task.target.images[0])[0]
        # The file is taken as it is only if its channels are all of it, in its own order.
        whole = [(split_source(source)[0], *split_source(source)[2:]) for source in task.source.images]
        total = len(arrays)
        if whole == [(volumes[0].path, n + 1, total) for n in range(total)] and _is_plain(volumes[0], grid, axes=4):
            cleared = _copy(task, volumes[0].path, target)
        else:
            write_nifti(_compact(np.stack(arrays, axis=-1)), grid, target, like=volumes[0].path, settle=True)
        return sum(map(_count_not_finite, arrays)), cleared
    for volume, array, target in zip(volumes, arrays, task.target.images, strict=True):
        if volume.volumes == 1 and _is_plain(volume, grid, axes=3):
            cleared |= _copy(task, volume.path, target)
        else:
            write_nifti(_compact(array), grid, target, like=volume.path, settle=True)
    return sum(map(_count_not_finite, arrays)), cleared


def _copy(task: ConvertTask, source: Path, target: Path) -> bool:
    """Copy a file; whether text of its header was cleared."""
    return bool(copy_volume(source, target, keep_text=task.keep_text, link=task.link))


def _write_reference(task: ConvertTask, reference: LabelMap, image: Path) -> bool:
    """Write the label map, or a mask per organ; whether text was cleared."""
    for value, target in task.target.organs:
        mask = LabelMap((reference.array == value).astype(np.uint8), reference.grid)
        write_label_map(mask, target, like=image, settle=True)
    label, target_file = task.source.label, task.target.label
    if target_file is None:
        return False
    if label is not None and _is_same_label_map(label, reference):
        return _copy(task, label, target_file)
    write_label_map(reference, target_file, like=image, settle=True)
    return False


def _is_same_label_map(path: Path, wanted: LabelMap) -> bool:
    """Whether a file is what would be written: the same values in the smallest type on exactly the same grid."""
    if is_dicom_label(path):
        return False
    volume = open_volume(path)
    if not _is_plain(volume, wanted.grid, axes=3):
        return False
    header = load_nifti(path).header
    smallest = np.min_scalar_type(int(wanted.array.max()))
    stored_plainly = header.get_data_dtype() == smallest and header.get_slope_inter() in ((None, None), (1.0, 0.0))
    return stored_plainly and bool(np.array_equal(volume.load(), wanted.array))


def _is_plain(volume: VolumeFile, grid: Grid, *, axes: int) -> bool:
    """Whether a file is a NIfTI-1 file that every reader puts on exactly this grid.

    That asks for mm, which some take for granted, an sform, which is stored as it is, steps that are its own, and a
    qform that agrees or is not used: readers differ in which of two they take, and in what they do without any.
    """
    if volume_suffix(volume.path) != ".nii.gz" or volume.grid != grid or volume.doubts:
        return False
    header = load_nifti(volume.path).header
    if unit_of(header)[1] != 1.0:
        return False
    if len(header.get_data_shape()) != axes or int(header["sizeof_hdr"]) != nib.Nifti1Header.sizeof_hdr:
        return False
    if not header["sform_code"]:
        return False
    try:
        qform = header.get_qform(coded=True)[0]
        return qform is None or Grid(grid.shape, qform).matches(grid)
    except (nib.spatialimages.HeaderDataError, ValueError):  # quaternions or spacings that mean nothing
        return False


def _compact(array: NDArray[Any]) -> NDArray[Any]:
    """Double precision only where single precision would change a value; integers as they are."""
    if array.dtype != np.float64:
        return array
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    return single if np.array_equal(single, array, equal_nan=True) else array


def _count_not_finite(array: NDArray[Any]) -> int:
    return 0 if array.dtype.kind != "f" else array.size - int(np.count_nonzero(np.isfinite(array)))
