"""Volume files ⇔ values: images, label maps and grids in RAS+ mm, arrays in (I, J, K) order.

NIfTI goes through nibabel, NRRD, MetaImage, PNG and TIFF through SimpleITK, DICOM series through pydicom. Whatever
cannot be used is refused with one sentence that names case and file. NaN and infinity in images are not refused here:
``volseg check`` counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.grid import Grid
from pipeline.core.volume import Image, LabelMap, require_same_grid
from pipeline.data.dicom import is_dicom, open_dicom, open_series
from pipeline.data.dicom_drawing import Target
from pipeline.data.dicom_labels import LabelsRead, OpenedLabels, open_labels
from pipeline.data.itk_open import open_itk, palette_indices
from pipeline.data.nifti import open_nifti, write_nifti
from pipeline.data.volume_file import (
    NIFTI_SUFFIXES,
    NRRD_SUFFIXES,
    PICTURE_SUFFIXES,
    TIFF_SUFFIXES,
    VOLUME_SUFFIXES,
    Doubt,
    VolumeError,
    VolumeFile,
    label_array,
    refuse,
    split_source,
    volume_suffix,
)

if TYPE_CHECKING:
    from pipeline.data.legend import LegendEntry

_ADVICE_4D = "Split it into one 3D file per channel or time point, or name its channels in the dataset's description"
_ADVICE_COLOUR = "Save it in greyscale, or give all pictures in colour"


def open_header(path: Path | str, *, case: str | None = None, straighten: bool = False) -> VolumeFile:
    """Read and check the header of a file, which may be 4D; otherwise as :func:`open_volume`."""
    path = Path(path)
    if volume_suffix(path) in NIFTI_SUFFIXES:
        return open_nifti(path, case=case, straighten=straighten)
    if split_source(path)[1] == "labels":
        labels = open_labels(path, case=case)
        target = label_target(labels)
        return VolumeFile(labels.path, target.grid, 1, None, lambda: labels.read(target).label_map.array)
    if split_source(path)[1] == "series" or is_dicom(path):
        return open_dicom(path, case=case)
    return open_itk(path, case=case, straighten=straighten)


def open_volume(source: Path | str, *, case: str | None = None, straighten: bool = False) -> VolumeFile:
    """Read and check the header of one volume.

    Args:
        source: A file, or one volume of a 4D file such as ``brain.nii.gz#channel=2of4``.
        case: Case id for messages.
        straighten: Take a slight shear out of the affine instead of refusing it.

    Returns:
        The opened file; :func:`read_voxels` reads its voxels.

    Raises:
        VolumeError: If the file is missing, unreadable, not 3D (or has not the number of channels that the source
            says), or its affine is not finite, not invertible or sheared.
    """
    path, kind, _, total = split_source(source)
    # The path of a DICOM series goes on with which one it is, that of labels with what they mean.
    volume = open_header(source if kind in ("series", "labels") else path, case=case, straighten=straighten)
    if volume.volumes != total:
        got = "a 3D volume" if volume.volumes == 1 else f"a 4D file of {volume.volumes} volumes"
        rule, advice = "a 3D volume", _ADVICE_4D
        if volume.is_colour:
            rule, got, advice = "one number per pixel", "the three colours of a picture", _ADVICE_COLOUR
        if kind == "channel":
            rule, advice = f"a 4D file of {total} volumes", "Correct the list of modalities or the file"
        raise refuse("dimensions", "shape", rule, got, advice, case=case, file=path)
    return volume


def read_voxels(volume: VolumeFile, source: Path | str) -> NDArray[Any]:
    """Voxels (I, J, K) of an opened volume: its stored type, or floating point if the header has a scale.

    Of a 4D file the channel that the source names is picked.
    """
    _, kind, number, _ = split_source(source)
    array = volume.load()
    return array[..., number - 1] if kind == "channel" and volume.volumes > 1 else array


def read_grid(path: Path | str) -> Grid:
    """Grid of a volume, from its header alone; refused as by :func:`open_volume`."""
    return open_volume(path).grid


def position_doubts(source: Path | str) -> tuple[Doubt, ...]:
    """Why other programs may place a volume elsewhere; none of a file that is refused."""
    path, kind, _, _ = split_source(source)
    # The others say it in one way.
    if volume_suffix(path) not in (*NIFTI_SUFFIXES, *TIFF_SUFFIXES) and not is_dicom(path):
        return ()
    try:
        return open_header(source if kind == "series" else path).doubts
    except VolumeError:
        return ()


def doubtful(files: Iterable[Path]) -> str | None:
    """The first of some label maps that other programs may place elsewhere, and what its header says."""
    doubts = (doubt for path in files for doubt in position_doubts(path) if doubt.severity == "warning")
    return next((f"{doubt.what} {doubt.got}" for doubt in doubts), None)


def doubtful_note(found: Sequence[str | None]) -> tuple[str, ...]:
    """A sentence on what :func:`doubtful` found in every case; none if that is nothing."""
    told = [doubt for doubt in found if doubt]
    where = "label maps that other programs may place elsewhere or size otherwise"
    return (f"{len(told)} of {len(found)} cases have {where}, e.g. {told[0]}.",) if told else ()


def read_image(paths: Path | str | Sequence[Path | str], *, case: str | None = None) -> Image:
    """Read an image of one or several channels.

    Args:
        paths: One source per channel, in channel order.
        case: Case id for messages.

    Returns:
        float32 intensities (C, I, J, K), contiguous.

    Raises:
        VolumeError: If a file cannot be used.
        DataError: If the channels are not on the same grid.
    """
    sources = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not sources:
        raise refuse("missing", "image", "at least one file", "none", "Name its files", case=case, file="image")
    volumes = [open_volume(source, case=case) for source in sources]
    grid = volumes[0].grid
    for number, volume in enumerate(volumes[1:], start=2):
        require_channel_grid(grid, volume, number, case)
    # Filled channel by channel: a list of channels to stack would take the memory twice.
    array = np.empty((len(sources), *grid.shape), dtype=np.float32)
    with np.errstate(over="ignore"):
        for channel, (volume, source) in enumerate(zip(volumes, sources, strict=True)):
            array[channel] = read_voxels(volume, source)
    return Image(array, grid)


def require_channel_grid(first: Grid, volume: VolumeFile, number: int, case: str | None) -> None:
    """Refuse a channel (numbered from 1) on another grid than the first one, with DataError."""
    what, rule = f"grid of channel {number}", "the grid of channel 1"
    require_same_grid(first, volume.grid, what, rule, case=case, file=str(volume.path))


def read_label_map(path: Path | str, *, case: str | None = None) -> LabelMap:
    """Read a label map exactly; whole numbers stored as floats are accepted, and so are greys stored as colours.

    The labels of a picture with a palette are its indices, those of a DICOM SEG the numbers of its segments.

    Args:
        path: Label map file.
        case: Case id for messages.

    Returns:
        Integer labels: the stored type, or the smallest unsigned type for floats.

    Raises:
        VolumeError: If the file cannot be used, holds colours, or a value is fractional, negative, NaN, infinite or
            above 2^32 - 1.
    """
    if split_source(path)[1] != "labels" and is_dicom_label(path):
        return open_labels(path, case=case).own_label_map()
    if volume_suffix(path) in PICTURE_SUFFIXES and (picture := open_header(path, case=case)).is_colour:
        return _grey_labels(picture, case)
    volume = open_volume(path, case=case)
    return LabelMap(label_array(read_voxels(volume, path), volume.path, case=case), volume.grid)


def is_dicom_label(source: Path | str) -> bool:
    """Whether labels are read as DICOM."""
    path, kind, _, _ = split_source(source)
    return kind == "labels" or (not volume_suffix(path) and is_dicom(path))


def label_target(labels: OpenedLabels) -> Target:
    """The voxels of the image that DICOM labels of a dataset belong to.

    Raises:
        VolumeError: If the image cannot be used.
        DataError: If its channels are not on the same grid.
    """
    assert labels.meaning is not None  # a dataset names the image
    sources, case = labels.meaning.images, labels.case
    volumes = [open_volume(source, case=case) for source in sources]
    for number, volume in enumerate(volumes[1:], start=2):
        require_channel_grid(volumes[0].grid, volume, number, case)
    named = [split_source(source)[0] for source in sources]
    dicom = [not volume_suffix(path) and is_dicom(path) for path in named]
    channels = [open_series(source, case=case) if is_it else None for source, is_it in zip(sources, dicom, strict=True)]
    return Target.of(volumes[0].grid, channels)


def read_dicom_labels(labels: OpenedLabels) -> LabelsRead:
    """DICOM labels of a dataset as a label map on the grid of their image.

    Raises:
        VolumeError: If image or labels cannot be used, or do not belong together.
        DataError: If the image's channels are not on the same grid.
    """
    return labels.read(label_target(labels))


def _grey_labels(picture: VolumeFile, case: str | None) -> LabelMap:
    """A label map stored in colour: the indices of a palette, or greys."""
    indices = palette_indices(picture, case)
    if indices is not None:
        return LabelMap(indices, picture.grid)
    red, green, blue = np.moveaxis(picture.load(), -1, 0)
    coloured = int(np.count_nonzero((red != green) | (red != blue)))
    if coloured:
        got, advice = f"colours in {coloured} pixels", "Save it in greyscale, the grey levels being the labels"
        raise refuse("type", "label map", "one number per pixel", got, advice, case=case, file=picture.path)
    return LabelMap(red, picture.grid)


def write_label_map(
    label_map: LabelMap,
    path: Path | str,
    *,
    like: Path | str | None = None,
    legend: Sequence[LegendEntry] = (),
    settle: bool = False,
) -> None:
    """Write a label map atomically, as the smallest unsigned type; equal labels give equal bytes.

    Args:
        label_map: Labels; comes back from :func:`read_label_map` on exactly the same grid.
        path: File to write; one of VOLUME_SUFFIXES. PNG holds one slice.
        like: Where both files are NIfTI, the form codes and spatial unit of this one are kept, and its forms too where
            other programs may place it elsewhere.
        legend: Names and colours of the values, for the headers of NIfTI and NRRD; other formats have no place for it.
        settle: As in :func:`~pipeline.data.nifti.write_nifti`.

    Raises:
        VolumeError: If the suffix is unknown, a label is negative or too large, or a picture cannot hold the grid.
        VolsegError: If the file cannot be written.
    """
    path = Path(path)
    labels = label_array(label_map.array, path)
    # The smallest type, whatever the labels came as, so that equal labels give equal bytes.
    labels = labels.astype(np.min_scalar_type(int(labels.max())), copy=False)
    write_voxels(labels, label_map.grid, path, like=like, legend=legend, settle=settle)


def write_image(image: Image, path: Path | str) -> None:
    """Write an image of one channel atomically, as float32.

    Args:
        image: Intensities (1, I, J, K).
        path: File to write; one of VOLUME_SUFFIXES except pictures.

    Raises:
        VolumeError: If the image has several channels, or the suffix is unknown or that of a picture.
        VolsegError: If the file cannot be written.
    """
    path = Path(path)
    if image.channels != 1:
        advice = "Write every channel to its own file"
        raise refuse("dimensions", "image", "one channel", image.channels, advice, file=path)
    write_voxels(image.array[0].astype(np.float32, copy=False), image.grid, path)


def write_voxels(
    array: NDArray[Any],
    grid: Grid,
    path: Path,
    *,
    like: Path | str | None = None,
    legend: Sequence[LegendEntry] = (),
    settle: bool = False,
) -> None:
    """Write voxels (I, J, K) atomically, in the type they have.

    Args:
        array: Integers or floats.
        grid: Their grid.
        path: File to write; one of VOLUME_SUFFIXES.
        like: Where both files are NIfTI, the form codes and spatial unit of this one are kept, and its forms too where
            other programs may place it elsewhere.
        legend: Names and colours of label values, for the headers of NIfTI and NRRD.
        settle: As in :func:`~pipeline.data.nifti.write_nifti`.

    Raises:
        VolumeError: If the suffix is unknown, or a picture cannot hold array or grid.
        VolsegError: If the file cannot be written.
    """
    suffix = volume_suffix(path)
    if not suffix:
        rule, advice = f"a name ending in {', '.join(VOLUME_SUFFIXES)}", "Choose one of these formats"
        raise refuse("format", "output file", rule, repr(path.name), advice, file=path)
    if suffix in NIFTI_SUFFIXES:
        from pipeline.data.legend import caret_xml

        table = caret_xml(legend) if legend else b""
        pattern = None if like is None else split_source(like)[0]
        write_nifti(array, grid, path, like=pattern, label_table=table, settle=settle)
    else:
        from pipeline.data.itk import write_itk  # here: loading SimpleITK takes time
        from pipeline.data.legend import segment_fields

        named = bool(legend) and suffix in NRRD_SUFFIXES
        write_itk(array, grid, path, segment_fields(legend, grid.shape) if named else None)
