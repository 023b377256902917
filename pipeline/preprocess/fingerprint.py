"""The dataset's fingerprint: what planning needs to know of every case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, sentence
from pipeline.core.labels import LabelTable
from pipeline.core.volume import Image, LabelMap, require_same_grid
from pipeline.data.layouts import CaseFiles
from pipeline.data.organ_masks import read_reference
from pipeline.data.volumes import read_image

__all__ = [
    "CaseFingerprint",
    "ChannelStatistics",
    "channel_statistics",
    "fingerprint_case",
    "foreground_box",
    "require_finite",
    "samples_per_case",
]

_MOST_SAMPLES, _ALL_SAMPLES, _FEWEST_SAMPLES = 10_000, 4_000_000, 100


@dataclass(frozen=True, eq=False)
class CaseFingerprint:
    """What one case tells the planner; axes are those of the target orientation.

    Args:
        id: Case id.
        shape: Voxels of the whole volume.
        cropped_shape: Voxels after cropping.
        spacing_mm: Spacing along the axes.
        intensities: (C, N) float32, intensities of randomly chosen foreground voxels; N may be 0.
        class_voxels: Number of voxels per class index, background first.
    """

    id: str
    shape: tuple[int, int, int]
    cropped_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    intensities: NDArray[np.float32]
    class_voxels: tuple[int, ...]


@dataclass(frozen=True)
class ChannelStatistics:
    """Foreground intensities of one channel over the whole dataset."""

    mean: float
    sd: float
    percentile_00_5: float
    percentile_99_5: float


def foreground_box(array: NDArray[np.floating[Any]]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Smallest box that holds every voxel in which some channel is not 0.

    Args:
        array: (C, I, J, K).

    Returns:
        First voxel and one past the last, along i, j, k; the whole volume if everything is 0.
    """
    occupied = array[0] != 0
    for channel in array[1:]:
        occupied |= channel != 0
    start, stop = [0, 0, 0], list(occupied.shape)
    if occupied.any():
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            where = np.flatnonzero(occupied.any(axis=others))
            start[axis], stop[axis] = int(where[0]), int(where[-1]) + 1
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def samples_per_case(cases: int) -> int:
    """Foreground intensities to keep of each case and channel: fewer of many cases, so that memory stays bounded."""
    return max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _ALL_SAMPLES // cases))


def fingerprint_case(
    files: CaseFiles,
    labels: LabelTable,
    orientation: str,
    crop: str,
    channels: int | None = None,
    samples: int = _MOST_SAMPLES,
) -> CaseFingerprint:
    """Read one case and take its fingerprint.

    Args:
        files: Where the case is; it must have a reference.
        labels: Label table of the dataset.
        orientation: Axis codes of the prepared data.
        crop: ``nonzero`` or ``none``.
        channels: Channels that the case must have, if that is known.
        samples: Foreground intensities to keep of each channel.

    Raises:
        DataError: If a file cannot be used, a channel is missing, grids differ, the image holds NaN or infinity, or a
            label is unknown.
    """
    if channels is not None and len(files.images) != channels:
        advice = "Add the missing files, or drop the case"
        raise DataError(sentence("image channels", f"{channels} files", len(files.images), advice, case=files.id))
    image, reference = read_checked(files)
    image, reference = image.reoriented(orientation), reference.reoriented(orientation)
    start, stop = foreground_box(image.array) if crop == "nonzero" else ((0, 0, 0), image.grid.shape)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    try:
        index = labels.to_index(reference.array)
    except ValueError as error:
        raise DataError(f"case {files.id}: {error}") from None
    generator = np.random.default_rng(len(files.id) + image.grid.voxels)  # the same voxels in every run
    where = np.flatnonzero(index > 0)
    if len(where) > samples:
        where = generator.choice(where, samples, replace=False)
    flat = image.array.reshape(image.channels, -1)
    return CaseFingerprint(
        files.id,
        image.grid.shape,
        (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]),
        image.grid.spacing_mm,
        flat[:, where].astype(np.float32),
        _counts(index[box], labels.classes),
    )


def _counts(index: NDArray[np.signedinteger[Any]], classes: int) -> tuple[int, ...]:
    """Voxels of every class, counted slab by slab, as counting takes eight bytes a voxel; ignored ones left out."""
    total = np.zeros(classes + 1, np.int64)
    for slab in index:
        total += np.bincount(slab.ravel().astype(np.int64) + 1, minlength=classes + 1)
    return tuple(total[1:].tolist())


def read_checked(files: CaseFiles) -> tuple[Image, LabelMap]:
    """Image and reference of a case, on the same grid, without NaN or infinity.

    Raises:
        DataError: If one of these does not hold.
    """
    image = read_image(files.images, case=files.id)
    require_finite(image.array, files.id)
    reference = read_reference(files)
    require_same_grid(image.grid, reference.grid, "label map grid", "the image grid", case=files.id)
    return image, reference


def require_finite(array: NDArray[np.floating[Any]], case: str | None) -> None:
    """Refuse NaN and infinity, naming how many voxels have them.

    Args:
        array: Intensities, any shape.
        case: Case id for the message, if there is one.

    Raises:
        DataError: If there are any.
    """
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise DataError(
            sentence("image", "finite intensities", f"{bad} voxels of NaN or infinity", "Repair the volume", case=case)
        )


def channel_statistics(fingerprints: Sequence[CaseFingerprint]) -> tuple[ChannelStatistics, ...]:
    """Foreground statistics of every channel over all cases, in which every case with foreground weighs the same.

    Args:
        fingerprints: At least one.

    Returns:
        One entry per channel; mean 0 and SD 1 with infinite limits where no case has any foreground.
    """
    pooled = np.concatenate([fingerprint.intensities for fingerprint in fingerprints], axis=1)
    if pooled.shape[1] == 0:
        return tuple(ChannelStatistics(0.0, 1.0, -np.inf, np.inf) for _ in range(pooled.shape[0]))
    sizes = [fingerprint.intensities.shape[1] for fingerprint in fingerprints]
    weights = np.repeat([1.0 / max(size, 1) for size in sizes], sizes)
    return tuple(_statistics(channel, weights / weights.sum()) for channel in pooled)


def _statistics(values: NDArray[np.float32], weights: NDArray[np.float64]) -> ChannelStatistics:
    mean = float(np.dot(values, weights))
    sd = float(np.dot(np.square(values - mean), weights)) ** 0.5
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    places = np.searchsorted(reached, [0.005, 0.995]).clip(max=len(order) - 1)
    low, high = values[order[places]].tolist()
    return ChannelStatistics(mean, sd or 1.0, low, high)
